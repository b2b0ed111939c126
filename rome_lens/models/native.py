"""Attention of a TransformerBridge by Hugging Face's own code.

TransformerBridge computes attention by itself in most families, so that scores and patterns can be hooked, and leaves
out what some configurations ask for (Cohere's interleaved rotations, Falcon's scaling with ALiBi), or keeps no keys and
values (MPT).
"""

from types import MethodType

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import AttentionBridge

from rome_lens.models.bridge import reader, run_tokens
from rome_lens.models.kinds import Model

_APART = 0.05


def use_native_attention(model: Model) -> None:
    """Lets the Bridge's attention be Hugging Face's module, with hooks on what goes in and comes out of it alone."""
    for block in model.blocks:
        if isinstance(attention := getattr(block, "attn", None), AttentionBridge):
            attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)


@torch.no_grad()
def keeps_past(model: Model, row: Int[Tensor, "1 pos"]) -> bool:
    """Whether a row that is read in two pieces, with keys and values kept, gives the states of the row read whole."""
    half = row.shape[1] // 2
    read = reader(model)
    try:
        pieces = torch.cat([read(row[:, :half]), read(row[:, half:])], dim=1)
    except (RuntimeError, ValueError):  # masks and positions of another length than the keys that were not kept
        return False
    whole = run_tokens(model, row, model.cfg.n_layers, mask=torch.ones_like(row))
    return bool((pieces - whole).float().norm() <= _APART * whole.float().norm())
