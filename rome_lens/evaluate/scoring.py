"""Scores of many records, before and after edits: the rows that `summarize` reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit
from rome_lens.errors import EditError, EditWarning, NotFiniteError, warn
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.models import Model

BASE = "base"
COLUMNS = ["case_id", "method", "metric", "value", "error"]


@runtime_checkable
class Record(Protocol):
    """What has a number in a data set."""

    @property
    def case_id(self) -> int: ...


R = TypeVar("R", bound=Record)
Scorer = Callable[..., dict[str, float]]
Method = Callable[[Model, EditRequest], Edit]
Row = tuple[int, str, str, float, str]


@checked
def score_records(
    model: Model,
    records: Sequence[R],
    *,
    score: Scorer = score_record,
    name: str = BASE,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores all records on the model as it is: before any edit, or inside `with edit.applied(model)` of a batch.

    Args:
        model: is run, not changed.
        records: what to score.
        score: makes the scores of a record: `score(model, record)`.
        name: of the model's state, in the result's column method.
        progress: shows a bar.

    Returns:
        A row for each record and metric, as `evaluate` gives it.

    Raises:
        ValueError: there are no records.
        NotFiniteError: the model's output is not finite.
    """
    check_records(records)
    bar = tqdm(records, desc=f"score {name}", unit="record", disable=not progress)
    return as_frame([row for record in bar for row in _rows(record, name, score(model, record))])


@checked
def evaluate(
    model: Model,
    records: Sequence[R],
    *,
    method: Callable[[R], Edit],
    score: Scorer = score_record,
    before: Callable[[Model, R], Any] | None = None,
    name: str = "rome",
    progress: bool = True,
) -> pd.DataFrame:
    """Scores each record on the model as it is and on the model with the record's own edit.

    After each record the weights are bit for bit what they were, also if `method` or the scoring raises. An edit that
    cannot be computed (EditError), or that leaves a model whose output is not finite (NotFiniteError), does not end the
    evaluation: its record has one row with the error in place of the method's scores, `summarize` counts it, and there
    is an EditWarning at the end. Of many records, or several methods,
    `run_evaluation` keeps the rows on disk.

    Args:
        model: is edited and put back.
        records: each is edited alone.
        method: makes the edit for a record: `lambda record: rome(model, record.request)`.
        score: makes the scores of a record: `score_record`, `score_specificity`, `score_generation`, `score_zsre`,
            `score_knowedit` or a function of your own, which may put several together: `score_record(model, record) |
            score_generation(model, record)`.
        before: what to note of the model before the edit, for scores that compare with it: `locality_predictions` or
            `neighborhood_log_probabilities`. Then `score(model, record, before=before(model, record))` is called,
            else `score(model, record)`.
        name: of the method, in the result.
        progress: shows a bar.

    Returns:
        A row for each record, method ("base" is the model before the edit) and metric, with the columns case_id,
        method, metric, value, error. The metrics are those of `score`, and error is "". An edit that could not be
        computed has a row with the error, the metric "" and the value NaN.

    Raises:
        ValueError: there are no records, or `name` is "base".
        NotFiniteError: the output of the model before any edit is not finite.
    """
    check_records(records)
    check_method_names([name])
    rows: list[Row] = []
    for record in tqdm(records, desc=f"evaluate {name}", unit="record", disable=not progress):
        rows += measure(model, record, {BASE: None, name: partial(method, record)}, score=score, before=before)
    frame = as_frame(rows)
    warn_of_failures(frame)
    return frame


def measure(
    model: Model,
    record: Record,
    states: Mapping[str, Callable[[], Edit] | None],
    *,
    score: Scorer,
    before: Callable[..., Any] | None,
) -> list[Row]:
    """The rows of one record, for each state of the model: as it is (None), or with the edit that a function makes.

    `evaluate` says what the rows are, and that the weights are put back.
    """
    noted = {"before": before(model, record)} if before else {}
    rows: list[Row] = []
    for name, make in states.items():
        if make is None:
            rows += _rows(record, name, score(model, record, **noted))
            continue
        try:
            with make().applied(model):
                rows += _rows(record, name, score(model, record, **noted))
        except (EditError, NotFiniteError) as error:
            rows.append((record.case_id, name, "", float("nan"), str(error)))
    return rows


def as_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as the frame that `evaluate` gives."""
    return pd.DataFrame(rows, columns=COLUMNS)


def warn_of_failures(frame: pd.DataFrame) -> None:
    """An EditWarning for each method with edits that could not be computed or scored."""
    for method, failed in frame[frame["error"] != ""].groupby("method", sort=False):
        first = failed.iloc[0]
        warn(
            f"{len(failed)} edits by {method!r} could not be computed or scored; the first is that of record "
            f"{first['case_id']}: {first['error']}",
            EditWarning,
        )


def check_records(records: Sequence[Record]) -> None:
    """Raises ValueError if there are no records."""
    if not records:
        raise ValueError("records is empty, expected one record or more.")


def check_method_names(names: Iterable[str]) -> None:
    """Raises ValueError if a method has the name of the model before the edit."""
    if BASE in names:
        raise ValueError(f"name is {BASE!r}, which stands for the model before the edit. Choose another name.")


def _rows(record: Record, method: str, scores: Mapping[str, float]) -> list[Row]:
    return [(record.case_id, method, metric, float(value), "") for metric, value in scores.items()]
