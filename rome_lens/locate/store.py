"""Traces of many facts, kept on disk as they are made, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.facts import Fact
from rome_lens.files import append_line, read_lines
from rome_lens.labels import token_text
from rome_lens.locate.corruption import GaussianNoise
from rome_lens.locate.metrics import MetricName
from rome_lens.locate.question import tokenize_question
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import TraceOptions, resolved, trace_question
from rome_lens.models import Kind, Model


@checked
@dataclass(frozen=True)
class TracedFacts:
    """What `trace_facts` gives.

    Attributes:
        traces: one for each fact, kind and metric.
        wrong: the facts that were not traced since the model does not predict their answer: prompt, subject, answer,
            predicted.
    """

    traces: list[CausalTrace]
    wrong: pd.DataFrame


@checked
def trace_facts(
    model: ModelSource,
    facts: Sequence[Fact],
    *,
    kinds: Sequence[Kind] = ("resid", "mlp", "attn"),
    metrics: Sequence[MetricName] = ("prob",),
    store: str | os.PathLike[str] | None = None,
    only_predicted: bool = True,
    engine: EngineName = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    progress: bool = True,
    **options: Any,
) -> TracedFacts:
    """Traces facts of any lengths, for several kinds of states.

    Args:
        model: is run, not changed: a model, or what `load_model` takes.
        facts: what to trace.
        kinds: of the states to restore.
        metrics: what is read; all are read off the same runs.
        store: a file of JSON lines. Each trace is appended as soon as it is made; a trace that is there already, with
            the same fact, model and options, is read and not made again. A line that a kill cut off is made again.
        only_predicted: leave out facts whose answer the model does not predict, and report them in `wrong`.
        engine: "local", or "ray": facts are spread over the workers of a Ray cluster (docs/cluster.md).
        workers: of "ray": how many, each with a model of its own.
        gpus_per_worker: of "ray": that each reserves.
        progress: shows a bar.
        options: the other arguments of `causal_trace`, for all facts.

    Returns:
        The traces, in the order of the facts, then kinds, then metrics; and the facts that were left out.

    Raises:
        ValueError: no facts, or as `causal_trace`.
        FormatError: the store holds something else.
        TypeError: an option that `causal_trace` does not have.
    """
    if not facts:
        raise ValueError("facts is empty, expected one Fact or more.")
    for name, chosen in (("kinds", kinds), ("metrics", metrics)):
        if not chosen:
            raise ValueError(f"{name} is empty, expected one of them or more.")
    shared = replace(TraceOptions(**options), corruption=options.get("corruption") or GaussianNoise())
    wrong: dict[Fact, str] = {}
    with open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as spread:
        ((_, grids),) = spread(partial(_grids, facts=facts, kinds=kinds, metrics=metrics), [shared])
        made = _read(store) if store is not None else {}
        tasks = [(fact, {key: one for key, one in grid.items() if key not in made}) for fact, grid in grids]
        with tqdm(total=len(tasks), desc=f"trace {len(facts)} facts", unit="grid", disable=not progress) as bar:
            for index, found in spread(partial(_traced, only_predicted=only_predicted), tasks):
                fact, missing = tasks[index]
                if isinstance(found, str):
                    wrong[fact] = found
                else:
                    new = dict(zip(missing, found, strict=True))
                    made |= new
                    if store is not None:
                        for key, trace in new.items():
                            append_line(store, {"key": key, "trace": trace.to_dict()})
                bar.update()
    left_out = [(fact.prompt, fact.subject, fact.answer, wrong[fact]) for fact in facts if fact in wrong]
    return TracedFacts(
        [made[key] for fact, grid in grids if fact not in wrong for key in grid],
        pd.DataFrame(left_out, columns=["prompt", "subject", "answer", "predicted"]),
    )


Grid = tuple[Fact, dict[str, TraceOptions]]  # the traces that come from the same runs, by what they depend on


def _grids(
    model: Model,
    shared: TraceOptions,
    *,
    facts: Sequence[Fact],
    kinds: Sequence[Kind],
    metrics: Sequence[MetricName],
) -> list[Grid]:
    """What to trace: a grid for each fact and kind. Raises ValueError if the options do not fit the model."""
    shared = replace(shared, corruption=resolved(shared.corruption or GaussianNoise(), model))
    each = [[replace(shared, kind=kind, metric=metric) for metric in metrics] for kind in kinds]
    for one in (one for alike in each for one in alike):
        one.check(model)
    return [(fact, {_key(model, fact, one): one for one in alike}) for fact in facts for alike in each]


def _traced(model: Model, grid: Grid, *, only_predicted: bool) -> list[CausalTrace] | str:
    """The traces of a grid; or what the model predicts in place of the fact's answer."""
    fact, options = grid[0], list(grid[1].values())
    question = tokenize_question(model, fact, kinds={one.kind for one in options})
    if only_predicted and int(question.answer[0]) != question.predicted:
        return token_text(model, question.predicted).strip()
    if not options:
        return []
    return trace_question(model, fact, question, options[0], [one.metric for one in options], progress=False)


@checked
def load_traces(store: str | os.PathLike[str]) -> list[CausalTrace]:
    """The traces that `trace_facts` has put into a store so far.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file holds something else.
    """
    if not Path(store).is_file():
        raise FileNotFoundError(f"There is no file {store}, expected a store that trace_facts wrote.")
    return list(_read(store).values())


def _key(model: Model, fact: Fact, options: TraceOptions) -> str:
    """What a trace depends on."""
    settings = {**vars(options), "corruption": repr(options.corruption), "tokens_per_batch": None}
    return json.dumps([str(model.cfg.model_name), asdict(fact), settings], sort_keys=True, default=list)


def _read(store: str | os.PathLike[str]) -> dict[str, CausalTrace]:
    """The traces by what they depend on."""
    return dict(
        read_lines(
            store,
            lambda entry: (entry["key"], CausalTrace.from_dict(entry["trace"])),
            first_key="key",
            what="trace",
        )
    )
