"""Runs the notebooks and keeps their outputs in them, with a picture beside each plotly figure.

GitHub and nbviewer run no scripts: they show the picture. Jupyter shows the figure. Progress bars are left out.
"""

import os
from argparse import ArgumentParser
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import nbformat
import plotly.io as pio
from nbclient import NotebookClient
from nbformat import NotebookNode

from rome_lens.storage import new_file

FOLDER = Path(__file__).parent
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDTH, SCALE = 900, 1.5  # of a picture: pixels, and how many of its dots make one


def execute(path: Path) -> NotebookNode:
    """A notebook with the outputs that it has now; the file is left as it is."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # its usual one puts 4 MB of scripts beside a first figure
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1800, resources=resources, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata.pop("widgets", None)
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if not _passing(output)]
        for output in cell.outputs:
            if figure := output.get("data", {}).get(PLOTLY):
                output.data["image/png"] = _picture(figure)
    return notebook


def code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The cells that run."""
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def _passing(output: NotebookNode) -> bool:
    """Whether an output is a progress bar or a log."""
    return WIDGET in output.get("data", {}) or output.get("name") == "stderr"


def _picture(figure: NotebookNode) -> str:
    """A figure as a PNG, in base64."""
    return b64encode(pio.to_image(figure, "png", width=WIDTH, scale=SCALE, validate=False)).decode()


def main() -> None:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("notebooks", type=Path, nargs="*", default=sorted(FOLDER.glob("*.ipynb")), help="which")
    for path in arguments.parse_args().notebooks:
        notebook = execute(path)
        with new_file(path, overwrite=True) as temporary:
            nbformat.write(notebook, temporary)
        print(path)


if __name__ == "__main__":
    main()
