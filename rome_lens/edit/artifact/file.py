"""Reading and writing an edit's fields as a safetensors file. All that is read is checked; none of it is executed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.update import Update, one_for_each_matrix
from rome_lens.errors import EditError, FormatError
from rome_lens.storage import load_tensors, save_tensors

_KIND = "rome_lens edit 3"
_FACTS = {
    "layers": list,
    "made_for": list,
    "requests": list,
    "method": str,
    "model": str,
    "architecture": str,
    "config": dict,
    "health": dict | None,
}
_MAY_LACK = {"matrices": list, "family": str}  # where all are output matrices, and in files of earlier versions
_DROPPED = ("prompt_share",)  # figures of health that only files of earlier versions have


def save_fields(
    path: str | os.PathLike[str],
    *,
    updates: Sequence[Update],
    requests: Sequence[EditRequest],
    config: Mapping[str, Any],
    health: EditHealth | None,
    overwrite: bool,
    **names: str,
) -> None:
    """Writes the fields of an Edit; `names` are the text fields. Raises as `Edit.save`."""
    tensors: dict[str, Tensor] = {}
    for i, update in enumerate(updates):
        tensors |= {f"{i}.left": update.left, f"{i}.right": update.right}
    facts = {
        "layers": [update.layer for update in updates],
        "made_for": [update.made_for for update in updates],
        "requests": [asdict(request) for request in requests],
        "config": dict(config),
        "health": health and health.to_dict(),
    }
    if any(update.matrix != "out" for update in updates):
        facts["matrices"] = [update.matrix for update in updates]
    save_tensors(path, tensors, kind=_KIND, facts=facts | names, overwrite=overwrite)


def load_fields(path: str | os.PathLike[str], *, max_bytes: int) -> dict[str, Any]:
    """Reads the fields of an Edit. Raises as `Edit.load`."""
    tensors, facts = load_tensors(path, kind=_KIND, facts=_FACTS, may_lack=_MAY_LACK, max_bytes=max_bytes)
    layers, made_for, requests, health = (facts.pop(name) for name in ("layers", "made_for", "requests", "health"))
    matrices = facts.pop("matrices", ["out"] * len(layers))
    try:
        numbers = range(len(layers))
        if tensors.keys() != {f"{i}.{side}" for i in numbers for side in ("left", "right")}:
            raise ValueError(f"it holds the tensors {sorted(tensors)[:6]} for {len(layers)} updates")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("its factors hold NaN or infinity, expected finite float32 matrices")
        updates = [
            Update(layer, tensors[f"{i}.left"], tensors[f"{i}.right"], weights, matrix)
            for i, layer, weights, matrix in zip(numbers, layers, made_for, matrices, strict=True)
        ]
        if isinstance(health, dict):
            health = {name: value for name, value in health.items() if name not in _DROPPED}
        return facts | {
            "updates": one_for_each_matrix(updates),
            "requests": tuple(EditRequest(**request) for request in requests),
            "health": None if health is None else EditHealth(**health),
        }
    except (TypeError, ValueError, EditError) as error:
        raise FormatError(f"{path} is not a whole edit ({error}). Save or fetch it again.") from error
