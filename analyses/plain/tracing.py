"""Causal tracing the plain way: one whole hooked forward pass for every cell, as the paper's code does it.

The tests compare the library's grid with it, and the benchmark its speed.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.models import Model, state_name


@torch.no_grad()
def plain_grid(
    model: Model,
    tokens: Tensor,
    answer: Tensor,
    subject: range,
    embedded: Tensor,
    kind: str,
    half_window: int,
    positions: int,
    progress: bool = False,
) -> Tensor:
    """The grid [position, layer] of the answer's probability: row 0 is clean, the others corrupted; each cell's states
    are restored from row 0, for "mlp" and "attn" in the layers [l - half_window, l + half_window).
    """
    n_layers, samples = model.cfg.n_layers, len(embedded)
    batch = tokens.expand(samples + 1, -1)

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[1:, subject.start : subject.stop] = embedded
        return value

    def restore(position: int) -> Callable[..., Tensor]:
        def put(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            value[1:, position] = value[0, position]
            return value

        return put

    grid = torch.zeros(positions, n_layers)
    for position in tqdm(range(positions), desc=f"plain loop, {kind}", unit="position", disable=not progress):
        for layer in range(n_layers):
            window = range(max(0, layer - half_window), min(n_layers, layer + half_window))
            layers = [layer] if kind == "resid" else window
            names = [state_name(kind, i) for i in layers]  # type: ignore[arg-type]
            hooks = [("hook_embed", corrupt), *((name, restore(position)) for name in names)]
            logits = model.run_with_hooks(batch, fwd_hooks=hooks)[1:, -len(answer) :]
            chosen = logits.log_softmax(-1).gather(-1, answer.expand(samples, -1)[..., None])
            grid[position, layer] = chosen[..., 0].sum(-1).exp().mean()
    return grid
