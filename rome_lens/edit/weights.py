"""Edits as data: low-rank updates of MLP output matrices that can be applied, reverted, saved and loaded."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from rome_lens.edit.health import EditHealth
from rome_lens.errors import EditError, EditWarning, FormatError
from rome_lens.facts import EditRequest
from rome_lens.files import digest, load_tensors, save_tensors
from rome_lens.models import architecture_digest, output_matrix

_KIND = "rome_lens edit 2"


@dataclass(frozen=True, eq=False)
class Update:
    """W_out[layer] += left @ right.

    Attributes:
        layer: the block.
        left: [d_mlp, rank], float32, on the CPU.
        right: [rank, d_model], float32, on the CPU.
        made_for: SHA-256 of the matrix's entries that it was computed for; "" if not known.
    """

    layer: int
    left: Float[Tensor, "d_mlp rank"] = field(repr=False)
    right: Float[Tensor, "rank d_model"] = field(repr=False)
    made_for: str = ""

    def added_to(self, weight: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """The weight with the update, computed in float32, in the weight's dtype and on its device."""
        change = self.left.to(weight.device) @ self.right.to(weight.device)
        return (weight.float() + change).to(weight.dtype)

    def negated(self) -> "Update":
        """What takes this update away again, up to rounding."""
        return Update(self.layer, -self.left, self.right)


