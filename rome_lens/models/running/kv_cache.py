"""Keys and values of earlier positions, in the form that TransformerLens' forward takes."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.models.kinds import Model


@dataclass(frozen=True)
class PastState:
    """Keys and values of earlier positions at one layer, as the model caches them.

    A HookedTransformer caches keys before their rotation, a TransformerBridge after it. If a run has a multiple of
    these rows, all of them are repeated, one block of rows after the other.
    """

    past_keys: Float[Tensor, "batch past kv_heads d_head"]
    past_values: Float[Tensor, "batch past kv_heads d_value"]

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Past and new, joined along the positions, but not stored (a method of TransformerLens' cache entries)."""
        return self._joined(self.past_keys, new_keys), self._joined(self.past_values, new_values)

    def upto(self, position: int) -> "PastState":
        """The positions before `position`."""
        return PastState(self.past_keys[:, :position], self.past_values[:, :position])

    @staticmethod
    def _joined(past: Tensor, new: Tensor) -> Tensor:
        if not past.shape[1]:
            return new
        blocks = new.unflatten(0, (-1, len(past)))
        return torch.cat([past.expand(len(blocks), *past.shape), blocks], dim=2).flatten(0, 1)


@dataclass(frozen=True)
class GrowingPast(PastState):
    """A past that keeps what a run appends.

    Attributes:
        grown: past and new, once the run is over.
    """

    grown: list[PastState] = field(default_factory=list, init=False)

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().append(new_keys, new_values)
        self.grown.append(PastState(keys, values))
        return keys, values


@dataclass
class _Recorder:
    """Takes the place of an empty cache entry, and records what a run appends."""

    past_keys: Tensor
    past_values: Tensor
    state: PastState | None = None

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        self.state = PastState(new_keys, new_values)
        return new_keys, new_values


class RecordingCache:
    """The part of a key/value cache that HookedTransformer.forward uses in a run from the first position."""

    def __init__(self, model: Model, batch: int):
        cfg = model.cfg
        heads = cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads
        empty = torch.empty(batch, 0, heads, cfg.d_head, dtype=cfg.dtype)
        self.entries = [_Recorder(empty, empty) for _ in range(cfg.n_layers)]

    def __getitem__(self, layer: int) -> _Recorder:
        return self.entries[layer]

    def append_attention_mask(self, mask: Tensor) -> Tensor:
        return mask


@dataclass(frozen=True)
class SkippedQueries:
    """Takes the place of a cache entry in a block whose first new positions have no queries."""

    past: PastState | None
    skipped: int  # how many they are

    @property
    def past_keys(self) -> Tensor:
        """Attention uses only their number, as the position of the first query."""
        earlier = 0 if self.past is None else self.past.past_keys.shape[1]
        return torch.empty(1, earlier + self.skipped, device="meta")

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        return (new_keys, new_values) if self.past is None else self.past.append(new_keys, new_values)
