"""The evaluation of many records by several methods: kept on disk as it goes, in one process or on many machines."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.errors import FormatError
from rome_lens.evaluate.counterfact import score_record
from rome_lens.evaluate.records import (
    BASE,
    COLUMNS,
    Method,
    Row,
    Scorer,
    as_frame,
    check_method_names,
    check_records,
    measure,
    warn_of_failures,
)
from rome_lens.evaluate.stored import StoredRows, stored_rows
from rome_lens.facts import EditRecord, QuestionRecord
from rome_lens.models import Model, model_identity

Task = tuple[EditRecord | QuestionRecord, Sequence[str]]


@checked
def run_evaluation(
    model: ModelSource,
    records: Sequence[EditRecord] | Sequence[QuestionRecord],
    methods: Mapping[str, Method],
    *,
    out: str | os.PathLike[str],
    score: Scorer = score_record,
    before: Callable[..., Any] | None = None,
    engine: EngineName = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores each record on the model as it is and on the model with each method's edit of it, as `evaluate` does.

    The rows of a record are written to `out` as soon as they are measured, and a call with the same arguments goes on
    after those that are there: a run that was killed loses the records it had in hand, and counts none twice. More
    records or methods may be given as well. After each record the weights are bit for bit what they were.

    Args:
        model: is edited and put back: a model, or what `load_model` takes.
        records: each is edited alone; no two with the same case_id.
        methods: by name; each makes the edit for a request: `lambda model, request: rome(model, request)`. With none,
            the model is scored as it is. A method of the same name with other settings is not noticed: choose another
            name, or another folder.
        out: a folder for this evaluation alone (one run at a time); made if it is missing.
        score: as in `evaluate`. Other settings of a function of the same name are not noticed.
        before: as in `evaluate`; likewise.
        engine: "local", or "ray": records are spread over the workers of a Ray cluster (docs/cluster.md).
        workers: of "ray": how many, each with a model of its own. One that dies is replaced and its records done again.
        gpus_per_worker: of "ray": that each reserves.
        progress: shows a bar.

    Returns:
        The rows of these records and methods, as `evaluate` gives them, in their order; failed edits as there, which
        are not tried again.

    Raises:
        ValueError: no records, two of the same case_id, a method named "base"; and as `open_workers`.
        FormatError: the folder was begun with another model, other weights, another score or another record of the same
            case_id, or holds something else.
        UnavailableError: Ray is not installed.
    """
    check_records(records)
    check_method_names(methods)
    states, digests = (BASE, *methods), {record.case_id: _digest(record) for record in records}
    if len(digests) < len(records):
        raise ValueError(f"{len(records)} records have {len(digests)} case_ids, expected one each. Number them anew.")
    kept = StoredRows(out)
    scored_by = {"score": _name_of(score), "before": before and _name_of(before)}
    kept.check(scored_by)
    done = _done(kept.read(), digests, out)
    tasks = [(record, [name for name in states if (record.case_id, name) not in done]) for record in records]
    tasks = [task for task in tasks if task[1]]
    with (
        open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as spread,
        tqdm(
            total=len(records),
            initial=len(records) - len(tasks),
            desc=f"evaluate {', '.join(methods)}",
            unit="record",
            disable=not progress,
        ) as bar,
    ):
        ((_, identity),) = spread(_identify, [None])
        kept.claim(identity | scored_by)
        for index, rows in spread(partial(_measured, methods=methods, score=score, before=before), tasks):
            kept.add(as_frame(rows).assign(record=digests[tasks[index][0].case_id]))
            bar.update()
    kept.merge()
    frame = _in_order(kept.read(), list(digests), states)
    warn_of_failures(frame)
    return frame


@checked
def load_evaluation(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """What `run_evaluation` has measured so far in a folder, without a model; records by case_id, methods by name.

    Raises:
        FileNotFoundError: there is no evaluation in this folder.
        FormatError: it holds other files or damaged ones.
    """
    rows = stored_rows(folder)
    return _in_order(rows, sorted(set(rows["case_id"])), [BASE, *sorted(set(rows["method"]) - {BASE})])


def _identify(model: Model, _: None) -> dict[str, str]:
    return model_identity(model)


def _measured(
    model: Model,
    task: Task,
    *,
    methods: Mapping[str, Method],
    score: Scorer,
    before: Callable[..., Any] | None,
) -> list[Row]:
    """The rows of a record for the model's states that are still missing."""
    record, names = task
    states = {name: partial(methods[name], model, record.request) if name != BASE else None for name in names}
    return measure(model, record, states, score=score, before=before)


def _done(rows: pd.DataFrame, digests: Mapping[int, str], out: str | os.PathLike[str]) -> set[tuple[int, str]]:
    """The case_ids and methods that have rows."""
    stored = rows[["case_id", "method", "record"]].drop_duplicates().itertuples(index=False)
    done = set()
    for case_id, method, digest in stored:
        if case_id in digests and digest != digests[case_id]:
            raise FormatError(
                f"Record {case_id} was another one when {os.fspath(out)} was begun. Choose another folder, or give the "
                "records that this one was begun with."
            )
        done.add((case_id, method))
    return done


def _in_order(rows: pd.DataFrame, case_ids: Sequence[int], methods: Sequence[str]) -> pd.DataFrame:
    """The rows of these records and methods, in their order; the metrics in that in which they were measured."""
    chosen = rows[rows["case_id"].isin(case_ids) & rows["method"].isin(methods)]
    places: dict[str, dict[Any, int]] = {  # the last one counts most
        "method": {method: i for i, method in enumerate(methods)},
        "case_id": {case_id: i for i, case_id in enumerate(case_ids)},
    }
    order = np.lexsort([chosen[name].map(place) for name, place in places.items()])
    return chosen.iloc[order].reset_index(drop=True)[COLUMNS]


def _digest(record: EditRecord | QuestionRecord) -> str:
    return hashlib.sha256(json.dumps([type(record).__name__, asdict(record)], sort_keys=True).encode()).hexdigest()


def _name_of(function: Callable[..., Any]) -> str:
    """Where a function is defined; of functools.partial, the function inside."""
    while isinstance(function, partial):
        function = function.func
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
