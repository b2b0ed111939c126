"""Traces of many facts, kept on disk as they are made, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import Fact
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.locate.config import TraceOptions
from rome_lens.locate.corruption import GaussianNoise
from rome_lens.locate.metrics import MetricName
from rome_lens.locate.prompt import tokenize_question
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import resolved, trace_question
from rome_lens.models import Kind, Model, model_identity
from rome_lens.models.labels import token_text
from rome_lens.storage import open_journal, plain, read_journal

_KIND = "rome_lens traces 1"


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
    out: str | os.PathLike[str] | None = None,
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
        out: a folder for traces of this model alone; made if it is missing. Each trace is kept in it as soon as it is
            made; one that is there already, with the same fact and options, is read and not made again. A corruption of
            your own is compared by its class and attributes.
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
        FormatError: the folder was begun with another model or other weights, or holds other files or damaged ones.
        TypeError: an option that `causal_trace` does not have.
        UnavailableError: another run has the folder open, or its disk is full or may not be written to.
    """
    if not facts:
        raise ValueError("facts is empty, expected one Fact or more.")
    for name, chosen in (("kinds", kinds), ("metrics", metrics)):
        if not chosen:
            raise ValueError(f"{name} is empty, expected one of them or more.")
    shared = replace(TraceOptions(**options), corruption=options.get("corruption") or GaussianNoise())
    wrong: dict[Fact, str] = {}
    with open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as spread:
        work = partial(_grids, facts=facts, kinds=kinds, metrics=metrics, identify=out is not None)
        ((_, (identity, grids)),) = spread(work, [shared])
        with open_journal(out, kind=_KIND, identity=identity, read=_read) as journal:
            made = dict(journal.rows)
            tasks = [(fact, {key: one for key, one in grid.items() if key not in made}) for fact, grid in grids]
            with tqdm(total=len(tasks), desc=f"trace {len(facts)} facts", unit="grid", disable=not progress) as bar:
                for index, found in spread(partial(_traced, only_predicted=only_predicted), tasks):
                    fact, missing = tasks[index]
                    if isinstance(found, str):
                        wrong[fact] = found
                    else:
                        for key, trace in zip(missing, found, strict=True):
                            journal.append({"key": key, "trace": trace.to_dict()})
                            made[key] = trace
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
    identify: bool,
) -> tuple[dict[str, str], list[Grid]]:
    """The model's identity, if it is asked for, and what to trace: a grid for each fact and kind.

    Raises ValueError if the options do not fit the model.
    """
    shared = replace(shared, corruption=resolved(shared.corruption or GaussianNoise(), model))
    each = [[replace(shared, kind=kind, metric=metric) for metric in metrics] for kind in kinds]
    for one in (one for alike in each for one in alike):
        one.check(model)
    grids = [(fact, {_key(fact, one): one for one in alike}) for fact in facts for alike in each]
    return model_identity(model) if identify else {}, grids


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
def load_traces(folder: str | os.PathLike[str]) -> list[CausalTrace]:
    """The traces that `trace_facts` has kept in a folder so far.

    Raises:
        FileNotFoundError: there are no traces in this folder.
        FormatError: it holds something else or is damaged.
    """
    return list(dict(read_journal(folder, kind=_KIND, read=_read)).values())


def _key(fact: Fact, options: TraceOptions) -> str:
    """What a trace depends on besides the model."""
    return json.dumps([plain(fact), plain(replace(options, tokens_per_batch=None))], sort_keys=True)


def _read(row: Mapping[str, Any]) -> tuple[str, CausalTrace]:
    """A trace by what it depends on."""
    return row["key"], CausalTrace.from_dict(row["trace"])
