"""Checks against a model's sizes; its embeddings; gradients on and off; and the memory order of its matrices."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.models.kinds import Model, is_bridge


def check_model(model: Model) -> None:
    """Raises TypeError or ValueError unless the model is a decoder of one of TransformerLens' classes."""
    if not isinstance(model, Model):
        raise TypeError(
            f"The model is a {type(model).__name__}, expected a HookedTransformer or a TransformerBridge, such as "
            "load_model gives."
        )
    if is_bridge(model) and model.original_model.config.is_encoder_decoder:
        raise ValueError(
            f"{model.cfg.model_name} has an encoder and a decoder, where facts are not recalled at a subject's last "
            "token before the answer. Use a decoder."
        )


def check_layer(model: Model, layer: int) -> None:
    """Raises TypeError or ValueError unless the model has a block of this number; and as `check_model`."""
    check_model(model)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer is {layer!r}, expected an int from 0 to {model.cfg.n_layers - 1}.")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer is {layer}, but {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}.")


def check_top_k(model: Model, top_k: int) -> None:
    """Raises ValueError unless `top_k` is between 1 and the size of the vocabulary."""
    if isinstance(top_k, bool) or not 1 <= top_k <= model.cfg.d_vocab:
        raise ValueError(f"top_k is {top_k}, expected a whole number from 1 to {model.cfg.d_vocab}.")


def embeddings(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """The token embedding matrix."""
    return model.embed.W_E.detach()


def embed(model: Model, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """The embeddings of tokens (BLOOM norms them), before any positional embedding is added."""
    states = model.embed(tokens[None])
    return (model.embed_ln(states) if is_bridge(model) and hasattr(model, "embed_ln") else states)[0]


def bos_token(model: Model) -> list[int]:
    """The ids that the model's own tokenisation puts before a text: one BOS id, or none (`cfg.default_prepend_bos`)."""
    return [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []


@contextmanager
def requiring_grad(tensors: Iterable[Tensor], required: bool) -> Iterator[None]:
    """Inside, all tensors have this `requires_grad`; afterwards each has its own again."""
    before = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in before:
            tensor.requires_grad_(required)
        yield
    finally:
        for tensor, own in before:
            tensor.requires_grad_(own)


def frozen(model: Model) -> AbstractContextManager[None]:
    """Inside, no parameter requires a gradient; afterwards each has its own `requires_grad` again."""
    return requiring_grad(model.parameters(), False)


@checked
def optimize_layout(model: Model) -> Model:
    """Stores the weights in the memory order in which HookedTransformer reads them, and returns the same model.

    HookedTransformer copies W_in, W_gate, W_out (gated MLPs), W_U and the attention matrices into another memory order
    at every call. If they are stored in that order, the copies become views. Values, shapes, parameters and
    `state_dict` do not change, only strides. A TransformerBridge does not copy, and is left alone.
    """
    if is_bridge(model):
        return model
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

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
    """Makes `weight.permute(order)` contiguous. A quantized weight, which has another number of axes, is left alone."""
    if weight is not None and weight.ndim == len(order) and weight.is_floating_point():
        back = tuple(order.index(axis) for axis in range(len(order)))
        weight.data = weight.data.permute(order).contiguous().permute(back)
