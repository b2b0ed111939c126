"""Corruptions: what they draw, that the baseline and the grid get the same, and token replacement."""

import numpy as np
import pytest
import torch

import rome_lens as rl
from rome_lens.locate.corruption import subject_embeddings

FACT = rl.Fact("The capital of {} is", "Italy")
CLEAN = torch.zeros(3, 32)
SUBJECTS = ("Italy", "France", "The Eiffel Tower", "Dante", "Victor Hugo", "Honda Civic", "Vinson Massif")


def drawn(corruption, tiny, samples: int = 4000, clean: torch.Tensor = CLEAN) -> torch.Tensor:
    return corruption.corrupted(tiny, FACT, clean, samples)


def test_gaussian_noise_is_that_of_the_authors_code(tiny):
    expected = np.random.RandomState(1).randn(10, 3, 32) * 0.35
    assert torch.equal(drawn(rl.GaussianNoise(std=0.35), tiny, 10), torch.from_numpy(expected).float())


@pytest.mark.parametrize("noise", [rl.GaussianNoise, rl.locate.UniformNoise])
def test_noise_has_the_standard_deviation_that_was_asked_for(tiny, noise):
    values = drawn(noise(std=0.3), tiny)
    assert values.std().item() == pytest.approx(0.3, rel=0.02)
    assert values.mean().item() == pytest.approx(0, abs=0.01)


def test_uniform_noise_is_bounded(tiny):
    assert drawn(rl.locate.UniformNoise(std=0.3), tiny).abs().max() <= 0.3 * 3**0.5


def test_sigmas_are_those_of_the_given_subjects(tiny):
    noise = rl.GaussianNoise(sigmas=2.0, subjects=SUBJECTS)
    assert noise.scale(tiny) == pytest.approx(2 * subject_embeddings(tiny, SUBJECTS).std().item())
    assert rl.GaussianNoise().scale(tiny) == pytest.approx(3 * subject_embeddings(tiny).std().item())


@pytest.mark.parametrize("noise", [rl.GaussianNoise, rl.locate.UniformNoise])
def test_replacing_forgets_the_clean_embeddings_and_adding_does_not(tiny, noise):
    one, other = CLEAN, CLEAN + 1
    replacing = noise(std=0.3, replace=True)
    assert torch.equal(drawn(replacing, tiny, 5, one), drawn(replacing, tiny, 5, other))
    added = drawn(noise(std=0.3), tiny, 5, other) - drawn(noise(std=0.3), tiny, 5, one)
    assert torch.allclose(added, torch.ones_like(added), atol=1e-6)


def test_replaced_embeddings_are_in_the_baseline_and_in_the_grid_alike(tiny):
    """Restoring a state before the subject's position changes nothing, so there the grid is the baseline."""
    fact = rl.Fact("In Italy, {} is in", "Rome")
    trace = rl.causal_trace(tiny, fact, corruption=rl.GaussianNoise(std=0.5, replace=True), progress=False)
    none = rl.locate.restore_states(tiny, fact, [], corruption=rl.GaussianNoise(std=0.5, replace=True))
    assert trace.corrupted == pytest.approx(none, abs=1e-6)
    last = trace.restored[-1, -1].item()
    assert last == pytest.approx(trace.clean, abs=1e-5)


def test_token_replacement_runs_the_other_prompt(tiny):
    fact, other = rl.Fact("The capital of {} is", "Rome"), "Paris"
    trace = rl.causal_trace(tiny, fact, corruption=rl.locate.TokenReplacement(other), progress=False)
    answer = tiny(tiny.to_tokens(fact.text))[0, -1].argmax()
    elsewhere = tiny(tiny.to_tokens("The capital of Paris is"))[0, -1].softmax(-1)[answer].item()
    assert trace.config.samples == 1
    assert trace.corrupted == pytest.approx(elsewhere, abs=1e-6)


def test_a_replacement_of_another_length_is_refused(tiny):
    with pytest.raises(ValueError, match=r"'The Eiffel Tower' has \d tokens .* but 'Italy' has 2. Choose another"):
        rl.causal_trace(tiny, FACT, corruption=rl.locate.TokenReplacement("The Eiffel Tower"), progress=False)


def test_a_subject_of_the_same_length_and_another_answer_is_found(tiny):
    fact = rl.Fact("The country of {} is", "Rome", answer="Italy")
    others = [
        rl.Fact("The country of {} is", "Rome", answer="Italy"),
        rl.Fact("The country of {} is", "Tower", answer="Italy"),
        rl.Fact("The country of {} is", "The Eiffel Tower", answer="France"),
        rl.Fact("The country of {} is", "Paris", answer="France"),
    ]
    assert rl.locate.same_length_subject(tiny, fact, others) == "Paris"
    with pytest.raises(ValueError, match="None of the other subjects has the 1 tokens of 'Rome'"):
        rl.locate.same_length_subject(tiny, fact, others[:3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rl.GaussianNoise(std=-1.0), "std is -1.0, expected a number above 0"),
        (lambda: rl.locate.UniformNoise(sigmas=0.0), "sigmas is 0.0, expected a number above 0"),
    ],
)
def test_widths_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
