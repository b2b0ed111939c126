"""Causal tracing: how much of the answer comes back when one hidden state is restored (paper section 2.1)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import Fact
from rome_lens.locate.attribution import attributed_values
from rome_lens.locate.config import Method, TraceOptions
from rome_lens.locate.corruption import Corruption, GaussianNoise
from rome_lens.locate.grid import first_restored, restored_values
from rome_lens.locate.metrics import Metric, MetricName, make_metric
from rome_lens.locate.prompt import Question, tokenize_question, warn_if_not_predicted
from rome_lens.locate.runs import corrupted_run
from rome_lens.locate.trace import EXACT, CausalTrace
from rome_lens.models import Kind, Model, embed
from rome_lens.models.labels import token_text, token_texts
from rome_lens.models.memory import tokens_that_fit
from rome_lens.models.tokens import tokenize_continuation


@checked
@torch.no_grad()
def causal_trace(
    model: Model,
    fact: Fact,
    *,
    kind: Kind = "resid",
    window: int = 10,
    samples: int = 10,
    corruption: Corruption | None = None,
    metric: MetricName = "prob",
    wrong_answer: str | None = None,
    head: int | None = None,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    severed: Sequence[Literal["mlp", "attn"]] = (),
    severed_positions: Sequence[int] | None = None,
    method: Method = "exact",
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> CausalTrace:
    """Restores each hidden state of a corrupted run in turn, and reads the answer (paper section 2.1).

    An answer of several tokens is scored by teacher forcing. Without an answer in the fact, the model's own top token
    is traced; an answer that the model does not predict is traced all the same, with a warning.

    Args:
        model: is run, not changed.
        fact: prompt, subject and, if wanted, answer.
        kind: "resid": a block's output; "mlp", "attn": what a window of MLPs or attentions adds to the residual
            stream; "head": one attention head's output.
        window: number of layers restored together for "mlp" and "attn", around each layer as `restored_layers` says.
        samples: number of corrupted runs that each number is the mean of.
        corruption: by default Gaussian noise of 3 sigma.
        metric: what is read: see `Metric`.
        wrong_answer: for "logit_diff".
        head: its number, for "head".
        positions: which rows of the grid are wanted; None: all.
        layers: which columns; None: all.
        severed: sublayers that are held at their corrupted values while a state is restored (paper figure 3 and
            appendix B.2): what the state does by way of them is cut off.
        severed_positions: where; None: at the restored position, as the paper does.
        method: "exact", or "attribution": the gradient approximation of the same grid (attribution patching, Nanda
            2023; Syed et al. 2023, arXiv 2310.10348), many times cheaper, and labelled wherever it is shown.
        tokens_per_batch: bounds memory, and the result does not depend on it; None: a part of what is free.
        progress: shows a bar.

    Raises:
        ValueError: the subject has no tokens, the prompt is longer than the context, options do not fit, or the model's
            output is not finite.
    """
    options = TraceOptions(
        kind=kind,
        window=window,
        samples=samples,
        corruption=GaussianNoise() if corruption is None else corruption,
        metric=metric,
        wrong_answer=wrong_answer,
        head=head,
        positions=positions,
        layers=layers,
        severed=tuple(severed),
        severed_positions=severed_positions,
        method=method,
        tokens_per_batch=tokens_per_batch,
    )
    options.check(model)
    question = tokenize_question(model, fact, kinds=[kind])
    warn_if_not_predicted(model, fact, question)
    return trace_question(model, fact, question, options, [metric], progress=progress)[0]


@torch.no_grad()
def trace_question(
    model: Model,
    fact: Fact,
    question: Question,
    options: TraceOptions,
    metrics: Sequence[MetricName],
    *,
    progress: bool = True,
) -> list[CausalTrace]:
    """A trace for each metric, all read off the same runs. The fact is tokenised and the options are checked before;
    `causal_trace` is the way in.
    """
    corruption = options.corruption or GaussianNoise()
    subject = question.subject
    wanted = range(question.length) if options.positions is None else options.positions
    if outside := [p for p in wanted if not 0 <= p < question.length]:
        raise ValueError(f"The positions {outside} do not exist: the prompt has {question.length} tokens.")
    wrong = _wrong_token(model, fact, options)
    measures = [make_metric(name, question.answer, wrong, question.clean.logits) for name in metrics]
    clean_subject = embed(model, question.tokens)[subject.start : subject.stop]
    embedded = corruption.corrupted(model, fact, clean_subject, options.samples)
    if options.method == EXACT:
        found = _exact(model, question, embedded, measures, wanted, options, progress)
    else:
        found = [_attributed(model, question, embedded, measure, wanted, options) for measure in measures]
    predicted = token_text(model, question.predicted).strip()
    traces = []
    for measure, (corrupted, restored) in zip(measures, found, strict=True):
        value = measure(question.clean.logits[None]).item()
        if not math.isfinite(value + corrupted):
            raise ValueError(
                f"The answer's {measure.name} is {value} after the clean and {corrupted} after the corrupted prompt. "
                "Check the model's weights (NaN?), or load the model in float32."
            )
        traces.append(
            CausalTrace(
                fact=fact,
                model=str(model.cfg.model_name),
                kind=options.kind,
                head=options.head,
                window=1 if options.kind in ("resid", "head") else options.window,
                samples=len(embedded),
                corruption=repr(resolved(corruption, model)),
                metric=measure.name,
                method=options.method,
                severed=tuple(options.severed),
                tokens=token_texts(model, question.tokens[: question.length].tolist()),
                subject_range=(subject.start, subject.stop),
                answer=fact.answer.strip() if fact.answer else predicted,
                predicted=predicted,
                answer_tokens=tuple(question.answer.tolist()),
                predicted_token=question.predicted,
                clean=value,
                corrupted=corrupted,
                restored=restored.cpu(),
            )
        )
    return traces


def resolved(corruption: Corruption, model: Model) -> Corruption:
    """The corruption with its width as a number, where sigmas of embeddings were asked for."""
    scale = getattr(corruption, "scale", None)
    return replace(corruption, std=scale(model)) if callable(scale) else corruption  # type: ignore[type-var]


def _wrong_token(model: Model, fact: Fact, options: TraceOptions) -> int | None:
    if options.wrong_answer is None:
        return None
    whole, start = tokenize_continuation(model, fact.text, options.wrong_answer, space=fact.space)
    return whole.ids[start]


def _attributed(
    model: Model,
    question: Question,
    embedded: Float[Tensor, "sample token d_model"],
    metric: Metric,
    positions: Sequence[int],
    options: TraceOptions,
) -> tuple[float, Float[Tensor, "position layer"]]:
    """The corrupted run's value and the approximate grid; NaN in cells that are not wanted."""
    corrupted, grid = attributed_values(
        model, question, embedded, metric, kind=options.kind, window=options.window, head=options.head
    )
    chosen = torch.full_like(grid[: question.length], torch.nan)
    columns = list(range(model.cfg.n_layers) if options.layers is None else options.layers)
    for position in positions:
        chosen[position, columns] = grid[position, columns]
    return corrupted, chosen


