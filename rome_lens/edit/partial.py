"""The sums that a covariance is made from while it is being collected, kept on disk so that a stopped run goes on."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import FormatError
from rome_lens.storage import Checkpoint

KIND = "rome_lens partial covariance 2"
FACTS = {"tokens": list, "pieces": int, "sha256": str}


@dataclass
class PartialSums:
    """Sums of k kT over the pieces of text so far, even and odd pieces apart.

    Attributes:
        sums: [layer, half, d_mlp, d_mlp], float64.
        tokens: how many keys are in each half.
        pieces: how many pieces were read.
    """

    sums: Float[Tensor, "layer half d_mlp d_mlp"]
    tokens: list[int]
    pieces: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def empty(cls, layers: int, width: int, *, pieces: int = 0) -> "PartialSums":
        """Nothing added yet, with so many pieces left out at the start."""
        return cls(torch.zeros(layers, 2, width, width, dtype=torch.float64), [0, 0], pieces)

    def add(self, sums: Float[Tensor, "layer half d_mlp d_mlp"], tokens: list[int]) -> None:
        """Adds the sums of further pieces, and the numbers of keys in them."""
        self.sums += sums
        self.tokens = [a + b for a, b in zip(self.tokens, tokens, strict=True)]

    def next_batch(self, pieces: Iterator[list[int]], size: int) -> tuple[list[list[int]], list[int]]:
        """The next pieces, and the half that each belongs to. What was read is remembered by its checksum."""
        batch = list(islice(pieces, size))
        for piece in batch:
            self._digest.update(array("q", piece).tobytes())
        halves = [(self.pieces + i) % 2 for i in range(len(batch))]
        self.pieces += len(batch)
        return batch, halves

    def save(self, checkpoint: Checkpoint) -> None:
        """Keeps all of it in place of what was kept before."""
        facts = {"tokens": self.tokens, "pieces": self.pieces, "sha256": self._digest.hexdigest()}
        checkpoint.save({"sums": self.sums}, facts)

    def resume(self, checkpoint: Checkpoint, pieces: Iterator[list[int]]) -> None:
        """Takes over what `save` kept, if anything, and reads past the pieces that are in it.

        Raises:
            FormatError: it was begun with other texts, or does not fit.
        """
        if checkpoint.found is None:
            return
        (sums, facts), place = (checkpoint.found[0].get("sums"), checkpoint.found[1]), checkpoint.path
        if sums is None or (sums.shape, sums.dtype) != (self.sums.shape, self.sums.dtype) or len(facts["tokens"]) != 2:
            raise FormatError(f"{place} does not hold sums of shape {list(self.sums.shape)}. Delete it to begin anew.")
        self.sums, self.tokens = sums, list(facts["tokens"])
        self.next_batch(pieces, facts["pieces"])
        if self._digest.hexdigest() != facts["sha256"]:
            raise FormatError(
                f"{place} was begun with other texts than these. Give the same texts from their start (an iterator "
                "that was read from is no longer at its start), or choose another folder."
            )
