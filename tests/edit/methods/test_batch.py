"""MEMIT, EMMET and AlphaEdit: what they write, what they leave alone, and what they refuse."""

import copy
import re
from functools import cache

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.batch import context_keys
from rome_lens.edit.methods.closed_forms import with_context_differences
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.targets import subject_states
from tests.edit.methods.test_rome import CONTEXTS, FAMILIES, covariance_of

REQUESTS = (
    rl.EditRequest("One, two, {}", "The Eiffel Tower", target="Rome"),
    rl.EditRequest("In the continent of {}", "Beats Music", target="Italian"),
    rl.EditRequest("{}", "Vinson Massif", target="France"),
)
LAYERS = [0, 1]
# In a random model the changes have to be large; see test_rome.
FAR = {"contexts": CONTEXTS, "clamp_norm_factor": 100.0, "steps": 40}
METHODS = {
    "memit": (rl.memit, rl.MemitConfig(**FAR, covariance_weight=1e-3)),
    "memit, Eq. 14": (rl.memit, rl.MemitConfig(**FAR, covariance_weight=1e-3, constrain_bare_prompt=False)),
    "emmet": (rl.edit.emmet, rl.edit.EmmetConfig(**FAR)),
    "alphaedit": (rl.edit.alphaedit, rl.edit.AlphaEditConfig(**FAR, null_space_threshold=1.0, ridge=1e-3)),
}


def covariances_of(model, layers=LAYERS) -> dict[int, rl.KeyCovariance]:
    return {layer: covariance_of(model, layer) for layer in layers}


def targets_of(model, requests=REQUESTS, layer=LAYERS[-1], **options) -> rl.edit.MemitTargets:
    return rl.edit.memit_targets(model, requests, layer=layer, config=rl.MemitConfig(**FAR), progress=False, **options)


@cache
def found(model) -> rl.edit.MemitTargets:
    """The targets of REQUESTS, searched once for all tests of a model."""
    return targets_of(model)


def edit_of(model, name: str, requests=REQUESTS, **options) -> rl.Edit:
    method, config = METHODS[name]
    options = {"covariances": covariances_of(model), "config": config, "on_unhealthy": "ignore"} | options
    return method(model, requests, progress=False, **options)


