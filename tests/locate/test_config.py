"""The options of a trace: in one config, as keywords, or both."""

import json

import pytest
import torch

import rome_lens as rl

FACT = rl.Fact("The capital of {} is", "Italy")
CONFIG = rl.TraceConfig(kind="mlp", window=2, samples=2, corruption=rl.GaussianNoise(std=0.5), layers=[0, 2])


def test_keywords_replace_what_the_config_says(tiny):
    one = rl.causal_trace(tiny, FACT, config=CONFIG, kind="attn", layers=[1], progress=False)
    options = {"window": 2, "samples": 2, "corruption": rl.GaussianNoise(std=0.5)}
    other = rl.causal_trace(tiny, FACT, kind="attn", layers=[1], progress=False, **options)
    assert one.config == other.config
    assert torch.equal(one.restored.nan_to_num(-1), other.restored.nan_to_num(-1))
    with pytest.raises(TypeError, match="colour"):
        rl.causal_trace(tiny, FACT, colour="red")


def test_a_trace_keeps_the_config_that_makes_it_again(tiny):
    """With the noise's width as a number, and a window of one layer where there is no window."""
    first = rl.causal_trace(tiny, FACT, samples=2, severed=("mlp",), positions=range(2, 4), progress=False)
    config = first.config
    assert config.corruption.std > 0
    assert (config.window, config.positions, config.severed) == (1, (2, 3), ("mlp",))
    again = rl.causal_trace(tiny, FACT, config=config, progress=False)
    assert again.config == config
    assert torch.equal(first.restored.nan_to_num(-1), again.restored.nan_to_num(-1))


@pytest.mark.parametrize(
    "corruption",
    [
        rl.locate.UniformNoise(sigmas=2.0, subjects=["Rome", "Paris"]),
        rl.locate.TokenReplacement("Rome"),
    ],
)
def test_a_config_comes_back_from_json(corruption):
    config = rl.TraceConfig(kind="head", head=1, positions=[1], corruption=corruption, metric="kl")
    assert rl.TraceConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_many_facts_take_a_config_and_the_folder_compares_it(tiny, tmp_path):
    made = rl.trace_facts(tiny, [FACT], config=CONFIG, out=tmp_path, progress=False)
    assert [trace.kind for trace in made.traces] == ["mlp"]
    rl.trace_facts(tiny, [FACT], config=CONFIG, out=tmp_path, samples=2, progress=False)
    assert len(rl.locate.load_traces(tmp_path)) == 1
    kinds = rl.trace_facts(
        tiny, [FACT], config=CONFIG, kinds=["resid", "mlp"], metrics=["kl"], out=tmp_path, progress=False
    )
    assert [(trace.kind, trace.metric) for trace in kinds.traces] == [("resid", "kl"), ("mlp", "kl")]
    assert len(rl.locate.load_traces(tmp_path)) == 3
