"""The tables of a sequence of edits, from the rows that were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from rome_lens.checking import checked
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.evaluate.scoring import COLUMNS
from rome_lens.evaluate.summary import summarize

Key = tuple[str, int]


@checked
@dataclass(frozen=True)
class EditSequence:
    """What `edit_sequence` measured.

    Attributes:
        edits: a row for each record, in order: edit (counted from 1), case_id, subject, target, norm_growth, the scores
            of the record right after its batch (NaN if the model's output is not finite), problems (those of its
            batch's health, and why there are no scores), and the figures of that health.
        checkpoints: a row for each checkpoint: edits (how many were applied), perplexity (NaN without a text, or if the
            model's output is not finite), norm_growth, and the columns of `summarize` for the records edited so far;
            each score's mean on the model before the first edit, for the same records, as base_ES and so on. The row of
            0 edits is that model on all records.
        stopped: why the sequence ended before its last record; "" if it did not, and for what is read from a folder.
        edit: All edits as one, to be applied, saved and taken back; None if none was made, and for what is read from a
            folder.

    norm_growth is |W - W0| / |W0|, in Frobenius norms, of the edited matrix that has grown most: W as it is after the
    edit, W0 as it was before the first.
    """

    edits: pd.DataFrame
    checkpoints: pd.DataFrame
    stopped: str = ""
    edit: Edit | None = None


def number_or_nan(value: float | None) -> float:
    """A number of a row; where there was none, NaN."""
    return float("nan") if value is None else value


_NAMES = {"edit", "edits", "case_id", "subject", "target", "n", "failed", "perplexity", "norm_growth", "problems"}
_NAMES |= {each.name for each in fields(EditHealth)}


def check_names(scores: Mapping[str, float]) -> None:
    """Raises ValueError if the tables have a column of their own by the name of a score."""
    if taken := sorted(_NAMES & set(scores)):
        raise ValueError(
            f"The scorer's names {', '.join(taken)} are those of columns that a sequence's tables have anyway. Rename "
            "the scores."
        )


def tables(rows: Mapping[Key, Any], done: int, stopped: str, edit: Edit | None = None) -> EditSequence:
    """The tables of the first `done` edits, from rows by kind and number of edits."""
    edits = [(number, rows["edit", number]) for number in range(1, done + 1)]
    growth = {0: 0.0} | {number: max(row["norm_growth"].values(), default=0.0) for number, row in edits}
    table = [
        {"edit": number, "case_id": row["case_id"]}
        | {name: row["request"][name] for name in ("subject", "target")}
        | {"norm_growth": growth[number], **row["scores"]}
        | {"problems": "; ".join(_problems(row)), **row["health"]}
        for number, row in edits
    ]
    base = [row for (kind, _), row in sorted(rows.items()) if kind == "base"]
    scores = {0: base} | {number: row for (kind, number), row in sorted(rows.items()) if kind == "scores"}
    checkpoints = [
        {"edits": number, "perplexity": number_or_nan(rows.get(("perplexity", number))), "norm_growth": growth[number]}
        | _summary(each)
        | pd.DataFrame(base[: len(each)]).mean().add_prefix("base_").to_dict()
        for number, each in scores.items()
        if number <= done and each
    ]
    return EditSequence(pd.DataFrame(table), pd.DataFrame(checkpoints), stopped, edit)


def _problems(row: Mapping[str, Any]) -> list[str]:
    """What is wrong after an edit: with the edit itself, and with the model's output."""
    health = EditHealth(**row["health"]).problems if row["health"] else ()
    return [*health, *([row["error"]] if row.get("error") else [])]


def _summary(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The columns of `summarize`, for the scores of some records."""
    long = [(i, "", "", metric, value, "") for i, each in enumerate(scores) for metric, value in each.items()]
    long += [(i, "", "", "", float("nan"), "not finite") for i, each in enumerate(scores) if not each]
    (row,) = summarize(pd.DataFrame(long, columns=COLUMNS)).to_dict("records")
    return {str(name): value for name, value in row.items() if name not in ("method", "protocol")}
