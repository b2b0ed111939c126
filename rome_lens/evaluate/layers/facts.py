"""Facts that a model knows: some to trace, others to edit."""

from collections.abc import Sequence

import numpy as np

from rome_lens.data.records import Continuation, EditRecord
from rome_lens.evaluate.likelihood import predict_tokens
from rome_lens.models import Model


def known_records(model: Model, records: Sequence[EditRecord]) -> list[EditRecord]:
    """The records whose true object the model says: each of its tokens is the model's top one."""
    asked = [Continuation(each.request.text, each.target_true, space=each.request.space) for each in records]
    predictions = predict_tokens(model, asked) if asked else []
    return [record for record, said in zip(records, predictions, strict=True) if said.accuracy == 1]


def to_trace_and_edit(
    known: Sequence[EditRecord], *, traced: int, edited: int, seed: int
) -> tuple[list[EditRecord], list[EditRecord]]:
    """Records drawn at random: at most `traced` to trace, and at most `edited`, about other subjects, to edit.

    Where too few are known, half of them are edited.
    """
    order = np.random.RandomState(seed).permutation(len(known))
    drawn = [known[i] for i in order]
    count = min(edited, len(drawn) // 2)
    to_edit, rest = drawn[:count], drawn[count:]
    subjects = {record.request.subject for record in to_edit}
    return [record for record in rest if record.request.subject not in subjects][:traced], to_edit
