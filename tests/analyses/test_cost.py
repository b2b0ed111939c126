"""Forecasts count what is run: against the operations that torch counts in tiny models."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

import rome_lens as rl
from analyses.common import cost
from analyses.common.cost import shape_of_config
from rome_lens.data.records import subject_range
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.suffix import tokenize_prompts
from rome_lens.edit.search.value import optimise_value
from tests.tiny import CONFIGS

FACT = rl.Fact("{} is located in the city of", "The Space Needle")
REQUEST = rl.EditRequest("{} is located in the city of", "The Space Needle", target=" Rome and Paris")
NOISE = rl.GaussianNoise(std=0.5)
LAYER = 1

pytestmark = pytest.mark.hooked


@pytest.fixture(scope="module", params=["gpt2", "llama-gqa"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tiny(family, tiny_folder):
    return rl.load_model(tiny_folder(family), device="cpu")


@pytest.fixture(scope="module")
def shape(family):
    return shape_of_config(CONFIGS[family]())


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(("kind", "window"), [("resid", 1), ("mlp", 2), ("attn", 10)])
def test_operations_of_a_trace(tiny, shape, kind, window):
    text, subject = subject_range(tiny, FACT)
    prompt = cost.Prompt(len(text.ids), range(subject.start, subject.stop))
    options = {"kind": kind, "window": window, "samples": 3}
    found = counted(lambda: rl.causal_trace(tiny, FACT, corruption=NOISE, progress=False, **options))
    assert cost.trace_operations(shape, prompt, **options) == pytest.approx(found, rel=1e-6)


def test_operations_of_a_row_of_a_trace(tiny, shape):
    text, subject = subject_range(tiny, FACT)
    prompt = cost.Prompt(len(text.ids), range(subject.start, subject.stop))
    options = {"kind": "mlp", "samples": 3, "positions": [subject.stop - 1]}
    found = counted(lambda: rl.causal_trace(tiny, FACT, corruption=NOISE, progress=False, **options))
    assert cost.trace_operations(shape, prompt, **options) == pytest.approx(found, rel=1e-6)


def test_operations_of_a_search(tiny, shape):
    contexts, steps = ["{}", "One, two. {}"], 4
    config = rl.RomeConfig(layer=LAYER, contexts=contexts, steps=steps, early_stop_loss=0.0)

    def work() -> None:
        subject_keys(tiny, LAYER, REQUEST, contexts)
        optimise_value(tiny, LAYER, REQUEST, contexts, config, progress=False)

    made = tokenize_prompts(tiny, REQUEST, contexts)
    prompts = [
        cost.Prompt(len(row), range(place, place + 1), len(made.target))
        for row, place in zip(made.rows, made.subject, strict=True)
    ]
    expected = cost.search_operations(shape, prompts, LAYER, steps=steps)
    assert expected == pytest.approx(counted(work), rel=1e-6)


def test_operations_of_a_covariance(tiny, shape):
    texts, options = ["One two. " * 400], {"tokens": 512, "sequence_length": 64, "tokens_per_batch": 256}
    found = counted(lambda: rl.collect_covariance(tiny, [0, LAYER], texts=texts, progress=False, **options))
    assert cost.covariance_operations(shape, [0, LAYER], 512, length=64) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama-gqa"])
def test_a_configuration_has_the_shape_of_its_model(tiny_folder, family):
    model, shape = rl.load_model(tiny_folder(family), device="cpu"), shape_of_config(CONFIGS[family]())
    for size in ("n_layers", "d_model", "d_mlp", "d_vocab"):
        assert getattr(shape, size) == getattr(model.cfg, size)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert shape.parameters == pytest.approx(numbers, rel=0.02)  # biases that only one class has
