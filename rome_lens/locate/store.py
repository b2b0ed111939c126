"""Traces of many facts, kept on disk as they are made, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from rome_lens.facts import Fact
from rome_lens.files import append_line, read_lines
from rome_lens.locate.corruption import GaussianNoise
from rome_lens.locate.metrics import MetricName
from rome_lens.locate.question import tokenize_question
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import TraceOptions, resolved, trace_question
from rome_lens.models import Kind


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


def trace_facts(
    model: HookedTransformer,
    facts: Sequence[Fact],
    *,
    kinds: Sequence[Kind] = ("resid", "mlp", "attn"),
    metrics: Sequence[MetricName] = ("prob",),
    store: str | os.PathLike[str] | None = None,
    only_predicted: bool = True,
    progress: bool = True,
    **options: Any,
) -> TracedFacts:
    """Traces facts of any lengths, for several kinds of states.

    Args:
        model: is run, not changed.
        facts: what to trace.
        kinds: of the states to restore.
        metrics: what is read; all are read off the same runs.
        store: a file of JSON lines. Each trace is appended as soon as it is made; a trace that is there already, with
            the same fact, model and options, is read and not made again. A line that a kill cut off is made again.
        only_predicted: leave out facts whose answer the model does not predict, and report them in `wrong`.
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
    shared = replace(TraceOptions(**options), corruption=options.get("corruption") or GaussianNoise())
    each = [[replace(shared, kind=kind, metric=metric) for metric in metrics] for kind in kinds]
    for one in (one for alike in each for one in alike):
        one.check(model)
    made = _read(store) if store is not None else {}
    traces, wrong = [], []
    for fact in tqdm(facts, desc=f"trace {len(facts)} facts", unit="fact", disable=not progress):
        question = tokenize_question(model, fact, kinds=kinds)
        if only_predicted and int(question.answer[0]) != question.predicted:
            predicted = model.tokenizer.decode([question.predicted]).strip()
            wrong.append((fact.prompt, fact.subject, fact.answer, predicted))
            continue
        for alike in each:
            keys = {one.metric: _key(model, fact, one) for one in alike}
            missing = [metric for metric, key in keys.items() if key not in made]
            new = trace_question(model, fact, question, alike[0], missing, progress=False) if missing else []
            for metric, trace in zip(missing, new, strict=True):
                made[keys[metric]] = trace
                if store is not None:
                    append_line(store, {"key": keys[metric], "trace": trace.to_dict()})
            traces += [made[key] for key in keys.values()]
    return TracedFacts(traces, pd.DataFrame(wrong, columns=["prompt", "subject", "answer", "predicted"]))


def load_traces(store: str | os.PathLike[str]) -> list[CausalTrace]:
    """The traces that `trace_facts` has put into a store so far.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file holds something else.
    """
    if not Path(store).is_file():
        raise FileNotFoundError(f"There is no file {store}, expected a store that trace_facts wrote.")
    return list(_read(store).values())


def _key(model: HookedTransformer, fact: Fact, options: TraceOptions) -> str:
    """What a trace depends on."""
    corruption = resolved(options.corruption or GaussianNoise(), model)
    settings = {**vars(options), "corruption": repr(corruption), "tokens_per_batch": None}
    return json.dumps([str(model.cfg.model_name), asdict(fact), settings], sort_keys=True)


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
