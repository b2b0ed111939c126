"""Batch edits over several layers: what MEMIT, EMMET and AlphaEdit share (Meng et al. 2023, arXiv 2210.07229,
section 4 and Algorithm 1), and what a method keeps from one batch of a sequence to the next.

They search the same targets z after the last edited layer, and spread the residuals z - h over the layers in the same
way. Only the closed form that turns keys and residuals into an update differs.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.closed_forms import PreservedKeys, with_context_differences
from rome_lens.edit.methods.near import auto_prompts
from rome_lens.edit.methods.preserve import (
    Preserve,
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
from rome_lens.models import Model, in_float64, key_name, norms_mlp_output
from rome_lens.storage import load_tensors, save_tensors

_MEMORY = "rome_lens edit memory 1"
ClosedForm = Callable[..., Float[Tensor, "d_mlp request"]]
"""Maps keys, C, `preserved` keys and what is kept of `earlier` ones to an update's left factor; see closed_forms.py."""


@checked
@dataclass(eq=False)
class EditMemory:
    """What `ultraedit`, `alphaedit` and `memit` keep from batch to batch: keys, or running statistics.

    Make one for a sequence and give it to every call; a method changes it once its edit is computed. Each edit is to be
    applied before the next is computed. `edit_sequence` does all of this, and keeps the memory with the sequence.
    Edits that have nothing to do with each other get none.

    Attributes:
        method: the one that began it; "" before the first batch.
        config: that method's numbers, as plain values.
        tensors: what it keeps, by name; on the CPU.
    """

    method: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def check(self, method: str, config: Mapping[str, Any]) -> None:
        """Raises ValueError if another method began it, or the same one with other numbers."""
        if self.method and (self.method, dict(self.config)) != (method, dict(config)):
            differing = ", ".join(name for name, value in config.items() if self.config.get(name) != value)
            raise ValueError(
                f"This memory was begun by {self.method}, and now {method} is to go on with it (other: "
                f"{differing or 'the method'}). Give each sequence a memory of its own: EditMemory()."
            )

    def expect(self, **shapes: tuple[int, ...]) -> None:
        """Raises ValueError unless what it keeps under these names, if anything, has these shapes."""
        for name, shape in shapes.items():
            if name in self.tensors and self.tensors[name].shape != shape:
                raise ValueError(
                    f"{name} of this memory is {list(self.tensors[name].shape)}, expected {list(shape)}: it was begun "
                    "on another model. Give each sequence a memory of its own: EditMemory()."
                )

    def keep(self, method: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """What a method knows after a batch."""
        self.method, self.config = method, dict(config)
        self.tensors |= {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        facts = {"method": self.method, "config": dict(self.config)}
        save_tensors(path, self.tensors, kind=_MEMORY, facts=facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EditMemory":
        """Reads what `save` wrote."""
        tensors, facts = load_tensors(path, kind=_MEMORY, facts={"method": str, "config": dict})
        return cls(facts["method"], facts["config"], tensors)


@dataclass(frozen=True)
class BatchProblem:
    """A method's name and closed form, with its arguments."""

    method: str
    form: ClosedForm
    inverts: bool  # whether the closed form has C^-1
    requests: Requests
    covariances: Mapping[int, KeyCovariance] | None
    config: BatchConfig
    preserve: Preserve = None
    memory: EditMemory | None = None  # where the keys of earlier batches are kept


def write_batch(
    model: Model,
    problem: BatchProblem,
    targets: MemitTargets | None,
    on_unhealthy: OnUnhealthy,
    progress: bool,
) -> Edit:
    """The edit of `memit`, `emmet` and `alphaedit`, which document arguments and errors."""
    requests, covariances = as_requests(problem.requests), covariances_for(model, problem.covariances)
    check_requests(requests)
    memory = problem.memory
    if memory is not None:
        memory.check(problem.method, as_json(problem.config))
    layers = checked_layers(model, problem.config.layers, covariances)
    if memory is not None:
        memory.expect(**{f"keys.{layer}": covariances[layer].second_moment.shape for layer in layers})
    preserve = problem.preserve
    if preserve == "auto":
        edited = {layer: covariances[layer] for layer in layers}
        preserve = auto_prompts(model, requests, edited, problem.form, problem.config.token)
    preserved = preserved_prompts(model, preserve, requests, layers, token=problem.config.token)
    if targets is None:
        targets = memit_targets(model, requests, layer=layers[-1], config=problem.config, progress=progress)
    else:
        targets.check_use(requests, layers[-1], problem.config)
        targets.check_model(model)
    earlier = {} if memory is None else {layer: memory.tensors.get(f"keys.{layer}") for layer in layers}
    found, token = targets, targets.search["token"]

    def measure(layer: int) -> Measured:
        keys, kept = in_float64(context_keys(model, layer, found)), preserved.keys(model, layer)
        states = subject_states(model, layers[-1], requests, token=token)
        return Measured(keys, states, kept, earlier.get(layer), problem.config.constrain_bare_prompt)

    wanted = torch.stack([value.vector for value in targets.values]).to(model.cfg.device)
    factors, keys, costs = spread_over_layers(
        model, requests, wanted, layers, covariances, problem.form, measure, method=problem.method, progress=progress
    )
    edit = Edit.of(
        model,
        requests,
        factors,
        method=problem.method,
        config=as_json(replace(problem.config, layers=layers, contexts=targets.contexts)) | preserved.as_json(),
        on_unhealthy=on_unhealthy,
        **search_figures(targets.values),
        condition_number=max(covariances[layer].condition_number for layer in layers) if problem.inverts else None,
        **worst_figures(costs),
    )
    if memory is not None:
        kept = {f"keys.{layer}": _with_earlier(keys[layer], earlier[layer]) for layer in layers}
        memory.keep(problem.method, as_json(problem.config), kept)
    return edit


def _with_earlier(
    keys: Float[Tensor, "request d_mlp"], earlier: Float[Tensor, "d_mlp d_mlp"] | None
) -> Float[Tensor, "d_mlp d_mlp"]:
    """KT K of all keys so far, in float32."""
    gram = (keys.T @ keys).float().cpu()
    return gram if earlier is None else earlier + gram


def checked_layers(model: Model, layers: Sequence[int] | None, covariances: Mapping[int, KeyCovariance]) -> list[int]:
    """The layers to edit; None: those of the covariances. Raises unless each can be edited and has a covariance."""
    layers = sorted(covariances) if layers is None else list(layers)
    if not layers:
        raise CovarianceError("covariances is empty, expected {layer: KeyCovariance}, as collect_covariance gives it.")
    for layer in layers:
        finite_matrix(model, layer)
    if missing := [layer for layer in layers if layer not in covariances]:
        raise CovarianceError(
            f"There is no covariance of the layers {missing}, only of {sorted(covariances)}. Collect all of them in "
            f"one pass, covariances=collect_covariance(model, layers={layers}, texts=...), or edit others (the "
            "config's layers)."
        )
    for layer in layers:
        covariances[layer].check(model, layer)
        if norms_mlp_output(model, layer):
            raise ValueError(
                f"{model.cfg.model_name} norms its MLPs' outputs, or scales them, so that a change of the "
                "residual stream has no closed form in their weights. Use rome."
            )
    return layers


Factors = dict[int, tuple[Float[Tensor, "d_mlp request"], Float[Tensor, "request d_model"]]]


@dataclass(frozen=True)
class Measured:
    """What a layer's update is computed from, in the model with the updates of earlier layers.

    Attributes:
        keys: of what is written, in each context, the bare prompt first; float64.
        states: the residual stream after the last edited layer, where it is to be changed.
        preserved: keys whose answers have to stay.
        earlier: K_p^T K_p of keys whose answers should stay.
        constrain_bare: whether the bare prompts' keys get as much as the means.
    """

    keys: Float[Tensor, "request context d_mlp"]
    states: Float[Tensor, "request d_model"]
    preserved: PreservedKeys | None = None
    earlier: Float[Tensor, "d_mlp d_mlp"] | None = None
    constrain_bare: bool = False


def spread_over_layers(
    model: Model,
    requests: Sequence[EditRequest],
    wanted: Float[Tensor, "request d_model"],
    layers: Sequence[int],
    covariances: Mapping[int, KeyCovariance],
    form: ClosedForm,
    measure: Callable[[int], Measured],
    *,
    method: str,
    progress: bool,
) -> tuple[Factors, dict[int, Float[Tensor, "request d_mlp"]], list[dict[str, float]]]:
    """By layer, ascending: the updates (left, right) that move the states after the last layer to `wanted`, and the
    keys.

    Each layer takes an equal share of the residuals that are left. What it is computed from is measured with the
    updates of earlier layers applied; afterwards the weights are bit for bit what they were. Last come
    what preserving costs in each (`preserve_figures`).

    Raises:
        EditError: an update is not finite; and as `form`.
        CovarianceError: as `form`.
    """
    factors: Factors = {}
    keys: dict[int, Tensor] = {}
    costs: list[dict[str, float]] = []
    for done, layer in enumerate(tqdm(layers, desc=method, unit="layer", disable=not progress)):
        so_far = Edit(tuple(Update(edited, *pair) for edited, pair in factors.items()), tuple(requests))
        with so_far.applied(model):
            found = measure(layer)
        share = ((wanted - found.states) / (len(layers) - done)).to(found.keys.device)
        keys[layer] = found.keys.mean(1)
        given = {} if found.earlier is None else {"earlier": found.earlier}
        kept, alike = found.preserved, None
        if found.constrain_bare:
            kept, alike = (with_context_differences(each, keys[layer], found.keys[:, 0]) for each in (kept, None))
        factor = form(keys[layer], covariances[layer], preserved=kept, **given).float()
        if not (factor.isfinite().all() and share.isfinite().all()):
            raise EditError(
                f"The update of layer {layer} is not finite. No weight was changed. Use other contexts, or covariances "
                "from more text."
            )
        factors[layer] = factor, share
        if found.preserved is not None and kept is not None:
            plain = form(keys[layer], covariances[layer], preserved=alike, **given).float()
            costs.append(preserve_figures(factors[layer], (plain, share), keys[layer], kept))
    return factors, keys, costs


def context_keys(model: Model, layer: int, targets: MemitTargets) -> Float[Tensor, "request context d_mlp"]:
    """The key of each request in each context, the bare prompt first. The mean over contexts is k*."""
    prompts = [(request, context) for request in targets.requests for context in targets.contexts]
    keys = subject_activations(model, key_name(layer), layer, prompts, token=targets.search["token"])
    return keys.unflatten(0, (len(targets.requests), -1))