def probabilities(model) -> torch.Tensor:
    """Of the requests' targets' first tokens."""
    rows = [model.to_tokens(f"{r.text} {r.target}")[0] for r in REQUESTS]
    ends = [model.to_tokens(r.text).shape[1] for r in REQUESTS]
    with torch.no_grad():
        return torch.stack(
            [model(row[None])[0, end - 1].softmax(-1)[row[end]] for row, end in zip(rows, ends, strict=True)]
        )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_all_requests_are_memorised_at_once_and_the_weights_stay(tiny_model, weights_of, family, bos, name):
    model = tiny_model(family, bos=bos)
    before, state = weights_of(model), torch.get_rng_state()
    at_first = probabilities(model)
    edit = edit_of(model, name, targets=found(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with edit.applied(model, strict=True):
        assert (probabilities(model) > at_first + 0.1).all()
    assert [update.layer for update in edit.updates] == LAYERS
    assert all(update.left.shape[1] == len(update.right) == len(REQUESTS) for update in edit.updates)
    assert (edit.method, edit.requests) == (name.split(",")[0], REQUESTS)


@pytest.mark.parametrize("name", ["memit", "emmet", "alphaedit"])
def test_a_bare_prompt_gets_as_much_as_its_mean_key(tiny, name):
    edit = edit_of(tiny, name, covariances=covariances_of(tiny, [1]), targets=found(tiny))
    update = edit.updates[0]
    for request in REQUESTS:
        keys = subject_keys(tiny, 1, request, CONTEXTS)
        bare, mean = (key.double() @ update.left.double() @ update.right.double() for key in (keys[0], keys.mean(0)))
        assert (bare - mean).norm() < 1e-4 * mean.norm()


def test_a_large_batch_constrains_a_quarter_of_the_width_at_most_the_most_different_first():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(40, 64, generator=generator)
    apart = torch.randn(40, 64, generator=generator) * torch.linspace(0.1, 4, 40)[:, None]
    apart[5] = 0.0
    chosen = with_context_differences(None, keys, keys + apart)
    most = (apart.norm(dim=-1) / keys.norm(dim=-1)).topk(16).indices.sort().values
    assert torch.allclose(chosen.keys, apart[most].double(), atol=1e-5)
    assert with_context_differences(None, keys, keys.clone()) is None


def test_exact_constraints_bring_each_state_to_its_target_when_one_layer_and_one_context_are_edited(tiny):
    """Nothing lies between the MLP's output and the state after its block, so EMMET reaches z exactly."""
    config = rl.edit.EmmetConfig(contexts=["{}"], clamp_norm_factor=2.0, steps=5)
    targets = rl.edit.memit_targets(tiny, REQUESTS, layer=1, config=config, progress=False)
    edit = edit_of(tiny, "emmet", covariances=covariances_of(tiny, [1]), config=config, targets=targets)
    with edit.applied(tiny):
        states = subject_states(tiny, 1, REQUESTS)
    assert torch.allclose(states, torch.stack([value.vector for value in targets.values]), atol=1e-4)


def plain_memit(model, targets: rl.edit.MemitTargets, weight: float) -> dict[int, torch.Tensor]:
    """MEMIT's algorithm 1 with whole matrices and lasting changes of a copied model."""
    model, changes = copy.deepcopy(model), {}
    sought = torch.stack([value.vector for value in targets.values])
    for i, layer in enumerate(LAYERS):
        keys, states = [], []
        for request in targets.requests:
            keys_of_request = []
            for context in targets.contexts:
                prompt = context.replace("{}", request.prompt).replace("{}", request.subject)
                until_subject = prompt[: prompt.rindex(request.subject) + len(request.subject)]
                _, cache = model.run_with_cache(until_subject)
                keys_of_request.append(cache[f"blocks.{layer}.mlp.hook_post"][0, -1])
                if context == "{}":
                    states.append(cache[f"blocks.{LAYERS[-1]}.hook_resid_post"][0, -1])
            keys.append(torch.stack(keys_of_request).mean(0))
        k = torch.stack(keys).double()
        missing = (sought - torch.stack(states)).double() / (len(LAYERS) - i)
        prior = weight * covariance_of(model, layer).second_moment.double()
        changes[layer] = torch.linalg.solve(prior + k.T @ k, k.T @ missing).float()
        model.blocks[layer].mlp.W_out.data += changes[layer]
    return changes


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@torch.no_grad()
def test_memit_equals_algorithm_1_written_plainly(tiny_model, family, bos):
    """Keys and what is missing are measured with the earlier layer's update in place."""
    model = tiny_model(family, bos=bos)
    targets = found(model)
    edit = edit_of(model, "memit, Eq. 14", targets=targets)
    for layer, change in plain_memit(model, targets, 1e-3).items():
        update = edit.updates[LAYERS.index(layer)]
        assert (update.left @ update.right - change).norm() < 1e-3 * change.norm()


def test_targets_given_are_the_targets_searched(tiny):
    by_itself, given = edit_of(tiny, "memit"), edit_of(tiny, "memit", targets=found(tiny))
    assert all(
        torch.equal(a.left, b.left) and torch.equal(a.right, b.right)
        for a, b in zip(by_itself.updates, given.updates, strict=True)
    )
    assert by_itself.config == given.config


def test_health_is_the_worst_of_layers_and_requests(tiny):
    targets = found(tiny)
    edit = edit_of(tiny, "memit", targets=targets)
    norms = [(u.left @ u.right).norm().item() for u in edit.updates]
    shares = [n / tiny.blocks[u.layer].mlp.W_out.norm().item() for n, u in zip(norms, edit.updates, strict=True)]
    assert edit.health.update_norm == pytest.approx(max(norms), rel=1e-5)
    assert edit.health.relative_update_norm == pytest.approx(max(shares), rel=1e-5)
    assert edit.health.nll == max(value.nll for value in targets.values)
    assert edit.health.kl == max(value.kl for value in targets.values)
    conditions = [covariance.condition_number for covariance in covariances_of(tiny).values()]
    assert edit.health.condition_number == max(conditions)
    assert edit_of(tiny, "alphaedit", targets=targets).health.condition_number is None


def test_an_unhealthy_batch_warns_or_is_refused(tiny):
    with pytest.warns(rl.errors.EditWarning, match=r"and 2 more is unhealthy: the update is"):
        edit_of(tiny, "memit", targets=found(tiny), on_unhealthy="warn")
    with pytest.raises(rl.errors.EditError, match=r"and 2 more is unhealthy: .*No weight was changed"):
        edit_of(tiny, "memit", targets=found(tiny), on_unhealthy="raise")


def test_several_facts_about_one_subject_can_be_written(tiny):
    """With other words before the subject their keys differ; behind the same words they would be one key."""
    about_one = (REQUESTS[0], rl.EditRequest("In the city of {}", "The Eiffel Tower", target="Italian"))
    assert len(edit_of(tiny, "emmet", about_one).requests) == 2
    same_key = (REQUESTS[0], rl.EditRequest("One, two, {} is in", "The Eiffel Tower", target="Italian"))
    with pytest.raises(rl.errors.EditError, match=r"keys of these 2 requests depend on each other in layer 0"):
        edit_of(tiny, "emmet", same_key)


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([], "requests is empty"),
        ([REQUESTS[0], REQUESTS[0]], "Two requests are about 'One, two, The Eiffel Tower': for 'Rome' and 'Rome'"),
        ([REQUESTS[0], rl.EditRequest("One, two, The {}", "Eiffel Tower", target="France")], "for 'Rome' and 'France'"),
    ],
)
def test_no_requests_or_contradicting_ones_are_refused(tiny, requests, says):
    with pytest.raises(ValueError, match=says):
        edit_of(tiny, "memit", requests)


