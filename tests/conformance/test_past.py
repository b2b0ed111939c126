"""What a model keeps of earlier positions, in every family and class, whatever the libraries call it."""

import pytest
import torch

from rome_lens import models
from rome_lens.models.running.forward import reader
from rome_lens.models.running.sampling import sample_text
from tests.conformance.conftest import EVERY, KINDS

TOKENS = torch.arange(1, 9)[None]


@pytest.mark.parametrize(("family", "kind"), EVERY)
@torch.no_grad()
def test_text_is_what_whole_passes_say(made, family, kind):
    """A generation whose keys and values are lost goes on without its prompt, and says nothing of it."""
    model, tokens = made(family, kind), TOKENS
    written = sample_text(model, tokens, new_tokens=5, seed=0, top_k=1)
    for _ in range(5):
        best = models.logits(model, models.run(model, tokens)[:, -1]).argmax(-1)
        tokens = torch.cat([tokens, best[None]], dim=1)
    assert written == model.tokenizer.batch_decode(tokens[:, 8:], skip_special_tokens=True)


@pytest.mark.parametrize(("family", "kind"), EVERY)
@torch.no_grad()
def test_a_past_that_grows_piece_by_piece_is_that_of_one_pass(made, family, kind):
    model = made(family, kind)
    _, whole = models.run_with_past(model, TOKENS)
    stream = models.run(model, TOKENS, stop_at_layer=1)
    past = {layer: state.upto(4) for layer, state in enumerate(whole) if layer}
    for first, end in ((4, 5), (5, 8)):
        past = models.extend_past(model, stream[:, first:end], past, torch.ones(1, end, dtype=torch.long))
    assert list(past) == [*range(1, model.cfg.n_layers)]
    for layer, state in past.items():
        torch.testing.assert_close(state.past_keys, whole[layer].past_keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(state.past_values, whole[layer].past_values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("bridge")])
@torch.no_grad()
def test_a_past_that_was_not_kept_is_an_error_at_once(made, monkeypatch, kind):
    model = made("gpt2", kind)
    _, past = models.run_with_past(model, TOKENS)
    residual = models.run(model, TOKENS, stop_at_layer=1)
    monkeypatch.setattr(model.blocks[1].attn, "_update_kv_cache", lambda keys, values, **_: (keys, values))
    message = r"block 1 kept the keys and values of \d+ positions of \d+: transformer-lens \d.* and transformers \d"
    with pytest.raises(RuntimeError, match=message):
        models.run_with_past(model, TOKENS)
    with pytest.raises(RuntimeError, match=message):
        models.run_blocks(model, residual, 1, 2, past=dict(enumerate(past)))
    with pytest.raises(RuntimeError, match=message):
        reader(model, 1)(TOKENS)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_block_at_all_changes_nothing(made, kind):
    model = made("gpt2", kind)
    residual, past = models.run_with_past(model, TOKENS)
    assert torch.equal(models.run_blocks(model, residual, 3, 3, past=dict(enumerate(past))), residual)
    assert models.extend_past(model, residual, {}, torch.ones_like(TOKENS)) == {}
