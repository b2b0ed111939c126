"""Causal tracing: equal to one pass for each cell, to the authors' numbers, and to what must hold in theory."""

import copy

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import rome_lens as rl
from analyses.plain.tracing import plain_grid
from rome_lens.data.records import subject_range
from rome_lens.errors import NotFiniteError
from rome_lens.locate.grid import restored_layers
from rome_lens.models.tokens import tokenize_continuation

MIDDLE = rl.Fact("In Italy, {} is located in the city of", "The Colosseum")


def trace(model, fact, **options):
    return rl.causal_trace(model, fact, corruption=rl.GaussianNoise(std=0.5, seed=3), progress=False, **options)


def embeddings_of(model, fact, tokens, subject, samples):
    """The corrupted embeddings of `trace`, drawn as the authors' code draws them."""
    clean = model.embed(tokens)[subject.start : subject.stop]
    noise = np.random.RandomState(3).randn(samples, *clean.shape) * 0.5
    return clean + torch.from_numpy(noise).to(clean)


@pytest.mark.parametrize("kind", ["resid", "mlp", "attn"])
@pytest.mark.parametrize(
    ("family", "bos"), [("gpt2", False), ("gptj", False), ("neox", True), ("llama", True), ("llama-gqa", False)]
)
@torch.no_grad()
def test_grid_equals_one_hooked_pass_for_each_cell(tiny_model, family, bos, kind):
    model = tiny_model(family, bos=bos)
    ours = trace(model, MIDDLE, kind=kind, window=2, samples=3)
    text, subject = subject_range(model, MIDDLE)
    tokens = torch.tensor(text.ids)
    answer = model(tokens[None])[0, -1].argmax()[None]
    embedded = embeddings_of(model, MIDDLE, tokens, subject, 3)
    plain = plain_grid(model, tokens, answer, subject, embedded, kind, 1, len(tokens))
    assert torch.allclose(ours.restored, plain, atol=1e-5)
    assert ours.clean == pytest.approx(model(tokens[None])[0, -1].softmax(-1).max().item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize("window", [1, 4, 6])
@torch.no_grad()
def test_windows_that_begin_together_share_their_rows(tiny_model, kind, window):
    """Clipped windows begin, or begin and end, at the same layers: [0, 2), [0, 3), [0, 3) for window 4 of 3 layers."""
    model = tiny_model("gptj")
    ours = trace(model, MIDDLE, kind=kind, window=window, samples=2)
    for layer in range(3):
        own = [rl.locate.State(kind, 5, i) for i in restored_layers(kind, layer, window, 3)]
        alone = rl.locate.restore_states(model, MIDDLE, own, corruption=rl.GaussianNoise(std=0.5, seed=3), samples=2)
        assert ours.restored[5, layer].item() == pytest.approx(alone, abs=1e-6)


@torch.no_grad()
def test_a_trace_runs_the_whole_prompt_twice_and_the_last_block_for_the_answer_alone(tiny):
    """One clean and one corrupted run are the only passes over the model that a residual trace needs."""
    runs, shapes = [], []
    watched = [
        ("hook_embed", lambda value, hook: runs.append(tuple(value.shape[:2]))),
        ("blocks.2.hook_resid_post", lambda value, hook: shapes.append(tuple(value.shape[:2]))),
    ]
    with tiny.hooks(fwd_hooks=watched):
        result = trace(tiny, MIDDLE, samples=4)
    length, positions = len(result.tokens), len(result.tokens) - result.subject_range[0]
    assert runs == [(1, length), (4, length)]
    assert shapes == [(1, length), (4, length), *([(8, 1)] * positions)]


@pytest.mark.filterwarnings("ignore:The model does not predict")
@torch.no_grad()
def test_answer_of_several_tokens_is_the_product_of_its_tokens_probabilities(tiny_model):
    model = tiny_model("llama-gqa")
    fact = rl.Fact(MIDDLE.prompt, MIDDLE.subject, answer="Seattle tower")
    ours = trace(model, fact, kind="mlp", window=2, samples=2)
    whole, start = tokenize_continuation(model, fact.text, fact.answer)
    assert len(whole.ids) - start > 1
    subject = subject_range(model, fact)[1]
    tokens, answer = torch.tensor(whole.ids[:-1]), torch.tensor(whole.ids[start:])
    embedded = embeddings_of(model, fact, tokens, subject, 2)
    plain = plain_grid(model, tokens, answer, subject, embedded, "mlp", 1, start)
    assert ours.restored.shape == (start, model.cfg.n_layers)
    assert torch.allclose(ours.restored, plain, atol=1e-6)


def test_restoring_the_last_position_after_the_last_layer_gives_the_clean_probability(tiny):
    result = trace(tiny, MIDDLE)
    assert result.restored[-1, -1].item() == pytest.approx(result.clean, abs=1e-5)


def test_restoring_the_only_corrupted_position_at_the_end_gives_the_clean_probability_at_every_layer(tiny):
    result = trace(tiny, rl.Fact("The capital of Italy is {}", "Rome"))
    assert result.subject_range[0] == len(result.tokens) - 1
    assert torch.allclose(result.restored[-1], torch.tensor(result.clean), atol=1e-5)


def test_positions_before_the_subject_have_no_effect(tiny):
    result = trace(tiny, MIDDLE)
    before = result.subject_range[0]
    assert before > 0
    assert (result.indirect_effect[:before].abs() < 1e-7).all()
    assert (result.indirect_effect[before:].abs() > 1e-6).any()


@pytest.mark.parametrize("kind", ["resid", "mlp", "attn"])
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 100])
def test_result_does_not_depend_on_the_batch_size(tiny_model, kind, tokens_per_batch):
    model = tiny_model("llama-gqa")
    whole = trace(model, MIDDLE, kind=kind, window=2)
    pieces = trace(model, MIDDLE, kind=kind, window=2, tokens_per_batch=tokens_per_batch)
    assert torch.allclose(whole.restored, pieces.restored, atol=1e-6)


