"""Attribution patching: the restoration grid to first order, from one gradient (Nanda 2023; Syed et al. 2023).

Restoring a state changes the metric by about gradient . (clean state - corrupted state), with the gradient taken in the
corrupted run. So one clean pass, one corrupted pass and its backward pass give every cell.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.locate.grid import restored_layers
from rome_lens.locate.metrics import Measure
from rome_lens.locate.own import name_of
from rome_lens.locate.prompt import TracedPrompt
from rome_lens.locate.runs import answer_logits, put_in_place
from rome_lens.models import EMBEDDING, HookList, Kind, Model, frozen, run, state_name


def attributed_values(
    model: Model,
    prompt: TracedPrompt,
    embedded: Float[Tensor, "sample token d_model"],
    measure: Measure,
    *,
    kind: Kind,
    window: int,
    head: int | None = None,
) -> tuple[float, Float[Tensor, "pos layer"]]:
    """The corrupted run's metric, and a first-order estimate of the metric with each cell restored.

    The layers of a window are summed, which counts twice the effect of one layer through another in the window. No
    parameter of the model gets a gradient.
    """
    n_layers = model.cfg.n_layers
    clean = prompt.clean.states[kind]
    states: list[Tensor] = []

    def watch(value: Tensor, hook: object) -> Tensor:
        states.append(value)
        return value  # a Bridge shows heads as a view: what is returned is what goes on, and gets a gradient

    with torch.enable_grad(), frozen(model):
        leaf = embedded.detach().requires_grad_()
        corrupt: Callable[..., Tensor] = put_in_place(prompt.subject, leaf)
        hooks: HookList = [(EMBEDDING, corrupt), *((state_name(kind, i), watch) for i in range(n_layers))]
        residual = run(model, prompt.tokens.expand(len(embedded), -1), hooks=hooks)
        values = measure(answer_logits(model, residual, len(prompt.answer)))
        if not values.requires_grad:
            raise ValueError(
                f"The metric {name_of(measure.metric)} has no gradient, which attribution needs. Compute it from the "
                "logits with torch's differentiable operations, or use method='exact'."
            )
        gradients = torch.autograd.grad(values.sum(), states)
    effects = torch.stack(
        [
            ((clean[layer] - state.to(clean.device)) * gradient.to(clean.device)).float().sum(-1).mean(0)
            for layer, (state, gradient) in enumerate(zip(states, gradients, strict=True))
        ],
        dim=1,
    ).detach()  # [pos, layer], or [pos, layer, head]
    effects = effects if head is None else effects[..., head]
    corrupted = values.mean().item()
    windows = [restored_layers(kind, layer, window, n_layers) for layer in range(n_layers)]
    return corrupted, corrupted + torch.stack([effects[:, w.start : w.stop].sum(1) for w in windows], dim=1)
