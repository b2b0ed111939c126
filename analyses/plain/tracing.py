"""Causal tracing the plain way: one whole hooked forward pass for every cell, as the paper's code does it.

The tests compare the library's grid with it, and the benchmark its speed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens import Fact, GaussianNoise
from rome_lens.locate.prompt import prepare_prompt
from rome_lens.models import Kind, Model, embed, state_name


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
    cells: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """The grid [position, layer] of the answer's probability: row 0 is clean, the others corrupted; each cell's states
    are restored from row 0, for "mlp" and "attn" in the layers [l - half_window, l + half_window).

    With `cells`, pairs of a position and a layer, only these are computed; the others are NaN.
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

    grid = torch.full((positions, n_layers), torch.nan)
    cells = (
        [(position, layer) for position in range(positions) for layer in range(n_layers)] if cells is None else cells
    )
    for position, layer in tqdm(cells, desc=f"plain loop, {kind}", unit="cell", disable=not progress):
        window = range(max(0, layer - half_window), min(n_layers, layer + half_window))
        layers = [layer] if kind == "resid" else window
        names = [state_name(kind, i) for i in layers]  # type: ignore[arg-type]
        hooks = [("hook_embed", corrupt), *((name, restore(position)) for name in names)]
        logits = model.run_with_hooks(batch, fwd_hooks=hooks)[1:, -len(answer) :]
        chosen = logits.log_softmax(-1).gather(-1, answer.expand(samples, -1)[..., None])
        grid[position, layer] = chosen[..., 0].sum(-1).exp().mean()
    return grid


def plain_trace(
    model: Model,
    fact: Fact,
    noise: GaussianNoise,
    *,
    kind: Kind,
    window: int,
    samples: int,
    cells: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """`plain_grid` for a fact, with the noise that `causal_trace` draws."""
    prompt = prepare_prompt(model, fact)
    subject = prompt.subject
    clean = embed(model, prompt.tokens).detach()[subject.start : subject.stop]
    embedded = noise.corrupted(model, fact, clean, samples)
    given = (prompt.tokens, prompt.answer, subject, embedded, kind, window // 2, prompt.length)
    return plain_grid(model, *given, progress=True, cells=cells)
