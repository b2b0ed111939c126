"""What a model is recognised by: its keys for a fixed row of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.key import mlp_keys
from rome_lens.models import Model, check_layer

_LENGTH = 16


def probe_keys(model: Model, layer: int) -> Float[Tensor, "probe d_mlp"]:
    """The keys of a row of tokens spread over the vocabulary, in float32, on the CPU."""
    check_layer(model, layer)
    length = min(_LENGTH, model.cfg.n_ctx)
    tokens = torch.linspace(0, model.cfg.d_vocab - 1, length + 2).long()[None, 1:-1]
    return mlp_keys(model, tokens, torch.ones_like(tokens), [layer])[layer][0].float().cpu()


def probe_cosine(model: Model, layer: int, probe: Float[Tensor, "probe d_mlp"]) -> float:
    """The cosine between a model's probe keys and those that were kept: near 1 if it is the same model."""
    return torch.cosine_similarity(probe_keys(model, layer).flatten(), probe.flatten(), dim=0).item()
