"""Sums of k kT over pieces of text: read here, or in shards on the workers of a cluster."""

from collections.abc import Iterator, Sequence
from functools import partial as bind
from itertools import accumulate, islice

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.key import mlp_keys
from rome_lens.edit.partial import PartialSums
from rome_lens.engine import Spread
from rome_lens.errors import CovarianceError
from rome_lens.models import Model, bos_token, pad

Piece = list[int]


def add_pieces(
    model: Model, layers: Sequence[int], pieces: Iterator[Piece], partial: PartialSums, *, batch: int
) -> Iterator[None]:
    """Adds k kT of the pieces' tokens to the sums, and yields after each batch of so many pieces."""
    while True:
        rows, halves = partial.next_batch(pieces, batch)
        if not rows:
            return
        _add_products(model, layers, rows, halves, partial)
        yield


def add_shards(
    spread: Spread,
    layers: Sequence[int],
    pieces: Iterator[Piece],
    partial: PartialSums,
    *,
    batch: int,
    shard: int,
    workers: int,
) -> Iterator[None]:
    """As `add_pieces`, with shards of so many pieces summed by workers, and yields after one shard of each worker.

    Shards are added in the order of the text, so that the sums are always those of a beginning of the text, from which
    another call can go on, and do not depend on which worker was faster.
    """
    work = bind(_summed, layers=layers, batch=batch, width=partial.sums.shape[-1])
    while texts := [part for _ in range(workers) if (part := list(islice(pieces, shard)))]:
        firsts = accumulate(map(len, texts[:-1]), initial=partial.pieces)
        found = dict(spread(work, list(zip(firsts, texts, strict=True))))
        for index, part in enumerate(texts):
            partial.next_batch(iter(part), len(part))
            partial.add(*found[index])
        yield


@torch.no_grad()
def _summed(
    model: Model, shard: tuple[int, list[Piece]], *, layers: Sequence[int], batch: int, width: int
) -> tuple[Float[Tensor, "layer half d_mlp d_mlp"], list[int]]:
    """The sums and numbers of keys of a shard: the number of its first piece, and the pieces."""
    first, pieces = shard
    partial = PartialSums.empty(len(layers), width, pieces=first)
    for _ in add_pieces(model, layers, iter(pieces), partial, batch=batch):
        pass
    return partial.sums, partial.tokens


def _add_products(
    model: Model, layers: Sequence[int], batch: list[Piece], halves: list[int], partial: PartialSums
) -> None:
    """Runs the pieces and adds k kT of their tokens to the sums of the half that each belongs to."""
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
            sums[half] += (flat.T @ flat).cpu()
        partial.tokens[half] += int(chosen.sum())
