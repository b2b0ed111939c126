"""The evaluation of many records by several methods: kept on disk as it goes, in one process or on many machines."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import EditRecord, QuestionRecord
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.evaluate.scoring import (
    BASE,
    Method,
    Row,
    Scorer,
    as_frame,
    check_method_names,
    check_records,
    measure,
    warn_of_failures,
)
from rome_lens.models import Model, model_identity
from rome_lens.storage import check_same, open_journal, plain, read_journal

_KIND = "rome_lens evaluation 2"

Task = tuple[EditRecord | QuestionRecord, Sequence[str]]
Stored = tuple[int, dict[str, Any], list[Row]]
Measured = dict[tuple[int, str], list[Row]]


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

    A method, `score` or `before` that has changed is noticed: another function, another argument of a
    `functools.partial`, another configuration that a function takes from around it. Not noticed is another text of a
    function of yours, such as a number in a lambda: choose another name for the method then, or another folder.

    Args:
        model: is edited and put back: a model, or what `load_model` takes.
        records: each is edited alone; no two with the same case_id.
        methods: by name; each makes the edit for a request: `lambda model, request: rome(model, request)`. With none,
            the model is scored as it is.
        out: a folder for this evaluation alone; made if it is missing.
        score: as in `evaluate`.
        before: as in `evaluate`.
        engine: "local", or "ray": records are spread over the workers of a Ray cluster (docs/cluster.md).
        workers: of "ray": how many, each with a model of its own. One that dies is replaced and its records done again.
        gpus_per_worker: of "ray": that each reserves.
        progress: shows a bar.

    Returns:
        The rows of these records and methods, as `evaluate` gives them, in their order; failed edits as there, which
        are not tried again.

    Raises:
        ValueError: no records, two of the same case_id, a method named "base"; and as `open_workers`.
        FormatError: the folder was begun with another model, other weights, another score, another method of the same
            name or another record of the same case_id, or holds other files or damaged ones.
        UnavailableError: Ray is not installed; another run has the folder open; its disk is full or may not be written
            to.
    """
    check_records(records)
    check_method_names(methods)
    states, by_id = (BASE, *methods), {record.case_id: record for record in records}
    if len(by_id) < len(records):
        raise ValueError(f"{len(records)} records have {len(by_id)} case_ids, expected one each. Number them anew.")
    depends = {"score": plain(score), "before": plain(before)}
    depends |= {f"method {name}": plain(method) for name, method in methods.items()}
    with open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as spread:
        ((_, identity),) = spread(_identify, [None])
        with open_journal(out, kind=_KIND, identity=identity | depends, read=_read) as journal:
            done = _done(journal.rows, by_id, out)
            tasks = [(record, [name for name in states if (record.case_id, name) not in done]) for record in records]
            tasks = [task for task in tasks if task[1]]
            with tqdm(
                total=len(records),
                initial=len(records) - len(tasks),
                desc=f"evaluate {', '.join(methods)}",
                unit="record",
                disable=not progress,
            ) as bar:
                measured = partial(_measured, methods=methods, score=score, before=before)
                for index, rows in spread(measured, tasks):
                    record = tasks[index][0]
                    journal.append({"case_id": int(record.case_id), "record": plain(record), "rows": rows})
                    done |= _by_state(rows)
                    bar.update()
    frame = _in_order(done, list(by_id), states)
    warn_of_failures(frame)
    return frame


@checked
def load_evaluation(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """What `run_evaluation` has measured so far in a folder, without a model; records by case_id, methods by name.

    Raises:
        FileNotFoundError: there is no evaluation in this folder.
        FormatError: it holds other files or damaged ones.
    """
    rows = read_journal(folder, kind=_KIND, read=_read)
    done = {state: each for _, _, found in rows for state, each in _by_state(found).items()}
    methods = {method for _, method in done} - {BASE}
    return _in_order(done, sorted({case_id for case_id, _ in done}), [BASE, *sorted(methods)])


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


def _read(row: Mapping[str, Any]) -> Stored:
    """A record's number, the record, and what was measured on it."""
    rows = [
        (int(case_id), str(method), str(metric), float(value), str(error))
        for case_id, method, metric, value, error in row["rows"]
    ]
    return int(row["case_id"]), dict(row["record"]), rows


def _done(
    stored: Sequence[Stored], records: Mapping[int, EditRecord | QuestionRecord], out: str | os.PathLike[str]
) -> Measured:
    """What was measured on these records. Raises FormatError if one of them was another record then."""
    for case_id, record, _ in stored:
        if case_id in records:
            check_same(out, {f"record {case_id}": record}, {f"record {case_id}": plain(records[case_id])})
    return {state: each for _, _, rows in stored for state, each in _by_state(rows).items()}


def _by_state(rows: Sequence[Row]) -> Measured:
    """Rows by case_id and method."""
    found: Measured = {}
    for row in rows:
        found.setdefault((row[0], row[1]), []).append(row)
    return found


def _in_order(done: Measured, case_ids: Sequence[int], methods: Sequence[str]) -> pd.DataFrame:
    """The rows of these records and methods, in their order; the metrics in that in which they were measured."""
    return as_frame([row for case_id in case_ids for method in methods for row in done.get((case_id, method), ())])
