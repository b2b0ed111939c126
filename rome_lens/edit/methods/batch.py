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
from rome_lens.edit.methods.memory import EditMemory
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.search.key import subject_activations
from rome_lens.edit.search.settings import BatchConfig
from rome_lens.edit.search.targets import MemitTargets, check_requests, memit_targets, subject_states
from rome_lens.edit.search.value import search_figures
from rome_lens.errors import CovarianceError, EditError
from rome_lens.models import Model, key_name, norms_mlp_output, output_matrix

ClosedForm = Callable[..., Float[Tensor, "d_mlp request"]]
"""From keys, C and what is kept of earlier keys (`earlier`) to the left factor of an update; see closed_forms.py."""


@dataclass(frozen=True)
class BatchProblem:
    """What is asked of one of the methods."""

    method: str
    form: ClosedForm
    inverts: bool  # the covariance
    requests: Requests
    covariances: Mapping[int, KeyCovariance] | None
    config: BatchConfig
    memory: EditMemory | None = None  # where the keys of earlier batches are kept


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
    if asked.memory is not None:
        asked.memory.check(asked.method, as_json(asked.config))
    layers = sorted(covariances) if asked.config.layers is None else list(asked.config.layers)
    _check_layers(model, layers, covariances)
    if targets is None:
        targets = memit_targets(model, requests, layer=layers[-1], config=asked.config, progress=progress)
    else:
        targets.check_use(requests, layers[-1], asked.config)
        targets.check_model(model)
    earlier = {} if asked.memory is None else {layer: asked.memory.tensors.get(f"keys.{layer}") for layer in layers}
    factors, keys = spread(
        model, targets, layers, covariances, asked.form, earlier=earlier, method=asked.method, progress=progress
    )
    health = EditHealth(
        **update_norms((left @ right, output_matrix(model, layer)) for layer, (left, right) in factors.items()),
        **search_figures(targets.values),
        condition_number=max(covariances[layer].condition_number for layer in layers) if asked.inverts else None,
    )
    used = as_json(replace(asked.config, layers=layers, contexts=targets.contexts))
    edit = Edit.of(model, requests, factors, method=asked.method, config=used, health=health)
    report_problems(health, on_unhealthy, edit=edit)
    if asked.memory is not None:
        kept = {f"keys.{layer}": _with_earlier(keys[layer], earlier[layer]) for layer in layers}
        asked.memory.keep(asked.method, as_json(asked.config), kept)
    return edit


def _with_earlier(
    keys: Float[Tensor, "request d_mlp"], earlier: Float[Tensor, "d_mlp d_mlp"] | None
) -> Float[Tensor, "d_mlp d_mlp"]:
    """KT K of all keys so far, in float32."""
    gram = (keys.T @ keys).float()
    return gram if earlier is None else earlier + gram


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
    *,
    earlier: Mapping[int, Float[Tensor, "d_mlp d_mlp"] | None],
    method: str,
    progress: bool,
) -> tuple[Factors, dict[int, Float[Tensor, "request d_mlp"]]]:
    """By layer, ascending: the updates (left, right) that bring the subjects' states to the targets, and the keys.

    Each layer's keys, and what is still missing after the last one, are measured with the updates before it in the
    weights; afterwards these are bit for bit what they were.

    Raises:
        EditError: an update is not finite.
        CovarianceError: as `form`.
    """
    sought = torch.stack([value.vector for value in targets.values]).to(model.cfg.device)
    factors: Factors = {}
    keys: dict[int, Tensor] = {}
    for done, layer in enumerate(tqdm(layers, desc=method, unit="layer", disable=not progress)):
        so_far = Edit(tuple(Update(edited, *pair) for edited, pair in factors.items()), targets.requests)
        with so_far.applied(model):
            keys[layer] = mean_keys(model, layer, targets).cpu().double()
            missing = sought - subject_states(model, layers[-1], targets.requests, token=targets.search["token"])
        share = (missing / (len(layers) - done)).cpu()
        given = {"earlier": earlier[layer]} if earlier.get(layer) is not None else {}
        factor = form(keys[layer], covariances[layer], **given).float()
        if not (factor.isfinite().all() and share.isfinite().all()):
            raise EditError(
                f"The update of layer {layer} is not finite. No weight was changed. Use other contexts, or covariances "
                "from more text."
            )
        factors[layer] = factor, share
    return factors, keys


def mean_keys(model: Model, layer: int, targets: MemitTargets) -> Float[Tensor, "request d_mlp"]:
    """k* of each request: its key's mean over the contexts."""
    asked = [(request, context) for request in targets.requests for context in targets.contexts]
    keys = subject_activations(model, key_name(layer), layer, asked, token=targets.search["token"])
    return keys.unflatten(0, (len(targets.requests), -1)).mean(1)
