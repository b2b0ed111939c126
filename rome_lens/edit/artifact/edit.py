"""Edits as data: updates of MLP matrices that can be applied, reverted, composed, saved and loaded."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, EditRequest, target_rows
from rome_lens.edit.artifact.adapter import load_lora, save_lora
from rome_lens.edit.artifact.applied import AppliedEdit, applied_edits
from rome_lens.edit.artifact.file import load_fields, save_fields
from rome_lens.edit.artifact.gguf import TensorType, save_edited_gguf, save_gguf_lora
from rome_lens.edit.artifact.health import EditHealth, OnUnhealthy, report_problems, target_figures, update_norms
from rome_lens.edit.artifact.hooks import update_hooks
from rome_lens.edit.artifact.matrix import matrix_for, state_dict_delta
from rome_lens.edit.artifact.update import MatrixPlace, Update, layer_and_matrix, one_for_each_matrix
from rome_lens.edit.artifact.written import Place, Temporarily, digests_so_far
from rome_lens.errors import EditError, EditWarning, NotFiniteError, warn
from rome_lens.models import (
    EditableModel,
    Hook,
    MlpMatrix,
    Model,
    architecture_digest,
    find_matrix,
    model_family,
    name_of,
)
from rome_lens.models.teacher_forcing import score_targets, target_log_probabilities
from rome_lens.storage import digest

_MOST_BYTES = 2 << 30  # six layers of GPT-J at full rank


@checked
@dataclass(frozen=True, eq=False)
class Edit:
    """Updates of a model's weights, the requests that they write, and how they were computed.

    `a + b` is one edit that adds what `a` and `b` add. Its requests are `a`'s, then `b`'s; two updates of one layer
    become one of higher rank, with `a`'s `made_for`. `model` is `a`'s; different methods are both named
    ("rome+memit"); `config` is {"parts": [...]}, the configs in order; `health` is None, as its figures belong to one
    computation. Edits of different architectures or shapes raise an EditError.

    `-a` subtracts what `a` adds: applied after `a`, it gives the original model up to rounding (`revert` gives it bit
    for bit). It lists the requests that it takes back; its method is "-rome", and it has no `made_for` and no health.
    `a - b` is `a + -b`; `sum([a, b])` is `a + b`.

    Attributes:
        updates: one for each edited matrix; several of one matrix are joined on construction.
        requests: the facts that are written.
        method: "rome", "memit", ...
        model: name of the model that it was computed on.
        architecture: `architecture_digest` of that model (SHA-256 of its sizes and kind); "" if unknown.
        config: the method's hyper-parameters, as plain values.
        health: diagnostics that tell whether it is likely to harm the model; None if unknown.
        family: Hugging Face's name for the model's architecture ("Llama", "GPT2"); "" if unknown.
    """

    updates: tuple[Update, ...]
    requests: tuple[EditRequest, ...]
    method: str = ""
    model: str = ""
    architecture: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    health: EditHealth | None = None
    family: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "updates", one_for_each_matrix(self.updates))

    @classmethod
    def of(
        cls,
        model: Model,
        requests: Sequence[EditRequest],
        factors: Mapping[MatrixPlace, tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]],
        *,
        method: str,
        config: Mapping[str, Any],
        on_unhealthy: OnUnhealthy = "warn",
        **figures: Any,
    ) -> "Edit":
        """An edit computed on `model` as it is now, from (left, right) factors by layer or (layer, matrix).

        Notes the weights' digests, and measures its health: the norms of the updates, and with the edit in place, for
        one pass, how probable each target is after its bare prompt. `figures` are the other figures of EditHealth.
        Afterwards the weights are bit for bit what they were.

        Raises:
            EditError: the edit is unhealthy and `on_unhealthy` is "raise".

        Warns:
            EditWarning: the edit is unhealthy and `on_unhealthy` is "warn".
        """
        places = [layer_and_matrix(place) for place in factors]
        updates = tuple(
            Update(layer, left.cpu(), right.cpu(), digest(find_matrix(model, layer, matrix).values), matrix)
            for (layer, matrix), (left, right) in zip(places, factors.values(), strict=True)
        )
        name, architecture = str(model.cfg.model_name), architecture_digest(model)
        edit = cls(updates, tuple(requests), method, name, architecture, config, family=model_family(model))
        if requests:
            with Temporarily(partial(edit._places, model), model, edit):
                figures |= target_figures(target_probabilities(model, requests))
        health = EditHealth(**update_norms(model, factors), **figures)
        report_problems(health, on_unhealthy, edit=edit)
        return replace(edit, health=health)

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits as one; see the class."""
        if not isinstance(other, Edit):
            return NotImplemented
        if self.architecture and other.architecture and self.architecture != other.architecture:
            raise EditError(
                f"The edits were made on different architectures: {self.model} ({self.architecture[:12]}) and "
                f"{other.model} ({other.architecture[:12]}). Put together only edits of one model."
            )
        both = (self, other)
        methods = [name for edit in both for name in edit.method.split("+") if name]
        configs = [part for edit in both for part in edit.config.get("parts", [dict(edit.config)])]
        return Edit(
            self.updates + other.updates,
            self.requests + other.requests,
            method="+".join(dict.fromkeys(methods)),
            model=self.model or other.model,
            architecture=self.architecture or other.architecture,
            family=self.family or other.family,
            config={"parts": configs},
        )

    def __radd__(self, other: object) -> "Edit":
        """`sum(edits)` begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __neg__(self) -> "Edit":
        """The edit that takes this one away; see the class."""
        names = [name[1:] if name.startswith("-") else f"-{name}" for name in self.method.split("+") if name]
        updates = tuple(update.negated() for update in self.updates)
        return replace(self, updates=updates, method="+".join(names), health=None)

    def __sub__(self, other: "Edit") -> "Edit":
        """`self + -other`."""
        return self + -other if isinstance(other, Edit) else NotImplemented

    def apply(self, model: EditableModel, *, strict: bool = False) -> AppliedEdit:
        """Adds the updates to the model's weights, and returns a handle whose `revert()` takes this edit out again.

        Edits can be reverted in any order; after the last one the weights are bit for bit the original. The handle also
        works in `with`, which reverts at the end. An exception at any moment, Ctrl-C included, leaves all layers with
        the edit or all without it. Other threads then see the edited model; while a `with`
        is open, their calls wait, as for `applied`.

        Args:
            model: Model whose edited matrices are changed in place (the sum is taken in float32): a HookedTransformer
                or TransformerBridge, with layer norms folded and weights centred or not, or the same model in Hugging
                Face's classes.
            strict: Raise if the matrices differ from those that the edit was computed for (another model, dtype or
                folding, or an earlier edit), or if this edit is applied already. If false, only warn (EditWarning), and
                not at all if applied edits (`applied_edits`) explain the difference.

        Raises:
            EditError: an update does not fit the model, or would make a weight infinite or NaN; or the family of a
                Hugging Face model is unknown. No weight is changed.
        """
        self._check_made_for(model, strict=strict)
        applied = AppliedEdit(model, self.updates)
        applied._write(self)
        return applied

    def applied(self, model: EditableModel, *, strict: bool = False) -> AbstractContextManager[EditableModel]:
        """`with edit.applied(model): ...` runs the body on the edited model.

        Afterwards the edited matrices are bit for bit what they were before, plus edits that the body applied and did
        not revert. This holds if the body raises or is interrupted, and undoes whatever else it wrote into them, or put
        in their place (the handle of `apply` refuses to revert over such changes).

        Inside, calls of this package in other threads that use the model wait until the block ends. So do not wait in
        it for a thread that uses the model. A child that another thread forks has the model without the edit.

        Raises:
            EditError: as `apply`.
        """
        check = partial(self._check_made_for, model, strict=strict)
        return Temporarily(partial(self._places, model), model, self, model=model, check=check)

    def _places(self, model: EditableModel) -> list[Place]:
        return [(matrix_for(model, update), update) for update in self.updates]

    def hooks(self, model: Model, *, strict: bool = False) -> list[tuple[str, Hook]]:
        """Hooks under which the model computes as if it were edited: `model.run_with_hooks(tokens, fwd_hooks=...)`, or
        `with model.hooks(fwd_hooks=...): model.generate(...)`. No weight is changed.

        They read the MLP's keys and add (key @ left) @ right to its output, before the block's norm of that output if
        it has one (Gemma 2, OLMo 2). Gradients flow through them. Put hooks of your own that change keys first.

        Raises:
            EditError: as `apply`.
        """
        self._check_made_for(model, strict=strict)
        return [hook for update in self.updates for hook in update_hooks(model, update)]

    def to_peft(
        self,
        folder: str | os.PathLike[str],
        base: PreTrainedModel,
        *,
        max_rank: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes the edit as a LoRA adapter (adapter_config.json, adapter_model.safetensors) of a Hugging Face model.

        `peft.PeftModel.from_pretrained(base, folder)` then computes what the edited model does. Writing needs no peft.
        All modules get one rank, filled up with zeros, as vLLM and SGLang want them.

        Args:
            folder: Folder for the two files; created if missing.
            base: The model in Hugging Face's classes; neither changed nor saved.
            max_rank: The most that the server takes (vLLM: 16, unless --max-lora-rank says more); None: any rank.
            overwrite: Replace an adapter that is already there.

        Raises:
            FileExistsError: the folder already holds an adapter and `overwrite` is false.
            EditError: the edit has no updates, is of a higher rank (`cut_rank` makes it smaller) or does not fit the
                model, or the model's family is unknown.
        """
        self._check_made_for(base, strict=False)
        save_lora(folder, self.updates, base, max_rank=max_rank, overwrite=overwrite)

    def to_gguf(
        self,
        path: str | os.PathLike[str],
        base: str | os.PathLike[str] | None = None,
        *,
        tensor_type: TensorType | None = None,
        overwrite: bool = False,
    ) -> pd.DataFrame:
        """Writes the edit for llama.cpp: a LoRA adapter (`llama-server --lora`, Ollama's ADAPTER), or a whole model.

        An adapter is added beside the weights, in float32, so it edits quantized bases as well. In a whole model the
        edited tensors alone are made anew; all other bytes are the base's. Needs the package gguf.

        Args:
            path: The .gguf file to write.
            base: A GGUF file of the model, to copy with the edit in its weights; None writes an adapter.
            tensor_type: How the copy holds the edited tensors: "F32", "F16", "BF16", or "base" for the base's own type;
                None: the base's own if it is one of these three, else F16. Rounding into few bits takes much of a small
                change away.
            overwrite: Replace a file that is already there.

        Returns:
            A row for each edited tensor: `tensor`, the `rank` of its change, its `type` in the file, and `lost`: what
            rounding costs, as the Frobenius norm of the error over that of the change.

        Raises:
            FileNotFoundError: there is no base. FileExistsError: `path` exists and `overwrite` is false.
            FormatError: the base is damaged, or a tensor is in a type that gguf cannot read or write.
            UnavailableError: the package gguf is not installed, or the disk is full.
            EditError: the edit has no updates; llama.cpp does not have the family or such a matrix; the edit does not
                fit the base; or a weight would be infinite.
        """
        if base is None:
            if tensor_type is not None:
                raise ValueError(
                    f"tensor_type is {tensor_type!r}, but an adapter is in F32. Give a base, or leave it out."
                )
            rows = save_gguf_lora(path, self.updates, self.family, about=str(self), overwrite=overwrite)
        else:
            rows = save_edited_gguf(path, self.updates, base, self.family, tensor_type=tensor_type, overwrite=overwrite)
        return pd.DataFrame(rows)

    def to_state_dict_delta(self, model: EditableModel) -> dict[str, Tensor]:
        """The edit as plain tensors for other tools: what to add to which entries of `model.state_dict()`.

        Args:
            model: Model of TransformerLens or Hugging Face whose parameter names and memory layout ([d_mlp, d_model] or
                its transpose) are used; left unchanged.

        Returns:
            The change of each parameter by its name in `model.state_dict()`: float32, on the CPU, in the parameter's
            shape.

        Raises:
            EditError: an update does not fit the model, or the family of a Hugging Face model is unknown.
        """
        self._check_made_for(model, strict=False)
        return state_dict_delta(model, self.updates)

    def _check_made_for(self, model: EditableModel, *, strict: bool) -> None:
        """Warns, or raises if `strict`, unless the model is the one that the edit was computed on."""
        present = any(self._has_updates_of(edit) for edit in applied_edits(model))
        differences = []
        for update in self.updates:
            matrix = find_matrix(model, update.layer, update.matrix)
            found = digest(matrix.values) if update.made_for else ""
            if found == update.made_for:
                continue
            if strict or present or update.made_for not in digests_so_far(matrix.parameter):
                differences.append(f"{update.place} was {update.made_for[:12]} and is {found[:12]}")
        known = self.architecture and isinstance(model, Model)
        if known and self.architecture != architecture_digest(model):
            differences.insert(0, f"the architecture of {self.model} was another than that of {name_of(model)}")
        messages = []
        if present:
            messages.append("The edit is already applied to this model; added once more, it counts twice.")
        if differences:
            messages.append(
                f"The edit was computed for other weights: {'; '.join(differences)} (SHA-256). Another model, dtype or "
                "folding, or an earlier edit can be the reason; check that the edited model says what it should."
            )
        if messages and strict:
            raise EditError(f"{' '.join(messages)} No weight was changed.")
        if messages:
            warn(" ".join(messages), EditWarning)

    def _has_updates_of(self, other: "Edit") -> bool:
        """Whether both have the same updates."""
        return len(self.updates) == len(other.updates) > 0 and all(
            ours.adds_the_same_as(theirs) for ours, theirs in zip(self.updates, other.updates, strict=True)
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the edit, without the model, as a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            ValueError: a value of `config` or `health` is not finite.
        """
        save_fields(path, **{f.name: getattr(self, f.name) for f in fields(self)}, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = _MOST_BYTES) -> "Edit":
        """Reads a file that `save` wrote. Untrusted files are safe: all content is checked, and none of it is executed.

        Args:
            path: The file; or the folder of an adapter, which `from_peft` reads.
            max_bytes: Larger files are refused; an edit of one fact takes a few KB.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is too large, damaged, something else, or its parts do not fit together.
        """
        if os.path.isdir(path):
            return cls.from_peft(path)
        return cls(**load_fields(path, max_bytes=max_bytes))

    @classmethod
    def from_peft(cls, folder: str | os.PathLike[str]) -> "Edit":
        """Reads a LoRA adapter of MLP matrices, such as `to_peft` writes. It does not tell what requests it is for.

        Raises:
            FileNotFoundError: the folder holds no adapter.
            FormatError: it is damaged, of another kind than LoRA, or changes more than MLP matrices.
        """
        return cls(tuple(load_lora(folder)), (), method="peft")

    def __str__(self) -> str:
        layers = ", ".join(str(layer) for layer in dict.fromkeys(update.layer for update in self.updates))
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        wrote = "; ".join(f"{request.text!r} -> {request.target!r}" for request in self.requests[:1])
        return f"Edit of {self.model}, layer {layers}: {wrote}{more}"


@checked
def target_probabilities(model: Model, requests: Sequence[EditRequest]) -> Float[Tensor, " request"]:
    """The probability of each target after its bare prompt in the model as it is now, a geometric mean over the
    target's tokens; on the CPU. NaN for all if the model's output is not finite.

    Raises:
        ValueError: no requests, or a prompt with its target is longer than the model's context.
    """
    if not requests:
        raise ValueError("requests is empty, expected one EditRequest or more.")
    rows = target_rows(model, [Continuation(each.text, each.target, space=each.space) for each in requests])
    try:
        scores = dict(score_targets(model, rows, target_log_probabilities))
    except NotFiniteError:
        return torch.full((len(requests),), torch.nan)
    return torch.stack([scores[i].mean() for i in range(len(rows))]).exp()


def finite_matrix(model: Model, layer: int, matrix: MlpMatrix = "out") -> Float[Tensor, "d_in d_out"]:
    """The entries of a matrix of a layer's MLP, without gradient.

    Raises:
        EditError: it has NaN or infinite entries.
        ValueError: the layer has no such matrix.
    """
    weight = find_matrix(model, layer, matrix).values
    if not weight.isfinite().all():
        name = "output matrix" if matrix == "out" else f"matrix {matrix!r}"
        raise EditError(f"The MLP {name} of layer {layer} has NaN or infinite entries. Load the model again.")
    return weight


def as_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(config), default=list))  # layers may be a range
