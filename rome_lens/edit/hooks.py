"""Updates as hooks on a forward pass: the weights are left alone."""

from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.edit.matrices import matrix_for
from rome_lens.edit.update import Update
from rome_lens.models import Hook, contribution_change, key_name, mlp_output, norms_mlp_output, state_name


def update_hooks(model: HookedTransformer, update: Update) -> list[tuple[str, Hook]]:
    """One hook reads the MLP's keys, the other adds to its output what the updated matrix would answer more."""
    device = matrix_for(model, update).values.device
    left, right = update.left.to(device), update.right.to(device)
    normed = norms_mlp_output(model, update.layer)
    keys: list[Tensor] = []  # of the pass that is running

    def read(key: Float[Tensor, "batch pos d_mlp"], hook: object) -> None:
        keys[:] = [key]

    def add(output: Float[Tensor, "batch pos d_model"], hook: object) -> Float[Tensor, "batch pos d_model"]:
        key = keys.pop()
        change = (key.float() @ left) @ right
        if normed:
            change = contribution_change(model, update.layer, mlp_output(model, update.layer, key), change)
        return output + change.to(output.dtype)

    return [(key_name(update.layer), read), (state_name("mlp", update.layer), add)]
