"""Changes of MLP matrices as forward hooks; no weight is changed."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.artifact.matrix import matrix_for
from rome_lens.edit.artifact.update import Update
from rome_lens.models import (
    Hook,
    MlpMatrix,
    Model,
    contribution_change,
    key_name,
    mlp_output,
    norms_mlp_output,
    preactivation_name,
    read_mlp_input,
    state_name,
)


def update_hooks(model: Model, update: Update) -> list[tuple[str, Hook]]:
    """Hooks that add input @ left @ right to the product of the updated matrix."""
    device = matrix_for(model, update).values.device
    left, right = update.left.to(device), update.right.to(device)
    return matrix_hooks(model, update.layer, update.matrix, lambda entering: (entering.float() @ left) @ right)


def matrix_hooks(
    model: Model, layer: int, matrix: MlpMatrix, change: Callable[[Tensor], Tensor]
) -> list[tuple[str, Hook]]:
    """One hook reads what a matrix of the MLP multiplies, [batch, pos, d_in], the other adds `change` of it to the
    product. Differentiable.
    """
    if matrix == "out":
        return output_hooks(model, layer, change)
    place, of_state = read_mlp_input(model, layer, matrix)
    inputs: list[Tensor] = []  # of the pass that is running

    def read(state: Float[Tensor, "batch pos d_model"], hook: object) -> None:
        inputs[:] = [of_state(state)]

    def add(product: Float[Tensor, "batch pos d_mlp"], hook: object) -> Float[Tensor, "batch pos d_mlp"]:
        return product + change(inputs.pop()).to(product.dtype)

    return [(place, read), (preactivation_name(model, layer, matrix), add)]


def output_hooks(model: Model, layer: int, change: Callable[[Tensor], Tensor]) -> list[tuple[str, Hook]]:
    """Two hooks: one reads the MLP's keys [batch, pos, d_mlp], the other adds `change(keys)` to the MLP's output.

    The change takes effect before what the block does to its MLP's output (a norm, a multiplier). Differentiable.
    """
    altered = norms_mlp_output(model, layer)
    keys: list[Tensor] = []  # those of the current forward pass

    def read(key: Float[Tensor, "batch pos d_mlp"], hook: object) -> None:
        keys[:] = [key]

    def add(output: Float[Tensor, "batch pos d_model"], hook: object) -> Float[Tensor, "batch pos d_model"]:
        key = keys.pop()
        added = change(key)
        if altered:
            added = contribution_change(model, layer, mlp_output(model, layer, key), added)
        return output + added.to(output.dtype)

    return [(key_name(layer), read), (state_name("mlp", layer), add)]
