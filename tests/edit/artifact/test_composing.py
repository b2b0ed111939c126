"""a + b: both edits as one."""

import jaxtyping
import pytest
import torch

import rome_lens as rl
from tests.edit.artifact.test_edit import REQUEST, made_up, same

OTHER = rl.EditRequest("{} is a product of", "Honda Civic", target="Porsche")


def named(model, layers, seed: int, **options) -> rl.Edit:
    made = made_up(model, layers=layers, seed=seed)
    return rl.Edit(made.updates, (OTHER,), **{"method": "memit", "config": {"layer": 2}, **options})


@torch.no_grad()
def test_the_sum_does_what_both_do_one_after_the_other(tiny, weights_of):
    first, second, before = made_up(tiny, layers=(1, 0)), named(tiny, (2, 1), seed=1), weights_of(tiny)
    with first.applied(tiny), second.applied(tiny):
        both = weights_of(tiny)
    with (first + second).applied(tiny):
        for name, value in tiny.state_dict().items():
            torch.testing.assert_close(value, both[name], atol=1e-5, rtol=1e-5)
    assert same(tiny, before)


def test_updates_of_one_layer_become_one_of_higher_rank_and_requests_follow_each_other(tiny):
    both = made_up(tiny, layers=(1, 0)) + named(tiny, (2, 1), seed=1)
    assert [(update.layer, update.rank) for update in both.updates] == [(1, 2), (0, 1), (2, 1)]
    assert both.requests == (REQUEST, OTHER)
    assert (both.method, both.model, both.health) == ("rome+memit", "gpt2", None)
    assert both.config == {"parts": [{"layer": 1}, {"layer": 2}]}


def test_a_sum_can_be_summed_and_saved(tiny, tmp_path):
    a, b = made_up(tiny), named(tiny, (1,), seed=1)
    left, right = (a + b) + a, a + (b + a)
    for edit in (left, right):
        assert (edit.method, edit.config) == ("rome+memit", {"parts": [{"layer": 1}, {"layer": 2}, {"layer": 1}]})
        assert torch.equal(edit.updates[0].left, left.updates[0].left)
    left.save(tmp_path / "edit.safetensors")
    assert torch.equal(rl.Edit.load(tmp_path / "edit.safetensors").updates[0].right, left.updates[0].right)


def test_a_sum_is_made_for_the_weights_that_the_left_edit_was_made_for(tiny):
    """The right one was made on the model that the left one had edited: together they are for the first weights."""
    factors = {1: (torch.ones(128, 1), torch.ones(1, 32))}
    first = rl.Edit.of(tiny, [REQUEST], factors, method="rome", config={}, on_unhealthy="ignore")
    with first.applied(tiny):
        second = rl.Edit.of(tiny, [OTHER], factors, method="rome", config={}, on_unhealthy="ignore")
    both = first + second
    assert first.updates[0].made_for != second.updates[0].made_for
    assert both.updates[0].made_for == first.updates[0].made_for
    assert both.method == "rome"
    with both.applied(tiny, strict=True):
        assert both.architecture == first.architecture


def test_edits_of_different_models_or_shapes_are_refused(tiny, tiny_model):
    other = made_up(tiny_model("llama"), layers=(2,))
    with pytest.raises(
        rl.errors.EditError, match=r"shapes \(128, 32\) \(layer 1\) and \(64, 32\) \(layer 2\), expected one"
    ):
        made_up(tiny) + other
    ours, theirs = named(tiny, (1,), 0, architecture="a" * 64), named(tiny, (1,), 0, architecture="b" * 64)
    with pytest.raises(rl.errors.EditError, match="made on different architectures"):
        ours + theirs
    with pytest.raises(TypeError, match="unsupported operand"):
        ours + 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((True, torch.ones(4, 1), torch.ones(1, 2)), TypeError, "layer True"),
        ((-1, torch.ones(4, 1), torch.ones(1, 2)), ValueError, "counted from 0"),
        ((0, torch.ones(4, 2), torch.ones(1, 2)), ValueError, r"\[4, 2\] in torch.float32 and \[1, 2\]"),
        ((0, torch.ones(4, 0), torch.ones(0, 2)), ValueError, r"expected float32 matrices \[d_in, rank\]"),
        ((0, torch.ones(4, 1).double(), torch.ones(1, 2)), ValueError, "torch.float64"),
    ],
)
def test_factors_that_make_no_update_are_refused(monkeypatch, arguments, error, says):
    """As users run it, without the tests' check of shapes."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=says):
        rl.edit.Update(*arguments)
