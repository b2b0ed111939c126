"""Edits as hooks: the model answers as if its weights were edited, and they are not."""

import pytest
import torch

import rome_lens as rl
from rome_lens.models.kinds import HookedTransformer
from tests.edit.artifact.test_edit import REQUEST, made_up, same

FAMILIES = ["gpt2", "gptj", "neox", "llama", "llama-gqa"]
every_family = pytest.mark.parametrize("family", FAMILIES)
NORMED = [{"use_normalization_before_and_after": True}, {"original_architecture": "Olmo2ForCausalLM"}]


def normed(option: dict) -> HookedTransformer:
    """A model whose blocks norm what their MLPs put out, as those of Gemma 2 and OLMo 2 do."""
    sizes = {"n_layers": 3, "d_model": 32, "n_ctx": 16, "d_head": 8, "d_mlp": 64, "d_vocab": 384}
    kind = {"act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"}
    model = HookedTransformer({**sizes, **kind, "init_weights": True, "seed": 0, "device": "cpu", **option})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln" in name:
                parameter.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(0))
            if "W_E" in name or "W_U" in name:
                parameter.mul_(20)
    return model


def agrees(model: HookedTransformer, edit: rl.Edit, tokens: torch.Tensor) -> bool:
    """Hooks and edited weights give the same logits to 1e-5 of their size; the plain model gives others."""
    plain = model(tokens)
    hooked = model.run_with_hooks(tokens, fwd_hooks=edit.hooks(model))
    with edit.applied(model):
        edited = model(tokens)
    assert (edited - plain).abs().max() > 1e-2 * plain.abs().max()
    return (hooked - edited).abs().max().item() <= 1e-5 * edited.abs().max().item()


@every_family
@torch.no_grad()
def test_hooks_agree_with_edited_weights_and_leave_the_weights_alone(tiny_model, weights_of, tokens, family):
    model = tiny_model(family)
    before = weights_of(model)
    assert agrees(model, made_up(model, layers=(0, 2)), tokens)
    assert same(model, before)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.hooked
@pytest.mark.parametrize("option", NORMED)
@torch.no_grad()
def test_hooks_go_through_the_norm_after_an_mlp(tokens, option):
    model = normed(option)
    assert agrees(model, made_up(model, layers=(0, 2)), tokens)


@torch.no_grad()
def test_several_updates_of_one_layer_all_count(tiny, tokens):
    """An edit joins them when it is made; applied one after the other they do the same."""
    first, second = made_up(tiny), made_up(tiny, seed=1)
    both = rl.Edit(first.updates + second.updates, (REQUEST,))
    assert [(update.layer, update.rank) for update in both.updates] == [(1, 2)]
    assert agrees(tiny, both, tokens)
    hooked = tiny.run_with_hooks(tokens, fwd_hooks=both.hooks(tiny))
    with first.applied(tiny), second.applied(tiny):
        assert (hooked - tiny(tokens)).abs().max() < 1e-5 * hooked.abs().max()


@every_family
def test_generation_with_a_cache_agrees(tiny_model, tokens, family):
    model, options = tiny_model(family), {"max_new_tokens": 6, "do_sample": False, "verbose": False}
    edit = made_up(model)
    with model.hooks(fwd_hooks=edit.hooks(model)):
        hooked = model.generate(tokens, **options)
    with edit.applied(model):
        assert torch.equal(hooked, model.generate(tokens, **options))
    assert not torch.equal(hooked, model.generate(tokens, **options))


@pytest.mark.parametrize("option", [None, *(pytest.param(each, marks=pytest.mark.hooked) for each in NORMED)])
def test_gradients_flow_through_hooks_as_through_weights(tiny, tokens, option):
    model = normed(option) if option else tiny
    edit = made_up(model)
    name = "blocks.0.hook_resid_pre"

    def gradient() -> torch.Tensor:
        kept = []

        def keep(value, hook):
            kept.append(value.detach().clone().requires_grad_())
            return kept[0]

        with model.hooks(fwd_hooks=[(name, keep)]):
            model(tokens)[:, -1].logsumexp(-1).sum().backward()
        return kept[0].grad

    try:
        with model.hooks(fwd_hooks=edit.hooks(model)):
            hooked = gradient()
        with edit.applied(model):
            edited = gradient()
    finally:
        model.zero_grad()
    assert edited.abs().max() > 0
    assert (hooked - edited).abs().max() < 1e-4 * edited.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_hooks_work_in_half_precision_to_its_rounding(tiny_folder, tokens, dtype):
    model = rl.load_model(str(tiny_folder("llama")), device="cpu", dtype=dtype)
    edit = made_up(model)
    plain, hooked = model(tokens).float(), model.run_with_hooks(tokens, fwd_hooks=edit.hooks(model))
    assert hooked.dtype == dtype
    with edit.applied(model):
        edited = model(tokens).float()
    assert (hooked.float() - edited).norm() < 8 * torch.finfo(dtype).eps * edited.norm()
    assert (plain - edited).norm() > 0.1 * edited.norm()


@torch.no_grad()
def test_a_cached_run_shows_the_edited_mlps_output(tiny, tokens):
    edit = made_up(tiny)
    with edit.applied(tiny):
        _, edited = tiny.run_with_cache(tokens)
    with tiny.hooks(fwd_hooks=edit.hooks(tiny)):
        _, hooked = tiny.run_with_cache(tokens)
    for name in ("blocks.1.hook_mlp_out", "blocks.2.hook_resid_post"):
        assert (hooked[name] - edited[name]).abs().max() < 1e-5 * edited[name].abs().max()


def test_hooks_for_another_model_are_refused_and_for_other_weights_warned_of(tiny, tiny_model):
    with pytest.raises(
        rl.errors.EditError, match=r"matrices of the shape \(64, 32\), but layer 1 of gpt2 has \(128, 32\)"
    ):
        made_up(tiny_model("llama")).hooks(tiny)
    made_for = rl.Edit((rl.edit.Update(1, torch.ones(128, 1), torch.ones(1, 32), "0" * 64),), (REQUEST,))
    with pytest.warns(rl.errors.EditWarning, match="computed for other weights: layer 1 was 000000000000"):
        made_for.hooks(tiny)
    with pytest.raises(rl.errors.EditError, match="computed for other weights"):
        made_for.hooks(tiny, strict=True)
