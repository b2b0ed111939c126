"""Writing edits into a model's matrices, and taking each out again, in any order.

The idea: for each edited matrix the original entries are kept, with a list of the parts that were written over them.
The model's entries are always recomputed from these: the original, plus the parts still in force, in order. Without any
part the matrix is therefore the original bit for bit, in whatever order parts came and went.

    original  +  part 1  +  part 2  +  part 3   ->  the model's entries
                 edit a     edit b     edit c
    revert a:    original + part 2 + part 3         (never: entries - part 1, which would leave rounding errors)

An exception can come between any two instructions (Ctrl-C, a signal handler). Therefore a single assignment
(`Writing.in_force`) decides for all matrices of a writing, and a matrix records what it holds only while that is
certain (`KeptMatrix.holds`). Everything here, and every public call of the package, first makes the matrices agree with
what was decided, and so completes an interrupted call. Ctrl-C is deferred for the few milliseconds of a copy. Threads
take turns; to the child of a fork, what other threads were at is broken off.

Matrices are identified by weak references to their parameters: a copied or unpickled model has no edits.
"""

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from rome_lens.calling import Turn, alone, free_in_forks, runs, settling, turn_of_call, uninterrupted
from rome_lens.edit.artifact.kept_matrix import KeptMatrix, Part, Writing, copy_into, normal_tensors
from rome_lens.edit.artifact.update import Update
from rome_lens.errors import EditError
from rome_lens.models import OutputMatrix
from rome_lens.storage import digest

Place: TypeAlias = tuple[OutputMatrix, Update | None]
"""A matrix and the update to add; None: the matrix is only kept."""
T = TypeVar("T")
_TURN = threading.RLock()
_KEPT: dict[int, KeptMatrix] = {}  # by the parameter's id, until that is garbage-collected


def _forget(key: int) -> None:
    _KEPT.pop(key, None)


def write(writing: Writing, places: Sequence[Place]) -> None:
    """Writes into all places, or into none. If the public call that runs is broken off, this is taken out again.

    Raises:
        EditError: an entry would become infinite or NaN. No weight is changed.
    """
    writing.turn = writing.turn or turn_of_call()
    _in_turn(partial(_write, writing, places))


def take_out(writing: Writing, check: Callable[[], None] | None = None) -> None:
    """Takes a writing out of all its places. `check` is called first and may raise, which leaves all unchanged."""

    def work() -> None:
        if check is not None:
            check()
        uninterrupted(partial(_end, writing))

    _in_turn(work)


def settled() -> None:
    """Makes all matrices agree with what was decided, in case an earlier call was interrupted."""
    if _KEPT and not runs(_in_turn, sys._getframe()):
        _in_turn(lambda: None)


def kept_at(parameter: Tensor) -> KeptMatrix | None:
    """The record of an edited parameter; None if it has no edits."""
    return next((kept for kept in list(_KEPT.values()) if kept.is_that_of(parameter)), None)


def kept_in(model: nn.Module) -> list[KeptMatrix]:
    """The edited matrices of a model."""
    places = {parameter.data_ptr() for parameter in model.parameters()} if _KEPT else set()
    return [kept for kept in list(_KEPT.values()) if kept.matrix and kept.matrix.parameter.data_ptr() in places]


def can_take_out(writing: Writing, kept: KeptMatrix | None) -> bool:
    """Whether a writing has a part in this matrix, and the caller has changed nothing since."""
    if kept is None or kept.is_changed() or not kept.has(writing):
        return False
    later = itertools.dropwhile(lambda part: writing not in part.of[:1], kept.parts)
    return all(part.values is None for part in later)


def digests_so_far(parameter: Tensor) -> Iterable[str]:
    """SHA-256 of a parameter's original entries, and of the entries after each part."""
    kept = kept_at(parameter)
    return () if kept is None else kept.digests()


def writings(model: nn.Module) -> list[Writing]:
    """The writings in a model's matrices, the oldest first."""

    def work() -> list[Writing]:
        here = kept_in(model)
        for kept in here:
            kept.is_changed()
        found = {writing.number: writing for kept in here for part in kept.parts for writing in part.of[:1]}
        return [found[number] for number in sorted(found)]

    return _in_turn(work)


