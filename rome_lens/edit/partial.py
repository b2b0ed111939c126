"""The sums that a covariance is made from while it is being collected, kept on disk so that a stopped run goes on."""

import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import CovarianceError, FormatError
from rome_lens.files import changed, load_tensors, save_tensors

_KIND = "rome_lens partial covariance 1"
_FACTS = {"asked": dict, "tokens": list, "pieces": int, "sha256": str}
_CLOSE = 1e-3  # relative: the same model's probe keys on the same machine


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

    def save(self, path: str | os.PathLike[str], *, asked: Mapping[str, Any], probe: Tensor) -> None:
        """Writes all of it in place of what was there, with the arguments and the model's probe keys."""
        facts = {"asked": asked, "tokens": self.tokens, "pieces": self.pieces, "sha256": self._digest.hexdigest()}
        save_tensors(path, {"sums": self.sums, "probe": probe}, kind=_KIND, facts=facts, overwrite=True)

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], *, asked: Mapping[str, Any], probe: Tensor, pieces: Iterator[list[int]]
    ) -> "PartialSums":
        """Reads what `save` wrote, and reads past the pieces that are in it.

        Raises:
            FormatError: the file is damaged or is something else.
            CovarianceError: it was begun with another model.
            ValueError: it was begun with other arguments or other texts.
        """
        tensors, facts = load_tensors(path, kind=_KIND, facts=_FACTS)
        try:
            begun, count, digest = dict(facts["asked"]), int(facts["pieces"]), facts["sha256"]
            partial, kept = cls(tensors["sums"], list(facts["tokens"])), tensors["probe"]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} lacks a part of a checkpoint ({error!r}). Delete it to begin anew.") from error
        before, now = changed(begun, asked)
        if now:
            raise ValueError(
                f"The checkpoint {Path(path)} was begun with {before}, but {now} was given. Give the same again, or "
                "another checkpoint."
            )
        if kept.shape != probe.shape or not (kept - probe).norm() <= _CLOSE * kept.norm():
            raise CovarianceError(
                f"The checkpoint {Path(path)} was begun on another model of that name: its keys differ from this "
                "one's. Give the same model (edits reverted), or another checkpoint."
            )
        partial.next_batch(pieces, count)
        if partial._digest.hexdigest() != digest:
            raise ValueError(
                f"The checkpoint {Path(path)} was begun with other texts than these. Give the same texts from their "
                "start (an iterator that was read from is no longer at its start), or another checkpoint."
            )
        return partial
