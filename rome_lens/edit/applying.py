"""Updates written into a model's weights, and taken out again bit for bit."""

from collections.abc import Sequence

import torch

from rome_lens.checking import checked
from rome_lens.edit.matrices import EditableModel, matrix_for
from rome_lens.edit.update import Update
from rome_lens.errors import EditError
from rome_lens.storage import digest


@checked
class AppliedEdit:
    """The handle of an edit that is in a model's weights. It keeps the old matrices."""

    def __init__(self, model: EditableModel, updates: Sequence[Update]):
        self._matrices = [matrix_for(model, update) for update in updates]
        self._new = []
        for update, matrix in zip(updates, self._matrices, strict=True):
            new = update.added_to(matrix.values)
            if not new.isfinite().all():
                raise EditError(
                    f"The edit would make entries of layer {update.layer} infinite or NaN. No weight was changed; "
                    "compute the edit again, with other contexts or on a model whose weights are finite."
                )
            self._new.append(new)
        self._old = [matrix.values.clone() for matrix in self._matrices]
        self._digests = [digest(new) for new in self._new]
        self._reverted = False

    def revert(self) -> None:
        """Puts the old matrices back, bit for bit. A second call does nothing.

        Raises:
            EditError: a matrix was changed after this edit was applied (by a later edit, which has to be reverted
                first, or by training). No weight is changed.
        """
        if self._reverted:
            return
        for matrix, written in zip(self._matrices, self._digests, strict=True):
            if digest(matrix.values) != written:
                raise EditError(
                    "The edited matrix has been changed since this edit was applied, so putting the old one back would "
                    "lose that change. Revert later edits first, in the opposite order."
                )
        self._restore()

    def _write(self) -> None:
        with torch.no_grad():
            for matrix, new in zip(self._matrices, self._new, strict=True):
                matrix.values.copy_(new)
        self._new = []

    def _restore(self) -> None:
        with torch.no_grad():
            for matrix, old in zip(self._matrices, self._old, strict=True):
                matrix.values.copy_(old)
        self._reverted = True
