"""Figures for a paper: PDF, SVG and PNG as wide as its columns."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import plotly.graph_objects as go
import plotly.io as pio

from rome_lens.checking import checked
from rome_lens.errors import UnavailableError
from rome_lens.plots.stacking import stacked
from rome_lens.storage import check_new_file, new_file

COLUMN_INCHES = {1: 3.3, 2: 6.8}
PRINTED_SIZE = 10 / 13  # of what is on the screen: letters of 13 pixels are 10 pixels, 7.5 points, high
PIXELS_PER_INCH = 96  # as browsers have it
DOTS_PER_INCH = 180  # of the PNG
SCALES = {".pdf": PRINTED_SIZE, ".svg": PRINTED_SIZE, ".png": PRINTED_SIZE * DOTS_PER_INCH / PIXELS_PER_INCH}
HTML = {"displayModeBar": False, "responsive": True}

Suffix = Literal[".html", ".json", ".pdf", ".svg", ".png"]


@checked
def save(
    figure: go.Figure,
    path: str | os.PathLike[str],
    *,
    columns: Literal[1, 2] = 2,
    suffixes: Sequence[Suffix] = (".pdf", ".svg", ".png"),
    overwrite: bool = False,
) -> list[Path]:
    """Writes a figure for a paper, with letters of 7.5 points.

    The printed forms are drawn by kaleido in a Chromium or Chrome browser.

    Args:
        figure: what any `plot_*` function gives, or another figure of plotly's; left unchanged.
        path: where, without a suffix: "figures/trace" gives figures/trace.pdf and so on.
        columns: the width, of one column (3.3 inches: panels stand one below the other) or of two (6.8 inches).
        suffixes: the forms; ".html" is an interactive page that stands alone, ".json" is for `plotly.io.read_json`;
            both have the panels side by side.
        overwrite: whether files that are there are replaced.

    Returns:
        The files, in the order of `suffixes`.

    Raises:
        FileExistsError: a file is there and `overwrite` is false.
        ValueError: no suffixes, or a path that has one.
        UnavailableError: kaleido or a browser is missing, and what to install. Nothing was written but HTML and JSON.
    """
    if not suffixes:
        raise ValueError(f"suffixes=[] names no form, expected at least one of {', '.join(get_args(Suffix))}.")
    if Path(path).suffix.lower() in get_args(Suffix):
        raise ValueError(f"path is {os.fspath(path)!r}, expected a name without a suffix. Choose forms with suffixes=.")
    paths = {suffix: Path(f"{os.fspath(path)}{suffix}") for suffix in suffixes}
    for each in paths.values():
        check_new_file(each, overwrite=overwrite)
    if ".html" in paths:
        with new_file(paths[".html"], overwrite=overwrite) as temporary:
            figure.write_html(temporary, config=HTML)
    if ".json" in paths:
        with new_file(paths[".json"], overwrite=overwrite) as temporary:
            figure.write_json(temporary)
    printed = [suffix for suffix in paths if suffix in SCALES]
    drawn = _drawn(stacked(figure) if columns == 1 else figure, printed, COLUMN_INCHES[columns]) if printed else {}
    for suffix, content in drawn.items():
        with new_file(paths[suffix], overwrite=overwrite) as temporary:
            temporary.write_bytes(content)
    return list(paths.values())


def _drawn(figure: go.Figure, suffixes: Sequence[Suffix], inches: float) -> dict[Suffix, bytes]:
    """The figure in each form; the browser is started once."""
    size = {"width": round(inches * PIXELS_PER_INCH / PRINTED_SIZE), "height": figure.layout.height}
    try:
        if find_spec("kaleido") is None:
            raise ImportError("kaleido is not installed")
        with TemporaryDirectory() as folder:
            paths = {suffix: Path(folder, f"figure{suffix}") for suffix in suffixes}
            scales = [SCALES[suffix] for suffix in suffixes]
            pio.write_images([figure] * len(paths), list(paths.values()), scale=scales, **size)
            return {suffix: path.read_bytes() for suffix, path in paths.items()}
    except (ImportError, RuntimeError) as error:  # a RuntimeError: the browser is missing or fails
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UnavailableError(
            f"The figure cannot be drawn as {', '.join(suffixes)} ({reason}). Install what draws it: "
            "pip install 'rome-lens[figures]', and a browser: apt install chromium, or plotly_get_chrome."
        ) from error
