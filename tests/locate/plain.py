"""Causal tracing the plain way: one whole hooked forward pass for every cell, as the paper's code does it."""

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.models import state_name


def plain_grid(
    model: HookedTransformer,
    tokens: Tensor,
    answer: Tensor,
    subject: range,
    noise: Tensor,
    kind: str,
    half_window: int,
    positions: int,
) -> Tensor:
    """The grid [position, layer]: rows 0 clean, others corrupted; each cell restores from row 0."""
    n_layers, samples = model.cfg.n_layers, len(noise)
    batch = tokens.expand(samples + 1, -1)

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[1:, subject.start : subject.stop] += noise
        return value

    grid = torch.zeros(positions, n_layers)
    for position in range(positions):
        for layer in range(n_layers):
            window = range(max(0, layer - half_window), min(n_layers, layer + half_window))
            layers = [layer] if kind == "resid" else window

            def restore(value: Tensor, hook: object, position: int = position) -> Tensor:
                value = value.clone()
                value[1:, position] = value[0, position]
                return value

            hooks = [("hook_embed", corrupt)] + [(state_name(kind, i), restore) for i in layers]
            logits = model.run_with_hooks(batch, fwd_hooks=hooks)[1:, -len(answer) :]
            chosen = logits.log_softmax(-1).gather(-1, answer.expand(samples, -1)[..., None])
            grid[position, layer] = chosen[..., 0].sum(-1).exp().mean()
    return grid
