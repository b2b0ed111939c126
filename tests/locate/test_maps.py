"""Several maps from one clean and one corrupted run: each is the trace that its kind has alone."""

import pytest
import torch

import rome_lens as rl
from rome_lens.locate import prompt as prompts
from rome_lens.locate import trace_heads, trace_kinds, tracing

FACT = rl.Fact("In Italy, {} is located in the city of", "The Colosseum")
OPTIONS = {"corruption": rl.GaussianNoise(std=0.5, seed=3), "samples": 2, "window": 2, "progress": False}
KINDS = ["resid", "mlp", "attn", "head"]


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """Which whole runs are made, in order."""
    made: list[str] = []
    for module, name in ((prompts, "clean_run"), (tracing, "corrupted_run")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _n=name, _r=real, **k: made.append(_n) or _r(*a, **k))
    return made


def test_each_kind_is_traced_as_alone_from_one_clean_and_one_corrupted_run(tiny_model, runs):
    model = tiny_model("llama-gqa", bos=False)
    traces = trace_kinds(model, FACT, kinds=KINDS, head=1, **OPTIONS)
    assert runs == ["clean_run", "corrupted_run"]
    assert list(traces) == KINDS
    for kind, trace in traces.items():
        alone = rl.causal_trace(model, FACT, kind=kind, head=1 if kind == "head" else None, **OPTIONS)
        assert torch.equal(trace.restored, alone.restored)
        assert (trace.to_dict() | {"restored": 0}) == (alone.to_dict() | {"restored": 0})


def test_a_map_of_heads_has_the_row_of_each_heads_own_trace(tiny, runs):
    heads = trace_heads(tiny, FACT, **OPTIONS)
    assert runs == ["clean_run", "corrupted_run"]
    last = heads.position
    for head in range(tiny.cfg.n_heads):
        alone = rl.causal_trace(tiny, FACT, kind="head", head=head, positions=[last], **OPTIONS)
        assert last == len(alone.tokens) - 1
        assert torch.equal(heads.restored[:, head], alone.restored[last])
    assert (heads.clean, heads.corrupted, heads.token) == (alone.clean, alone.corrupted, alone.tokens[-1])
    row = heads.to_frame().set_index(["layer", "head"]).loc[(1, 2)]
    assert row["prob"] == pytest.approx(heads.restored[1, 2].item())
    assert row["indirect_effect"] == pytest.approx(heads.restored[1, 2].item() - heads.corrupted)


def test_layers_that_were_not_traced_are_not_in_the_map(tiny):
    heads = trace_heads(tiny, FACT, layers=[1], position=4, **OPTIONS)
    assert torch.isnan(heads.restored[0]).all()
    assert set(heads.to_frame()["layer"]) == {1}


def test_attribution_of_several_kinds_is_that_of_each(tiny):
    traces = trace_kinds(tiny, FACT, method="attribution", **OPTIONS)
    for kind, trace in traces.items():
        assert torch.equal(
            trace.restored, rl.causal_trace(tiny, FACT, kind=kind, method="attribution", **OPTIONS).restored
        )


@pytest.mark.parametrize("kinds", [[], ["mlp", "mlp"]])
def test_no_kinds_and_one_twice_are_refused(tiny, kinds):
    with pytest.raises(ValueError, match="expected at least one kind, and each once"):
        trace_kinds(tiny, FACT, kinds=kinds)


def test_a_position_that_does_not_exist_is_refused(tiny):
    with pytest.raises(ValueError, match=r"The positions \[99\] do not exist"):
        trace_heads(tiny, FACT, position=99, **OPTIONS)


def test_figures_take_the_results_as_they_are(tiny):
    """With the metric after the clean and the corrupted prompt, which a frame does not tell."""
    traces = trace_kinds(tiny, FACT, **OPTIONS)
    one, heads = traces["mlp"], trace_heads(tiny, FACT, **OPTIONS)
    ends = f"clean {one.clean:.3g}, corrupted {one.corrupted:.3g}"
    assert ends in rl.plots.plot_trace(one).layout.title.subtitle.text
    assert rl.plots.plot_trace(one) == one.plot()
    assert ends in rl.plots.plot_traces(traces).layout.title.text
    assert rl.plots.plot_traces(list(traces.values())) == rl.plots.plot_traces(traces)
    assert not rl.plots.plot_trace(one.to_frame()).layout.title.subtitle.text
    figure = heads.plot()
    assert ends in figure.layout.title.subtitle.text
    assert figure.data[0].z == pytest.approx((heads.restored - heads.corrupted).T.numpy(), abs=1e-6)
    with pytest.raises(ValueError, match="no traces"):
        rl.plots.plot_traces([])
