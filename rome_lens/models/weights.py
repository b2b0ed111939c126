"""A model's matrices: where they are, what they answer, and in which memory order they are kept."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.components.mlps.gated_mlp import GatedMLP

from rome_lens.models.kinds import Model


def check_layer(model: Model, layer: int) -> None:
    """Raises ValueError unless `layer` is the number of one of the model's blocks."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer is {layer!r}, expected an int from 0 to {model.cfg.n_layers - 1}.")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer is {layer}, but {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}.")


def architecture_digest(model: Model) -> str:
    """SHA-256 of the model's sizes and kind: the same for every fine-tuned, folded or half-precision copy."""
    cfg = model.cfg
    sizes = [cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_vocab]
    kinds = [cfg.original_architecture, cfg.act_fn, cfg.gated_mlp, cfg.parallel_attn_mlp]
    return hashlib.sha256(json.dumps([sizes, kinds]).encode()).hexdigest()


def model_identity(model: Model) -> dict[str, str]:
    """What tells a model from others: its name, `architecture_digest`, and a digest of its weights as they are.

    The weights' is the SHA-256 of one row of each parameter: quick on any model, the same on every device, and another
    after an edit, fine-tuning, folding or in another dtype.
    """
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        row = parameter.detach()
        while row.ndim > 1:
            row = row[0]
        weights.update(name.encode() + row.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "model": str(model.cfg.model_name),
        "architecture": architecture_digest(model),
        "weights": weights.hexdigest(),
    }


def output_matrix(model: Model, layer: int) -> nn.Parameter:
    """The MLP output matrix that ROME rewrites, [d_mlp, d_model]: the parameter itself, not a stacked copy.

    Raises:
        ValueError: no such layer, or the block has no single MLP output matrix (mixture of experts, attention only).
    """
    check_layer(model, layer)
    weight = getattr(getattr(model.blocks[layer], "mlp", None), "W_out", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != (model.cfg.d_mlp, model.cfg.d_model):
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single MLP output matrix [d_mlp, d_model] to edit "
            "(a mixture of experts, an attention-only or a quantized model). Use a dense, unquantized model."
        )
    return weight


@contextmanager
def kept_output_matrix(model: Model, layer: int) -> Iterator[Float[Tensor, "d_mlp d_model"]]:
    """Gives a copy of the MLP output matrix, which is written back at the end, whatever the body did or raised."""
    weight = output_matrix(model, layer)
    original = weight.detach().clone()
    try:
        yield original
    finally:
        with torch.no_grad():
            weight.copy_(original)


def mlp_output(model: Model, layer: int, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_model"]:
    """What the MLP of `layer` answers to a key, in float32: key @ W_out + b_out."""
    bias = model.blocks[layer].mlp.b_out.detach().float()
    return key.float() @ output_matrix(model, layer).detach().float() + bias


def mlp_contribution(model: Model, layer: int, output: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """What the block adds to the residual stream for an MLP output: the output itself, or normed (Gemma 2, OLMo 2)."""
    states = output[(None,) * max(0, 3 - output.ndim)]  # norms take [batch, pos, d_model]
    for post_norm in norms_after_mlp(model.blocks[layer]):
        states = post_norm(states)
    return states.reshape(output.shape)


def contribution_change(
    model: Model,
    layer: int,
    output: Float[Tensor, "*n d_model"],
    change: Float[Tensor, "*n d_model"],
) -> Float[Tensor, "*n d_model"]:
    """How much more the block adds to the residual stream if its MLP puts out `output + change`, not `output`."""
    before = mlp_contribution(model, layer, output)
    return mlp_contribution(model, layer, output + change) - before


def norms_mlp_output(model: Model, layer: int) -> bool:
    """Whether the block norms what its MLP puts out, so that a change of it is not simply added."""
    return bool(norms_after_mlp(model.blocks[layer]))


def norms_after_mlp(block: Any) -> list[nn.Module]:
    """The norms that a block puts its MLP's output through, in order (Gemma 2, OLMo 2)."""
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    norms = [block.ln2_post] if block.cfg.use_normalization_before_and_after else []
    return norms + ([block.ln2] if block.cfg.original_architecture in POST_NORM_ARCHITECTURES else [])


def embeddings(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """The token embedding matrix."""
    return model.embed.W_E.detach()


def embed(model: Model, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """What the embedding layer makes of tokens, before any positional embedding is added."""
    return model.embed(tokens[None])[0]


def bos_token(model: Model) -> list[int]:
    """The ids that the model's own tokenisation puts before a text: one BOS id, or none (`cfg.default_prepend_bos`)."""
    return [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """No parameter asks for a gradient inside; afterwards each asks as it did before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def optimize_layout(model: Model) -> Model:
    """Stores the weights in the order in which HookedTransformer reads them, and gives the same model back.

    HookedTransformer copies W_in, W_gate, W_out (gated MLPs), W_U and the attention matrices into another memory order
    at every call; stored in that order to begin with, the copies become views. Values, shapes, parameters and
    `state_dict` stay as they are; only strides change. A model that does not copy (TransformerBridge) is left alone.
    """
    if not isinstance(model, Model):
        return model
    _store(model.unembed.W_U, (1, 0))
    for block in model.blocks:
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            _store(dict(block.attn.named_parameters(recurse=False)).get(name), (0, 2, 1))
        _store(block.attn.W_O, (2, 0, 1))
        if isinstance(getattr(block, "mlp", None), GatedMLP):
            for weight in (block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out):
                _store(weight, (1, 0))
    return model


def _store(weight: Tensor | None, order: tuple[int, ...]) -> None:
    """Makes `weight.permute(order)` contiguous. A quantized weight has another number of axes and is left alone."""
    if weight is not None and weight.ndim == len(order) and weight.is_floating_point():
        back = tuple(order.index(axis) for axis in range(len(order)))
        weight.data = weight.data.permute(order).contiguous().permute(back)
