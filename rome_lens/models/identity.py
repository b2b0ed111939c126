"""What identifies a model: its architecture, its weights, and a fingerprint, its keys for fixed tokens."""

import hashlib
import json
import re

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.parameters import check_layer, check_normal
from rome_lens.models.running.forward import mlp_keys

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as a signed number
_ENTRIES_AT_ONCE = 1 << 18  # fits in a core's cache
_LENGTH = 16  # tokens of a fingerprint


@torch.no_grad()
def fingerprint_keys(model: Model, layer: int) -> Float[Tensor, "token d_mlp"]:
    """The keys of a fixed row of tokens from all over the vocabulary, in float32, on the CPU."""
    check_layer(model, layer)
    length = min(_LENGTH, model.cfg.n_ctx)
    tokens = torch.linspace(0, model.cfg.d_vocab - 1, length + 2).long()[None, 1:-1]
    return mlp_keys(model, tokens, torch.ones_like(tokens), [layer])[layer][0].float().cpu()


def fingerprint_cosine(model: Model, layer: int, fingerprint: Float[Tensor, "token d_mlp"]) -> float:
    """The cosine between a model's fingerprint and a stored one: near 1 if it is the same model."""
    return torch.cosine_similarity(fingerprint_keys(model, layer).flatten(), fingerprint.flatten(), dim=0).item()


def model_family(model: Model) -> str:
    """The family by Hugging Face's name for its architecture: "GPT2", "Llama", "Qwen2"; "" if the model names none."""
    return re.sub("(For|LMHead).*", "", _architecture(model) or "")


def architecture_digest(model: Model) -> str:
    """SHA-256 of the model's sizes and family: the same for every fine-tuned, folded or half-precision copy."""
    cfg = model.cfg
    sizes = [cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_vocab]
    kinds = [_architecture(model), cfg.act_fn, cfg.gated_mlp, cfg.parallel_attn_mlp]
    return hashlib.sha256(json.dumps([sizes, kinds]).encode()).hexdigest()


def _architecture(model: Model) -> str | None:
    return model.cfg.architecture if is_bridge(model) else model.cfg.original_architecture


def model_identity(model: Model) -> dict[str, str]:
    """What identifies a model: its name, `architecture_digest`, and a digest of its weights as they are.

    The digest depends on every number, so an edit, fine-tuning, folding or another dtype changes it. The device and the
    memory order do not (0.5 s for 163 million weights on one core).
    """
    check_normal(model.parameters())
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

    A change of one entry always changes its row's sum; of several entries, all but one change in 2^32 do.
    Cryptographic hashes are slower, and need the entries in one memory order.
    """
    rows = weight if weight.ndim > 1 else weight.reshape(1, -1)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    dtype = torch.int64 if bits == torch.int64 else torch.int32
    mixed = torch.arange(1, rows.shape[-1] + 1, device=rows.device) * _GOLDEN
    factors = (((mixed ^ (mixed >> 29)) * _GOLDEN >> 17) | 1).to(dtype)
    at_once = max(1, _ENTRIES_AT_ONCE // max(1, rows[:1].numel()))
    sums = [(part.view(bits).to(dtype) * factors).sum(-1, dtype=dtype).flatten() for part in rows.split(at_once)]
    return torch.cat(sums)
