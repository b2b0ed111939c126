"""Fine-tuning: what is trained, how far it may move, and that nothing of it is left in the model."""

import pytest
import torch

import rome_lens as rl
from rome_lens.models import find_output_matrix
from rome_lens.models.teacher_forcing import ForcedBatch
from tests.edit.artifact.test_edit import same

REQUESTS = [
    rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome"),
    rl.EditRequest("The mother tongue of {} is", "Dante", target="French, Seattle"),
]
QUIET = {"on_unhealthy": "ignore", "progress": False}


def plain_losses(model, requests) -> torch.Tensor:
    """The mean negative log-probability of each target's tokens: one pass for each request."""
    losses = []
    for request in requests:
        start = model.to_tokens(request.text).shape[1]
        tokens = model.to_tokens(f"{request.text} {request.target}")
        log_probs = model(tokens)[0].log_softmax(-1)
        positions = torch.arange(start - 1, tokens.shape[1] - 1)
        losses.append(-log_probs[positions, tokens[0, start:]].mean())
    return torch.stack(losses)


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama-gqa", True)])
@pytest.mark.parametrize("layers", [(1,), (2, 0), range(1, 3)])
def test_training_equals_a_plain_loop_with_adam_on_the_whole_model(tiny_model, weights_of, family, bos, layers):
    """The same weights after three steps, of both requests, as a plain loop gives, which runs everything each time."""
    model = tiny_model(family, bos=bos)
    before = weights_of(model)
    config = rl.edit.FinetuneConfig(layers=layers, steps=3, learning_rate=0.01, weight_decay=0.1)
    edit = rl.edit.finetune(model, REQUESTS, config=config, **QUIET)
    assert same(model, before)
    assert [update.layer for update in edit.updates] == edit.config["layers"] == list(layers)
    weights = [find_output_matrix(model, layer).parameter for layer in layers]
    optimizer = torch.optim.Adam(weights, lr=0.01, weight_decay=0.1)
    try:
        for _ in range(3):
            optimizer.zero_grad()
            plain_losses(model, REQUESTS).mean().backward()
            optimizer.step()
        trained = [weight.detach().clone() for weight in weights]
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    with edit.applied(model, strict=True):
        for weight, expected in zip(weights, trained, strict=True):
            assert torch.allclose(weight, expected, atol=1e-5)
        assert plain_losses(model, REQUESTS).max().item() == pytest.approx(edit.health.nll, rel=1e-4)


def test_unconstrained_training_says_the_targets_and_stops_then(tiny, weights_of):
    before = weights_of(tiny)
    clean = plain_losses(tiny, REQUESTS)
    config = rl.edit.FinetuneConfig(learning_rate=0.05, steps=50, early_stop_loss=0.2)
    edit = rl.edit.finetune(tiny, REQUESTS, config=config, **QUIET)
    with edit.applied(tiny, strict=True):
        losses = plain_losses(tiny, REQUESTS)
        assert losses.mean() < 0.2 < clean.mean()
    assert 0 < edit.health.steps < 50
    assert edit.health.target_probability == pytest.approx((-losses.max()).exp().item(), abs=1e-4)
    assert edit.health.clamped is None
    assert (edit.method, edit.requests) == ("ft", tuple(REQUESTS))
    assert same(tiny, before)


def test_no_entry_moves_farther_than_the_bound(tiny):
    before = tiny.blocks[0].mlp.W_out.detach().clone()
    edit = rl.edit.finetune(tiny, REQUESTS[0], config=rl.edit.FinetuneConfig.constrained(max_change=7e-4), **QUIET)
    change = edit.updates[0].left
    assert change.abs().max() == torch.tensor(7e-4)
    assert edit.health.clamped
    assert edit.health.update_norm == pytest.approx(change.norm().item())
    with edit.applied(tiny):
        assert (tiny.blocks[0].mlp.W_out - before).abs().max() <= 7e-4 * 1.001
    assert edit.method == "ft+l"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_applied_edit_is_the_trained_weight_bit_for_bit(tiny_folder, tmp_path, monkeypatch, dtype):
    """The weight in the last pass of the training is that of the pass that measures health, and the weight after
    saving, loading and applying the edit.
    """
    model = rl.load_model(str(tiny_folder("gpt2")), device="cpu", dtype=dtype)
    weight = model.blocks[1].mlp.W_out
    seen = []
    hook = model.blocks[1].hook_resid_post.register_forward_hook(lambda *_: seen.append(weight.detach().clone()))
    edit = rl.edit.finetune(model, REQUESTS, config=rl.edit.FinetuneConfig(steps=4, learning_rate=0.01), **QUIET)
    hook.remove()
    assert len(seen) == 6
    assert torch.equal(seen[4], seen[5])
    assert torch.equal(seen[0], weight)
    edit.save(tmp_path / "edit.safetensors")
    with rl.Edit.load(tmp_path / "edit.safetensors").applied(model, strict=True):
        assert torch.equal(weight, seen[-1])


def test_nothing_is_left_behind(tiny, weights_of, monkeypatch):
    """No gradient, no changed requires_grad, no moved random state; neither after a failure."""
    before, state = weights_of(tiny), torch.get_rng_state()
    tiny.blocks[2].mlp.W_out.requires_grad_(False)
    asked = {name: parameter.requires_grad for name, parameter in tiny.named_parameters()}
    try:
        rl.edit.finetune(tiny, REQUESTS, config=rl.edit.FinetuneConfig(layers=(1, 2), steps=2), **QUIET)
        factors, losses = iter((1.0, float("nan"))), ForcedBatch.losses
        monkeypatch.setattr(ForcedBatch, "losses", lambda *given: next(factors) * losses(*given))
        with pytest.raises(rl.errors.EditError, match="failed at step 1: the loss is nan"):
            rl.edit.finetune(tiny, REQUESTS, config=rl.edit.FinetuneConfig(steps=3), **QUIET)
        assert {name: parameter.requires_grad for name, parameter in tiny.named_parameters()} == asked
    finally:
        tiny.blocks[2].mlp.W_out.requires_grad_(True)
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert same(tiny, before)


def test_bad_arguments_are_refused_before_any_work(tiny):
    with pytest.raises(ValueError, match="requests is empty"):
        rl.edit.finetune(tiny, [])
    with pytest.raises(ValueError, match="layer is 9, but gpt2 has layers 0 to 2"):
        rl.edit.finetune(tiny, REQUESTS, config=rl.edit.FinetuneConfig(layers=(9,)))
    with pytest.raises(ValueError, match=r"layers is \(1, 1\)"):
        rl.edit.FinetuneConfig(layers=(1, 1))
    with pytest.raises(ValueError, match="steps is 0"):
        rl.edit.FinetuneConfig(steps=0)


def test_an_unhealthy_edit_is_refused_or_warned_of(tiny):
    config = rl.edit.FinetuneConfig(steps=1)
    with pytest.warns(rl.errors.EditWarning, match="in the edited model the target has a probability of"):
        rl.edit.finetune(tiny, REQUESTS, config=config, progress=False)
    with pytest.raises(rl.errors.EditError, match="is unhealthy"):
        rl.edit.finetune(tiny, REQUESTS, config=config, on_unhealthy="raise", progress=False)
