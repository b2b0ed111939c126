"""A fact on a ledger, and how a ledger's facts are kept as arrays and plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import EditRequest
from rome_lens.edit.search.value import Value
from rome_lens.errors import FormatError

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


def from_parts(path: object, tensors: Mapping[str, Tensor], kept: Mapping[str, Any]) -> list[LedgerFact]:
    """What `as_parts` made parts of. Raises FormatError if they do not fit together."""
    try:
        facts = []
        for i, entry in enumerate(kept["entries"]):
            value = Value(tensors["vector"][i], tensors["initial"][i], **entry["end"])
            request, preserve = EditRequest(**entry["request"]), tuple(entry["preserve"])
            facts.append(LedgerFact(request, tensors["key"][i], tensors["bare_key"][i], value, preserve))
        if any(len(tensor) != len(facts) for tensor in tensors.values()):
            raise ValueError(f"arrays of other lengths than {len(facts)}")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"{path} holds no whole ledger ({error!r}). Begin another one.") from error
    return facts
