"""How every analysis leaves a figure: for the screen, and for a paper at the width of its columns."""

from pathlib import Path
from typing import Literal

import plotly.graph_objects as go

import rome_lens as rl


def write_figure(figure: go.Figure, path: Path, *, columns: Literal[1, 2] = 2) -> None:
    """Writes a figure as interactive HTML that stands alone, and as PDF, SVG and PNG for print.

    Where the printed forms cannot be drawn, the HTML is written all the same, and a printed sentence says what to
    install.

    Args:
        figure: what to write.
        path: where, without a suffix.
        columns: how many of a paper's columns the printed forms fill.
    """
    try:
        rl.plots.save(figure, path, columns=columns, suffixes=(".html", ".pdf", ".svg", ".png"), overwrite=True)
    except rl.errors.UnavailableError as error:
        print(f"{path.name}: {error}")
