"""How every analysis leaves its figures, for the screen and for a paper, and how kept results are drawn again."""

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import plotly.graph_objects as go

import rome_lens as rl
from rome_lens.plots.saving import Suffix

from .manifest import NAME

ONE_COLUMN = ("bleed_over", "near_subjects", "trace", "heads", "robustness")  # they have one panel

_ANALYSIS = re.compile(r"(?:analyses\.|rome-lens )(\w+)")


def write_figures(
    figures: Mapping[str, go.Figure],
    folder: Path,
    *,
    columns: Literal[1, 2] | None = None,
    forms: Sequence[Suffix] = (".html", ".pdf", ".svg", ".png"),
) -> None:
    """Writes figures as interactive HTML that stands alone, and as PDF, SVG and PNG for print.

    Where the printed forms cannot be drawn, the HTML is written all the same, and a printed sentence says what to
    install.

    Args:
        figures: by their names.
        folder: where; figures of the same names are replaced.
        columns: how many of a paper's columns the printed forms fill; None: two, but one for `ONE_COLUMN`.
        forms: which to write.
    """
    for name, figure in figures.items():
        width = columns or (1 if name in ONE_COLUMN else 2)
        try:
            rl.plots.save(figure, folder / name, columns=width, suffixes=forms, overwrite=True)
        except rl.errors.UnavailableError as error:
            print(f"{name}: {error}")


def kept_figures(folder: Path) -> dict[str, go.Figure]:
    """The figures of an analysis from the tables that it has left in a folder.

    Raises:
        ValueError: the folder has no manifest, or the analysis that it names draws no figures.
    """
    if not (folder / NAME).is_file():
        raise ValueError(f"{folder} holds no {NAME}, expected a folder that an analysis has written.")
    command = json.loads((folder / NAME).read_text(encoding="utf-8"))["command"]
    found = _ANALYSIS.search(command)
    module = importlib.import_module(f"..{found[1]}", __package__) if found else None
    if module is None or not hasattr(module, "figures"):
        raise ValueError(f"{folder} was made by `{command}`, which draws no figures.")
    drawn: dict[str, go.Figure] = module.figures(folder)
    return drawn
