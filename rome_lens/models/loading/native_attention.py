"""Attention of a TransformerBridge by Hugging Face's own code.

In most families TransformerBridge computes attention itself, so that scores and patterns can be hooked. It then leaves
out what some configurations need (Cohere's interleaved rotations, Falcon's scaling with ALiBi), or stores no keys and
values (MPT).
"""

from types import MethodType

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import AttentionBridge

from rome_lens.models.kinds import Model
from rome_lens.models.running.bridge import reader, run_tokens

_APART = 0.05


def use_native_attention(model: Model) -> None:
    """Makes the Bridge run Hugging Face's attention modules, with hooks only on their inputs and outputs."""
    for block in model.blocks:
        if isinstance(attention := getattr(block, "attn", None), AttentionBridge):
            attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)


@torch.no_grad()
def keeps_past(model: Model, row: Int[Tensor, "1 pos"]) -> bool:
    """Whether a row read in two pieces, with keys and values kept between them, has the states of a row read whole."""
    half = row.shape[1] // 2
    read = reader(model)
    try:
        pieces = torch.cat([read(row[:, :half]), read(row[:, half:])], dim=1)
    except (RuntimeError, ValueError):  # the mask is longer than the keys, because earlier ones were not kept
        return False
    whole = run_tokens(model, row, model.cfg.n_layers, mask=torch.ones_like(row))
    return bool((pieces - whole).float().norm() <= _APART * whole.float().norm())
