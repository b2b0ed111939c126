"""Edits found in the difference of two models: exactly, through rounding, and never for what they are not."""

import copy
import re

import pytest
import torch

import rome_lens as rl
from rome_lens.models import find_output_matrix, output_matrix
from tests.edit.artifact.test_edit import made_up

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def with_updates(model, updates, dtype=torch.float32):
    """A copy of the model whose matrices hold the updates and went through `dtype`."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for update in updates:
            weight = output_matrix(edited, update.layer)
            weight.copy_(update.added_to(weight.to(dtype)))
    return edited


def rounded(model, dtype):
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in edited.parameters():
            parameter.copy_(parameter.to(dtype))
    return edited


def cosine(one, other) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).abs().item()


def product(update) -> torch.Tensor:
    return update.left @ update.right


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
def test_rank_one_edits_of_several_layers_come_back(tiny_model, family, dtype):
    """Also when the edited weights were rounded to half precision: rounding is no rank."""
    model = rounded(tiny_model(family), dtype)
    true = made_up(model, layers=(0, 2), scale=0.1).updates
    found = rl.evaluate.recover_updates(model, with_updates(model, true, dtype), progress=False)
    assert [(update.layer, update.left.shape[1]) for update in found] == [(0, 1), (2, 1)]
    for ours, theirs in zip(found, true, strict=True):
        assert cosine(ours.left, theirs.left) > 0.999
        assert cosine(ours.right, theirs.right) > 0.999
        assert torch.allclose(product(ours), product(theirs), atol=1e-2)
        assert torch.allclose(ours.left.T @ ours.left, torch.eye(1), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_rank_is_that_of_the_edit(tiny, dtype):
    parts = [made_up(tiny, seed=seed, scale=0.1).updates[0] for seed in range(3)]
    true = rl.edit.Update(1, torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts], 0))
    model = rounded(tiny, dtype)
    (found,) = rl.evaluate.recover_updates(model, with_updates(model, [true], dtype), progress=False)
    assert found.left.shape[1] == 3
    assert cosine(product(found), product(true)) > 0.999


def test_a_rounded_copy_of_the_original_holds_no_edit(tiny, weights_of):
    """Every entry differs, and by rounding only; weight_changes says so too. No model is changed."""
    before = weights_of(tiny)
    suspect = rounded(tiny, torch.bfloat16)
    with pytest.warns(UserWarning, match="differ that are no MLP output matrix"):
        assert rl.evaluate.recover_updates(tiny, suspect, progress=False) == ()
    matrix = find_output_matrix(tiny, 1).parameter
    (name,) = (name for name, parameter in tiny.named_parameters() if parameter is matrix)
    changes = rl.evaluate.weight_changes(tiny, suspect).set_index("parameter").loc[name]
    assert changes["changed"] > 0.9
    assert 0.9 < changes["relative_change"] / changes["relative_rounding"] < 1.1
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_an_edit_on_top_of_a_full_precision_original_comes_back_from_bfloat16(tiny):
    true = made_up(tiny, scale=0.1).updates
    suspect = rounded(with_updates(tiny, true), torch.bfloat16)
    with pytest.warns(UserWarning, match="differ"):
        (found,) = rl.evaluate.recover_updates(tiny, suspect, progress=False)
    assert (found.layer, found.left.shape[1]) == (1, 1)
    assert cosine(product(found), product(true[0])) > 0.999


def test_identical_models_give_nothing(tiny):
    assert rl.evaluate.recover_updates(tiny, copy.deepcopy(tiny), progress=False) == ()
    assert rl.evaluate.weight_changes(tiny, tiny).empty


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fine_tuning_is_reported_with_its_high_rank(tiny, dtype):
    model = rounded(tiny, dtype)
    suspect = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    weight = output_matrix(suspect, 1)
    with torch.no_grad():
        weight.copy_((weight + 0.05 * torch.randn(weight.shape, generator=generator)).to(dtype))
    (found,) = rl.evaluate.recover_updates(model, suspect, progress=False)
    assert found.left.shape[1] >= 30  # of 32


def test_changes_elsewhere_are_not_hidden(tiny):
    suspect = with_updates(tiny, made_up(tiny).updates)
    embedding, changed = next(suspect.named_parameters())
    with torch.no_grad():
        changed[3, 5] += 1
    match = rf"1 parameters differ that are no MLP output matrix \({re.escape(embedding)}"
    with pytest.warns(UserWarning, match=match):
        (found,) = rl.evaluate.recover_updates(tiny, suspect, progress=False)
    assert found.layer == 1
    changes = rl.evaluate.weight_changes(tiny, suspect).set_index("parameter")
    matrix = find_output_matrix(suspect, 1).parameter
    edited = next(name for name, parameter in suspect.named_parameters() if parameter is matrix)
    assert set(changes.index) == {embedding, edited}
    assert changes["changed"][embedding] == pytest.approx(1 / changed.numel())


@torch.no_grad()
def test_the_negated_update_undoes_the_edit(tiny):
    suspect = with_updates(tiny, made_up(tiny, layers=(0, 1)).updates)
    tokens = tiny.to_tokens("The Eiffel Tower is located in")
    assert not torch.allclose(suspect(tokens), tiny(tokens), atol=0.1)
    found = rl.evaluate.recover_updates(tiny, suspect, progress=False)
    mended = with_updates(suspect, [update.negated() for update in found])
    assert torch.allclose(mended(tokens), tiny(tokens), atol=1e-3)


def test_models_of_other_shapes_are_refused(tiny, tiny_model):
    with pytest.raises(ValueError, match=r"have different parameters .*Load both in the same way"):
        rl.evaluate.recover_updates(tiny, tiny_model("llama"))
