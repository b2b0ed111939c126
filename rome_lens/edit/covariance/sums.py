"""Sums of k k^T over pieces of text, computed here or in shards on the workers of a cluster."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from itertools import accumulate, islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_whole
from rome_lens.engine import ParallelMap
from rome_lens.errors import CovarianceError, FormatError
from rome_lens.models import Model, bos_token, device_for_sums, mlp_keys, pad
from rome_lens.storage import Checkpoint, foreign

Piece = list[int]


@dataclass
class PartialSums:
    """Sums of k k^T over the pieces of text so far; even and odd pieces are two halves with their own sums.

    Attributes:
        sums: [layer, half, d_mlp, d_mlp], float64.
        tokens: number of keys in each half.
        pieces: number of pieces read.
    """

    sums: Float[Tensor, "layer half d_mlp d_mlp"]
    tokens: list[int]
    pieces: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def empty(cls, model: Model, layers: int, width: int, *, pieces: int = 0) -> "PartialSums":
        """Zero sums that begin with piece number `pieces`, on the model's device if they fit there."""
        device = device_for_sums(model, 8 * layers * 2 * width**2)
        return cls(torch.zeros(layers, 2, width, width, dtype=torch.float64, device=device), [0, 0], pieces)

    def add(self, sums: Float[Tensor, "layer half d_mlp d_mlp"], tokens: list[int]) -> None:
        """Adds the sums and key counts of further pieces."""
        self.sums += sums.to(self.sums.device)
        self.tokens = [a + b for a, b in zip(self.tokens, tokens, strict=True)]

    def next_batch(self, pieces: Iterator[list[int]], size: int) -> tuple[list[list[int]], list[int]]:
        """The next pieces and the half that each belongs to; updates the checksum of what was read."""
        batch = list(islice(pieces, size))
        for piece in batch:
            self._digest.update(array("q", piece).tobytes())
        halves = [(self.pieces + i) % 2 for i in range(len(batch))]
        self.pieces += len(batch)
        return batch, halves

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves all of it in place of the last checkpoint."""
        facts = {"tokens": self.tokens, "pieces": self.pieces, "sha256": self._digest.hexdigest()}
        checkpoint.save({"sums": self.sums.cpu()}, facts)

    def resume(self, checkpoint: Checkpoint, pieces: Iterator[list[int]]) -> None:
        """Continues from the checkpoint, if there is one, and skips the pieces that it includes."""
        if checkpoint.found is None:
            return
        (tensors, facts), place = checkpoint.found, checkpoint.path
        with foreign(place or "", f"does not hold sums of shape {list(self.sums.shape)}", "Delete it to begin anew."):
            sums, (even, odd) = tensors["sums"], facts["tokens"]
            check_whole(least=0, even=even, odd=odd, pieces=facts["pieces"])
            if (sums.shape, sums.dtype) != (self.sums.shape, self.sums.dtype):
                raise ValueError(f"they are {list(sums.shape)} in {sums.dtype}")
        self.sums, self.tokens = sums.to(self.sums.device), [even, odd]
        self.next_batch(pieces, facts["pieces"])
        if self._digest.hexdigest() != facts["sha256"]:
            raise FormatError(
                f"{place} was begun with other texts than these. Give the same texts from their start (an iterator "
                "that was read from is no longer at its start), or choose another folder."
            )


def add_pieces(
    model: Model, layers: Sequence[int], pieces: Iterator[Piece], partial: PartialSums, *, batch: int
) -> Iterator[None]:
    """Adds k k^T of the pieces' tokens to the sums; yields after each batch of `batch` pieces."""
    while True:
        rows, halves = partial.next_batch(pieces, batch)
        if not rows:
            return
        _add_batch(model, layers, rows, halves, partial)
        yield


def add_shards(
    on_workers: ParallelMap,
    layers: Sequence[int],
    pieces: Iterator[Piece],
    partial: PartialSums,
    *,
    batch: int,
    shard: int,
    workers: int,
) -> Iterator[None]:
    """Like `add_pieces`, with workers that sum shards of `shard` pieces; yields after one shard of each worker.

    Shards are added in the order of the text. So the sums always cover a prefix of the text, from which another call
    can continue, and do not depend on which worker was faster.
    """
    work = bind(_summed, layers=layers, batch=batch, width=partial.sums.shape[-1])
    while texts := [part for _ in range(workers) if (part := list(islice(pieces, shard)))]:
        firsts = accumulate(map(len, texts[:-1]), initial=partial.pieces)
        found = dict(on_workers(work, list(zip(firsts, texts, strict=True))))
        for index, part in enumerate(texts):
            partial.next_batch(iter(part), len(part))
            partial.add(*found[index])
        yield


@torch.no_grad()
def _summed(
    model: Model, shard: tuple[int, list[Piece]], *, layers: Sequence[int], batch: int, width: int
) -> tuple[Float[Tensor, "layer half d_mlp d_mlp"], list[int]]:
    """Sums and key counts of a shard, given as (number of its first piece, pieces)."""
    first, pieces = shard
    partial = PartialSums.empty(model, len(layers), width, pieces=first)
    for _ in add_pieces(model, layers, iter(pieces), partial, batch=batch):
        pass
    return partial.sums.cpu(), partial.tokens


def _add_batch(
    model: Model, layers: Sequence[int], batch: list[Piece], halves: list[int], partial: PartialSums
) -> None:
    """Runs the pieces and adds k k^T of their tokens to the sums of the half that each belongs to."""
    before = bos_token(model)
    rows, mask = pad([before + piece for piece in batch])
    wanted = mask.bool()
    wanted[:, : len(before)] = False
    keys = mlp_keys(model, rows, mask, layers)
    for half in (0, 1):
        chosen = wanted & (torch.tensor(halves) == half)[:, None]
        for layer, sums in zip(layers, partial.sums, strict=True):
            flat = keys[layer][chosen.to(keys[layer].device)].float()
            if not flat.isfinite().all():
                raise CovarianceError(
                    f"Keys of layer {layer} are not finite. Check the model's weights, or load it in float32."
                )
            sums[half] += (flat.T @ flat).to(sums.device)
        partial.tokens[half] += int(chosen.sum())


KIND = "rome_lens partial covariance 2"
FACTS = {"tokens": list, "pieces": int, "sha256": str}
