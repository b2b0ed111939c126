"""v*: parity with whole forward passes, several requests at once, and how a search ends."""

import copy

import pytest
import torch

import rome_lens as rl
from analyses.plain.editing import plain_value
from rome_lens.data.records import subject_range
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.value import optimise_value, optimise_values
from rome_lens.models import mlp_output, run, state_name

REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome")
CONTEXTS = ("{}", "One, two. {}", "In Italy, on the continent. {}")
FAMILIES = [("gpt2", False), ("gptj", False), ("neox", True), ("llama", True), ("llama-gqa", False)]
MIXED = [
    rl.EditRequest("{} is in", "The Eiffel Tower", target="Antarctica tongue"),
    REQUEST,
    rl.EditRequest("The mother tongue of {} is", "Danielle", target="English"),
    rl.EditRequest("{}", "Rome", target="the city of Italy"),
]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("at", ["mlp", "resid"])
@pytest.mark.parametrize("target", ["Rome", "Antarctica tongue"])
@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_v_star_equals_that_of_whole_forward_passes(tiny_model, family, bos, target, at):
    """Cached keys, shared rows and left-out positions change nothing."""
    model = tiny_model(family, bos=bos)
    config = rl.RomeConfig(steps=6, learning_rate=0.2)
    request = rl.EditRequest("{} is in", "The Eiffel Tower", target=target)
    ours = optimise_value(model, 1, request, CONTEXTS, config, at=at, progress=False).vector
    assert distance(ours, plain_value(model, 1, request, CONTEXTS, config, at=at)) < 1e-4


@pytest.mark.parametrize("token", ["subject_first", "subject_first_after_last", "last"])
@pytest.mark.parametrize("target", ["Rome", "Antarctica tongue"])
@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_v_star_at_another_token_equals_that_of_whole_forward_passes(tiny_model, family, bos, target, token):
    """Figure 5's other tokens: each moves the position, in the contexts and in the essence prompt, and nothing else."""
    model = tiny_model(family, bos=bos)
    config = rl.RomeConfig(token=token, steps=6, learning_rate=0.2)
    request = rl.EditRequest("{} is in", "The Eiffel Tower", target=target)
    ours = optimise_value(model, 1, request, CONTEXTS, config, progress=False).vector
    assert distance(ours, plain_value(model, 1, request, CONTEXTS, config)) < 1e-4
    assert (
        distance(ours, optimise_value(model, 1, request, CONTEXTS, rl.RomeConfig(steps=6), progress=False).vector)
        > 0.01
    )


@pytest.mark.parametrize("tokens_per_batch", [None, 150, 10_000])
@pytest.mark.parametrize("at", ["mlp", "resid"])
@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_several_requests_at_once_get_what_each_gets_alone(tiny_model, family, bos, at, tokens_per_batch):
    """Other rows, their padding and other requests' stops do not reach a request; it stops where it would alone."""
    model = tiny_model(family, bos=bos)
    config = rl.RomeConfig(steps=12, learning_rate=0.3, clamp_norm_factor=8.0, early_stop_loss=7.0)
    alone = [optimise_value(model, 1, request, CONTEXTS, config, at=at, progress=False) for request in MIXED]
    together = optimise_values(
        model, 1, MIXED, CONTEXTS, config, at=at, tokens_per_batch=tokens_per_batch, progress=False
    )
    assert len({value.steps for value in alone}) > 1, "all searches stopped at the same step: nothing was tested"
    for one, other in zip(together, alone, strict=True):
        assert one.steps == other.steps
        assert one.clamped == other.clamped
        assert distance(one.vector, other.vector) < 1e-4
        assert distance(one.initial, other.initial) < 1e-5
        assert (one.nll, one.kl, one.weight_decay) == pytest.approx(
            (other.nll, other.kl, other.weight_decay), rel=1e-3, abs=1e-6
        )


def test_no_requests_give_no_values(tiny):
    assert optimise_values(tiny, 1, [], CONTEXTS, rl.RomeConfig(), progress=False) == []


def test_initial_is_the_vector_before_the_edit(tiny):
    """In the bare prompt at the subject's last token: the MLP's answer to the key, or the residual stream."""
    config = rl.RomeConfig(steps=1)
    before = {at: optimise_value(tiny, 1, REQUEST, CONTEXTS, config, at=at, progress=False) for at in ("mlp", "resid")}
    assert torch.allclose(
        before["mlp"].initial, mlp_output(tiny, 1, subject_keys(tiny, 1, REQUEST, CONTEXTS)[0]), atol=1e-5
    )
    text, subject = subject_range(tiny, REQUEST)
    states: list[torch.Tensor] = []
    hooks = [(state_name("resid", 1), lambda value, hook: states.append(value))]
    run(tiny, torch.tensor([text.ids]), hooks=hooks)
    assert torch.allclose(before["resid"].initial, states[0][0, subject[-1]], atol=1e-6)
    assert all(torch.equal(value.vector, value.initial) for value in before.values())


def test_v_star_moves_no_further_than_its_bound(tiny):
    """In parts of the mean norm over contexts, or of the bare prompt's alone."""
    outputs = mlp_output(tiny, 1, subject_keys(tiny, 1, REQUEST, CONTEXTS))
    for over_contexts, scale in ((True, outputs.norm(dim=-1).mean()), (False, outputs[0].norm())):
        config = rl.RomeConfig(clamp_norm_factor=0.05, norm_over_contexts=over_contexts)
        value = optimise_value(tiny, 1, REQUEST, CONTEXTS, config, progress=False)
        assert value.clamped
        assert (value.vector - outputs[0]).norm() == pytest.approx(0.05 * scale.item(), rel=1e-4)


def test_search_stops_early_when_the_loss_is_small(tiny):
    value = optimise_value(tiny, 1, REQUEST, CONTEXTS, rl.RomeConfig(early_stop_loss=1e9), progress=False)
    assert value.steps == 0


def test_a_search_that_fails_says_whose(tiny):
    """The error names the request, and comes before any weight is touched."""
    broken = copy.deepcopy(tiny)
    broken.blocks[2].mlp.W_out.data[3, 4] = float("nan")
    with pytest.raises(
        rl.errors.EditError, match=r"v\* of 'English' failed at step 0: the loss is nan.*No weight was changed"
    ):
        optimise_values(broken, 1, MIXED[2:3], CONTEXTS, rl.RomeConfig(), progress=False)
