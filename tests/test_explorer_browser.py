"""The explorer in a real browser: a click on a cell restores it, an edit is forecast, applied and undone; all fits."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the PATH")

CELL = """
import rome_lens as rl
from tests.edit.methods.test_rome import CONTEXTS, covariance_of

model = rl.load_model({folder!r}, device="cpu")
rl.Explorer(
    model,
    rl.Fact("{{}} is located in the city of", "The Eiffel Tower"),
    target="Rome",
    tracing=rl.TraceConfig(samples=2, window=1),
    config=rl.RomeConfig(layer=1, contexts=CONTEXTS, steps=3),
    covariances={{1: covariance_of(model)}},
)
"""


@pytest.fixture
def page_address(tiny_folder, tmp_path: Path) -> Iterator[str]:
    """Voila serving a notebook with the explorer on a tiny model."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(folder=str(tiny_folder("gpt2"))))])
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "voila", str(tmp_path / "explorer.ipynb"), f"--port={port}", "--no-browser"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}voila/static/voila.js", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, server.stderr.read().decode()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_the_explorer_is_clicked_in_a_browser(page_address, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 2000})
        page.set_default_timeout(120_000)
        page.goto(page_address)

        def press(name: str, then: str | None = None) -> None:
            page.get_by_role("button", name=name).click()
            if then:
                shows(then)

        def shows(text: str) -> None:
            """Waits until a reader sees it; on failure, says what the page shows instead."""
            expect(page.locator("body")).to_contain_text(text, use_inner_text=True)

        press("Trace", then="Click a cell")
        heatmap = page.locator(".nsewdrag").last
        heatmap.wait_for()
        box = heatmap.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        shows("Restored at")

        press("Forecast", then="it would add at others")
        press("Protect these")
        protected = page.get_by_role("textbox", name="protect")
        expect(protected).not_to_have_value("")  # until then, the buttons are about to be disabled: a click may be lost
        press("Apply", then="The model is edited.")
        page.screenshot(path=tmp_path / "explorer.png", full_page=True)
        page.set_viewport_size({"width": 480, "height": 2400})
        assert page.evaluate("document.documentElement.scrollWidth") <= 480
        page.wait_for_function("document.querySelector('.main-svg').getBoundingClientRect().width <= 480")
        page.screenshot(path=tmp_path / "narrow.png", full_page=True)
        press("Undo", then="The model is as it was.")
        expect(page.get_by_role("button", name="Undo")).to_have_count(0)
        browser.close()
