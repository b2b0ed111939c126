"""The notebooks as pages of the site, with the outputs that are kept in them.

nbconvert makes Markdown of each; its pictures and the notebook itself lie beside the page. An output that needs a
script is left out, since pages load none: a sentence stands there instead.
"""

import re
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

FOLDER = Path(__file__).parent.parent / "notebooks"
NEEDS_SCRIPT = "<p><em>A view that moves: open the notebook in Jupyter to see it.</em></p>"

_LOOKS = re.compile(r"<style.*?</style>| (class|border|style)=\"[^\"]*\"", re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds notebooks/NAME.md for each notebook, its pictures, and the notebook to download."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        page, pictures = converted(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def converted(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the names that the Markdown has for them."""
    notebook = nbformat.read(path, as_version=4)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if html := output.get("data", {}).get("text/html"):
            output.data["text/html"] = NEEDS_SCRIPT if "<script" in html else _LOOKS.sub("", html)
    page, resources = MarkdownExporter().from_notebook_node(notebook, resources={"unique_key": path.stem})
    page = page.replace("![png](", "![A figure, drawn by the cell above](")
    heading, _, rest = page.partition("\n")
    download = f'<p><a href="{path.name}" download>Download this notebook</a></p>'
    return f"{heading}\n\n{download}\n{rest}", resources["outputs"]
