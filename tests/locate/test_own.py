"""Metrics and corruptions of the user's own."""

import dataclasses
import json
from functools import partial

import pytest
import torch

import rome_lens as rl

FACT = rl.Fact("In Italy, {} is located in the city of", "The Colosseum")
NOISE = rl.GaussianNoise(std=0.5, seed=3)
QUIET = {"samples": 2, "progress": False}


def likelihood(logits, prompt):
    """What "prob" is."""
    return logits.softmax(-1)[:, 0, prompt.answer[0]]


def above(logits, prompt, level=0.0):
    return (logits[:, 0, prompt.answer[0]] > level).float()


def zeros(model, fact, clean, samples):
    return torch.zeros_like(clean)[None]


class Zeros:
    def corrupted(self, model, fact, clean, samples):
        return zeros(model, fact, clean, samples)


@dataclasses.dataclass(frozen=True)
class Above:
    level: float

    def __call__(self, logits, prompt):
        return above(logits, prompt, self.level)


def trace(model, **options):
    return rl.causal_trace(model, FACT, **{"corruption": NOISE, **QUIET, **options})


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_a_metric_of_ones_own_is_read_as_the_named_one(tiny, method):
    own, named = trace(tiny, metric=likelihood, method=method), trace(tiny, method=method)
    assert torch.allclose(own.restored, named.restored, atol=1e-7)
    assert (own.clean, own.corrupted) == pytest.approx((named.clean, named.corrupted))
    assert own.metric == "likelihood"
    assert "likelihood" in own.to_frame().columns
    heatmaps = [made.plot().data[0] for made in (own, named)]
    assert heatmaps[0].colorbar.title.text == "likelihood"
    assert heatmaps[0].z == pytest.approx(heatmaps[1].z, nan_ok=True)


def test_a_corruption_may_be_a_function_or_an_object(tiny):
    made = [trace(tiny, corruption=each) for each in (zeros, Zeros())]
    assert torch.equal(made[0].restored, made[1].restored)
    assert made[0].config.samples == 1
    states = [rl.locate.State("mlp", 5, 1)]
    restored = {rl.locate.restore_states(tiny, FACT, states, corruption=c, metric=likelihood) for c in (zeros, Zeros())}
    assert len(restored) == 1


def test_restored_states_are_read_by_the_logit_difference(tiny):
    made = trace(tiny, metric="logit_diff", wrong_answer="Rome")
    value = rl.locate.restore_states(
        tiny, FACT, [], samples=2, corruption=NOISE, metric="logit_diff", wrong_answer="Rome"
    )
    assert value == pytest.approx(made.corrupted, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": lambda logits, prompt: 0.5}, r"metric <lambda> returned 0.5, expected a tensor"),
        ({"metric": lambda logits, prompt: logits[:, 0]}, "returned a tensor .*of finite floating-point"),
        ({"metric": lambda logits: logits[:, 0, 0]}, r"expected a function of \(logits, prompt\)"),
        ({"metric": Above}, "metric is .*Above.*make an instance of the class"),
        ({"metric": "probability"}, "expected one of 'prob', 'logprob', 'logit_diff', 'kl'"),
        ({"metric": above, "method": "attribution"}, "metric above has no gradient"),
        ({"corruption": lambda clean: clean}, r"expected a function of \(model, fact, clean, samples\)"),
        (
            {"corruption": lambda model, fact, clean, samples: clean},
            r"corruption <lambda> returned a tensor .*\[samp",
        ),
    ],
)
def test_what_a_trace_cannot_use_is_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        trace(tiny, **options)


def test_a_metric_is_not_named_as_another_column():
    def layer(logits, prompt):
        return logits[:, 0, 0]

    with pytest.raises(ValueError, match="named 'layer'.*another name"):
        rl.TraceConfig(metric=layer)


def test_a_folder_tells_metrics_of_ones_own_apart(tiny, tmp_path):
    """By name and attributes; what cannot be told apart is refused before any work."""
    options = {"kinds": ["resid"], "out": tmp_path / "traces", "corruption": Zeros(), **QUIET}
    for metric in (
        Above(0.0),
        Above(0.3),
        partial(above, level=0.1),
        partial(above, level=0.2),
        likelihood,
        Above(0.0),
    ):
        made = rl.trace_facts(tiny, [FACT], metrics=[metric], **options)
    assert len(rl.locate.load_traces(tmp_path / "traces")) == 5
    (alone,) = rl.trace_facts(tiny, [FACT], kinds=["resid"], metrics=[Above(0.0)], corruption=Zeros(), **QUIET).traces
    assert alone.to_dict() == made.traces[0].to_dict()
    with pytest.raises(ValueError, match="metric is <lambda>, a lambda or inner function, which `out` cannot tell"):
        rl.trace_facts(tiny, [FACT], metrics=["prob", lambda logits, prompt: logits[:, 0, 0]], **options)


def test_a_stored_trace_tells_what_it_was_made_with(tiny):
    made = trace(tiny, metric=Above(0.3), corruption=zeros)
    read = rl.CausalTrace.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read.to_dict() == made.to_dict()
    assert read.metric == "Above"
    assert read.config.metric.settings["level"] == 0.3
    with pytest.raises(ValueError, match="zeros was read from a file.*Give the metric or corruption itself"):
        rl.causal_trace(tiny, FACT, config=read.config, progress=False)
