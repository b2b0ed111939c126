"""Many facts written at once, over several layers: MEMIT, EMMET and AlphaEdit.

They share everything but the closed form: the states z that are to be reached after the last edited layer, and how what
is missing to them is spread over the layers (Meng et al. 2023, arXiv 2210.07229, section 4 and Algorithm 1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import EditHealth, OnUnhealthy, report_problems, update_norms
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.near import auto_prompts
from rome_lens.edit.methods.preserve import (
    Preserve,
    PreservedPrompts,
    preserve_figures,
    preserved_prompts,
    worst_figures,
)
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.search.key import subject_activations
from rome_lens.edit.search.settings import BatchConfig
from rome_lens.edit.search.targets import MemitTargets, check_requests, memit_targets, subject_states
from rome_lens.edit.search.value import search_figures
from rome_lens.errors import CovarianceError, EditError
from rome_lens.models import Model, key_name, norms_mlp_output, output_matrix

ClosedForm = Callable[..., Float[Tensor, "d_mlp request"]]
"""From keys, C and `preserved` keys to the left factor of an update; see closed_forms.py."""


@dataclass(frozen=True)
class BatchProblem:
    """What is asked of one of the methods."""

    method: str
    form: ClosedForm
    inverts: bool  # the covariance
    requests: Requests
    covariances: Mapping[int, KeyCovariance] | None
    config: BatchConfig
    preserve: Preserve = None


def write_batch(
    model: Model,
    asked: BatchProblem,
    targets: MemitTargets | None,
    on_unhealthy: OnUnhealthy,
    progress: bool,
) -> Edit:
    """The edit that `memit`, `emmet` and `alphaedit` give; they document the arguments and what is raised."""
    requests, covariances = as_requests(asked.requests), covariances_for(model, asked.covariances)
    check_requests(requests)
    layers = sorted(covariances) if asked.config.layers is None else list(asked.config.layers)
    _check_layers(model, layers, covariances)
    preserve = asked.preserve
    if preserve == "auto":
        chosen = {layer: covariances[layer] for layer in layers}
        preserve = auto_prompts(model, requests, chosen, asked.form, asked.config.token)
    preserved = preserved_prompts(model, preserve, requests, layers, token=asked.config.token)
    if targets is None:
        targets = memit_targets(model, requests, layer=layers[-1], config=asked.config, progress=progress)
    else:
        targets.check_use(requests, layers[-1], asked.config)
        targets.check_model(model)
    factors, costs = spread(model, targets, layers, covariances, asked.form, preserved, asked.method, progress)
    health = EditHealth(
        **update_norms((left @ right, output_matrix(model, layer)) for layer, (left, right) in factors.items()),
        **search_figures(targets.values),
        condition_number=max(covariances[layer].condition_number for layer in layers) if asked.inverts else None,
        **worst_figures(costs),
    )
    used = as_json(replace(asked.config, layers=layers, contexts=targets.contexts)) | preserved.as_json()
    edit = Edit.of(model, requests, factors, method=asked.method, config=used, health=health)
    report_problems(health, on_unhealthy, edit=edit)
    return edit


def _check_layers(model: Model, layers: Sequence[int], covariances: Mapping[int, KeyCovariance]) -> None:
    """Raises unless each layer can be edited and has its covariance."""
    if not layers:
        raise CovarianceError("covariances is empty, expected {layer: KeyCovariance}, as collect_covariance gives it.")
    if missing := [layer for layer in layers if layer not in covariances]:
        raise CovarianceError(
            f"There is no covariance of the layers {missing}, only of {sorted(covariances)}. Collect them: "
            f"collect_covariance(model, layers={missing}, texts=...)."
        )
    for layer in layers:
        finite_matrix(model, layer)
        covariances[layer].check(model, layer)
        if norms_mlp_output(model, layer):
            raise ValueError(
                f"{model.cfg.model_name} norms its MLPs' outputs, or scales them, so that what is missing in the "
                "residual stream cannot be written into them in closed form. Use rome."
            )


Factors = dict[int, tuple[Float[Tensor, "d_mlp request"], Float[Tensor, "request d_model"]]]


def spread(
    model: Model,
    targets: MemitTargets,
    layers: Sequence[int],
    covariances: Mapping[int, KeyCovariance],
    form: ClosedForm,
    preserved: PreservedPrompts,
    method: str,
    progress: bool,
) -> tuple[Factors, list[dict[str, float]]]:
    """The updates (left, right) by which the layers, ascending, bring the subjects' states to the targets.

    Each layer's keys, and what is still missing after the last one, are measured with the updates before it in the
    weights; afterwards these are bit for bit what they were. Besides, of each layer, what preserving costs.

    Raises:
        EditError: an update is not finite; and as `form`.
        CovarianceError: as `form`.
    """
    sought = torch.stack([value.vector for value in targets.values]).to(model.cfg.device)
    factors: Factors = {}
    costs = []
    for done, layer in enumerate(tqdm(layers, desc=method, unit="layer", disable=not progress)):
        so_far = Edit(tuple(Update(edited, *pair) for edited, pair in factors.items()), targets.requests)
        with so_far.applied(model):
            in_contexts = context_keys(model, layer, targets).cpu().double()
            kept = preserved.keys(model, layer)
            missing = sought - subject_states(model, layers[-1], targets.requests, token=targets.search["token"])
        share = (missing / (len(layers) - done)).cpu()
        keys = in_contexts.mean(1)
        factor = form(keys, covariances[layer], preserved=kept).float()
        if not (factor.isfinite().all() and share.isfinite().all()):
            raise EditError(
                f"The update of layer {layer} is not finite. No weight was changed. Use other contexts, or covariances "
                "from more text."
            )
        factors[layer] = factor, share
        if kept is not None:
            without = form(keys, covariances[layer]).float()
            costs.append(preserve_figures((factor, share), (without, share), keys, in_contexts[:, 0], kept))
    return factors, costs


def context_keys(model: Model, layer: int, targets: MemitTargets) -> Float[Tensor, "request context d_mlp"]:
    """Each request's key in each context, the bare prompt's first. Their mean is k*."""
    asked = [(request, context) for request in targets.requests for context in targets.contexts]
    keys = subject_activations(model, key_name(layer), layer, asked, token=targets.search["token"])
    return keys.unflatten(0, (len(targets.requests), -1))
