"""A matrix with edits: its original entries, and the changes that were made to them, in order."""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.calling import Turn
from rome_lens.edit.artifact.update import Update
from rome_lens.models import OutputMatrix
from rome_lens.storage import digest

_NUMBERS = itertools.count()


@dataclass(eq=False)
class Writing:
    """A change of several matrices, which is taken out of all of them at once.

    Attributes:
        what: the Edit that is written; None if the matrices are only kept.
        temporary: whether changes made by hand after it are taken out with it.
        in_force: whether it was decided to be in the weights.
        owner: weak reference to the `with` object that it lasts as long as; None if there is none.
        turn: that of the `with` or the public call that made it; None if there is none. If that breaks, it is void.
        number: increases with each writing, so that they can be sorted by age.
    """

    what: Any = None
    temporary: bool = False
    in_force: bool = False
    owner: Callable[[], Any] | None = None
    turn: Turn | None = None
    number: int = field(default_factory=_NUMBERS.__next__)

    @property
    def counts(self) -> bool:
        """Whether it belongs in the weights."""
        kept = self.owner is None or self.owner() is not None
        return self.in_force and kept and (self.turn is None or self.turn.counts)


@dataclass(frozen=True, eq=False)
class Part:
    """What a writing does to one matrix.

    Attributes:
        of: the writings that must all be in force for the part to count; the first is its own.
        update: what it adds.
        values: the entries, if the caller changed the matrix by hand; without `update` and `values` nothing changes.
        below: the parts that the matrix was made of before, and its entries then.
    """

    of: tuple[Writing, ...]
    update: Update | None = None
    values: Tensor | None = None
    below: tuple[tuple["Part", ...], Tensor] | None = None

    @property
    def in_force(self) -> bool:
        return all(writing.counts for writing in self.of)

    def after(self, values: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """The entries with this part, from those before it."""
        if self.values is not None:
            return self.values
        return values if self.update is None else self.update.added_to(values)

    @property
    def temporary(self) -> bool:
        return any(writing.temporary for writing in self.of[:1])


class KeptMatrix:
    """A matrix with edits; see `written` for the idea."""

    def __init__(self, matrix: OutputMatrix, forget: Callable[[int], None]):
        """`forget` is called with `key`, the parameter's id, when the parameter is garbage-collected."""
        key = self.key = id(matrix.parameter)
        self._transposed = matrix.transposed
        self._parameter = weakref.ref(matrix.parameter, lambda _: forget(key))
        with normal_tensors():
            self._original = matrix.values.clone()
        self.untouched = self.digest = digest(self._original)
        self.parts: tuple[Part, ...] = ()  # in order; some may be no longer, or not yet, in force
        self.holds: tuple[Part, ...] | None = ()  # what the model's entries are made of; None: unknown

    @property
    def matrix(self) -> OutputMatrix | None:
        """The matrix in the model; None if the model no longer exists."""
        parameter = self._parameter()
        return None if parameter is None else OutputMatrix(parameter, self._transposed)

    def is_that_of(self, parameter: Tensor) -> bool:
        """Whether the matrix is this parameter, or shares its memory."""
        own = self._parameter()
        return own is not None and (own is parameter or own.data_ptr() == parameter.data_ptr() != 0)

    def settle(self) -> None:
        """Makes the model's entries those of the parts in force."""
        wanted = tuple(part for part in self.parts if part.in_force)
        if wanted != self.holds and (matrix := self.matrix) is not None:
            values = self._made_of(wanted)
            self.holds = None
            copy_into(values, matrix)
            self.digest = digest(values)
            self.holds = wanted
        self.parts = wanted

    def digests(self) -> Iterable[str]:
        """SHA-256 of the original entries, and of the entries after each part."""
        yield self.untouched
        values = self._original
        for part in self.parts:
            values = part.after(values)
            yield digest(values)

    def _made_of(self, parts: tuple[Part, ...]) -> Float[Tensor, "d_mlp d_model"]:
        for part in self.parts:
            if part.below is not None and part.below[0] == parts:
                return part.below[1]
        return functools.reduce(lambda values, part: part.after(values), parts, self._original)

    def is_changed(self) -> bool:
        """Whether the caller has changed the entries since; if back to the original ones, all parts are dropped."""
        matrix = self.matrix
        if matrix is None or (found := digest(matrix.values)) == self.digest:
            return False
        if found != self.untouched or any(part.temporary for part in self.parts):
            return True
        self.parts = ()
        self.digest, self.holds = found, ()
        return False

    def has(self, writing: Writing) -> bool:
        """Whether a writing has a part here."""
        return any(writing in part.of[:1] for part in self.parts)

    def notice(self) -> None:
        """Records what the caller has written since as a part."""
        if self.is_changed() and (matrix := self.matrix) is not None:
            inside = tuple(part.of[0] for part in self.parts if part.temporary)
            with normal_tensors():
                self.parts = (*self.parts, Part(inside, values=matrix.values.clone()))
            self.settle()


def copy_into(values: Float[Tensor, "d_mlp d_model"], matrix: OutputMatrix) -> None:
    """Writes the values over the model's own entries."""
    with normal_tensors(), torch.no_grad():
        matrix.values.copy_(values)


def normal_tensors() -> Any:
    """Tensors made inside can be used outside the caller's `torch.inference_mode()`."""
    return torch.inference_mode(False)
