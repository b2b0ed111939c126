"""Edits as data: low-rank updates of MLP matrices that can be applied, reverted, composed, saved and loaded."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.adapter import save_lora
from rome_lens.edit.artifact.applied import AppliedEdit, applied_edits
from rome_lens.edit.artifact.file import load_fields, save_fields
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.hooks import update_hooks
from rome_lens.edit.artifact.matrix import matrix_for, state_dict_delta
from rome_lens.edit.artifact.update import Update, one_for_each_matrix
from rome_lens.edit.artifact.written import Place, Temporarily, digests_so_far, take_out
from rome_lens.errors import EditError, EditWarning, warn
from rome_lens.models import Hook, MlpMatrix, Model, architecture_digest, find_matrix
from rome_lens.models.huggingface import EditableModel, name_of, output_matrix_of
from rome_lens.storage import digest

_MOST_BYTES = 2 << 30  # six layers of GPT-J at full rank


@checked
@dataclass(frozen=True, eq=False)
class Edit:
    """What to add to a model's weights, for which requests, and how it was found.

    `a + b` is both edits as one: applied, it adds what applying one after the other adds. Requests follow each other,
    and updates of one layer become one of higher rank, made for what `a`'s was made for. `model` is `a`'s; where
    methods differ, both are named ("rome+memit"); `config` is {"parts": [...]}, the configs in turn; `health` is None,
    since its figures are those of one computation. Edits for different architectures or shapes raise an EditError.

    `-a` adds the opposite, for the same requests, which are then taken back, not written: added to a model with `a` it
    gives the model without, up to rounding (the handle's `revert` gives it bit for bit). Its method is "-rome"; it is
    made for no weights in particular and has no health. `a - b` is `a + -b`; `sum([a, b])` is `a + b`.

    Attributes:
        updates: one for each edited matrix; several of one matrix are joined when the edit is made.
        requests: the facts that are written.
        method: "rome", "memit", ...
        model: name of the model it was computed on.
        architecture: SHA-256 of that model's sizes and kind, as `architecture_digest` gives it; "" if not known.
        config: how, as plain values.
        health: figures that tell whether it is likely to do harm; None if not known.
    """

    updates: tuple[Update, ...]
    requests: tuple[EditRequest, ...]
    method: str = ""
    model: str = ""
    architecture: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    health: EditHealth | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "updates", one_for_each_matrix(self.updates))

    @classmethod
    def of(
        cls,
        model: Model,
        requests: Sequence[EditRequest],
        factors: Mapping[int | tuple[int, MlpMatrix], tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]],
        *,
        method: str,
        config: Mapping[str, Any],
        health: EditHealth,
    ) -> "Edit":
        """An edit computed on `model` as it is now, with a note of what it was computed for.

        `factors` holds (left, right) by layer, or by (layer, matrix).
        """
        places: list[tuple[int, MlpMatrix]] = [each if isinstance(each, tuple) else (each, "out") for each in factors]
        updates = tuple(
            Update(layer, left.cpu(), right.cpu(), digest(find_matrix(model, layer, matrix).values), matrix)
            for (layer, matrix), (left, right) in zip(places, factors.values(), strict=True)
        )
        name, architecture = str(model.cfg.model_name), architecture_digest(model)
        return cls(updates, tuple(requests), method, name, architecture, config, health)

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
        """Adds the updates to the model's weights; `revert()` of what comes back takes this edit out, in any order.

        After the last edit is reverted the weights are bit for bit what they were. An exception at any moment, also
        Ctrl-C, leaves them with the edit or without it, in all layers alike. Threads take turns.

        Args:
            model: its edited matrices are changed, computed in float32 whatever their dtype. A HookedTransformer or
                TransformerBridge, with layer norms folded or weights centred or not, or the same model in Hugging
                Face's classes.
            strict: refuses a model whose matrices are not exactly those that the edit was computed for (another model,
                dtype or folding, or an earlier edit). Otherwise there is an EditWarning, unless edits that are applied
                (`applied_edits`) are the reason; or this edit is one of them.

        Raises:
            EditError: an update does not fit the model, or would make a weight infinite or NaN; or the family of a
                Hugging Face model is not known. No weight is changed.
        """
        self._check_made_for(model, strict=strict)
        applied = AppliedEdit(model, self.updates)
        try:
            applied._write(self)
            return applied
        except BaseException:
            take_out(applied._writing)
            raise

    def applied(self, model: EditableModel, *, strict: bool = False) -> AbstractContextManager[EditableModel]:
        """`with edit.applied(model): ...` runs the body on the edited model.

        Afterwards the edit is out again, and the edited matrices are bit for bit what they were before (with the edits
        that the body itself applied and did not revert), also if the body raises or is interrupted, and whatever it
        wrote into them by other means.

        Raises:
            EditError: as `apply`.
        """

        def find() -> list[Place]:
            self._check_made_for(model, strict=strict)
            return [(matrix_for(model, update), update) for update in self.updates]

        return Temporarily(find, model, self)

    def hooks(self, model: Model, *, strict: bool = False) -> list[tuple[str, Hook]]:
        """Hooks that make the model answer as if it were edited: `model.run_with_hooks(tokens, fwd_hooks=...)`, or
        `with model.hooks(fwd_hooks=...): model.generate(...)`. The weights are left alone.

        They read the keys as these pass and add left and right to the MLP's output, through the norm where the block
        norms it (Gemma 2, OLMo 2), so gradients flow through them. Hooks of yours that change keys go before them.

        Raises:
            EditError: as `apply`.
        """
        self._check_made_for(model, strict=strict)
        return [hook for update in self.updates for hook in update_hooks(model, update)]

    def to_peft(self, folder: str | os.PathLike[str], base: PreTrainedModel, *, overwrite: bool = False) -> None:
        """Writes the edit as a LoRA adapter (adapter_config.json, adapter_model.safetensors) of a Hugging Face model.

        `peft.PeftModel.from_pretrained(base, folder)` then answers as the edited model does. Writing needs no peft.

        Args:
            folder: for the two files; made if missing.
            base: the model in Hugging Face's classes; it is neither changed nor saved.
            overwrite: replaces an adapter that is there.

        Raises:
            FileExistsError: there is an adapter in the folder and `overwrite` is false.
            EditError: the edit has no updates or does not fit the model, or the model's family is not known.
        """
        self._check_made_for(base, strict=False)
        save_lora(folder, self.updates, base, overwrite=overwrite)

    def to_state_dict_delta(self, model: EditableModel) -> dict[str, Tensor]:
        """The edit as plain tensors, for tools that know no edits: what to add to which entries of `state_dict()`.

        Args:
            model: the one whose names are wanted, and whose way of storing the matrices ([d_mlp, d_model] or its
                transpose): TransformerLens' or Hugging Face's. It is not changed.

        Returns:
            By the parameter's name in `model.state_dict()`, the change in float32, on the CPU, of the parameter's
            shape.

        Raises:
            EditError: an update does not fit the model, or the family of a Hugging Face model is not known.
        """
        self._check_made_for(model, strict=False)
        return state_dict_delta(model, self.updates)

    def _check_made_for(self, model: EditableModel, *, strict: bool) -> None:
        """Warns, or raises, where the model is not the one that the edit was computed on."""
        present = any(self._has_updates_of(edit) for edit in applied_edits(model))
        differences = []
        for update in self.updates:
            matrix = output_matrix_of(model, update.layer, update.matrix)
            found = digest(matrix.values) if update.made_for else ""
            explained = not strict and not present and update.made_for in digests_so_far(matrix.parameter)
            if found != update.made_for and not explained:
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
        """Whether it adds the same to the same layers."""
        return len(self.updates) == len(other.updates) > 0 and all(
            (ours.layer, ours.matrix) == (theirs.layer, theirs.matrix)
            and torch.equal(ours.left, theirs.left)
            and torch.equal(ours.right, theirs.right)
            for ours, theirs in zip(self.updates, other.updates, strict=True)
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the edit, and nothing of the model, as a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            ValueError: a value of `config` or `health` is not finite.
        """
        save_fields(path, **{f.name: getattr(self, f.name) for f in fields(self)}, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = _MOST_BYTES) -> "Edit":
        """Reads what `save` wrote. A stranger's file is safe to read: all of it is checked, and nothing in it is run.

        Args:
            path: the file.
            max_bytes: larger files are refused; an edit of one fact is a few KB.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is too large, damaged, something else, or its parts do not fit together.
        """
        return cls(**load_fields(path, max_bytes=max_bytes))

    def __str__(self) -> str:
        layers = ", ".join(str(layer) for layer in dict.fromkeys(update.layer for update in self.updates))
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        wrote = "; ".join(f"{request.text!r} -> {request.target!r}" for request in self.requests[:1])
        return f"Edit of {self.model}, layer {layers}: {wrote}{more}"


def finite_matrix(model: Model, layer: int, matrix: MlpMatrix = "out") -> Float[Tensor, "d_in d_out"]:
    """The entries of the matrix that an edit of a layer changes, without gradient.

    Raises:
        EditError: it has NaN or infinite entries.
        ValueError: there is no such matrix.
    """
    weight = find_matrix(model, layer, matrix).values
    if not weight.isfinite().all():
        name = "output matrix" if matrix == "out" else f"matrix {matrix!r}"
        raise EditError(f"The MLP {name} of layer {layer} has NaN or infinite entries. Load the model again.")
    return weight


def as_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(config)))
