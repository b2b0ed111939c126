"""Perplexity: against a plain computation, token by token."""

import math

import pytest
import torch

import rome_lens as rl

TEXT = "The Eiffel Tower is located in the city of Paris. The mother tongue of Dante is Italian. One, two."


def plain_perplexity(model, windows: list[list[int]]) -> float:
    """One pass for each window."""
    losses = []
    for window in windows:
        log_probs = model(torch.tensor([window]))[0].log_softmax(-1)
        losses += [-log_probs[i, token].item() for i, token in enumerate(window[1:])]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("tokens_per_batch", [1, 25, 4096])
@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@torch.no_grad()
def test_perplexity_is_that_of_each_window_read_by_itself(tiny_model, family, bos, tokens_per_batch):
    """Windows of 10 tokens, the model's BOS among them, over the first 23 tokens."""
    model = tiny_model(family, bos=bos)
    ids = model.to_tokens(TEXT, prepend_bos=False)[0, :23].tolist()
    before, length = ([0], 9) if bos else ([], 10)
    windows = [before + ids[i : i + length] for i in range(0, 23, length)]
    options = {"tokens": 23, "window": 10, "tokens_per_batch": tokens_per_batch, "progress": False}
    ours = rl.evaluate.perplexity(model, TEXT, **options)
    assert ours == pytest.approx(plain_perplexity(model, windows), rel=1e-4)
    assert rl.evaluate.perplexity(model, ids, **options) == ours


@torch.no_grad()
def test_a_window_is_at_most_the_context_and_a_text_at_most_itself(tiny):
    ids = tiny.tokenizer(TEXT * 9, add_special_tokens=False, verbose=False)["input_ids"]
    windows = [ids[:128], ids[128:256], ids[256:]]
    assert 256 < len(ids) <= 384
    assert rl.evaluate.perplexity(tiny, TEXT * 9, progress=False) == pytest.approx(
        plain_perplexity(tiny, windows), rel=1e-4
    )


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("a", {}, "no token to predict"),
        ("", {}, "no token to predict"),
        (TEXT, {"window": 1}, "no token to predict"),
        (TEXT, {"tokens": 0}, "tokens 0"),
        (TEXT, {"window": 0}, "window is 0"),
    ],
)
def test_a_text_without_a_predicted_token_is_refused(tiny, text, options, says):
    with pytest.raises(ValueError, match=says):
        rl.evaluate.perplexity(tiny, text, progress=False, **options)


@pytest.mark.parametrize("odd", [-1, 10**9])
def test_ids_that_the_model_does_not_know_are_refused(tiny, odd):
    with pytest.raises(ValueError, match=rf"text holds the ids \[{odd}\], but .* knows 0 to {tiny.cfg.d_vocab - 1}"):
        rl.evaluate.perplexity(tiny, [1, 2, odd], progress=False)
