"""Applied edits: the handle that reverts one, and the list of all that a model has."""

import copy
import sys
from collections.abc import Sequence
from dis import opname
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from rome_lens.calling import Turn, uninterrupted
from rome_lens.checking import checked
from rome_lens.edit.artifact.matrix import matrix_for
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.artifact.written import (
    Writing,
    can_take_out,
    kept_at,
    kept_in,
    last_as_long_as,
    leave,
    take_out,
    write,
    writings,
)
from rome_lens.errors import EditError
from rome_lens.models import EditableModel
from rome_lens.storage import digest

if TYPE_CHECKING:
    from rome_lens.edit.artifact.edit import Edit


_OURS = ("rome_lens", "jaxtyping", "beartype")  # the two check types, if the caller wishes
_CHANGED = (
    "The edited matrix has been changed since this edit was applied, not by an edit (by training, loading weights, or "
    "moving to another dtype), and reverting the edit would lose that change. Undo it first, or load the model again."
)


@checked
class AppliedEdit:
    """Handle of an applied edit, as `Edit.apply` returns it: `revert()` takes the edit out of the weights again.

    `with edit.apply(model): ...` reverts at the end of the body, also if that is interrupted. Inside, calls of other
    threads that use the model wait, as for `Edit.applied`.
    """

    def __init__(self, model: EditableModel, updates: Sequence[Update]):
        self._model = model
        self._places = [(matrix_for(model, update), update) for update in updates]
        self._writing = Writing()
        self._untouched: list[str] = []  # SHA-256 of each matrix before its first edit

    def revert(self) -> None:
        """Takes this edit out of the weights, in any order with other edits; a second call does nothing.

        The matrices are recomputed: the original entries, plus each edit that is left, in the order of applying. Once
        no edit is left they are bit for bit the original.

        Raises:
            EditError: a matrix was changed by other means after this edit was applied (training, loading weights,
                another dtype or device). No weight is changed.
        """
        if self._writing.counts:
            take_out(self._writing, self._check)

    def __enter__(self) -> "AppliedEdit":
        """Gives another handle of the same edit, so that nothing keeps this one when an interruption skips its end."""
        if self._writing.owner is None:
            try:
                self._open()
            except BaseException:
                self.__exit__()
                raise
        return copy.copy(self)

    def __exit__(self, *error: object) -> None:
        try:
            self._leave()
        except EditError:
            raise
        except BaseException:
            uninterrupted(self._leave)
            raise
        finally:
            leave(self._writing)

    def _leave(self) -> None:
        try:
            self.revert()
        except EditError:
            self._writing.owner = None  # the edit stays, until `revert` can take it out
            raise

    def _open(self) -> None:
        last_as_long_as(self, self._writing, Turn([self._model]))

    def _write(self, edit: "Edit") -> None:
        self._writing.what = edit
        try:
            if _opens_a_with(sys._getframe(1)):
                self._open()
            write(self._writing, self._places)
        except BaseException:
            leave(self._writing)
            raise
        found = [kept_at(matrix.parameter) for matrix, _ in self._places]
        self._untouched = [kept.untouched for kept in found if kept is not None]

    def _check(self) -> None:
        matrices = [matrix_for(self._model, update) for _, update in self._places]
        for matrix, untouched in zip(matrices, self._untouched, strict=True):
            if not can_take_out(self._writing, kept_at(matrix.parameter)) and digest(matrix.values) != untouched:
                raise EditError(_CHANGED)


def _opens_a_with(frame: FrameType | None) -> bool:
    """Whether a `with` statement opens what this call returns: `with edit.apply(model):`.

    If not even `__enter__` is reached then, as the call has just returned, nobody is left to revert the edit: it has to
    be known before. Told by the caller's next instruction; a `with` that is not seen has that gap, and no other.
    """
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame = frame.f_back
    code = b"" if frame is None else frame.f_code.co_code[frame.f_lasti + 2 :: 2]
    following = [opname[number] for number in code[:20] if number]  # 0: room for the interpreter's notes
    return following[:1] in (["BEFORE_WITH"], ["SETUP_WITH"]) or following[:2] == ["COPY", "LOAD_SPECIAL"]


@checked
def applied_edits(model: EditableModel) -> tuple["Edit", ...]:
    """The edits in a model's weights, in the order in which they were applied.

    Edits belong to the weights, not to the object that they were applied through: a TransformerBridge and the Hugging
    Face model inside it share both. A copy of an edited model (copy.deepcopy, or saved and loaded) is a new model: its
    weights count as original, and no edit is listed.

    If an earlier call was interrupted (Ctrl-C), this first makes all edited layers agree with the list, as every public
    call of the package does.

    Args:
        model: A model of TransformerLens or Hugging Face; left unchanged.

    Returns:
        Edits from `Edit.apply` that are not reverted, and those of each open `with edit.applied(model)`.
    """
    return tuple(writing.what for writing in writings(model) if writing.what is not None)


@checked
def revert_edits(model: EditableModel) -> tuple["Edit", ...]:
    """Reverts all edits that `Edit.apply` put into a model's weights, also those whose handles are lost.

    Edits of an open `with edit.applied(model)` stay until it ends; if there is none, the edited matrices are then bit
    for bit what they were before the first edit.

    Returns:
        The reverted edits, in the order in which they had been applied.

    Raises:
        EditError: as `AppliedEdit.revert`. The edit concerned, and those applied before it, are still in the weights.
    """
    found = [writing for writing in writings(model) if writing.what is not None and not writing.temporary]
    for writing in reversed(found):
        take_out(writing, partial(_check_all, model, writing))
    return tuple(writing.what for writing in found)


def _check_all(model: EditableModel, writing: Writing) -> None:
    if not all(can_take_out(writing, kept) for kept in kept_in(model) if kept.has(writing)):
        raise EditError(_CHANGED)
