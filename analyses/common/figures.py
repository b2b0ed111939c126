"""How every analysis leaves a figure: for the screen, and for a paper at the width of its columns."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import plotly.graph_objects as go
import plotly.io as pio

from rome_lens.storage import new_file

COLUMN_INCHES = {1: 3.3, 2: 6.8}
PRINTED_SIZE = 10 / 13  # of what is on the screen: letters of 13 pixels are 10 pixels, 7.5 points, high
PIXELS_PER_INCH = 96  # as browsers have it
DOTS_PER_INCH = 180  # of the PNG
SCALES = {".pdf": PRINTED_SIZE, ".svg": PRINTED_SIZE, ".png": PRINTED_SIZE * DOTS_PER_INCH / PIXELS_PER_INCH}
HTML = {"displayModeBar": False, "responsive": True}
INSTALL = "pip install 'rome-lens[figures]', and a browser: apt install chromium, or plotly_get_chrome"


def write_figure(
    figure: go.Figure, path: Path, *, columns: int = 2, suffixes: Sequence[str] = (".html", *SCALES)
) -> None:
    """Writes a figure as interactive HTML that stands alone, and as PDF, SVG and PNG for print.

    The printed forms are drawn by kaleido in a Chromium or Chrome browser. Without them the HTML is written all the
    same, and a printed sentence says what to install.

    Args:
        figure: what to write.
        path: where; its suffix is replaced by each of `suffixes`.
        columns: how many of a paper's columns the printed forms fill.
        suffixes: which forms.
    """
    if ".html" in suffixes:
        with new_file(path.with_suffix(".html"), overwrite=True) as temporary:
            figure.write_html(temporary, config=HTML)
    printed = [suffix for suffix in suffixes if suffix in SCALES]
    try:
        drawn = _drawn(figure, printed, round(COLUMN_INCHES[columns] * PIXELS_PER_INCH / PRINTED_SIZE))
    except (ImportError, RuntimeError) as error:  # a RuntimeError: the browser is missing or fails
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        print(f"{path.stem} was not written as {', '.join(printed)} ({reason}). Install what draws them: {INSTALL}.")
        return
    for suffix, content in drawn.items():
        with new_file(path.with_suffix(suffix), overwrite=True) as temporary:
            temporary.write_bytes(content)


def _drawn(figure: go.Figure, suffixes: Sequence[str], width: int) -> dict[str, bytes]:
    """The figure in each form; the browser is started once."""
    if find_spec("kaleido") is None:
        raise ImportError("kaleido is not installed")
    with TemporaryDirectory() as folder:
        paths = {suffix: Path(folder, f"figure{suffix}") for suffix in suffixes}
        scales = [SCALES[suffix] for suffix in suffixes]
        size = {"width": width, "height": figure.layout.height}
        pio.write_images([figure] * len(paths), list(paths.values()), scale=scales, **size)
        return {suffix: path.read_bytes() for suffix, path in paths.items()}
