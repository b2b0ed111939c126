"""Edits as data: applied, reverted bit for bit, saved and loaded."""

import signal
from functools import partial

import pytest
import torch

import rome_lens as rl
from rome_lens.storage import digest

REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome")


def made_up(model, layers=(1,), seed: int = 0, scale: float = 1.0) -> rl.Edit:
    generator = torch.Generator().manual_seed(seed)
    shape = model.cfg.d_mlp, model.cfg.d_model
    updates = tuple(
        rl.edit.Update(
            layer,
            scale * torch.randn(shape[0], 1, generator=generator),
            torch.randn(1, shape[1], generator=generator),
        )
        for layer in layers
    )
    health = rl.edit.EditHealth(update_norm=1.0, relative_update_norm=0.1, key_dot_u=0.5, clamped=True)
    return rl.Edit(updates, (REQUEST,), "rome", "gpt2", config={"layer": 1}, health=health)


def same(model, weights) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
def test_apply_adds_left_times_right_and_nothing_else(tiny_model, weights_of, family):
    model = tiny_model(family)
    before, matrix = weights_of(model), model.blocks[1].mlp.W_out.detach().clone()
    edit = made_up(model)
    with edit.applied(model):
        after = model.state_dict()
        (name,) = (name for name in before if not torch.equal(after[name], before[name]))
        assert name.startswith("blocks.1.mlp.")
        expected = matrix + edit.updates[0].left @ edit.updates[0].right
        assert torch.allclose(model.blocks[1].mlp.W_out, expected)
        assert model.blocks[1].mlp.W_out.data_ptr() == after[name].data_ptr()
    assert same(model, before)


def test_the_edit_changes_what_the_model_says(tiny):
    tokens = tiny.to_tokens("The Eiffel Tower")
    before = tiny(tokens)
    with made_up(tiny).applied(tiny):
        assert not torch.allclose(tiny(tokens), before, atol=1e-2)
    assert torch.equal(tiny(tokens), before)


def test_weights_are_back_bit_for_bit_after_an_exception(tiny, weights_of):
    before = weights_of(tiny)
    with pytest.raises(ZeroDivisionError), made_up(tiny, layers=(0, 2)).applied(tiny):
        assert not same(tiny, before)
        raise ZeroDivisionError
    assert same(tiny, before)


def test_weights_are_back_bit_for_bit_after_ctrl_c(tiny, weights_of, request):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background does not have
    before = weights_of(tiny)
    with pytest.raises(KeyboardInterrupt), made_up(tiny).applied(tiny):
        signal.raise_signal(signal.SIGINT)
    assert same(tiny, before)


def test_weights_are_back_even_if_the_body_changed_them(tiny, weights_of):
    before = weights_of(tiny)
    with made_up(tiny).applied(tiny), torch.no_grad():
        tiny.blocks[1].mlp.W_out.zero_()
    assert same(tiny, before)


def test_handle_reverts_once(tiny, weights_of):
    before = weights_of(tiny)
    handle = made_up(tiny).apply(tiny)
    assert not same(tiny, before)
    handle.revert()
    assert same(tiny, before)
    handle.revert()
    assert same(tiny, before)


def test_the_handle_is_a_context_manager_that_reverts_at_the_end(tiny, weights_of):
    before = weights_of(tiny)
    with pytest.raises(ZeroDivisionError), made_up(tiny).apply(tiny) as handle:
        assert not same(tiny, before)
        raise ZeroDivisionError
    assert same(tiny, before)
    handle.revert()
    assert same(tiny, before)


def test_nested_edits_are_reverted_in_turn(tiny, weights_of):
    before = weights_of(tiny)
    with made_up(tiny).applied(tiny):
        between = weights_of(tiny)
        with made_up(tiny, seed=1).applied(tiny):
            assert not same(tiny, between)
        assert same(tiny, between)
    assert same(tiny, before)


def test_an_earlier_edit_is_reverted_alone_and_the_last_one_leaves_the_original(tiny, weights_of):
    before = weights_of(tiny)
    first, second = made_up(tiny), made_up(tiny, seed=1)
    with second.applied(tiny):
        second_alone = weights_of(tiny)
    handles = first.apply(tiny), second.apply(tiny)
    assert rl.edit.applied_edits(tiny) == (first, second)
    handles[0].revert()
    assert same(tiny, second_alone)
    assert rl.edit.applied_edits(tiny) == (second,)
    handles[1].revert()
    assert same(tiny, before)
    assert rl.edit.applied_edits(tiny) == ()


