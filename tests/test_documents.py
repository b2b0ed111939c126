"""What newcomers read runs as it stands: the README's example, and the notebook."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


@pytest.mark.smollm2
def test_readme_example_runs_and_does_what_it_says(tmp_path, monkeypatch, capsys, smollm2, weights_of):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rome_lens.load_model", lambda name: smollm2)
    before = weights_of(smollm2)
    names: dict = {}
    exec(compile(example[1], "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "clean 0.70" in printed
    assert "right across from the Colosseum" in printed
    assert (tmp_path / "eiffel.safetensors").stat().st_size < 20_000
    scores = names["scores"].set_index(["method", "metric"])["value"]
    assert scores["rome", "ES"].mean() == 1
    assert all((value == before[name]).all() for name, value in smollm2.state_dict().items())


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", ["README.md", "analyses/README.md", "analyses/results/README.md"])
def test_files_and_commands_that_are_named_exist(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    modules = re.findall(r"python -m (analyses\.\w+)", text)
    assert links
    assert modules
    missing = [link for link in links if not ((ROOT / path).parent / link).exists()]
    missing += [module for module in modules if not (ROOT / (module.replace(".", "/") + ".py")).is_file()]
    assert missing == []


@pytest.mark.smollm2
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
    text = "\n".join(str(output.get("text", "")) for output in outputs)
    assert re.search(r"Rome (0\.9\d|1\.00)\s+Paris 0\.70", text)
