"""A model's sizes, embeddings and gradients, and the memory order that its matrices are kept in."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.models.kinds import Model, is_bridge

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as a signed number
_ENTRIES_AT_ONCE = 1 << 18  # what a core's cache holds


def check_model(model: Model) -> None:
    """Raises TypeError or ValueError unless the model is a decoder in one of TransformerLens' classes."""
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
    """Raises ValueError unless `layer` is the number of one of the model's blocks; and as `check_model`."""
    check_model(model)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer is {layer!r}, expected an int from 0 to {model.cfg.n_layers - 1}.")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer is {layer}, but {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}.")


def check_top_k(model: Model, top_k: int) -> None:
    """Raises ValueError unless so many tokens can be drawn from."""
    if isinstance(top_k, bool) or not 1 <= top_k <= model.cfg.d_vocab:
        raise ValueError(f"top_k is {top_k}, expected a whole number from 1 to {model.cfg.d_vocab}.")


def architecture_digest(model: Model) -> str:
    """SHA-256 of the model's sizes and kind: the same for every fine-tuned, folded or half-precision copy."""
    cfg = model.cfg
    sizes = [cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_vocab]
    architecture = cfg.architecture if is_bridge(model) else cfg.original_architecture
    kinds = [architecture, cfg.act_fn, cfg.gated_mlp, cfg.parallel_attn_mlp]
    return hashlib.sha256(json.dumps([sizes, kinds]).encode()).hexdigest()


def model_identity(model: Model) -> dict[str, str]:
    """What tells a model from others: its name, `architecture_digest`, and a digest of its weights as they are.

    The digest sees every number, so that it is another after an edit, fine-tuning, folding or in another dtype. It does
    not depend on the device or the memory order (0.5 s for 163 million weights on one core).
    """
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        weights.update(_row_sums(parameter.detach()).cpu().numpy().tobytes())
    return {
        "model": str(model.cfg.model_name),
        "architecture": architecture_digest(model),
        "weights": weights.hexdigest(),
    }


def _row_sums(weight: Tensor) -> Int[Tensor, " row"]:
    """For each row, the sum of its entries' bits times odd factors, modulo 2^32 (of 64-bit entries, 2^64).

    One changed entry always changes its row's sum, and any other change but for one in 2^32. Cryptographic hashes are
    slower, and would want the entries in one memory order.
    """
    rows = weight if weight.ndim > 1 else weight.reshape(1, -1)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    dtype = torch.int64 if bits == torch.int64 else torch.int32
    mixed = torch.arange(1, rows.shape[-1] + 1, device=rows.device) * _GOLDEN
    factors = (((mixed ^ (mixed >> 29)) * _GOLDEN >> 17) | 1).to(dtype)
    at_once = max(1, _ENTRIES_AT_ONCE // max(1, rows[:1].numel()))
    sums = [(part.view(bits).to(dtype) * factors).sum(-1, dtype=dtype).flatten() for part in rows.split(at_once)]
    return torch.cat(sums)


def embeddings(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """The token embedding matrix."""
    return model.embed.W_E.detach()


def embed(model: Model, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """What the embedding layer makes of tokens (BLOOM norms it), before any positional embedding is added."""
    states = model.embed(tokens[None])
    return (model.embed_ln(states) if is_bridge(model) and hasattr(model, "embed_ln") else states)[0]


def bos_token(model: Model) -> list[int]:
    """The ids that the model's own tokenisation puts before a text: one BOS id, or none (`cfg.default_prepend_bos`)."""
    return [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []


@contextmanager
def asking(tensors: Iterable[Tensor], *, gradients: bool) -> Iterator[None]:
    """The tensors ask for gradients inside, or do not; afterwards each asks as it did before."""
    before = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in before:
            tensor.requires_grad_(gradients)
        yield
    finally:
        for tensor, required in before:
            tensor.requires_grad_(required)


def frozen(model: Model) -> AbstractContextManager[None]:
    """No parameter asks for a gradient inside; afterwards each asks as it did before."""
    return asking(model.parameters(), gradients=False)


@checked
def optimize_layout(model: Model) -> Model:
    """Stores the weights in the order in which HookedTransformer reads them, and gives the same model back.

    HookedTransformer copies W_in, W_gate, W_out (gated MLPs), W_U and the attention matrices into another memory order
    at every call; stored in that order to begin with, the copies become views. Values, shapes, parameters and
    `state_dict` stay as they are; only strides change. A model that does not copy (TransformerBridge) is left alone.
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
    """Makes `weight.permute(order)` contiguous. A quantized weight has another number of axes and is left alone."""
    if weight is not None and weight.ndim == len(order) and weight.is_floating_point():
        back = tuple(order.index(axis) for axis in range(len(order)))
        weight.data = weight.data.permute(order).contiguous().permute(back)
