"""Edits in a model's weights: the handle that takes one out, and the list of those that are in."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rome_lens.checking import checked
from rome_lens.edit.artifact.matrix import matrix_for
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.artifact.written import Writing, can_take_out, kept_at, kept_in, take_out, write, writings
from rome_lens.errors import EditError
from rome_lens.models import EditableModel
from rome_lens.storage import digest

if TYPE_CHECKING:
    from rome_lens.edit.artifact.edit import Edit


_CHANGED = (
    "The edited matrix has been changed since this edit was applied, not by an edit (by training, loading weights, or "
    "moving to another dtype), and taking the edit out would lose that change. Undo it first, or load the model again."
)


@checked
class AppliedEdit:
    """The handle of an edit that is in a model's weights. `Edit.apply` makes it."""

    def __init__(self, model: EditableModel, updates: Sequence[Update]):
        self._model = model
        self._places = [(matrix_for(model, update), update) for update in updates]
        self._writing = Writing()
        self._untouched: list[str] = []  # SHA-256 of the matrices without any edit

    def revert(self) -> None:
        """Takes this edit out, whichever others came before or after it; a second call does nothing.

        The matrices are what they were before any edit, plus the edits that are left, each added in its turn; without
        any, they are bit for bit what they were.

        Raises:
            EditError: a matrix was changed by other means after this edit was applied (training, loading weights,
                another dtype or device). No weight is changed.
        """
        if self._writing.in_force:
            take_out(self._writing, self._check)

    def _write(self, edit: "Edit") -> None:
        self._writing.what = edit
        write(self._writing, self._places)
        found = [kept_at(matrix.parameter) for matrix, _ in self._places]
        self._untouched = [kept.untouched for kept in found if kept is not None]

    def _check(self) -> None:
        matrices = [matrix_for(self._model, update) for _, update in self._places]
        for matrix, untouched in zip(matrices, self._untouched, strict=True):
            if not can_take_out(self._writing, kept_at(matrix.parameter)) and digest(matrix.values) != untouched:
                raise EditError(_CHANGED)


@checked
def applied_edits(model: EditableModel) -> tuple["Edit", ...]:
    """The edits that are in a model's weights, in the order in which they were applied.

    It does not matter through which object they were applied: a TransformerBridge and the Hugging Face model inside it
    share their weights and so their edits. A copy of an edited model (copy.deepcopy, or saved and loaded) is a model of
    its own, whose weights are taken as they are: no edit is applied to it.

    If an earlier call was broken off (Ctrl-C), this first makes all edited layers agree with what is listed, as every
    public call of the package does.

    Args:
        model: a model of TransformerLens or of Hugging Face. Its weights stay as they are.

    Returns:
        Those of `Edit.apply` that are not reverted, and those of `with edit.applied(model)` inside of it.
    """
    return tuple(writing.what for writing in writings(model) if writing.what is not None)


@checked
def revert_edits(model: EditableModel) -> tuple["Edit", ...]:
    """Takes out all edits that `Edit.apply` put into a model's weights, as their handles do, and lists them.

    For edits whose handles are lost. Those of `with edit.applied(model)` stay until it ends; without one around it, the
    edited matrices are bit for bit what they were before the first edit.

    Raises:
        EditError: as `AppliedEdit.revert`. This edit, and earlier ones, are still in.
    """
    found = [writing for writing in writings(model) if writing.what is not None and not writing.temporary]
    for writing in reversed(found):
        take_out(writing, partial(_check_all, model, writing))
    return tuple(writing.what for writing in found)


def _check_all(model: EditableModel, writing: Writing) -> None:
    if not all(can_take_out(writing, kept) for kept in kept_in(model) if kept.has(writing)):
        raise EditError(_CHANGED)
