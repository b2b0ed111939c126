"""Scores of many records, before and after edits: the rows that `summarize` reads."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.errors import EditError, EditWarning, NotFiniteError, warn
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.models import Model, model_identity
from rome_lens.storage import check_same, open_journal, plain, read_journal

BASE = "base"
COLUMNS = ["case_id", "method", "metric", "value", "error"]
_KIND = "rome_lens table of scores 1"


@runtime_checkable
class Record(Protocol):
    """A request and its number in a data set."""

    @property
    def case_id(self) -> int:
        """Its number, by which rows are kept."""

    @property
    def request(self) -> EditRequest:
        """What is to be edited."""


Scorer = Callable[..., Mapping[str, float]]
"""A score: `scorer(model, record)` gives its metrics' names and values."""
Method = Callable[[Model, EditRequest], Edit]
"""An editing method: `method(model, request)` computes the edit and leaves the model unchanged."""
Row = tuple[int, str, str, float, str]
Task: TypeAlias = tuple[Record, Sequence[str]]
Stored = tuple[int, dict[str, Any], list[Row]]
Measured = dict[tuple[int, str], list[Row]]


@checked
def score_edits(
    model: ModelSource,
    records: Sequence[Record],
    methods: Mapping[str, Method] | Method,
    *,
    score: Scorer = score_record,
    before: Callable[..., Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    engine: EngineName = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores each record on the model as it is and on the model with each method's edit of that record alone.

    After each record the weights are bit for bit what they were, also if a method or the score raises. An edit that
    cannot be computed (EditError), or that leaves a model whose output is not finite (NotFiniteError), does not end the
    run: its record has one row with the error in place of the method's scores, `summarize` counts it, and an
    EditWarning says so at the end.

    With `out`, the rows of a record are on disk as soon as they are measured, and a call with the same arguments goes
    on after them: a run that was killed loses the records it had in hand, and counts none twice. Failed edits are not
    tried again. Later calls may add records and methods. A changed method, `score` or `before` is refused: another
    function, another argument of a `functools.partial`, another configuration that a function takes from around it.
    What cannot be compared is the body of a function, such as a number in a lambda: choose another name for the method
    then, or another folder.

    Args:
        model: Model to edit, put back afterwards; or what `load_model` takes.
        records: What to edit and score, each with its own case_id.
        methods: Methods by name, `{"rome": rome}`, or one method, which goes by its own name. A method makes an Edit of
            a model and a request; `functools.partial` gives it further arguments. With {}, the model is scored as it
            is, for example inside `with edit.applied(model)` for a batch.
        score: Scores a record: `score_record`, `score_specificity`, `score_generation`, `score_zsre`, `score_knowedit`
            or your own `score(model, record)`, which may combine several: `score_record(model, record) |
            score_generation(model, record)`.
        before: What to note of the model before the edit, for scores that compare with it: `locality_predictions` or
            `neighborhood_log_probabilities`. The score is then called as `score(model, record,
            before=before(model, record))`.
        out: Folder for this run alone, made if missing; None: the rows are kept in memory.
        engine: "local", or "ray": records are spread over the workers of a Ray cluster (docs/cluster.md).
        workers: How many, for "ray", each with a model of its own. One that dies is replaced, its records done again.
        gpus_per_worker: GPUs that each worker of "ray" reserves.
        progress: Shows a bar.

    Returns:
        A row for each record, method ("base" is the unedited model) and metric, in the order given, with the columns
        case_id, method, metric, value, error. The metrics are those of `score`, and error is "". A failed edit has one
        row with the error, the metric "" and the value NaN.

    Raises:
        ValueError: No records, two with the same case_id, a method named "base"; and as `open_workers`.
        TypeError: A method, `score` or `before` cannot be called with what it will be given, or returns something else.
        NotFiniteError: The output of the unedited model is not finite.
        FormatError: `out` was begun with another model, other weights, another score, another method of the same name
            or another record of the same case_id, or holds other files or damaged ones.
        UnavailableError: Ray is not installed; another run has the folder open; its disk is full or read-only.
    """
    methods = methods if isinstance(methods, Mapping) else {_name(methods): methods}
    by_id = _check(records, methods, score, before)
    states = (BASE, *methods)
    with open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as spread:
        identity: dict[str, Any] = {}
        if out is not None:
            ((_, identity),) = spread(_identify, [None])
            identity = identity | {"score": plain(score), "before": plain(before)}
            identity |= {f"method {name}": plain(method) for name, method in methods.items()}
        with open_journal(out, kind=_KIND, identity=identity, read=_read) as journal:
            done = _done(journal.rows, by_id, out)
            tasks = [(record, [name for name in states if (record.case_id, name) not in done]) for record in records]
            tasks = [task for task in tasks if task[1]]
            with tqdm(
                total=len(records),
                initial=len(records) - len(tasks),
                desc=f"score {', '.join(methods) or BASE}",
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
    _warn_of_failures(frame)
    return frame


@checked
def load_scores(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """What `score_edits` has kept so far in a folder, without a model; records by case_id, methods by name.

    Raises:
        FileNotFoundError: There are no scores in this folder.
        FormatError: It holds other files or damaged ones.
    """
    rows = read_journal(folder, kind=_KIND, read=_read)
    done = {state: each for _, _, found in rows for state, each in _by_state(found).items()}
    methods = {method for _, method in done} - {BASE}
    return _in_order(done, sorted({case_id for case_id, _ in done}), [BASE, *sorted(methods)])


def _check(
    records: Sequence[Record],
    methods: Mapping[str, Method],
    score: Scorer,
    before: Callable[..., Any] | None,
) -> dict[int, Record]:
    """The records by case_id. Raises ValueError or TypeError for what cannot be scored."""
    if not records:
        raise ValueError("records is empty, expected at least 1 record.")
    by_id = {record.case_id: record for record in records}
    if len(by_id) < len(records):
        raise ValueError(f"{len(records)} records have {len(by_id)} case_ids, expected one each. Number them anew.")
    if BASE in methods:
        raise ValueError(f"A method is named {BASE!r}, which stands for the unedited model. Choose another name.")
    for name, method in methods.items():
        _check_call(f"The method {name!r}", method, "model", "request")
    if before is None:
        _check_call("score", score, "model", "record")
    else:
        _check_call("before", before, "model", "record")
        _check_call("score", score, "model", "record", before="before(model, record)")
    return by_id


def _check_call(what: str, function: Callable[..., Any], *arguments: str, **keywords: str) -> None:
    """Raises TypeError unless a function can be called with these arguments."""
    try:
        takes = signature(function)
    except ValueError:  # of functions written in C
        return
    try:
        takes.bind(*arguments, **keywords)
    except TypeError as error:
        call = ", ".join([*arguments, *(f"{name}={value}" for name, value in keywords.items())])
        raise TypeError(
            f"{what} is {_name(function)}{takes}, expected a function that can be called with ({call}): {error}. "
            "Bind what else it needs with functools.partial; what a score compares with comes from before=..."
        ) from None


def _name(function: Callable[..., Any]) -> str:
    """What a function calls itself."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


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
    """The rows of a record for the states of the model that are still missing."""
    record, names = task
    noted = {"before": before(model, record)} if before else {}
    rows: list[Row] = []
    for name in names:
        if name == BASE:
            rows += _rows(record, name, score(model, record, **noted))
            continue
        try:
            edit = methods[name](model, record.request)
            if not isinstance(edit, Edit):
                raise TypeError(f"The method {name!r} returned {edit!r}, expected an Edit.")
            with edit.applied(model):
                rows += _rows(record, name, score(model, record, **noted))
        except (EditError, NotFiniteError) as error:
            rows.append((record.case_id, name, "", float("nan"), str(error)))
    return rows


def _rows(record: Record, method: str, scores: object) -> list[Row]:
    if not isinstance(scores, Mapping):
        raise TypeError(f"score returned {scores!r}, expected numbers by name: {{'metric': 0.5}}.")
    return [(record.case_id, method, metric, float(value), "") for metric, value in scores.items()]


def _warn_of_failures(frame: pd.DataFrame) -> None:
    """An EditWarning for each method with edits that could not be computed or scored."""
    for method, failed in frame[frame["error"] != ""].groupby("method", sort=False):
        first = failed.iloc[0]
        warn(
            f"{len(failed)} edits by {method!r} could not be computed or scored; the first is that of record "
            f"{first['case_id']}: {first['error']}",
            EditWarning,
        )


def _read(row: Mapping[str, Any]) -> Stored:
    """A record's number, the record, and what was measured on it."""
    rows = [
        (int(case_id), str(method), str(metric), float(value), str(error))
        for case_id, method, metric, value, error in row["rows"]
    ]
    return int(row["case_id"]), dict(row["record"]), rows


def _done(stored: Sequence[Stored], records: Mapping[int, Record], out: object) -> Measured:
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
    rows = [row for case_id in case_ids for method in methods for row in done.get((case_id, method), ())]
    return pd.DataFrame(rows, columns=COLUMNS)
