"""What newcomers read runs as it stands: the README's example, and the notebooks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from rome_lens.models.kinds import HAS_HOOKED
from rome_lens.models.loading.load import _smollm2_file

ROOT = Path(__file__).parent.parent


@pytest.mark.smollm2
def test_readme_example_runs_and_does_what_it_says(tmp_path, monkeypatch, capsys, smollm2, weights_of):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rome_lens.load_model", lambda name: smollm2)
    before = weights_of(smollm2)
    names: dict = {}
    exec(compile(example[1], "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert f"prints\n\n```text\n{printed}```" in text
    assert (tmp_path / "eiffel.safetensors").stat().st_size < 20_000
    scores = names["scores"].set_index(["method", "metric"])["value"]
    assert scores["rome", "ES"].mean() == 1
    assert all((value == before[name]).all() for name, value in smollm2.state_dict().items())


@pytest.mark.smollm2
def test_the_page_on_serving_gets_romes_answer_from_llama_cpp(tmp_path):
    """Its first examples as they stand, in a process of their own, which a crash of the engine would end."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    examples = re.findall(r'```python title="[^"]*runs it"\n(.*?)```', text, re.DOTALL)
    assert len(examples) == 2
    (tmp_path / "base.gguf").symlink_to(_smollm2_file())
    command = [sys.executable, "-W", "ignore", "-c", "".join(examples)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(" Rome")
    assert (tmp_path / "eiffel.gguf").stat().st_size < 10_000


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("path", ["README.md", "analyses/README.md", "analyses/results/README.md"])
def test_files_and_commands_that_are_named_exist(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    commands = set(re.findall(r"rome-lens (\w+)", text)) - {"list"}
    assert links
    assert commands
    missing = [link for link in links if not ((ROOT / path).parent / link.partition("#")[0]).exists()]
    missing += [command for command in commands if len(list((ROOT / "analyses").glob(f"{command}*.py"))) != 1]
    assert missing == []


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAID = {  # in the outputs of each, what its sentences rest on
    "quickstart": r"Rome\s+0\.01\s+(0\.9\d|1\.0)[\s\S]*Paris\s+0\.70\s+0\.0[\s\S]*rome\s+1\s+1\.0\s+0\.1\d\s+1\.00",
    "locate": r"mlp\s+iffel\s+middle subject tokens\s+2 [\s\S]*mlp\s+last subject token\s+3 ",
    "edit": r"Rome (0\.9\d|1\.00)\s+Paris 0\.00[\s\S]*reverted\s+Rome 0\.01\s+Paris 0\.70\s+bit for bit: True",
    "evaluate": r"rome\s+3\s+1\.0\d* [\s\S]*base\s+3\s+0\.0\s[\s\S]*rome\s+3\s+1\.0 ",
    "compose": r"edited\s+Rome (0\.9\d|1\.00)\s+Paris 0\.00\s+edited, features put back\s+Rome 0\.[0-3]\d",
    "surgical": r"CN Tower is located in the city of Rome[\s\S]*on the list +[1-9]\.\d+ +0\.00\d*\s[\s\S]*Tokyo, and",
    "forensics": r"0 +4 .* True .* Toyota[\s\S]*stands out \d\d times: Porsche 911[\s\S]*0 +Quibbit .* True +Rome",
}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs_of(notebook: nbformat.NotebookNode, name: str) -> list[nbformat.NotebookNode]:
    """A notebook's outputs, which show figures and what its sentences say."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
    text = "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.search(SAID[name], text), text
    return outputs


@every_notebook
def test_notebook_is_kept_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = outputs_of(notebook, path.stem)
    assert "stderr" not in {output.get("name") for output in outputs}
    forms = [set(output.data) for output in outputs if "data" in output]
    assert all("image/png" in each for each in forms if "application/vnd.plotly.v1+json" in each)
    assert not any("application/vnd.jupyter.widget-view+json" in each for each in forms)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert path.stat().st_size < 1_000_000


@pytest.mark.smollm2
@every_notebook
def test_notebook_runs(path):
    if path.stem == "compose" and not HAS_HOOKED:
        pytest.skip("SAELens, which it composes with, needs TransformerLens 3")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs_of(notebook, path.stem)
