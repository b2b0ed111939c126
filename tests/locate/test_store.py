"""Many facts: mixed lengths, wrong answers reported, and a store that survives a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rome_lens as rl
from rome_lens.locate import store as store_module

FACTS = [
    rl.Fact("The capital of {} is", "Italy"),
    rl.Fact("In Italy, {} is located in the city of", "The Colosseum"),
    rl.Fact("{} is owned by", "Beats Music"),
]
OPTIONS = {"corruption": rl.GaussianNoise(std=0.5), "samples": 2, "window": 2, "progress": False}


def same(one: rl.CausalTrace, other: rl.CausalTrace) -> bool:
    return torch.equal(one.restored.nan_to_num(-1), other.restored.nan_to_num(-1)) and one.to_dict() == other.to_dict()


def test_traces_are_those_of_causal_trace(tiny):
    made = rl.trace_facts(tiny, FACTS, kinds=["resid", "mlp"], **OPTIONS)
    assert [(t.fact, t.kind) for t in made.traces] == [(fact, kind) for fact in FACTS for kind in ("resid", "mlp")]
    assert same(made.traces[3], rl.causal_trace(tiny, FACTS[1], kind="mlp", **OPTIONS))
    assert made.wrong.empty


def test_facts_that_the_model_gets_wrong_are_reported(tiny):
    wrong = rl.Fact("The capital of {} is", "Italy", answer="Apple")
    made = rl.trace_facts(tiny, [FACTS[0], wrong], kinds=["resid"], **OPTIONS)
    assert len(made.traces) == 1
    row = made.wrong.iloc[0]
    assert (row.subject, row.answer) == ("Italy", "Apple")
    assert row.predicted == made.traces[0].predicted
    every = rl.trace_facts(tiny, [wrong], kinds=["resid"], only_predicted=False, **OPTIONS)
    assert not every.traces[0].is_correct


def test_a_trace_survives_the_store_without_loss(tiny, tmp_path):
    store = tmp_path / "traces.jsonl"
    made = rl.trace_facts(tiny, FACTS, kinds=["attn"], store=store, positions=[0, 3], **OPTIONS)
    read = rl.load_traces(store)
    assert len(read) == 3
    assert all(same(a, b) for a, b in zip(made.traces, read, strict=True))


def test_what_is_in_the_store_is_not_made_again(tiny, tmp_path, monkeypatch):
    store = tmp_path / "traces.jsonl"
    first = rl.trace_facts(tiny, FACTS[:2], kinds=["resid"], store=store, **OPTIONS)
    made = []
    real = store_module.trace_question
    monkeypatch.setattr(store_module, "trace_question", lambda *a, **k: made.append(a[1]) or real(*a, **k))
    second = rl.trace_facts(tiny, FACTS, kinds=["resid"], store=store, **OPTIONS)
    assert made == [FACTS[2]]
    assert all(same(a, b) for a, b in zip(first.traces, second.traces, strict=False))
    rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], store=store, **(OPTIONS | {"samples": 3}))
    assert made == [FACTS[2], FACTS[0]]


def test_layers_are_named_by_any_sequence(tiny, tmp_path):
    store = tmp_path / "traces.jsonl"
    first = rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], layers=range(2), store=store, **OPTIONS)
    second = rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], layers=[0, 1], store=store, **OPTIONS)
    assert same(first.traces[0], second.traces[0])
    assert len(rl.load_traces(store)) == 1


def test_a_line_that_a_kill_cut_off_is_made_again(tiny, tmp_path):
    store = tmp_path / "traces.jsonl"
    whole = rl.trace_facts(tiny, FACTS, kinds=["resid"], store=store, **OPTIONS)
    content = store.read_bytes()
    store.write_bytes(content[: -len(content) // 5])
    again = rl.trace_facts(tiny, FACTS, kinds=["resid"], store=store, **OPTIONS)
    assert all(same(a, b) for a, b in zip(whole.traces, again.traces, strict=True))
    assert store.read_bytes() == content


@pytest.mark.parametrize("content", [b"mine", b"mine\n", b'{"key": 1}\n', b'{"key": "x", "trace": {"fact": 1}}\n'])
def test_another_file_is_refused_and_kept(tiny, tmp_path, content):
    store = tmp_path / "notes.txt"
    store.write_bytes(content)
    with pytest.raises(rl.FormatError, match="Choose another file"):
        rl.trace_facts(tiny, FACTS, store=store, **OPTIONS)
    assert store.read_bytes() == content


def test_no_facts_and_unknown_options_are_refused_before_any_work(tiny, tmp_path):
    with pytest.raises(ValueError, match="facts is empty"):
        rl.trace_facts(tiny, [])
    with pytest.raises(TypeError, match="colour"):
        rl.trace_facts(tiny, FACTS, colour="red")
    with pytest.raises(ValueError, match="samples is 0"):
        rl.trace_facts(tiny, FACTS, samples=0, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(FileNotFoundError, match="There is no file"):
        rl.load_traces(tmp_path / "store")


RUN = """
import sys
import rome_lens as rl
from tests.locate.test_store import FACTS, OPTIONS
facts = [rl.Fact(f.prompt, f.subject + " Rome" * n) for n in range(8) for f in FACTS]
rl.trace_facts(rl.load_model(sys.argv[1]), facts, store=sys.argv[2], **OPTIONS)
"""


def test_a_killed_run_goes_on_and_equals_an_unbroken_one(tiny_folder, tmp_path):
    """Killed with SIGKILL as soon as some lines are there, then run again to the end."""
    folder, root = tiny_folder("gpt2"), Path(__file__).parents[2]
    broken, unbroken = tmp_path / "broken.jsonl", tmp_path / "unbroken.jsonl"
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(store: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(store)], cwd=root, env=environment)

    process = start(broken)
    while process.poll() is None and (not broken.exists() or broken.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = broken.read_bytes().count(b"\n")
    assert 5 <= lines < 72
    assert start(broken).wait() == 0
    assert start(unbroken).wait() == 0
    assert broken.read_bytes() == unbroken.read_bytes()
    assert unbroken.read_bytes().count(b"\n") == 72
