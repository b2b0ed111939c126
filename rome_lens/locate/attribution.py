"""Attribution patching: the restoration grid to first order, from one gradient (Nanda 2023; Syed et al. 2023).

Restoring a state changes the metric by about gradient . (clean state - corrupted state), the gradient taken in the
corrupted run. That gives every cell from one clean pass and one corrupted pass with its gradient.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.locate.grid import CleanRun, answer_logits, put_in_place, restored_layers
from rome_lens.locate.metrics import Metric
from rome_lens.models import EMBEDDING, HookList, Kind, frozen, run, state_name


def attributed_values(
    model: HookedTransformer,
    tokens: Int[Tensor, " pos"],
    subject: range,
    clean: CleanRun,
    embedded: Float[Tensor, "sample token d_model"],
    metric: Metric,
    kind: Kind,
    window: int,
    head: int | None,
) -> tuple[float, Float[Tensor, "pos layer"]]:
    """The corrupted run's metric, and what restoring each cell would make of it to first order.

    A window's layers are summed, which counts twice what one of them does by way of another in the window. No parameter
    of the model gets a gradient.
    """
    n_layers = model.cfg.n_layers
    states: list[Tensor] = []

    def keep(value: Tensor, hook: object) -> None:
        states.append(value)

    with torch.enable_grad(), frozen(model):
        leaf = embedded.detach().requires_grad_()
        corrupt: Callable[..., Tensor] = put_in_place(subject, leaf)
        hooks: HookList = [(EMBEDDING, corrupt), *((state_name(kind, i), keep) for i in range(n_layers))]
        residual = run(model, tokens.expand(len(embedded), -1), hooks=hooks)
        values = metric(answer_logits(model, residual, len(metric.answer)))
        gradients = torch.autograd.grad(values.sum(), states)
    effects = torch.stack(
        [
            ((clean.states[layer] - state) * gradient).float().sum(-1).mean(0)
            for layer, (state, gradient) in enumerate(zip(states, gradients, strict=True))
        ],
        dim=1,
    ).detach()  # [pos, layer], or [pos, layer, head]
    effects = effects if head is None else effects[..., head]
    corrupted = values.mean().item()
    windows = [restored_layers(kind, layer, window, n_layers) for layer in range(n_layers)]
    return corrupted, corrupted + torch.stack([effects[:, w.start : w.stop].sum(1) for w in windows], dim=1)
