"""The documentation site: it builds without a warning, its links lead somewhere, and its examples run."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import transformers

import rome_lens as rl
from tests import tiny
from tests.public import DOCUMENTED
from tests.test_explorer_browser import BROWSER

ROOT = Path(__file__).parent.parent
EXAMPLES = re.compile(r"^```python(?P<title>.*?)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if EXAMPLES.search(page.read_text(encoding="utf-8"))]


class Document(HTMLParser):
    """What a page offers to links, where its own lead, and what a browser loads with it."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if "href" in values:
            (self.loaded if tag == "link" else self.links).add(values["href"])
        self.loaded |= {values[name] for name in ("src", "data-figure", "data-plotly") if name in values}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    # Not quiet: mkdocs then hears no warning to be strict about.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    """Its pages."""
    return {page: Document(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}


def test_every_public_name_is_in_the_reference_once(site, documents):
    reference = [documents[page] for page in (site / "api").glob("*.html")]
    found = {path: sum(path in page.ids for page in reference) for path in DOCUMENTED.values()}
    assert found == dict.fromkeys(DOCUMENTED.values(), 1)


def broken(site: Path, documents: dict[Path, Document]) -> Iterator[str]:
    """The links and files that lead nowhere."""
    for page, document in documents.items():
        for link in document.links | document.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{page.relative_to(site)}: {link} is not there"
            elif parts.fragment and target in documents and unquote(parts.fragment) not in documents[target].ids:
                yield f"{page.relative_to(site)}: {link} has no such place"


def test_no_link_inside_the_site_is_broken(site, documents):
    assert len(documents) > 15
    assert list(broken(site, documents)) == []


def test_pages_load_nothing_from_elsewhere(documents):
    loaded = {link for document in documents.values() for link in document.loaded}
    assert loaded
    assert [link for link in loaded if urlsplit(link).netloc] == []


def test_tables_have_no_empty_intervals_and_write_thousands_out(site):
    cells = [
        cell for page in site.glob("*.html") for cell in re.findall(r"<td[^>]*>(.*?)</td>", page.read_text("utf-8"))
    ]
    assert len(cells) > 500
    assert [cell for cell in cells if re.search(r"\( to|e\+0[3-6]", cell)] == []


def test_figures_are_interactive_and_fit_a_narrow_screen(site):
    """From disk: each takes its picture's place when it comes into view, panels below each other if narrow."""
    if BROWSER is None:
        pytest.skip("needs Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 420, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(urlsplit(request.url).scheme))
        page.goto((site / "gallery.html").as_uri())
        page.evaluate("document.querySelector('img[alt^=Average]').scrollIntoView()")
        page.locator(".figure[aria-label^=Average] .heatmaplayer image").first.wait_for()
        shown = page.get_by_label("Average effects by role and layer")
        tops = shown.evaluate("box => ['yaxis', 'yaxis2', 'yaxis3'].map(axis => box.layout[axis].domain[1])")
        assert len(set(tops)) == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        assert set(asked) <= {"file", "data", "blob"}
        browser.close()


def test_equations_are_mathml_and_tables_hold_what_was_measured(site):
    edit = (site / "edit.html").read_text(encoding="utf-8")
    assert edit.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') >= 4
    assert "arithmatex" not in edit
    results = (site / "results.html").read_text(encoding="utf-8")
    lines = (ROOT / "analyses/results/table4_smollm2-135m/table.csv").read_text().splitlines()
    names, values = lines[0].split(","), lines[1].split(",")
    measured = dict(zip(names, values, strict=True))
    assert f"<td>{float(measured['S']):.3g} ({float(measured['S_low']):.3g} to " in results
    assert "{{" not in results
    some = (site / "benchmarks.html").read_text(encoding="utf-8")
    published = (ROOT / "analyses/results/published_scores_smollm2-135m/by_method.csv").read_text().splitlines()[1:]
    assert some.count("<td>CAP_efficacy</td>") == sum(",CAP_efficacy," in line for line in published) == 2
    assert "{{" not in some


def test_what_a_page_shows_is_linked_as_that_page(documents, site):
    """And not as a copy of the file; so the gallery is reached from a page that names its file."""
    assert "gallery.html" in documents[site / "own_model.html"].links
    assert "../results.html" in documents[site / "notebooks/locate.html"].links
    assert not (site / "repository/analyses/README.md.txt").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_all_its_outputs(site, documents, path):
    """Figures as pictures and tables as tables; where an output needs a script, a sentence says so."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    assert page.count("drawn by the cell above") == sum("image/png" in data for data in outputs) > 0
    scripts = sum("<script" in data.get("text/html", "") for data in outputs)
    assert page.count("open the notebook in Jupyter") == scripts
    assert page.count("<table>") == sum("text/html" in data for data in outputs) - scripts > 0
    assert f"{path.name}" in documents[site / "notebooks" / f"{path.stem}.html"].links
    assert f"notebooks/{path.stem}.html" in documents[site / "quickstart.html"].links


def test_names_and_modules_on_pages_are_there():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    commands = set(re.findall(r"rome-lens (\w+)", text))
    assert commands
    files = set(re.findall(r"`(rome_lens/[\w/]+\.py)`", text)) | {f"analyses/{name}.py" for name in commands}
    assert [name for name in files if not (ROOT / name).is_file()] == []
    names = set(re.findall(r"\brl\.(\w+(?:\.\w+)?)", text))
    assert [name for name in names if not is_there(name)] == []


def is_there(name: str) -> bool:
    """Whether `rl.name` is public, or `rl.room.name`, or `rl.Class.attribute`."""
    first, _, second = name.partition(".")
    room = inspect.ismodule(getattr(rl, first, None))
    return first in rl.__all__ and (not second or not room or second in getattr(rl, first).__all__)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with enough layers for the examples, which are written for SmolLM2."""
    folder = tmp_path_factory.mktemp("stand_in")
    config = tiny.CONFIGS["llama"]()
    config.num_hidden_layers = 6
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # a tiny model knows no fact, and its edits are not healthy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, stand_in, tmp_path, monkeypatch):
    """One after the other as they stand, on a tiny model; a title that begins with "not run" says why one is not."""
    load_model = rl.load_model
    monkeypatch.setattr(rl, "load_model", lambda name: load_model(stand_in, device="cpu"))
    monkeypatch.setattr("rome_lens.edit.methods.rome.shipped_covariance", covariance_of)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in EXAMPLES.finditer(page.read_text(encoding="utf-8")):
        if 'title="not run' not in example["title"]:
            exec(compile(example["code"], page.name, "exec"), names)
    assert names.get("rl", rl) is rl


def covariance_of(model) -> rl.KeyCovariance:
    """Of the layer that the examples edit."""
    texts = [tiny.CORPUS]
    return rl.collect_covariance(model, layers=[4], texts=texts, tokens=120, progress=False)[4].shrunk(0.1)
