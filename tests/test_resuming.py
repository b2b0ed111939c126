"""What is kept in a folder to go on with is refused to another model, configuration or score, and left as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import rome_lens as rl
from analyses.common.kept_edits import kept_edits
from tests.edit.covariance.test_collect import TEXTS
from tests.edit.methods.test_batch import targets_of
from tests.edit.methods.test_mend import train
from tests.edit.methods.test_rome import covariance_of
from tests.evaluate.test_sequence import RECORDS, noise
from tests.torture import times

FACTS = [rl.Fact("{} is located in the city of", "The Eiffel Tower")]
NOISE = rl.GaussianNoise(std=0.5)
QUIET: dict[str, Any] = {"progress": False}


def other_score(model: Any, record: rl.EditRecord) -> Any:
    return rl.evaluate.score_record(model, record)


def steps(model: Any, request: rl.EditRequest, *, number: int) -> rl.Edit:
    return noise(model, request)


def traced(model: Any, out: Path, samples: int = 1, **options: Any) -> rl.locate.TracedFacts:
    options = {"corruption": NOISE, "kinds": ["mlp"]} | options
    return rl.trace_facts(model, FACTS, samples=samples, window=1, out=out, **options, **QUIET)


def scored(model: Any, out: Path, number: int = 1, **options: Any) -> None:
    rl.score_edits(model, RECORDS[:1], {"noise": partial(steps, number=number)}, out=out, **options, **QUIET)


def sequence(model: Any, out: Path, number: int = 1, **options: Any) -> None:
    rl.edit_sequence(model, RECORDS[:1], method=partial(steps, number=number), out=out, **options, **QUIET)


def collected(model: Any, out: Path, tokens: int = 128) -> None:
    rl.collect_covariance(model, [1], texts=TEXTS * 9, tokens=tokens, sequence_length=32, out=out, **QUIET)


def edits(model: Any, out: Path, steps: int = 1) -> None:
    with kept_edits(model, rl.RomeConfig(contexts=["{}"], steps=steps), out, covariance_of(model)) as edit_of:
        edit_of(RECORDS[0])


RESUMING: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "trace_facts": (traced, []),
    "score_edits": (scored, [{"number": 2}, {"score": other_score}]),
    "edit_sequence": (sequence, [{"number": 2}, {"text": "One, two."}]),
    "collect_covariance": (collected, [{"tokens": 160}]),
    "memit_targets": (lambda model, out, layer=1: targets_of(model, layer=layer, out=out), [{"layer": 2}]),
    "train_mend": (lambda model, out, seed=0: train(model, steps=1, seed=seed, out=out), [{"seed": 1}]),
    "kept edits": (edits, [{"steps": 2}]),
}
CHANGES = [(name, number) for name, (_, changes) in RESUMING.items() for number in range(len(changes))]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any]) -> Callable[[str], Path]:
    """The folder in which a thing was begun with its own arguments, once for all tests."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("begun") / "out"
            RESUMING[name][0](tiny_model("gpt2"), made[name])
        return made[name]

    return folder


pytestmark = pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")  # a tiny model knows no fact


@pytest.mark.parametrize("name", RESUMING)
def test_another_model_is_refused_and_the_same_one_goes_on(tiny, tiny_model, begun, name):
    folder, run = begun(name), RESUMING[name][0]
    before = content(folder)
    for other in (tiny_model("gpt2", seed=1), tiny_model("llama")):
        with pytest.raises(rl.errors.FormatError, match="was begun with"):
            run(other, folder)
    weight = tiny.blocks[1].mlp.W_out
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] += 1e-3
        with pytest.raises(rl.errors.FormatError, match="was begun with .*weights"):
            run(tiny, folder)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert content(folder) == before
    run(tiny, folder)
    assert content(folder) == before


@pytest.mark.parametrize(("name", "number"), CHANGES)
def test_another_configuration_or_score_is_refused(tiny, begun, name, number):
    run, changes = RESUMING[name]
    folder = begun(name)
    before = content(folder)
    with pytest.raises(rl.errors.FormatError, match="was begun with"):
        run(tiny, folder, **changes[number])
    assert content(folder) == before


@pytest.mark.parametrize(
    "change", [{"samples": 2}, {"corruption": rl.GaussianNoise(std=0.6)}], ids=["samples", "noise"]
)
def test_traces_of_another_configuration_are_made_beside_those_that_are_there(tiny, tmp_path, change):
    """A row of trace_facts is known by its configuration, so that a folder may hold several."""
    first, both = traced(tiny, tmp_path / "both"), traced(tiny, tmp_path / "both", **change)
    alone = traced(tiny, tmp_path / "alone", **change)
    assert torch.equal(both.traces[0].restored, alone.traces[0].restored)
    assert not torch.equal(both.traces[0].restored, first.traces[0].restored)
    assert len(rl.locate.load_traces(tmp_path / "both")) == 2


@pytest.mark.torture
def test_killed_at_random_moments_each_goes_on_and_equals_an_unbroken_one(tiny_folder, tmp_path):
    """tests/killing.py forks each run, kills it with SIGKILL, goes on, and compares the ends."""
    kills, root = times(3, 20), Path(__file__).parents[1]
    command = [sys.executable, "-m", "tests.killing", str(tiny_folder("gpt2")), str(tmp_path), str(kills)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    killed = json.loads(process.stdout)
    print(f"killed, and gone on: {killed}")
    assert set(killed) == (set(RESUMING) - {"kept edits"}) | {"EditLedger", "FactMemory"}
    assert set(killed.values()) == {kills}
