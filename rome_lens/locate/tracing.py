"""Causal tracing: how much of the answer comes back when one hidden state is restored (paper section 2.1)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import Fact
from rome_lens.locate.attribution import attributed_values
from rome_lens.locate.config import TraceConfig, with_options
from rome_lens.locate.corruption import Corruption, CorruptionFunction, corrupted_embeddings, resolved
from rome_lens.locate.grid import first_restored, restored_values
from rome_lens.locate.metrics import Measure, Metric, MetricName, make_measures
from rome_lens.locate.own import name_of
from rome_lens.locate.prompt import TracedPrompt, prepare_prompt, warn_if_not_predicted
from rome_lens.locate.runs import CorruptedRun, corrupted_run
from rome_lens.locate.trace import CausalTrace
from rome_lens.models import Kind, Model, tokens_that_fit
from rome_lens.models.labels import token_text, token_texts


@checked
@torch.no_grad()
def causal_trace(
    model: Model,
    fact: Fact,
    *,
    kind: Kind | None = None,
    window: int | None = None,
    samples: int | None = None,
    corruption: Corruption | CorruptionFunction | None = None,
    metric: MetricName | Metric | None = None,
    config: TraceConfig | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = True,
    **options: Any,
) -> CausalTrace:
    """Restores each hidden state of a corrupted run in turn, and reads the metric (paper section 2.1).

    An answer of several tokens is scored by teacher forcing. For a fact without an answer, the model's own top token
    is traced. An answer that the model does not predict is traced with a warning.

    Args:
        fact: Prompt, subject and, optionally, answer.
        kind: States to restore. `TraceConfig` describes this and the next four; None: the config's.
        window: Number of layers restored together.
        samples: Number of corrupted runs.
        corruption: How the subject is hidden.
        metric: What is read from the logits.
        config: How to trace; None: `TraceConfig()`. Keywords replace its fields.
        tokens_per_batch: Bounds memory; the result does not depend on it. None: a share of the free memory.
        options: The other fields of `TraceConfig`: `layers`, `positions`, `head`, `severed`, `method`, ...

    Raises:
        ValueError: the subject has no tokens, the prompt is longer than the context, options do not fit each other, a
            metric or corruption of your own returns something else than it should, or the model's output is not finite.
        TypeError: an option that `TraceConfig` does not have.
    """
    common = {"kind": kind, "window": window, "samples": samples, "corruption": corruption, "metric": metric}
    config = with_options(config, common | options)
    return next(trace_alike(model, fact, [config], tokens_per_batch=tokens_per_batch, progress=progress))


@torch.no_grad()
def trace_alike(
    model: Model, fact: Fact, configs: Sequence[TraceConfig], *, tokens_per_batch: int | None, progress: bool
) -> Iterator[CausalTrace]:
    """A trace for each config, from one clean and one corrupted run: the configs differ in kind, head and positions."""
    for config in configs:
        config.check(model)
    check_whole(tokens_per_batch=tokens_per_batch)
    prompt = prepare_prompt(model, fact, kinds={config.kind for config in configs})
    warn_if_not_predicted(model, fact, prompt)
    exact = configs[0].method == "exact"
    ran = _corrupted(model, fact, prompt, configs[0]) if exact else None
    common: dict[str, Any] = {"ran": ran, "tokens_per_batch": tokens_per_batch, "progress": progress}
    for config in configs:
        yield trace_prompt(model, fact, prompt, config, [config.metric], **common)[0]


@torch.no_grad()
def trace_prompt(
    model: Model,
    fact: Fact,
    prompt: TracedPrompt,
    config: TraceConfig,
    metrics: Sequence[MetricName | Metric],
    *,
    ran: CorruptedRun | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> list[CausalTrace]:
    """A trace for each metric, all from the same runs; `ran` is the corrupted one, if it was run already.

    The caller has tokenised the fact and checked the config: `causal_trace` and `trace_facts` do.
    """
    config = config.at(prompt.length, model.cfg.n_layers)
    wanted = range(prompt.length) if config.positions is None else config.positions
    measures = make_measures(model, fact, prompt, metrics, config.wrong_answer)
    if config.method == "exact":
        ran = _corrupted(model, fact, prompt, config) if ran is None else ran
        samples = ran.residual.shape[1]
        found = _exact(model, prompt, ran, measures, wanted, config, tokens_per_batch, progress)
    else:
        embedded = corrupted_embeddings(model, fact, prompt, config.corruption, config.samples)
        samples = len(embedded)
        found = [_attributed(model, prompt, embedded, measure, wanted, config) for measure in measures]
    predicted = token_text(model, prompt.predicted).strip()
    done = replace(
        config,
        corruption=resolved(config.corruption, model),
        samples=samples,
        window=1 if config.kind in ("resid", "head") else config.window,
    )
    traces = []
    for measure, (corrupted, restored) in zip(measures, found, strict=True):
        value = measure(prompt.clean.logits[None]).item()
        if not math.isfinite(value + corrupted):
            raise ValueError(
                f"The answer's {name_of(measure.metric)} is {value} after the clean and {corrupted} after the "
                "corrupted prompt. Check the model's weights (NaN?), or load the model in float32."
            )
        traces.append(
            CausalTrace(
                fact=fact,
                model=str(model.cfg.model_name),
                config=replace(done, metric=measure.metric),
                tokens=token_texts(model, prompt.tokens[: prompt.length].tolist()),
                subject_range=(prompt.subject.start, prompt.subject.stop),
                answer=fact.answer.strip() if fact.answer else predicted,
                answer_tokens=tuple(prompt.answer.tolist()),
                predicted=predicted,
                predicted_token=prompt.predicted,
                clean=value,
                corrupted=corrupted,
                restored=restored.cpu(),
            )
        )
    return traces


def _corrupted(model: Model, fact: Fact, prompt: TracedPrompt, config: TraceConfig) -> CorruptedRun:
    embedded = corrupted_embeddings(model, fact, prompt, config.corruption, config.samples)
    return corrupted_run(model, prompt.tokens, prompt.subject, embedded, len(prompt.answer), config.severed)


def _attributed(
    model: Model,
    prompt: TracedPrompt,
    embedded: Float[Tensor, "sample token d_model"],
    measure: Measure,
    positions: Sequence[int],
    config: TraceConfig,
) -> tuple[float, Float[Tensor, "position layer"]]:
    """The corrupted run's metric and the approximate grid; NaN in cells that are not wanted."""
    corrupted, grid = attributed_values(
        model, prompt, embedded, measure, kind=config.kind, window=config.window, head=config.head
    )
    chosen = torch.full_like(grid[: prompt.length], torch.nan)
    columns = list(range(model.cfg.n_layers) if config.layers is None else config.layers)
    for position in positions:
        chosen[position, columns] = grid[position, columns]
    return corrupted, chosen