def test_an_edit_of_another_width_is_refused(tiny, tiny_model):
    with pytest.raises(
        rl.errors.EditError, match=r"matrices of the shape \(64, 32\), but layer 1 of gpt2 has \(128, 32\)"
    ):
        made_up(tiny_model("llama")).apply(tiny)


def test_an_edit_that_would_overflow_is_refused_before_any_weight_is_written(tiny, weights_of):
    before = weights_of(tiny)
    good, bad = made_up(tiny, layers=(0,)), made_up(tiny, layers=(2,), scale=1e38)
    edit = rl.Edit((*good.updates, rl.edit.Update(2, bad.updates[0].left * 100, bad.updates[0].right)), (REQUEST,))
    with pytest.raises(rl.errors.EditError, match="layer 2 infinite or NaN. No weight was changed"):
        edit.apply(tiny)
    assert same(tiny, before)


def test_a_layer_that_the_model_lacks_is_refused(tiny):
    with pytest.raises(ValueError, match="layer is 7, but gpt2 has layers 0 to 2"):
        made_up(tiny, layers=(7,)).apply(tiny)


def test_saved_and_loaded_edits_are_alike(tiny, tmp_path):
    edit = made_up(tiny, layers=(0, 2))
    edit.save(tmp_path / "edit.safetensors")
    loaded = rl.Edit.load(tmp_path / "edit.safetensors")
    for name in ("requests", "method", "model", "architecture", "config", "health"):
        assert getattr(loaded, name) == getattr(edit, name)
    for ours, theirs in zip(loaded.updates, edit.updates, strict=True):
        assert (ours.layer, ours.made_for) == (theirs.layer, theirs.made_for)
        assert torch.equal(ours.left, theirs.left)
        assert torch.equal(ours.right, theirs.right)


def test_save_refuses_an_existing_file_and_keeps_it(tiny, tmp_path):
    path = tmp_path / "edit.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        made_up(tiny).save(path)
    assert path.read_text() == "mine"
    made_up(tiny).save(path, overwrite=True)
    assert rl.Edit.load(path).requests == (REQUEST,)


def test_truncated_foreign_and_missing_files_are_refused(tiny, tmp_path):
    path = tmp_path / "edit.safetensors"
    made_up(tiny).save(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(rl.errors.FormatError, match="damaged or is not a safetensors file"):
            rl.Edit.load(path)
    rl.KeyCovariance.from_matrix(torch.eye(4), layer=0, tokens=10).save(path, overwrite=True)
    with pytest.raises(
        rl.errors.FormatError, match="holds 'rome_lens key covariance 3', expected a 'rome_lens edit 4'"
    ):
        rl.Edit.load(path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        rl.Edit.load(tmp_path / "none.safetensors")


def test_factors_that_do_not_fit_together_are_refused(tiny, tmp_path):
    edit = rl.Edit((rl.edit.Update(0, torch.ones(8, 1), torch.full((1, 4), float("inf"))),), (REQUEST,))
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(rl.errors.FormatError, match="holds NaN or infinity"):
        rl.Edit.load(tmp_path / "edit.safetensors")


def made_on(model) -> rl.Edit:
    made = made_up(model)
    factors = {update.layer: (update.left, update.right) for update in made.updates}
    return rl.Edit.of(model, [REQUEST], factors, method="rome", config={}, on_unhealthy="ignore")


def test_an_edit_knows_the_weights_it_was_computed_for(tiny, weights_of):
    """No warning on the model itself; on another one a warning with both checksums, or a refusal."""
    edit, before = made_on(tiny), weights_of(tiny)
    made_for = edit.updates[0].made_for
    with edit.applied(tiny, strict=True):
        found = digest(tiny.blocks[1].mlp.W_out)
        with pytest.warns(rl.errors.EditWarning, match=f"layer 1 was {made_for[:12]} and is {found[:12]}"):
            edit.apply(tiny).revert()
        with pytest.raises(rl.errors.EditError, match="computed for other weights"):
            edit.apply(tiny, strict=True)
        assert digest(tiny.blocks[1].mlp.W_out) == found
    assert same(tiny, before)


def test_another_architecture_of_the_same_width_is_named(tiny_model):
    edit = made_on(tiny_model("llama"))
    with pytest.warns(rl.errors.EditWarning, match="architecture of .* was another"):
        edit.apply(tiny_model("llama-gqa")).revert()
