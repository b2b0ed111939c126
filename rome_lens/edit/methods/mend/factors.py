"""The factors of a fine-tuning gradient: W_out's gradient is the sum of key x delta over tokens (paper section 3.1)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rome_lens.edit.artifact.hooks import output_hooks
from rome_lens.edit.methods.mend.network import EditorNetwork
from rome_lens.edit.search.gradients import inputs_and_gradients
from rome_lens.edit.search.teacher_forcing import ForcedBatch
from rome_lens.models import Hook, HookList, Model

Factors = tuple[Float[Tensor, "_ d_mlp"], Float[Tensor, "_ d_model"]]  # a row for each token


def gradient_factors(model: Model, asked: ForcedBatch, layers: Sequence[int]) -> dict[int, Factors]:
    """(keys, gradients of the loss by the MLP's outputs) of the tokens on which the loss depends, by layer, in float32.

    The loss is the mean over the rows of `asked` of the mean negative log-probability of a target's token. In the last
    block only the tokens that predict the target are left.
    """
    found = inputs_and_gradients(
        model, asked, [(layer, "out") for layer in layers], lambda final: asked.losses(model, final).mean()
    )
    pairs = {layer: (*found[layer, "out"], found[layer, "out"][1].any(-1)) for layer in layers}
    return {layer: (keys[depends], deltas[depends]) for layer, (keys, deltas, depends) in pairs.items()}


def edited_factors(network: EditorNetwork, factors: Sequence[Mapping[int, Factors]]) -> list[dict[int, Factors]]:
    """What the editor makes of each gradient, by layer: W_out += key.T @ delta. Differentiable."""
    edited: list[dict[int, Factors]] = [{} for _ in factors]
    for i, layer in enumerate(factors[0]):
        lengths = [len(each[layer][0]) for each in factors]
        sides = network(*(torch.cat([each[layer][side] for each in factors]) for side in (0, 1)), i)
        for each, key, delta in zip(edited, *(side.split(lengths) for side in sides), strict=True):
            each[layer] = key, delta
    return edited


def edits_in_place(model: Model, edited: Sequence[Mapping[int, Factors]], owners: Int[Tensor, " row"]) -> HookList:
    """Hooks for a batch whose every row meets an edit of its own: that one of `edited` which `owners` says.

    No weight is changed or copied: each row's update is applied to its keys by its factors. Differentiable.
    """
    hooks: list[tuple[str, Hook]] = []
    for layer in edited[0]:
        sides = zip(*(each[layer] for each in edited), strict=True)
        left, right = (pad_sequence(list(side), batch_first=True)[owners] for side in sides)

        def change(
            key: Float[Tensor, "row pos d_mlp"], left: Tensor = left, right: Tensor = right
        ) -> Float[Tensor, "row pos d_model"]:
            return (key.float() @ left.mT) @ right

        hooks += output_hooks(model, layer, change)
    return hooks