def _exact(
    model: Model,
    prompt: TracedPrompt,
    corrupted: CorruptedRun,
    measures: Sequence[Measure],
    positions: Sequence[int],
    config: TraceConfig,
    tokens_per_batch: int | None,
    progress: bool,
) -> list[tuple[float, Float[Tensor, "position layer"]]]:
    """For each metric the corrupted run's value and the grid; NaN in cells that are not wanted.

    Positions before the subject have the corrupted run's value: the corruption does not reach them.
    """
    subject, n_layers, samples = prompt.subject, model.cfg.n_layers, corrupted.residual.shape[1]
    clean = prompt.clean.states[config.kind]
    where: dict[str, Any] = {
        "kind": config.kind,
        "head": config.head,
        "severed_positions": config.severed_positions,
    }
    entering = first_restored(model, clean, corrupted, **where)
    baselines = torch.stack([measure(corrupted.logits).mean() for measure in measures])
    restored = torch.full((len(measures), prompt.length, n_layers), torch.nan, device=corrupted.residual.device)
    layers = sorted(range(n_layers) if config.layers is None else config.layers)
    budget = tokens_that_fit(model) if tokens_per_batch is None else tokens_per_batch
    for position in tqdm(positions, desc=f"causal trace, {config.kind}", unit="position", disable=not progress):
        if position < subject.start:
            restored[:, position, layers] = baselines[:, None]
            continue
        step = max(1, budget // (samples * (len(prompt.tokens) - position)))
        for start in range(0, len(layers), step):
            some = layers[start : start + step]
            restored[:, position, some] = restored_values(
                model,
                clean,
                corrupted,
                entering,
                measures,
                window=config.window,
                position=position,
                layers=some,
                **where,
            )
    return list(zip(baselines.tolist(), restored, strict=True))