def _exact(
    model: Model,
    question: Question,
    embedded: Float[Tensor, "sample token d_model"],
    metrics: Sequence[Metric],
    positions: Sequence[int],
    options: TraceOptions,
    progress: bool,
) -> list[tuple[float, Float[Tensor, "position layer"]]]:
    """For each metric the corrupted run's value and the grid; NaN in cells that are not wanted.

    Positions before the subject have the corrupted run's value.
    """
    subject, n_layers = question.subject, model.cfg.n_layers
    corrupted = corrupted_run(model, question.tokens, subject, embedded, len(question.answer), options.severed)
    clean = question.clean.states[options.kind]
    where: dict[str, Any] = {
        "kind": options.kind,
        "head": options.head,
        "severed_positions": options.severed_positions,
    }
    entering = first_restored(model, clean, corrupted, **where)
    baselines = torch.stack([metric(corrupted.logits).mean() for metric in metrics])
    restored = torch.full((len(metrics), question.length, n_layers), torch.nan, device=embedded.device)
    layers = sorted(range(n_layers) if options.layers is None else options.layers)
    budget = tokens_that_fit(model) if options.tokens_per_batch is None else options.tokens_per_batch
    for position in tqdm(positions, desc=f"causal trace, {options.kind}", unit="position", disable=not progress):
        if position < subject.start:
            restored[:, position, layers] = baselines[:, None]
            continue
        step = max(1, budget // (len(embedded) * (len(question.tokens) - position)))
        for start in range(0, len(layers), step):
            some = layers[start : start + step]
            restored[:, position, some] = restored_values(
                model,
                clean,
                corrupted,
                entering,
                metrics,
                window=options.window,
                position=position,
                layers=some,
                **where,
            )
    return list(zip(baselines.tolist(), restored, strict=True))
