"""What the site needs beside its pages: measured tables, files of the repository, and equations that need no script.

A line `{{ CHANGELOG.md }}` is that file; `{{ analyses/results/NAME.csv: columns }}` is a table of those columns, and
`{{ analyses/results/NAME.csv[column=value]: columns }}` one of the rows with this value, made when the site is built,
so that no number is copied. Paths start at the repository's root.
"""

import html
import os
import re
from functools import cache
from pathlib import Path

import latex2mathml.converter
import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
COPIES = "repository"  # where files that a page links to, but that are no pages, are in the site

_INCLUDED = re.compile(r"^\{\{ (?P<path>\S+\.md) \}\}$", re.MULTILINE)
_TABLE = re.compile(
    r"^\{\{ (?P<path>\S+\.csv)(?:\[(?P<column>\w+)=(?P<value>[^\]]+)\])?: (?P<columns>.+) \}\}$", re.MULTILINE
)
_HEADING = re.compile(r"^(#+ )", re.MULTILINE)
_LINK = re.compile(r"\]\((?!\w+:|#|/)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts files and tables in their places, and makes links to files of the repository links in the site."""

    def links(text: str, folder: Path) -> str:
        return _LINK.sub(lambda link: _in_site(link, folder, page, config, files), text)

    written = ROOT if page.file.generated_by else DOCS  # a notebook's page is in the site where the notebook is
    markdown = links(markdown, written / Path(page.file.src_uri).parent)
    markdown = _INCLUDED.sub(lambda found: links(_included(found), (ROOT / found["path"]).parent), markdown)
    return _TABLE.sub(
        lambda found: _table(found["path"], found["columns"].split(), found["column"], found["value"]), markdown
    )


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes MathML of the equations."""
    return _EQUATION.sub(
        lambda found: latex2mathml.converter.convert(
            html.unescape(found["tex"]), display="block" if found[1] == "div" else "inline"
        ),
        content,
    )


def _included(found: re.Match[str]) -> str:
    """A file, its headings a level lower where it does not begin the page."""
    return _HEADING.sub(r"#\1", _read(found["path"])) if found.start() else _read(found["path"])


def _in_site(link: re.Match[str], folder: Path, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The link, to a copy in the site if it leads to a file that is no page. mkdocs warns of one that leads nowhere."""
    path = (folder / link["path"]).resolve()
    if not (path.is_file() and path.is_relative_to(ROOT)):
        return link[0]
    uri = _uri(path)
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return f"]({os.path.relpath(uri, Path(page.file.src_uri).parent)}{link['anchor'] or ''})"


def _uri(path: Path) -> str:
    """Where a file of the repository is in the site: a page of docs/ or of a notebook, or a copy."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    uri = path.relative_to(ROOT).as_posix()
    if uri in _shown():
        return _shown()[uri]
    if path.suffix == ".ipynb":
        return f"{uri.removesuffix('.ipynb')}.md"
    return f"{COPIES}/{uri}" + (".txt" if path.suffix == ".md" else "")


@cache
def _shown() -> dict[str, str]:
    """The files of the repository that a page shows, and the page."""
    pages = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}
    return {found["path"]: page for page, text in pages.items() for found in _INCLUDED.finditer(text)}


def _read(path: str) -> str:
    if not (ROOT / path).is_file():
        raise PluginError(f"There is no file {path}, expected one of the repository, counted from its root.")
    return (ROOT / path).read_text(encoding="utf-8")


def _table(path: str, columns: list[str], among: str | None, value: str | None) -> str:
    """Columns of a CSV file as a table in Markdown, each with its interval where the file has one; with `among`, of the
    rows that have `value` in that column.
    """
    if not (ROOT / path).is_file():
        raise PluginError(f"There is no file {path}, expected a table that an analysis wrote.")
    frame = pd.read_csv(ROOT / path)
    if missing := [column for column in (*columns, *filter(None, [among])) if column not in frame]:
        raise PluginError(f"{path} lacks the columns {missing}, expected some of {list(frame)}.")
    if among is not None:
        frame = frame[frame[among].astype(str) == value]
        if frame.empty:
            raise PluginError(f"No row of {path} has {value!r} as {among}.")
    shown = zip(*(_with_interval(frame, column) for column in columns), strict=True)
    rows = [columns, ["---"] * len(columns), *shown]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _with_interval(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column's numbers as text, with their intervals if these are the next two columns."""
    numbers, place = frame[column].map(_number), frame.columns.get_loc(column)
    low, high = ends = [*frame.columns[place + 1 : place + 3], "", ""][:2]
    if ends not in ([f"{column}_low", f"{column}_high"], ["ci_low", "ci_high"]):
        return numbers
    interval = " (" + frame[low].map(_number) + " to " + frame[high].map(_number) + ")"
    return numbers + interval.where(frame[low].notna() & frame[high].notna(), "")


def _number(value: object) -> str:
    """Three digits that count; whole numbers and words as they are."""
    if not isinstance(value, float):
        return str(value)
    rounded = float(f"{value:.3g}")
    return "" if pd.isna(value) else f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e7 else f"{value:.3g}"
