"""v*: the MLP output for k* with which the model predicts the target (paper section 3.1, step 2, Eq. 4).

Several requests are optimised at once, each with its own vector, bound and stopping step, so that each gets the same
result as alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest
from rome_lens.edit.search.settings import SearchConfig, check_least
from rome_lens.edit.search.suffix import Place, Prompts, Suffixes, prepare_suffixes, run_suffixes, tokenize_prompts
from rome_lens.errors import EditError
from rome_lens.models import Model, check_layer, frozen, tokens_that_fit


@checked
@dataclass(frozen=True)
class Value:
    """v* and the diagnostics of its search.

    Attributes:
        vector: [d_model], float32: v*, or MEMIT's z if the residual stream was searched.
        initial: [d_model], float32: the same activation in the unedited model, for the bare prompt.
        steps: number of gradient steps.
        nll: mean negative log-probability of a target token over contexts (first term of Eq. 4).
        kl: KL divergence of the next token after the essence prompt from the unedited model's (second term), without
            its factor.
        weight_decay: norm penalty, with its factor.
        clamped: whether the norm bound was reached.
    """

    vector: Float[Tensor, " d_model"]
    initial: Float[Tensor, " d_model"]
    steps: int
    nll: float
    kl: float
    weight_decay: float
    clamped: bool

    def __post_init__(self) -> None:
        check_least(self, steps=0)
        if self.vector.shape != self.initial.shape or self.nll < 0 or self.weight_decay < 0:
            raise ValueError(
                f"A value {list(self.vector.shape)} found from {list(self.initial.shape)} with nll {self.nll} and "
                f"weight_decay {self.weight_decay}: expected equal shapes and no number below 0."
            )


def optimise_value(
    model: Model,
    layer: int,
    request: EditRequest,
    contexts: Sequence[str],
    config: SearchConfig,
    *,
    at: Place = "mlp",
    progress: bool = True,
) -> Value:
    """`optimise_values` for one request."""
    return optimise_values(model, layer, [request], contexts, config, at=at, progress=progress)[0]


def optimise_values(
    model: Model,
    layer: int,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    config: SearchConfig,
    *,
    at: Place = "mlp",
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> list[Value]:
    """Finds each request's v* by Adam on a vector delta that is added at the edited token (`config.token`).

    Args:
        model: Model to run; its weights and `requires_grad` flags are left unchanged.
        layer: Number of the block.
        requests: What to write; each is optimised independently of the others.
        contexts: Context templates, the bare "{}" first.
        config: Hyper-parameters.
        at: "mlp" adds delta to the MLP's output (ROME, Eq. 4); "resid" to the residual stream after the block, with
            norms relative to that state (MEMIT, Meng et al. 2023, arXiv 2210.07229, Eq. 16).
        tokens_per_batch: Bounds how many tokens, padding included, are run at once; the rows of one request are never
            split. None: as many as fit into a quarter of the free memory, but on a CPU one request, since padding costs
            more there than batching saves.

    Returns:
        A Value for each request, in their order.
    """
    check_layer(model, layer)
    prompts = [tokenize_prompts(model, request, contexts, token=config.token) for request in requests]
    if tokens_per_batch is None:
        on_cpu = torch.device(model.cfg.device).type == "cpu"
        tokens_per_batch = 1 if on_cpu else tokens_that_fit(model, blocks_kept=model.cfg.n_layers)
    what = repr(requests[0].target) if len(requests) == 1 else f"{len(requests)} requests"
    values: list[Value] = []
    with tqdm(total=len(requests) * config.steps, desc=f"v* for {what}", unit="step", disable=not progress) as bar:
        for batch in batched(prompts, tokens_per_batch):
            suffixes = prepare_suffixes(model, layer, batch, at)
            values += search_values(model, layer, requests[len(values) :], suffixes, config, at, bar)
    return values


def batched(prompts: Sequence[Prompts], budget: int) -> Iterator[list[Prompts]]:
    """Consecutive requests whose rows have at most so many tokens, padding included; one request is never split."""
    batch: list[Prompts] = []
    for prompt in prompts:
        longest = max(len(row) for each in (*batch, prompt) for row in each.rows)
        if batch and longest * sum(len(each.rows) for each in (*batch, prompt)) > budget:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def search_values(
    model: Model,
    layer: int,
    requests: Sequence[EditRequest],
    suffixes: Suffixes,
    config: SearchConfig,
    at: Place,
    bar: tqdm,
) -> list[Value]:
    """The search for one batch of requests; those that have stopped leave the batch."""
    count = len(suffixes.predictions)
    initial = suffixes.original[suffixes.bare]
    delta = torch.zeros_like(initial, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=config.learning_rate)
    norms = suffixes.original.norm(dim=-1)
    scale = norms[suffixes.bare]
    if config.norm_over_contexts:
        scale = torch.stack([part.mean() for part in norms[suffixes.row].split(suffixes.predictions)])
    bound = config.clamp_norm_factor * scale
    clamped = torch.zeros_like(bound, dtype=torch.bool)
    searched = list(range(count))
    rows = torch.tensor(searched, device=delta.device)
    steps_on_top = [0] * count
    ends: dict[int, Value] = {}
    essence: Tensor | None = None
    with frozen(model), torch.enable_grad():
        for step in range(config.steps):
            nll, essence_log_probs, on_top = run_suffixes(model, layer, suffixes, delta[rows], at)
            essence = essence_log_probs.detach() if essence is None else essence
            kl = nn.functional.kl_div(essence, essence_log_probs, log_target=True, reduction="none").sum(-1)
            decay = config.weight_decay * delta[rows].norm(dim=-1) / scale[rows] ** 2
            loss = nll + config.kl_factor * kl + decay  # Eq. 4, with the authors' weight decay
            figures = torch.stack([loss, nll, kl, decay, on_top.to(loss), clamped[rows].to(loss)])
            read = figures.detach().T.tolist()  # all that is read in a step, at once: a GPU is waited for
            _check([each[0] for each in read], [requests[n] for n in searched], step)
            goes_on = []
            for n, (total, nll_now, kl_now, decay_now, on_top_now, clamped_now) in zip(searched, read, strict=True):
                steps_on_top[n] = steps_on_top[n] + 1 if on_top_now else 0
                enough = config.steps_on_top is not None and steps_on_top[n] >= config.steps_on_top
                stops = step == config.steps - 1 or total < config.early_stop_loss or enough
                goes_on.append(not stops)
                if stops:
                    found = anchored((initial[n] + delta[n]).detach(), initial[n], config.anchor_norm)
                    ends[n] = Value(found, initial[n], step, nll_now, kl_now, decay_now, bool(clamped_now))
            _show(bar, read, len(searched) + goes_on.count(False) * (config.steps - 1 - step))
            if not any(goes_on):
                break
            if not all(goes_on):
                left = torch.tensor([i for i, going in enumerate(goes_on) if going], device=delta.device)
                suffixes, essence, loss, rows = suffixes.only(goes_on), essence[left], loss[left], rows[left]
                searched = list(compress(searched, goes_on))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()  # also moves vectors of requests that have stopped, which are not read again
            with torch.no_grad():
                norm = delta.norm(dim=-1)
                clamped = norm > bound
                delta *= torch.where(clamped, bound / norm, 1.0)[:, None]
    return [ends[n] for n in range(count)]


def anchored(
    vector: Float[Tensor, " d_model"], initial: Float[Tensor, " d_model"], norm: float | None
) -> Float[Tensor, " d_model"]:
    """v* brought to a norm; v0 where it has more than twice that (NAS, arXiv 2602.02543)."""
    if norm is None:
        return vector
    found = vector.norm()
    return initial if found > 2 * norm else vector * (norm / found)


def search_figures(values: Sequence[Value]) -> dict[str, Any]:
    """The figures of EditHealth that come from the search; with several requests, the worst of each."""
    nll = max(value.nll for value in values)
    return {
        "nll": nll,
        "kl": max(value.kl for value in values),
        "weight_decay": max(value.weight_decay for value in values),
        "steps": max(value.steps for value in values),
        "clamped": any(value.clamped for value in values),
    }


def _show(bar: tqdm, figures: Sequence[Sequence[float]], steps: int) -> None:
    """Moves the bar on, and shows the mean loss and the mean probability of a target."""
    losses, nll = ([each[i] for each in figures] for i in (0, 1))
    bar.set_postfix(loss=f"{fmean(losses):.3f}", target=f"{fmean(math.exp(-each) for each in nll):.3f}")
    bar.update(steps)


def _check(losses: Sequence[float], requests: Sequence[EditRequest], step: int) -> None:
    for value, request in zip(losses, requests, strict=True):
        if not math.isfinite(value):
            raise EditError(
                f"The search for v* of {request.target!r:.80} failed at step {step}: the loss is {value}. Check the "
                "model's weights (NaN?), lower learning_rate, or load the model in float32. No weight was changed."
            )
