"""Many facts: mixed lengths, wrong answers reported, and a folder that survives a kill."""

import pytest
import torch

import rome_lens as rl
from rome_lens.locate import many_facts as store_module

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
    assert made.not_predicted.empty


def test_facts_that_the_model_gets_wrong_are_reported(tiny):
    wrong = rl.Fact("The capital of {} is", "Italy", answer="Apple")
    made = rl.trace_facts(tiny, [FACTS[0], wrong], kinds=["resid"], **OPTIONS)
    assert len(made.traces) == 1
    row = made.not_predicted.iloc[0]
    assert (row.subject, row.answer) == ("Italy", "Apple")
    assert row.predicted == made.traces[0].predicted
    every = rl.trace_facts(tiny, [wrong], kinds=["resid"], only_predicted=False, **OPTIONS)
    assert not every.traces[0].is_correct


def test_a_trace_survives_the_folder_without_loss(tiny, tmp_path):
    out = tmp_path / "traces"
    made = rl.trace_facts(tiny, FACTS, kinds=["attn"], out=out, positions=[0, 3], **OPTIONS)
    read = rl.locate.load_traces(out)
    assert len(read) == 3
    assert all(same(a, b) for a, b in zip(made.traces, read, strict=True))


def test_what_is_in_the_folder_is_not_made_again(tiny, tmp_path, monkeypatch):
    out = tmp_path / "traces"
    first = rl.trace_facts(tiny, FACTS[:2], kinds=["resid"], out=out, **OPTIONS)
    made = []
    real = store_module.trace_prompt
    monkeypatch.setattr(store_module, "trace_prompt", lambda *a, **k: made.append(a[1]) or real(*a, **k))
    second = rl.trace_facts(tiny, FACTS, kinds=["resid"], out=out, **OPTIONS)
    assert made == [FACTS[2]]
    assert all(same(a, b) for a, b in zip(first.traces, second.traces, strict=False))
    rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], out=out, **(OPTIONS | {"samples": 3}))
    assert made == [FACTS[2], FACTS[0]]


def test_layers_are_named_by_any_sequence(tiny, tmp_path):
    out = tmp_path / "traces"
    first = rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], layers=range(2), out=out, **OPTIONS)
    second = rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], layers=[0, 1], out=out, **OPTIONS)
    assert same(first.traces[0], second.traces[0])
    assert len(rl.locate.load_traces(out)) == 1


def test_a_line_that_a_kill_cut_off_is_made_again(tiny, tmp_path):
    out = tmp_path / "traces"
    whole = rl.trace_facts(tiny, FACTS, kinds=["resid"], out=out, **OPTIONS)
    rows = out / "rows.jsonl"
    content = rows.read_bytes()
    rows.write_bytes(content[: -len(content) // 5])
    again = rl.trace_facts(tiny, FACTS, kinds=["resid"], out=out, **OPTIONS)
    assert all(same(a, b) for a, b in zip(whole.traces, again.traces, strict=True))
    assert rows.read_bytes() == content


@pytest.mark.parametrize("content", [b"mine", b"mine\n", b'{"key": 1}\n', b'{"key": "x", "trace": {"fact": 1}}\n'])
def test_another_file_is_refused_and_kept(tiny, tmp_path, content):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    with pytest.raises(rl.errors.FormatError, match="Choose another folder"):
        rl.trace_facts(tiny, FACTS, out=tmp_path, **OPTIONS)
    with pytest.raises(rl.errors.FormatError, match="Choose another folder"):
        rl.locate.load_traces(tmp_path)
    assert rows.read_bytes() == content


def test_an_edited_or_another_model_gets_no_traces_of_the_first(tiny, tiny_model, tmp_path):
    """Of the same name and shape: the weights tell, wherever in a matrix they have changed."""
    rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], out=tmp_path, **OPTIONS)
    with pytest.raises(rl.errors.FormatError, match="begun with {'weights': .*Choose another folder"):
        rl.trace_facts(tiny_model("gpt2", seed=1), FACTS[:1], kinds=["resid"], out=tmp_path, **OPTIONS)
    weight = tiny.blocks[1].mlp.W_out
    before = weight[5, 3].item()
    try:
        weight.data[5, 3] += 0.5
        with pytest.raises(rl.errors.FormatError, match="edits reverted"):
            rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], out=tmp_path, **OPTIONS)
    finally:
        weight.data[5, 3] = before
    assert len(rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], out=tmp_path, **OPTIONS).traces) == 1


class Replaced:
    """A corruption that is no dataclass and has no repr of its own."""

    def __init__(self, value: float):
        self.value = value

    def corrupted(self, model, fact, clean, samples):
        return torch.full_like(clean, self.value)[None]


def test_corruptions_of_ones_own_are_told_apart_by_their_settings(tiny, tmp_path):
    values = [
        rl.trace_facts(tiny, FACTS[:1], kinds=["resid"], out=tmp_path, corruption=Replaced(value), progress=False)
        .traces[0]
        .corrupted
        for value in (0.0, 3.0, 0.0)
    ]
    assert values[0] == values[2] != values[1]
    assert len(rl.locate.load_traces(tmp_path)) == 2


def test_no_facts_and_unknown_options_are_refused_before_any_work(tiny, tmp_path):
    with pytest.raises(ValueError, match="facts is empty"):
        rl.trace_facts(tiny, [])
    with pytest.raises(TypeError, match="colour"):
        rl.trace_facts(tiny, FACTS, colour="red")
    with pytest.raises(ValueError, match="samples is 0"):
        rl.trace_facts(tiny, FACTS, samples=0, out=tmp_path / "traces")
    assert not (tmp_path / "traces").exists()
    with pytest.raises(FileNotFoundError, match="There is no file"):
        rl.locate.load_traces(tmp_path / "traces")
