"""The figures of the site as they are on a screen: a reader may point at them, and zoom in.

A picture with a figure's file beside it (`NAME.json`, or what a notebook's cell has kept) stays in the page, for those
who print it or run no scripts; `figures.js` puts the figure in its place. plotly.js lies in the site once.
"""

import json
import os
import re
import runpy
from pathlib import Path

import nbformat
import plotly.graph_objects as go
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).parent.parent.resolve()
FOLDER = "figures"  # of the site
PLOTLY, SHOWING = f"{FOLDER}/plotly.min.js", "figures.js"
KEPT = "application/vnd.plotly.v1+json"

_IMAGE = re.compile(r'<img (?P<rest>[^>]*?src="(?P<source>[^":]+)\.png"[^>]*?)/?>')
# By itself, since the package brings torch along.
_stacked = runpy.run_path(str(ROOT / "rome_lens/plots/stacking.py"))["stacked"]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds plotly.js."""
    files.append(File.generated(config, PLOTLY, content=get_plotlyjs()))
    return files


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tells each picture of a figure where its figure is."""
    here = Path(page.file.dest_uri).parent

    def told(image: re.Match[str]) -> str:
        picture = os.path.normpath(here / image["source"])
        figure = _figure(picture)
        if figure is None:
            return image[0]
        name = picture.replace("/", "-") + ".js"
        if files.get_file_from_path(f"{FOLDER}/{name}") is None:
            files.append(File.generated(config, f"{FOLDER}/{name}", content=_script(name, figure)))
        figure_at, plotly_at = (os.path.relpath(each, here) for each in (f"{FOLDER}/{name}", PLOTLY))
        return f'<img data-figure="{figure_at}" data-plotly="{plotly_at}" {image["rest"]}/>'

    content = _IMAGE.sub(told, content)
    if "data-figure=" in content:
        content += f'<script src="{os.path.relpath(SHOWING, here)}" defer></script>'
    return content


def _figure(picture: str) -> go.Figure | None:
    """The figure that a picture of the site shows: of a results' folder, or of a notebook's cell."""
    if picture.startswith("repository/"):
        path = ROOT / f"{picture.removeprefix('repository/')}.json"
        return go.Figure(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    if cell := re.fullmatch(r"(notebooks/\w+?)_(\d+)_(\d+)", picture):
        notebook = nbformat.read(ROOT / f"{cell[1]}.ipynb", as_version=4)
        kept = notebook.cells[int(cell[2])].outputs[int(cell[3])].data.get(KEPT)
        return kept and go.Figure(data=kept["data"], layout=kept["layout"])
    return None


def _script(name: str, figure: go.Figure) -> str:
    """A script that gives figures.js both forms: as it is, and with its panels one below the other."""
    forms = {"wide": figure, "narrow": _stacked(figure)}
    content = ", ".join(f'"{form}": {each.to_json()}' for form, each in forms.items())
    return f"(window.romeLensFigures ??= {{}})[{json.dumps(name)}] = {{{content}}};\n"