@dataclass(frozen=True, eq=False)
class Edit:
    """What to add to a model's weights, for which requests, and how it was found.

    Attributes:
        updates: one for each edited layer.
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

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        requests: Sequence[EditRequest],
        factors: Mapping[int, tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]],
        *,
        method: str,
        config: Mapping[str, Any],
        health: EditHealth,
    ) -> "Edit":
        """An edit computed on `model` as it is now: (left, right) by layer, with a note of what it was computed for."""
        updates = tuple(
            Update(layer, left.cpu(), right.cpu(), digest(output_matrix(model, layer)))
            for layer, (left, right) in factors.items()
        )
        name, architecture = str(model.cfg.model_name), architecture_digest(model)
        return cls(updates, tuple(requests), method, name, architecture, config, health)

    def apply(self, model: HookedTransformer, *, strict: bool = False) -> "AppliedEdit":
        """Adds the updates to the model's weights; `revert()` of what comes back takes them away, bit for bit.

        Not for several threads at once on one model.

        Args:
            model: its edited matrices are changed, computed in float32 whatever their dtype.
            strict: refuses a model whose matrices are not those that the edit was computed for (another model, dtype
                or folding, or an earlier edit); otherwise there is an EditWarning.

        Raises:
            EditError: an update does not fit the model, or would make a weight infinite or NaN. No weight is changed.
        """
        self._check_made_for(model, strict=strict)
        applied = AppliedEdit(model, self)
        whole = False
        try:
            applied._write()
            whole = True
        finally:
            if not whole:
                applied._restore()
        return applied

    @contextmanager
    def applied(self, model: HookedTransformer, *, strict: bool = False) -> Iterator[HookedTransformer]:
        """`with edit.applied(model): ...` runs the body on the edited model.

        Afterwards the edited matrices are bit for bit what they were before, also if the body raises or is interrupted,
        and whatever the body itself wrote into them.

        Raises:
            EditError: as `apply`.
        """
        self._check_made_for(model, strict=strict)
        edit = AppliedEdit(model, self)
        try:
            edit._write()
            yield model
        finally:
            edit._restore()

    def _check_made_for(self, model: HookedTransformer, *, strict: bool) -> None:
        """Warns, or raises, where the model is not the one that the edit was computed on."""
        differences = [
            f"layer {update.layer} was {update.made_for[:12]} and is {found[:12]}"
            for update in self.updates
            if update.made_for and (found := digest(output_matrix(model, update.layer))) != update.made_for
        ]
        if self.architecture and self.architecture != architecture_digest(model):
            differences.insert(0, f"the architecture of {self.model} was another than that of {model.cfg.model_name}")
        if differences:
            message = (
                f"The edit was computed for other weights: {'; '.join(differences)} (SHA-256). Another model, dtype or "
                "folding, or an earlier edit can be the reason; check that the edited model says what it should."
            )
            if strict:
                raise EditError(f"{message} No weight was changed.")
            warnings.warn(message, EditWarning, stacklevel=4)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the edit, and nothing of the model, as a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        tensors: dict[str, Tensor] = {}
        for i, update in enumerate(self.updates):
            tensors |= {f"{i}.left": update.left, f"{i}.right": update.right}
        facts = {
            "layers": [update.layer for update in self.updates],
            "made_for": [update.made_for for update in self.updates],
            "requests": [asdict(request) for request in self.requests],
            "method": self.method,
            "model": self.model,
            "architecture": self.architecture,
            "config": dict(self.config),
            "health": self.health and self.health.to_dict(),
        }
        save_tensors(path, tensors, kind=_KIND, facts=facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Edit":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is damaged, is something else, or its factors do not fit together.
        """
        tensors, facts = load_tensors(path, kind=_KIND)
        try:
            updates = tuple(
                Update(layer, tensors[f"{i}.left"], tensors[f"{i}.right"], made_for)
                for i, (layer, made_for) in enumerate(zip(facts["layers"], facts["made_for"], strict=True))
            )
            edit = cls(
                updates,
                tuple(EditRequest(**request) for request in facts["requests"]),
                facts["method"],
                facts["model"],
                facts["architecture"],
                facts["config"],
                facts["health"] and EditHealth(**facts["health"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is not a whole edit ({error!r}). Save or fetch it again.") from error
        for update in updates:
            factors = (update.left, update.right)
            if not all(f.ndim == 2 and f.dtype == torch.float32 and f.isfinite().all() for f in factors) or (
                update.left.shape[1] != update.right.shape[0]
            ):
                raise FormatError(
                    f"The factors in {path} have the shapes {tuple(update.left.shape)} and "
                    f"{tuple(update.right.shape)}, expected finite float32 matrices [d_mlp, rank] and "
                    "[rank, d_model]. Save or fetch it again."
                )
        return edit

    def __str__(self) -> str:
        layers = ", ".join(str(update.layer) for update in self.updates)
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        wrote = "; ".join(f"{request.text!r} -> {request.target!r}" for request in self.requests[:1])
        return f"Edit of {self.model}, layer {layers}: {wrote}{more}"


class AppliedEdit:
    """The handle of an edit that is in a model's weights. It keeps the old matrices."""

    def __init__(self, model: HookedTransformer, edit: Edit):
        self._weights = [output_matrix(model, update.layer) for update in edit.updates]
        self._new: list[Tensor] = []
        for update, weight in zip(edit.updates, self._weights, strict=True):
            shape = (update.left.shape[0], update.right.shape[1])
            if shape != tuple(weight.shape):
                raise EditError(
                    f"The edit (made on {edit.model}) is for matrices of the shape {shape}, but layer {update.layer} "
                    f"of {model.cfg.model_name} has {tuple(weight.shape)}. Apply it to the model it was made on."
                )
            new = update.added_to(weight.detach())
            if not new.isfinite().all():
                raise EditError(
                    f"The edit would make entries of layer {update.layer} infinite or NaN. No weight was changed; "
                    "compute the edit again, with other contexts or on a model whose weights are finite."
                )
            self._new.append(new)
        self._old = [weight.detach().clone() for weight in self._weights]
        self._digests = [digest(new) for new in self._new]
        self._reverted = False

    def revert(self) -> None:
        """Puts the old matrices back, bit for bit. A second call does nothing.

        Raises:
            EditError: a matrix was changed after this edit was applied (by a later edit, which has to be reverted
                first, or by training). No weight is changed.
        """
        if self._reverted:
            return
        for weight, written in zip(self._weights, self._digests, strict=True):
            if digest(weight) != written:
                raise EditError(
                    "The edited matrix has been changed since this edit was applied, so putting the old one back would "
                    "lose that change. Revert later edits first, in the opposite order."
                )
        self._restore()

    def _write(self) -> None:
        with torch.no_grad():
            for weight, new in zip(self._weights, self._new, strict=True):
                weight.copy_(new)
        self._new = []

    def _restore(self) -> None:
        with torch.no_grad():
            for weight, old in zip(self._weights, self._old, strict=True):
                weight.copy_(old)
        self._reverted = True


def finite_matrix(model: HookedTransformer, layer: int) -> nn.Parameter:
    """The matrix that an edit of a layer changes, as `output_matrix` gives it.

    Raises:
        EditError: it has NaN or infinite entries.
        ValueError: there is no such matrix.
    """
    weight = output_matrix(model, layer)
    if not weight.isfinite().all():
        raise EditError(f"The MLP output matrix of layer {layer} has NaN or infinite entries. Load the model again.")
    return weight


def as_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(config)))