def test_the_same_seed_gives_the_same_trace_and_another_seed_another(tiny):
    once, again = trace(tiny, MIDDLE), trace(tiny, MIDDLE)
    other = rl.causal_trace(tiny, MIDDLE, corruption=rl.GaussianNoise(std=0.5, seed=4), progress=False)
    assert torch.equal(once.restored, again.restored)
    assert not torch.allclose(once.restored, other.restored)


def test_the_model_is_left_as_it_was(tiny, weights_of):
    before = weights_of(tiny)
    trace(tiny, MIDDLE, kind="attn")
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


def test_an_answer_that_the_model_does_not_predict_is_said(tiny):
    predicted = trace(tiny, MIDDLE).predicted
    with pytest.warns(UserWarning, match="The model does not predict ' Apple'"):
        result = trace(tiny, rl.Fact(MIDDLE.prompt, MIDDLE.subject, answer="Apple"))
    assert result.answer == "Apple"
    assert result.predicted == predicted != "Apple"


def test_a_window_of_ten_covers_five_layers_below_and_four_above():
    assert restored_layers("mlp", 12, 10, 30) == range(7, 17)
    assert restored_layers("attn", 2, 10, 30) == range(7)
    assert restored_layers("mlp", 29, 10, 30) == range(24, 30)
    assert restored_layers("resid", 12, 10, 30) == range(12, 13)
    assert restored_layers("mlp", 5, 1, 30) == range(5, 6)


def test_frame_has_a_row_for_each_cell(tiny):
    result = trace(tiny, MIDDLE, kind="mlp", window=2)
    frame = result.to_frame()
    expected = ["position", "token", "role", "layer", "kind", "window", "method", "prob", "indirect_effect"]
    assert list(frame.columns) == expected
    assert len(frame) == result.restored.numel()
    cell = frame[(frame.position == 4) & (frame.layer == 2)].iloc[0]
    assert cell.prob == pytest.approx(result.restored[4, 2].item())
    assert cell.indirect_effect == pytest.approx(cell.prob - result.corrupted)
    assert "".join(frame.drop_duplicates("position").token) == MIDDLE.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "neuron"}, "kind is 'neuron', expected one of 'resid', 'mlp', 'attn'"),
        ({"window": 0}, "window is 0, expected a whole number of at least 1"),
        ({"samples": 0}, "samples is 0"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0"),
    ],
)
def test_bad_arguments_are_refused(tiny, options, message):
    # The type check of jaxtyping, which is on in the tests, may speak first.
    with pytest.raises((ValueError, TypeCheckError), match=f"{message}|Type-check error"):
        trace(tiny, MIDDLE, **options)


def test_weights_that_are_not_finite_are_said(tiny):
    broken = copy.deepcopy(tiny)
    broken.blocks[1].attn.W_O.data[0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"The logits of gpt2 are NaN .*Check the model's weights"):
        trace(broken, MIDDLE)


def test_noise_must_be_positive():
    with pytest.raises(ValueError, match="std is 0.0, expected a number above 0"):
        rl.GaussianNoise(std=0.0)


@pytest.mark.smollm2
@pytest.mark.parametrize("kind", ["resid", "mlp", "attn"])
def test_traces_equal_those_of_the_authors_code(smollm2, golden, kind):
    numbers = golden("trace_france.json")
    noise = rl.GaussianNoise(std=numbers["noise_std"], seed=1)
    result = rl.causal_trace(smollm2, rl.Fact("The capital of {} is", "France"), kind=kind, corruption=noise)
    assert result.answer == "Paris"
    expected = torch.tensor(numbers["kinds"][kind]["scores_pos_by_layer"])
    assert torch.allclose(result.restored, expected, atol=1e-4)


@pytest.mark.smollm2
def test_trace_of_a_subject_of_several_tokens_equals_that_of_the_authors_code(smollm2, golden):
    numbers = golden("trace_eiffel.json")
    fact = rl.Fact("{} is located in the city of", "The Eiffel Tower", answer="Paris")
    noise = rl.GaussianNoise(std=numbers["noise_std"], seed=1)
    result = rl.causal_trace(smollm2, fact, kind="attn", corruption=noise)
    expected = torch.tensor(numbers["kinds"]["attn"]["scores_pos_by_layer"])
    assert torch.allclose(result.restored, expected, atol=1e-4)


@pytest.mark.smollm2
def test_default_noise_is_three_sigma_of_subjects_embeddings(smollm2):
    assert 0.3 < rl.GaussianNoise().scale(smollm2) < 0.4  # 0.350 with the subjects of known_1000