class Temporarily(Generic[T]):
    """Context manager that writes what `find` returns; at the end this, and changes made by hand, are taken out.

    Also those that put another parameter in a matrix's place (`load_state_dict(assign=True)`). Inside, other threads
    wait for the model, if one is given.

    It is no generator, because an exception just before the first line of `__exit__` would skip a generator's cleanup.
    Here the matrices are then restored when this object is garbage-collected.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Place]],
        gives: T,
        what: Any = None,
        *,
        model: nn.Module | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        """`check` is called first in the `with`, and may raise."""
        self._find, self._gives, self._what, self._model, self._check = find, gives, what, model, check
        self._writing = Writing(what, temporary=True)
        self._places: Sequence[Place] = ()

    def __enter__(self) -> T:
        if self._writing.in_force:
            raise EditError("This `with` is open already. Make another one for the same edit: edit.applied(model).")
        self._writing = Writing(self._what, temporary=True)
        try:
            last_as_long_as(self, self._writing, Turn([] if self._model is None else [self._model]))
            self._check()
            self._places = self._find()
            write(self._writing, self._places)
        except BaseException:
            self.__exit__()
            raise
        return self._gives

    def __exit__(self, *error: object) -> None:
        try:
            try:
                take_out(self._writing)
            finally:
                self._writing.in_force = False
                settled()
            for (matrix, _), (now, _) in zip(self._places, self._find() if self._places else (), strict=True):
                if now.parameter.data_ptr() != matrix.parameter.data_ptr():
                    copy_into(matrix.values, now)
        finally:
            self._places = ()
            leave(self._writing)


def last_as_long_as(owner: object, writing: Writing, turn: Turn) -> None:
    """From now on a writing lasts no longer than an object; other threads wait for the turn's models until `leave`."""
    writing.turn = turn
    writing.owner = weakref.ref(owner, partial(_gone, turn))
    turn.begin()


def leave(writing: Writing) -> None:
    """Ends what `last_as_long_as` began: other threads go on."""
    if writing.turn is not None:
        writing.turn.over = True


def _gone(turn: Turn, _: object) -> None:
    """Called when the object of a `with` is garbage-collected, at any time and in any thread."""
    if not turn.over:  # `__exit__` was skipped
        turn.over = True
        if not sys.is_finalizing():
            settled()


def keeping(matrices: Iterable[OutputMatrix]) -> Temporarily[None]:
    """Context manager inside which matrices may be changed; at the end they, and their edits, are as they were."""
    places: list[Place] = [(matrix, None) for matrix in matrices]
    return Temporarily(lambda: places, None)


@dataclass(frozen=True, eq=False)
class _Plan:
    kept: KeptMatrix
    matrix: OutputMatrix
    part: Part
    values: Tensor
    digest: str


def _plan(writing: Writing, matrix: OutputMatrix, update: Update | None) -> _Plan:
    kept = kept_at(matrix.parameter)
    if kept is None:
        kept = KeptMatrix(matrix, _forget)
    else:
        kept.notice()
    with normal_tensors():
        values = matrix.values if update is None else update.added_to(matrix.values)
        if update is not None and not values.isfinite().all():
            raise EditError(
                f"The edit would make entries of {update.place} infinite or NaN. No weight was changed; compute "
                "the edit again, with other contexts or on a model whose weights are finite."
            )
        below = (kept.parts, matrix.values.clone()) if writing.temporary and kept.parts else None
    keepers = tuple(part.of[0] for part in kept.parts if part.update is None and part.values is None)
    found = kept.digest if update is None else digest(values)
    return _Plan(kept, matrix, Part((writing, *keepers), update, below=below), values, found)


def _write(writing: Writing, places: Sequence[Place]) -> None:
    plans = [_plan(writing, *place) for place in places]
    whole = False
    try:
        uninterrupted(partial(_carry_out, writing, plans))
        whole = True
    finally:
        if not whole:
            writing.in_force = False
            uninterrupted(_settle)


def _carry_out(writing: Writing, plans: Sequence[_Plan]) -> None:
    for plan in plans:
        _KEPT[plan.kept.key] = plan.kept
        plan.kept.parts = (*plan.kept.parts, plan.part)
    holds = [plan.kept.parts for plan in plans]
    for plan in plans:
        if plan.digest != plan.kept.digest:
            plan.kept.holds = None
            copy_into(plan.values, plan.matrix)
    writing.in_force = True
    for plan, parts in zip(plans, holds, strict=True):
        plan.kept.digest = plan.digest
        plan.kept.holds = parts


def _end(writing: Writing) -> None:
    writing.in_force = False
    _settle()


def _settle() -> None:
    for key, kept in list(_KEPT.items()):
        kept.settle()
        if not kept.parts:
            _KEPT.pop(key, None)


def _in_turn(work: Callable[[], T]) -> T:
    """Does the work while no other thread writes, after completing what was interrupted."""
    if runs(_in_turn, sys._getframe(1)):
        raise EditError(
            "Weights are being written by the call that this one interrupts (from a signal's handler?). No weight was "
            "changed. Apply and revert edits one after the other."
        )

    def settled_first() -> T:
        uninterrupted(_settle)
        return work()

    return alone(_TURN, settled_first)


settling.append(settled)
free_in_forks(_TURN)
