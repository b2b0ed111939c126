"""The paper's scores of an edit on CounterFact-style records (paper section 3.4, Table 4)."""

from collections.abc import Callable, Sequence

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from rome_lens.edit.weights import Edit
from rome_lens.evaluate.scores import Continuation, mean_log_probabilities
from rome_lens.facts import EditRecord

BASE = "base"


def score_record(model: HookedTransformer, record: EditRecord) -> dict[str, float]:
    """The scores of a record on the model as it is.

    With p the geometric mean of a target's token probabilities after a prompt, and a record's prompts averaged:

    - ES, PS (efficacy and paraphrase success): share of prompts with p(new) > p(true), on the request's own prompt and
      on its paraphrases; EM, PM: p(new) - p(true).
    - NS, NM (neighbourhood): the same with new and true exchanged, on the neighbourhood prompts.

    A metric whose prompts the record lacks is left out. A tie is no success. Definitions: paper section 3.4;
    experiments/py/eval_utils_counterfact.py and experiments/summarize.py of kmeng01/rome, which also compare the mean
    over a target's tokens.

    Raises:
        ValueError: a prompt is longer than the model's context.
    """
    groups = {
        "E": [record.request.text],
        "P": list(record.paraphrase_prompts),
        "N": list(record.neighborhood_prompts),
    }
    prompts = [(group, prompt) for group, members in groups.items() for prompt in members]
    targets = (record.request.target, record.target_true)
    asked = [Continuation(prompt, target) for _, prompt in prompts for target in targets]
    p = mean_log_probabilities(model, asked).double().exp().view(-1, 2)
    scores: dict[str, float] = {}
    for group in groups:
        rows = [i for i, (member, _) in enumerate(prompts) if member == group]
        if rows:
            gain = (p[rows, 0] - p[rows, 1]) * (-1 if group == "N" else 1)
            scores |= {f"{group}S": (gain > 0).double().mean().item(), f"{group}M": gain.mean().item()}
    return scores


def score_records(
    model: HookedTransformer, records: Sequence[EditRecord], *, name: str = BASE, progress: bool = True
) -> pd.DataFrame:
    """Scores all records on the model as it is: before any edit, or inside `with edit.applied(model)` of a batch.

    Args:
        model: is run, not changed.
        records: what to score.
        name: of the model's state, in the result's column method.
        progress: shows a bar.

    Returns:
        A row for each record and metric, as `evaluate` gives it.

    Raises:
        ValueError: there are no records.
    """
    _check_records(records)
    bar = tqdm(records, desc=f"score {name}", unit="record", disable=not progress)
    return _frame([row for record in bar for row in _rows(record, name, score_record(model, record))])


def evaluate(
    model: HookedTransformer,
    records: Sequence[EditRecord],
    *,
    method: Callable[[EditRecord], Edit],
    name: str = "rome",
    progress: bool = True,
) -> pd.DataFrame:
    """Scores each record on the model as it is and on the model with the record's own edit.

    After each record the weights are bit for bit what they were, also if `method` or the scoring raises.

    Args:
        model: is edited and put back.
        records: each is edited alone.
        method: makes the edit for a record: `lambda record: rome(model, record.request)`.
        name: of the method, in the result.
        progress: shows a bar.

    Returns:
        A row for each record, method ("base" is the model before the edit) and metric, with the columns case_id,
        method, metric, value. The metrics are those of `score_record`.

    Raises:
        ValueError: there are no records, or `name` is "base".
    """
    _check_records(records)
    if name == BASE:
        raise ValueError(f"name is {BASE!r}, which stands for the model before the edit. Choose another name.")
    rows: list[Row] = []
    for record in tqdm(records, desc=f"evaluate {name}", unit="record", disable=not progress):
        rows += _rows(record, BASE, score_record(model, record))
        with method(record).applied(model):
            rows += _rows(record, name, score_record(model, record))
    return _frame(rows)


Row = tuple[int, str, str, float]


def _rows(record: EditRecord, method: str, scores: dict[str, float]) -> list[Row]:
    return [(record.case_id, method, metric, value) for metric, value in scores.items()]


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["case_id", "method", "metric", "value"])


def _check_records(records: Sequence[EditRecord]) -> None:
    if not records:
        raise ValueError("records is empty, expected one EditRecord or more.")