def no_search(monkeypatch):
    """A search from here on would be work before an error."""
    monkeypatch.setattr("rome_lens.edit.search.targets.optimise_values", None)


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_covariance_is_named_before_any_work(tiny, monkeypatch, name):
    no_search(monkeypatch)
    config = type(METHODS[name][1])(layers=[0, 1, 2])
    with pytest.raises(
        rl.errors.CovarianceError, match=re.escape("no covariance of the layers [2], only of [0, 1]")
    ) as raised:
        edit_of(tiny, name, config=config)
    assert "collect_covariance(model, layers=[0, 1, 2]," in str(raised.value), "what it gives can be passed on"
    with pytest.raises(ValueError, match="has layers 0 to 2"):
        edit_of(tiny, name, config=type(METHODS[name][1])(layers=[1, 99]))
    with pytest.raises(rl.errors.CovarianceError, match="covariances is empty"):
        edit_of(tiny, name, covariances={})


def test_nan_and_mlps_that_are_normed_are_refused_before_any_work(tiny, monkeypatch):
    no_search(monkeypatch)
    broken = copy.deepcopy(tiny)
    broken.blocks[1].mlp.W_out.data[0, 0] = float("nan")
    with pytest.raises(rl.errors.EditError, match="output matrix of layer 1 has NaN"):
        edit_of(broken, "memit")
    monkeypatch.setattr("rome_lens.edit.methods.batch.norms_mlp_output", lambda model, layer: True)
    with pytest.raises(ValueError, match="norms its MLPs' outputs"):
        edit_of(tiny, "memit")


@pytest.mark.parametrize("layers", [[], [1, 0], [1, 1]])
def test_layers_have_to_ascend(layers):
    with pytest.raises(ValueError, match="expected distinct, ascending numbers of blocks"):
        rl.MemitConfig(layers=layers)


@pytest.mark.parametrize(
    ("config", "number"),
    [
        (rl.MemitConfig, "covariance_weight"),
        (rl.edit.AlphaEditConfig, "null_space_threshold"),
        (rl.edit.AlphaEditConfig, "ridge"),
    ],
)
def test_numbers_that_have_to_be_positive(config, number):
    with pytest.raises(ValueError, match=f"{number} is 0.0, expected a number above 0"):
        config(**{number: 0.0})


def test_memit_weighs_the_covariance_by_the_width_unless_told(tiny):
    """GPT-J gets the authors' number; the edit says what was used."""
    assert rl.MemitConfig().weight(16_384) == pytest.approx(15_000)
    assert rl.MemitConfig(covariance_weight=3.0).weight(16_384) == 3.0
    config = rl.MemitConfig(**FAR)
    options = {"covariances": covariances_of(tiny), "targets": found(tiny), "on_unhealthy": "ignore"}
    edit = rl.memit(tiny, REQUESTS, config=config, progress=False, **options)
    assert edit.config["covariance_weight"] == pytest.approx(15_000 * tiny.cfg.d_mlp / 16_384)


def test_keys_are_means_over_all_contexts(tiny):
    targets = found(tiny)
    keys = context_keys(tiny, 1, targets).mean(1)
    each = [subject_keys(tiny, 1, request, CONTEXTS).mean(0) for request in REQUESTS]
    assert torch.allclose(keys, torch.stack(each), atol=1e-5)
