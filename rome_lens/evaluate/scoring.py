"""Scores of many records, before and after edits: the rows that `summarize` reads."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.engine import EngineName, ModelSource, open_workers
from rome_lens.errors import EditWarning, warn
from rome_lens.evaluate.measuring import (
    BASE,
    Method,
    Record,
    Row,
    Scorer,
    check_method,
    chosen_ways,
    measured,
    name_of,
    ways_identity,
)
from rome_lens.evaluate.protocols import Protocol
from rome_lens.models import Model, model_identity
from rome_lens.storage import check_same, open_journal, plain, read_journal

COLUMNS = ["case_id", "method", "protocol", "metric", "value", "error"]
_KIND = "rome_lens table of scores 2"

Stored = tuple[int, dict[str, Any], list[Row]]
Measured = dict[tuple[int, str, str], list[Row]]


@checked
def score_edits(
    model: ModelSource,
    records: Sequence[Record],
    methods: Mapping[str, Method] | Method,
    *,
    protocols: Sequence[str | Protocol] | None = None,
    score: Scorer | None = None,
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
    run: its record has one row for each protocol with the error in place of the method's scores, `summarize` counts it,
    and an EditWarning says so at the end.

    With `out`, the rows of a record are on disk as soon as they are measured, and a call with the same arguments goes
    on after them: a run that was killed loses the records it had in hand, and counts none twice. Failed edits are not
    tried again. Later calls may add records, methods and protocols. A changed method, protocol, `score` or `before` is
    refused: another function, another argument of a `functools.partial`, another configuration that a function takes
    from around it.
    What cannot be compared is the body of a function, such as a number in a lambda: choose another name for the method
    then, or another folder.

    Args:
        model: Model to edit, put back afterwards; or what `load_model` takes.
        records: What to edit and score, each with its own case_id.
        methods: Methods by name, `{"rome": rome}`, or one method, which goes by its own name. A method makes an Edit of
            a model and a request; `functools.partial` gives it further arguments. With {}, the model is scored as it
            is, for example inside `with edit.applied(model)` for a batch.
        protocols: How the questions of a record are put, read and judged: names of `PROTOCOLS`, or a `Protocol`. Each
            edit is made once and scored under all of them. None: "probability", or nothing beside `score`.
        score: A scorer instead of protocols, or beside them; its name stands for its protocol. `score_record`,
            `score_specificity`, `score_generation`, `score_zsre`, `score_knowedit`, or your own
            `score(model, record)`, which may combine several: `score_record(model, record) |
            score_generation(model, record)`.
        before: What to note of the model before the edit, for scores that compare with it: `locality_predictions` or
            `neighborhood_log_probabilities`. The score is then called as `score(model, record,
            before=before(model, record))`.
        out: Folder for this run alone, made if missing; None: the rows are kept in memory.
        engine: "local", or "ray": records are spread over the workers of a Ray cluster (docs/cluster.md).

    Returns:
        A row for each record, method ("base" is the unedited model), protocol and metric, in the order given, with the
        columns case_id, method, protocol, metric, value, error. The metrics are those of the protocol
        (docs/protocols.md), and error is "". A failed edit has one row for each protocol with the error, the metric ""
        and the value NaN.

    Raises:
        ValueError: No records, two with the same case_id, a method named "base", no protocol of this name, a chat
            protocol for a model without a chat template; and as `open_workers`.
        TypeError: A method, `score` or `before` cannot be called with what it will be given, or returns something else.
        NotFiniteError: The output of the unedited model is not finite.
    """
    methods = methods if isinstance(methods, Mapping) else {name_of(methods): methods}
    by_id = _check(records, methods)
    ways = chosen_ways(protocols, score, before)
    states = [(method, way) for method in (BASE, *methods) for way in ways]
    with open_workers(model, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker) as spread:
        identity: dict[str, Any] = {}
        if out is not None:
            ((_, identity),) = spread(_identify, [None])
            identity = identity | ways_identity(protocols, ways)
            identity |= {f"method {name}": plain(method) for name, method in methods.items()}
        with open_journal(out, kind=_KIND, identity=identity, read=_read) as journal:
            done = _done(journal.rows, by_id, out)
            tasks = [(record, [each for each in states if (record.case_id, *each) not in done]) for record in records]
            tasks = [task for task in tasks if task[1]]
            with tqdm(
                total=len(records),
                initial=len(records) - len(tasks),
                desc=f"score {', '.join(methods) or BASE}",
                unit="record",
                disable=not progress,
            ) as bar:
                for index, rows in spread(partial(measured, methods=methods, ways=ways), tasks):
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
    """
    rows = read_journal(folder, kind=_KIND, read=_read)
    done = {state: each for _, _, found in rows for state, each in _by_state(found).items()}
    methods = [BASE, *sorted({method for _, method, _ in done} - {BASE})]
    ways = list(dict.fromkeys(way for _, _, way in done))
    states = [(method, way) for method in methods for way in ways]
    return _in_order(done, sorted({case_id for case_id, *_ in done}), states)


def _check(records: Sequence[Record], methods: Mapping[str, Method]) -> dict[int, Record]:
    """The records by case_id. Raises ValueError or TypeError for what cannot be scored."""
    if not records:
        raise ValueError("records is empty, expected at least 1 record.")
    by_id = {record.case_id: record for record in records}
    if len(by_id) < len(records):
        raise ValueError(f"{len(records)} records have {len(by_id)} case_ids, expected one each. Number them anew.")
    if BASE in methods:
        raise ValueError(f"A method is named {BASE!r}, which stands for the unedited model. Choose another name.")
    for name, method in methods.items():
        check_method(name, method)
    return by_id


def _identify(model: Model, _: None) -> dict[str, str]:
    return model_identity(model)


def _warn_of_failures(frame: pd.DataFrame) -> None:
    """An EditWarning for each method with edits that could not be computed or scored."""
    failures = frame[frame["error"] != ""].drop_duplicates(["case_id", "method"])
    for method, failed in failures.groupby("method", sort=False):
        first = failed.iloc[0]
        warn(
            f"{len(failed)} edits by {method!r} could not be computed or scored; the first is that of record "
            f"{first['case_id']}: {first['error']}",
            EditWarning,
        )


def _read(row: Mapping[str, Any]) -> Stored:
    """A record's number, the record, and what was measured on it."""
    rows = [
        (int(case_id), str(method), str(way), str(metric), float(value), str(error))
        for case_id, method, way, metric, value, error in row["rows"]
    ]
    return int(row["case_id"]), dict(row["record"]), rows


def _done(stored: Sequence[Stored], records: Mapping[int, Record], out: object) -> Measured:
    """What was measured on these records. Raises FormatError if one of them was another record then."""
    for case_id, record, _ in stored:
        if case_id in records:
            check_same(out, {f"record {case_id}": record}, {f"record {case_id}": plain(records[case_id])})
    return {state: each for _, _, rows in stored for state, each in _by_state(rows).items()}


def _by_state(rows: Sequence[Row]) -> Measured:
    """Rows by case_id, method and protocol."""
    found: Measured = {}
    for row in rows:
        found.setdefault(row[:3], []).append(row)
    return found


def _in_order(done: Measured, case_ids: Sequence[int], states: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """The rows of these records, methods and protocols, in their order; the metrics in that of the measurement."""
    rows = [row for case_id in case_ids for state in states for row in done.get((case_id, *state), ())]
    return pd.DataFrame(rows, columns=COLUMNS)
