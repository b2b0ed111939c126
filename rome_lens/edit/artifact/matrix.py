"""Where a model keeps the matrices that edits change: a model of TransformerLens, or of Hugging Face."""

from collections.abc import Sequence

from torch import Tensor

from rome_lens.edit.artifact.update import Update
from rome_lens.errors import EditError
from rome_lens.models import OutputMatrix
from rome_lens.models.huggingface import EditableModel, name_of, output_matrix_of


def matrix_for(model: EditableModel, update: Update) -> OutputMatrix:
    """The matrix that an update is added to.

    Raises:
        EditError: it has another shape; and as `output_matrix_of`.
    """
    matrix = output_matrix_of(model, update.layer, update.matrix)
    if update.shape != tuple(matrix.values.shape):
        raise EditError(
            f"The edit is for matrices of the shape {update.shape}, but {update.place} of {name_of(model)} has "
            f"{tuple(matrix.values.shape)}. Apply it to the model it was made on."
        )
    return matrix


def state_dict_delta(model: EditableModel, updates: Sequence[Update]) -> dict[str, Tensor]:
    """By name in the model's `state_dict`, what the updates add, in float32, stored as the model stores it."""
    names = {value.data_ptr(): name for name, value in model.state_dict().items()}
    delta = {}
    for update in updates:
        matrix = matrix_for(model, update)
        delta[names[matrix.parameter.data_ptr()]] = matrix.oriented(update.left @ update.right).contiguous()
    return delta
