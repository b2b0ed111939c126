"""The matrices that updates change, in a model of TransformerLens or Hugging Face."""

from collections.abc import Sequence

from torch import Tensor

from rome_lens.edit.artifact.update import Update
from rome_lens.errors import EditError
from rome_lens.models import EditableModel, OutputMatrix, find_matrix, name_of


def matrix_for(model: EditableModel, update: Update) -> OutputMatrix:
    """The matrix that an update is added to.

    Raises:
        EditError: its shape differs from the update's; and as `find_matrix`.
    """
    matrix = find_matrix(model, update.layer, update.matrix)
    if update.shape != tuple(matrix.values.shape):
        raise EditError(
            f"The edit is for matrices of the shape {update.shape}, but {update.place} of {name_of(model)} has "
            f"{tuple(matrix.values.shape)}. Apply it to the model it was made on."
        )
    return matrix


def state_dict_delta(model: EditableModel, updates: Sequence[Update]) -> dict[str, Tensor]:
    """What the updates add, by name in the model's `state_dict`: float32, in the memory layout of the parameter."""
    names = {value.data_ptr(): name for name, value in model.state_dict().items()}
    delta = {}
    for update in updates:
        matrix = matrix_for(model, update)
        delta[names[matrix.parameter.data_ptr()]] = matrix.oriented(update.left @ update.right).contiguous()
    return delta
