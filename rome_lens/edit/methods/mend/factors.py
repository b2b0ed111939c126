"""Factors of the fine-tuning gradient: W_out's gradient is the sum of key delta^T over tokens (paper section 3.1)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rome_lens.edit.artifact.hooks import output_hooks
from rome_lens.edit.methods.mend.network import EditorNetwork
from rome_lens.edit.search.gradients import inputs_and_gradients
from rome_lens.models import Hook, HookList, Model
from rome_lens.models.teacher_forcing import ForcedBatch

Factors = tuple[Float[Tensor, "_ d_mlp"], Float[Tensor, "_ d_model"]]  # a row for each token


def gradient_factors(model: Model, batch: ForcedBatch, layers: Sequence[int]) -> dict[int, Factors]:
    """(key, delta) of each token on which the loss depends, by layer, in float32; delta is the gradient of the loss
    with respect to the MLP's output.

    The loss is the mean over rows of the mean negative log-probability of a target token. In the last block it depends
    only on the tokens that predict the target.
    """
    found = inputs_and_gradients(
        model, batch, [(layer, "out") for layer in layers], lambda final: batch.losses(model, final).mean()
    )
    pairs = {layer: (*found[layer, "out"], found[layer, "out"][1].any(-1)) for layer in layers}
    return {layer: (keys[depends], deltas[depends]) for layer, (keys, deltas, depends) in pairs.items()}


def edited_factors(network: EditorNetwork, factors: Sequence[Mapping[int, Factors]]) -> list[dict[int, Factors]]:
    """The editor's transform of each gradient, by layer: W_out += key.T @ delta. Differentiable."""
    edited: list[dict[int, Factors]] = [{} for _ in factors]
    for i, layer in enumerate(factors[0]):
        lengths = [len(each[layer][0]) for each in factors]
        sides = network(*(torch.cat([each[layer][side] for each in factors]) for side in (0, 1)), i)
        for each, key, delta in zip(edited, *(side.split(lengths) for side in sides), strict=True):
            each[layer] = key, delta
    return edited


def edits_in_place(model: Model, edited: Sequence[Mapping[int, Factors]], owners: Int[Tensor, " row"]) -> HookList:
    """Hooks under which each row of a batch is run with its own edit: row i with `edited[owners[i]]`.

    No weight is changed or copied: each row's keys are multiplied with the factors of its edit. Differentiable.
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
