"""What keeps long sequences stable: stopping once the target is on top, and v* of one norm."""

from dataclasses import replace

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.search.value import Value, anchored, optimise_value, optimise_values
from rome_lens.models.tokens import tokenize_continuation
from tests.edit.search.test_value import MIXED, distance

CONTEXTS = ("{}", "One, two. {}")
FAR = rl.RomeConfig(
    contexts=CONTEXTS, steps=30, clamp_norm_factor=100.0, kl_factor=0.0, weight_decay=0.0, early_stop_loss=1e-9
)


AT_END = rl.EditRequest("{}", "Vinson Massif", target="Rome")


@pytest.mark.parametrize("number", [1, 3])
def test_the_search_stops_once_the_target_was_on_top_for_so_many_steps(tiny, number):
    """It ends on the vector of a search of just so many steps; what is on top is read from whole forward passes."""
    found = end_of(tiny, replace(FAR, steps_on_top=number))
    assert number - 1 <= found.steps < FAR.steps - 1
    searches = [end_of(tiny, replace(FAR, steps=steps)) for steps in range(1, found.steps + 2)]
    assert torch.equal(found.vector, searches[-1].vector)
    tops = [on_top(tiny, value) for value in searches]
    assert all(tops[-number:])
    assert not any(all(tops[end - number : end]) for end in range(number, len(tops)))


def end_of(model, config: rl.RomeConfig) -> Value:
    return optimise_value(model, 2, AT_END, CONTEXTS, config, at="resid", progress=False)


@torch.no_grad()
def on_top(model, value: Value) -> bool:
    """Whether each of the target's tokens is the most probable one, with v* added after the block, in each context."""
    for context in CONTEXTS:
        text, start = tokenize_continuation(model, context.format(AT_END.text), AT_END.target)

        def put(residual, hook, at=start - 1):
            residual[:, at] += value.vector - value.initial
            return residual

        logits = model.run_with_hooks(torch.tensor([text.ids]), fwd_hooks=[("blocks.2.hook_resid_post", put)])[0]
        if logits[start - 1 : -1].argmax(-1).tolist() != list(text.ids[start:]):
            return False
    return True


def test_stops_of_several_requests_are_each_their_own(tiny):
    config = replace(FAR, steps_on_top=2, steps=12)
    together = optimise_values(tiny, 1, MIXED, CONTEXTS, config, tokens_per_batch=10_000, progress=False)
    for request, value in zip(MIXED, together, strict=True):
        alone = optimise_value(tiny, 1, request, CONTEXTS, config, progress=False)
        assert alone.steps == value.steps
        assert distance(value.vector, alone.vector) < 1e-4


def test_anchored_vectors_have_the_norm_or_are_v0():
    """Scaled, also up; longer than twice the norm: not written."""
    generator = torch.Generator().manual_seed(0)
    initial, vector = torch.randn(2, 8, generator=generator)
    vector = vector / vector.norm()
    assert torch.allclose(anchored(vector, initial, 3.0), 3 * vector)
    assert torch.allclose(anchored(vector, initial, 0.6), 0.6 * vector)
    assert torch.equal(anchored(vector, initial, 0.4), initial)
    assert torch.equal(anchored(vector, initial, None), vector)


def test_the_anchor_is_the_mean_norm_of_pilot_edits_without_the_longest(tiny):
    config = replace(FAR, steps=4)
    values = optimise_values(tiny, 1, MIXED, CONTEXTS, config, progress=False)
    norms = sorted(value.vector.norm().item() for value in values)
    anchor = rl.edit.anchor_norm(tiny, MIXED, layer=1, config=replace(config, anchor_norm=7.0), progress=False)
    assert anchor == pytest.approx(sum(norms[:-1]) / (len(norms) - 1))
    found = optimise_values(tiny, 1, MIXED, CONTEXTS, replace(config, anchor_norm=anchor), progress=False)
    for value, plain in zip(found, values, strict=True):
        expected = plain.initial if plain.vector.norm() > 2 * anchor else plain.vector * anchor / plain.vector.norm()
        assert distance(value.vector, expected) < 1e-5
    with pytest.raises(ValueError, match="requests is empty"):
        rl.edit.anchor_norm(tiny, [], layer=1, config=config)


@pytest.mark.parametrize("wrong", [{"steps_on_top": 0}, {"anchor_norm": 0.0}, {"anchor_norm": -1.0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rl.RomeConfig(**wrong)
