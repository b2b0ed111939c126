"""A fact on a ledger, and how a ledger's facts are kept as arrays and plain values."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import EditRequest, check_prompts
from rome_lens.edit.search.value import Value
from rome_lens.storage import check_shapes, foreign

FACTS = {"entries": list}
_VECTORS = ("key", "bare_key")


@dataclass(frozen=True, eq=False)
class LedgerFact:
    """What a ledger knows of a fact, found on the unedited model.

    Attributes:
        request: what to say.
        key: [d_mlp], float32: k*, the mean over the contexts.
        bare_key: [d_mlp], float32: the bare prompt's.
        value: v*, and how its search ended.
        preserve: prompts that this fact must not disturb.
    """

    request: EditRequest
    key: Float[Tensor, " d_mlp"] = field(repr=False)
    bare_key: Float[Tensor, " d_mlp"] = field(repr=False)
    value: Value = field(repr=False)
    preserve: tuple[str, ...] = ()


def as_parts(facts: Sequence[LedgerFact]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The facts as what a checkpoint keeps."""
    tensors = {name: torch.stack([getattr(fact, name) for fact in facts]) for name in _VECTORS if facts}
    for name in ("vector", "initial"):
        tensors |= {name: torch.stack([getattr(fact.value, name) for fact in facts])} if facts else {}
    entries = []
    for fact in facts:
        end = {name: number for name, number in vars(fact.value).items() if name not in ("vector", "initial")}
        entries.append({"request": asdict(fact.request), "end": end, "preserve": list(fact.preserve)})
    return tensors, {"entries": entries}


def from_parts(
    path: str | os.PathLike[str] | None, tensors: Mapping[str, Tensor], kept: Mapping[str, Any], shape: Sequence[int]
) -> list[LedgerFact]:
    """What `as_parts` made parts of. Raises FormatError if they do not fit together, or to a matrix of this shape."""
    with foreign(path or "", "holds no whole ledger", "Begin another one."):
        facts = []
        count, (d_mlp, d_model) = len(kept["entries"]), shape
        keys, values = (count, d_mlp), (count, d_model)
        check_shapes(tensors, **({"key": keys, "bare_key": keys, "vector": values, "initial": values} if count else {}))
        for i, entry in enumerate(kept["entries"]):
            value = Value(tensors["vector"][i], tensors["initial"][i], **entry["end"])
            request, preserve = EditRequest(**entry["request"]), tuple(entry["preserve"])
            if preserve:
                check_prompts(preserve, "preserve")
            facts.append(LedgerFact(request, tensors["key"][i], tensors["bare_key"][i], value, preserve))
        if len({fact.request for fact in facts}) < count:
            raise ValueError("a fact is there twice")
        return facts
