"""Reading and writing an edit's fields as a safetensors file. All that is read is checked; none of it is executed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.update import Update, one_for_each_matrix
from rome_lens.storage import foreign, load_tensors, save_tensors

_KIND = "rome_lens edit 4"
_FACTS = {
    "layers": list,
    "matrices": list,
    "made_for": list,
    "requests": list,
    "method": str,
    "model": str,
    "architecture": str,
    "family": str,
    "config": dict,
    "health": dict | None,
}


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
        "matrices": [update.matrix for update in updates],
        "made_for": [update.made_for for update in updates],
        "requests": [asdict(request) for request in requests],
        "config": dict(config),
        "health": health and health.to_dict(),
    }
    save_tensors(path, tensors, kind=_KIND, facts=facts | names, overwrite=overwrite)


def load_fields(path: str | os.PathLike[str], *, max_bytes: int) -> dict[str, Any]:
    """Reads the fields of an Edit. Raises as `Edit.load`."""
    tensors, facts = load_tensors(path, kind=_KIND, facts=_FACTS, max_bytes=max_bytes)
    layers, matrices, made_for, requests, health = map(
        facts.pop, ("layers", "matrices", "made_for", "requests", "health")
    )
    with foreign(path, "is not a whole edit"):
        numbers = range(len(layers))
        if tensors.keys() != {f"{i}.{side}" for i in numbers for side in ("left", "right")}:
            raise ValueError(f"it holds the tensors {sorted(tensors)[:6]} for {len(layers)} updates")
        updates = [
            Update(layer, tensors[f"{i}.left"], tensors[f"{i}.right"], weights, matrix)
            for i, layer, weights, matrix in zip(numbers, layers, made_for, matrices, strict=True)
        ]
        return facts | {
            "updates": one_for_each_matrix(updates),
            "requests": tuple(EditRequest(**request) for request in requests),
            "health": None if health is None else EditHealth(**health),
        }
