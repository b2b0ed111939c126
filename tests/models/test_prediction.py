"""What a model predicts next: parity with a plain run of each prompt, and with torch's own functions."""

import pytest
import torch

from rome_lens.models.prediction import divergence, most_probable, next_token_log_probabilities

PROMPTS = ["The Eiffel Tower is in", "The Eiffel Tower", "Rome", "The Eiffel Tower is in"]


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_next_token_log_probabilities_are_those_of_each_prompt_alone(tiny, tokens_per_batch):
    found = next_token_log_probabilities(tiny, PROMPTS, tokens_per_batch=tokens_per_batch)
    for prompt, row in zip(PROMPTS, found, strict=True):
        assert torch.allclose(row, tiny(tiny.to_tokens(prompt))[0, -1].log_softmax(-1), atol=1e-4)
    assert next_token_log_probabilities(tiny, []).shape == (0, tiny.cfg.d_vocab)


def test_the_most_probable_tokens_come_first(tiny):
    probabilities = torch.zeros(tiny.cfg.d_vocab)
    first, second = (tiny.tokenizer.encode(text)[0] for text in (" Rome", " Paris"))
    probabilities[first], probabilities[second] = 0.5, 0.25
    texts = [tiny.tokenizer.decode([token]) for token in (first, second)]
    assert most_probable(tiny, probabilities, 2) == [(texts[0], 0.5), (texts[1], 0.25)]


def test_divergence_is_the_kullback_leibler_divergence():
    before, after = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(divergence(before, after), expected, atol=1e-6)
    assert torch.equal(divergence(before, before), torch.zeros(3))
