"""Scores of many records, before and after edits: the rows that `summarize` reads."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from rome_lens.edit.weights import Edit
from rome_lens.evaluate.counterfact import score_record

BASE = "base"


@runtime_checkable
class Record(Protocol):
    """What has a number in a data set."""

    @property
    def case_id(self) -> int: ...


R = TypeVar("R", bound=Record)
Scorer = Callable[..., dict[str, float]]


def score_records(
    model: HookedTransformer,
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
    """
    _check_records(records)
    bar = tqdm(records, desc=f"score {name}", unit="record", disable=not progress)
    return _frame([row for record in bar for row in _rows(record, name, score(model, record))])


def evaluate(
    model: HookedTransformer,
    records: Sequence[R],
    *,
    method: Callable[[R], Edit],
    score: Scorer = score_record,
    before: Callable[[HookedTransformer, R], Any] | None = None,
    name: str = "rome",
    progress: bool = True,
) -> pd.DataFrame:
    """Scores each record on the model as it is and on the model with the record's own edit.

    After each record the weights are bit for bit what they were, also if `method` or the scoring raises.

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
        method, metric, value. The metrics are those of `score`.

    Raises:
        ValueError: there are no records, or `name` is "base".
    """
    _check_records(records)
    if name == BASE:
        raise ValueError(f"name is {BASE!r}, which stands for the model before the edit. Choose another name.")
    rows: list[Row] = []
    for record in tqdm(records, desc=f"evaluate {name}", unit="record", disable=not progress):
        noted = {"before": before(model, record)} if before else {}
        rows += _rows(record, BASE, score(model, record, **noted))
        with method(record).applied(model):
            rows += _rows(record, name, score(model, record, **noted))
    return _frame(rows)


Row = tuple[int, str, str, float]


def _rows(record: Record, method: str, scores: dict[str, float]) -> list[Row]:
    return [(record.case_id, method, metric, value) for metric, value in scores.items()]


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["case_id", "method", "metric", "value"])


def _check_records(records: Sequence[Record]) -> None:
    if not records:
        raise ValueError("records is empty, expected one record or more.")
