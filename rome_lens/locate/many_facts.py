"""Traces of many facts, kept on disk as they are made, so that a stopped run resumes where it was."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import Fact
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.locate.config import TraceConfig, with_options
from rome_lens.locate.corruption import resolved
from rome_lens.locate.metrics import Metric, MetricName
from rome_lens.locate.prompt import prepare_prompt
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import trace_prompt
from rome_lens.models import Kind, Model, model_identity
from rome_lens.models.labels import token_text
from rome_lens.storage import open_journal, plain, read_journal

_KIND = "rome_lens traces 1"


@checked
@dataclass(frozen=True)
class TracedFacts:
    """The result of `trace_facts`.

    Attributes:
        traces: one for each fact, kind and metric.
        not_predicted: facts that were left out because the model does not predict their answer: prompt, subject,
            answer, predicted.
    """

    traces: list[CausalTrace]
    not_predicted: pd.DataFrame


@checked
def trace_facts(
    model: ModelSource,
    facts: Sequence[Fact],
    *,
    kinds: Sequence[Kind] | None = None,
    metrics: Sequence[MetricName | Metric] | None = None,
    config: TraceConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    only_predicted: bool = True,
    engine: EngineName = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    tokens_per_batch: int | None = None,
    progress: bool = True,
    **options: Any,
) -> TracedFacts:
    """Traces facts of any lengths, for several kinds of states.

    Args:
        model: Model to run, or what `load_model` takes; left unchanged.
        facts: Facts to trace.
        kinds: States to restore; None: the config's kind, or "resid", "mlp" and "attn" without a config.
        metrics: What to read, all from the same runs; None: the config's metric.
        config: How to trace; None: `TraceConfig()`.
        out: Folder for traces of this model alone; made if missing. Each trace is written as soon as it is made. One
            that is there already, with the same fact and config, is read instead of made again. A metric or corruption
            of your own is compared by its name and attributes, not by its code; a lambda or an inner function cannot be
            compared and is refused.
        only_predicted: Leave out facts whose answer the model does not predict, and list them in `not_predicted`.
        engine: "local", or "ray" to distribute the facts over the workers of a Ray cluster (docs/cluster.md).
        options: Fields of `TraceConfig` that replace the config's.

    Returns:
        The traces, ordered by fact, then kind, then metric; and the facts that were left out.

    Raises:
        ValueError: no facts, or a metric or corruption that `out` cannot compare; and as `causal_trace`.
    """
    if not facts:
        raise ValueError("facts is empty, expected one Fact or more.")
    for name, chosen in (("kinds", kinds), ("metrics", metrics)):
        if chosen is not None and not chosen:
            raise ValueError(f"{name} is empty, expected at least one, or None.")
    check_whole(tokens_per_batch=tokens_per_batch)
    shared = with_options(config, options)
    usual: Sequence[Kind] = ("resid", "mlp", "attn") if config is None and "kind" not in options else (shared.kind,)
    configs = [[replace(shared, kind=k, metric=m) for m in metrics or (shared.metric,)] for k in kinds or usual]
    if out is not None:
        for one in configs[0]:
            one.check_comparable()
    not_predicted: dict[Fact, str] = {}
    with open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as parallel_map:
        prepare = partial(_grids, facts=facts, identify=out is not None)
        ((_, (identity, grids)),) = parallel_map(prepare, [configs])
        with open_journal(out, kind=_KIND, identity=identity, read=_read) as journal:
            made = dict(journal.rows)
            tasks = [(fact, {key: one for key, one in grid.items() if key not in made}) for fact, grid in grids]
            with tqdm(total=len(tasks), desc=f"trace {len(facts)} facts", unit="grid", disable=not progress) as bar:
                trace = partial(_traced, only_predicted=only_predicted, tokens_per_batch=tokens_per_batch)
                for index, found in parallel_map(trace, tasks):
                    fact, missing = tasks[index]
                    if isinstance(found, str):
                        not_predicted[fact] = found
                    else:
                        for key, traced in zip(missing, found, strict=True):
                            journal.append({"key": key, "trace": traced.to_dict()})
                            made[key] = traced
                    bar.update()
    left_out = [(f.prompt, f.subject, f.answer, not_predicted[f]) for f in facts if f in not_predicted]
    return TracedFacts(
        [made[key] for fact, grid in grids if fact not in not_predicted for key in grid],
        pd.DataFrame(left_out, columns=["prompt", "subject", "answer", "predicted"]),
    )


Grid = tuple[Fact, dict[str, TraceConfig]]  # the configs of traces that share their runs, by `_key`


def _grids(
    model: Model, configs: Sequence[Sequence[TraceConfig]], *, facts: Sequence[Fact], identify: bool
) -> tuple[dict[str, str], list[Grid]]:
    """The model's identity, if asked for, and the work: a grid for each fact and kind.

    Raises ValueError if the configs do not fit the model.
    """
    corruption = resolved(configs[0][0].corruption, model)
    each = [[replace(one, corruption=corruption) for one in alike] for alike in configs]
    for one in (one for alike in each for one in alike):
        one.check(model)
    grids = [(fact, {_key(fact, one): one for one in alike}) for fact in facts for alike in each]
    return model_identity(model) if identify else {}, grids


def _traced(model: Model, grid: Grid, *, only_predicted: bool, tokens_per_batch: int | None) -> list[CausalTrace] | str:
    """The traces of a grid; or the model's prediction, if that is not the fact's answer."""
    fact, configs = grid[0], list(grid[1].values())
    prompt = prepare_prompt(model, fact, kinds={one.kind for one in configs})
    if only_predicted and int(prompt.answer[0]) != prompt.predicted:
        return token_text(model, prompt.predicted).strip()
    if not configs:
        return []
    metrics = [one.metric for one in configs]
    return trace_prompt(model, fact, prompt, configs[0], metrics, tokens_per_batch=tokens_per_batch, progress=False)


@checked
def load_traces(folder: str | os.PathLike[str]) -> list[CausalTrace]:
    """The traces that `trace_facts` has kept in a folder so far."""
    return list(dict(read_journal(folder, kind=_KIND, read=_read)).values())


def _key(fact: Fact, config: TraceConfig) -> str:
    """The fact and config of a trace, as text: what it depends on besides the model."""
    return json.dumps([plain(fact), plain(config)], sort_keys=True)


def _read(row: Mapping[str, Any]) -> tuple[str, CausalTrace]:
    """A stored trace and its `_key`."""
    return str(row["key"]), CausalTrace.from_dict(row["trace"])
