"""What a loss says of MLP matrices: their inputs, and the loss's gradients by their products."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.artifact.hooks import matrix_hooks
from rome_lens.models import Hook, MlpMatrix, Model, find_matrix, frozen
from rome_lens.models.teacher_forcing import ForcedBatch

Factors = dict[tuple[int, MlpMatrix], tuple[Float[Tensor, "row pos d_in"], Float[Tensor, "row pos d_out"]]]


def inputs_and_gradients(
    model: Model,
    batch: ForcedBatch,
    places: Sequence[tuple[int, MlpMatrix]],
    loss: Callable[[Float[Tensor, "row pos d_model"]], Float[Tensor, ""]],
) -> Factors:
    """By (layer, matrix), at every position, in float32: what the matrix multiplies, and the gradient by its product.

    `loss` is computed of the residual stream after the last block.
    """
    inputs: dict[tuple[int, MlpMatrix], Tensor] = {}
    nothing = {place: batch.residual.new_zeros(*batch.mask.shape, _width(model, place)).float() for place in places}

    def reading(place: tuple[int, MlpMatrix]) -> list[tuple[str, Hook]]:
        def add_nothing(entering: Float[Tensor, "row pos d_in"]) -> Float[Tensor, "row pos d_out"]:
            inputs[place] = entering.detach().float()
            return nothing[place].requires_grad_()

        return matrix_hooks(model, *place, add_nothing)

    with frozen(model), torch.enable_grad():
        final = batch.run(model, hooks=[hook for place in places for hook in reading(place)])
        gradients = torch.autograd.grad(loss(final), list(nothing.values()))
    return {place: (inputs[place], gradient) for place, gradient in zip(places, gradients, strict=True)}


def _width(model: Model, place: tuple[int, MlpMatrix]) -> int:
    return find_matrix(model, *place).values.shape[1]
