"""What many edits, one on top of the other, do to a model and to each other."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.edit.health import EditHealth
from rome_lens.edit.rome import rome
from rome_lens.edit.weights import Edit
from rome_lens.errors import EditError, FormatError
from rome_lens.evaluate.counterfact import score_record
from rome_lens.evaluate.perplexity import perplexity
from rome_lens.evaluate.records import Method
from rome_lens.evaluate.summary import summarize
from rome_lens.facts import EditRecord, EditRequest
from rome_lens.files import append_line, digest, read_lines
from rome_lens.models import Model, architecture_digest, kept_output_matrix, output_matrix
from rome_lens.reading import foreign

_ROWS = "rows.jsonl"


@checked
@dataclass(frozen=True)
class StopRule:
    """When a sequence ends before its last record.

    Attributes:
        unhealthy: after the first edit whose `health` has problems.
        perplexity_factor: after a checkpoint at which the perplexity is more than so many times that of the model
            before the first edit (or is not a number); None: never.
    """

    unhealthy: bool = False
    perplexity_factor: float | None = None

    def reason(self, health: EditHealth | None, perplexity: float | None, base: float | None) -> str:
        """Why to stop after an edit of this health, and, at a checkpoint, this perplexity; "" to go on."""
        if self.unhealthy and health is not None and health.problems:
            return f"the edit is unhealthy: {'; '.join(health.problems)}"
        if self.perplexity_factor is not None and perplexity is not None and base is not None:
            most = self.perplexity_factor * base
            if not perplexity <= most:
                return f"the perplexity is {perplexity:.4g}, more than {self.perplexity_factor:g} times {base:.4g}"
        return ""


@checked
@dataclass(frozen=True)
class EditSequence:
    """What `rome_sequence` measured.

    Attributes:
        edits: a row for each edit, in order: edit (from 1 on), case_id, subject, target, norm_growth, the scores of its
            own record right after it (as `score_record` names them), problems, and the figures of its health.
        checkpoints: a row for each checkpoint: edits (how many were applied), perplexity (NaN without a text),
            norm_growth, and the columns of `summarize` for the records edited so far; each score's mean on the model
            before the first edit, for the same records, as base_ES and so on. The row of 0 edits is that model on all
            records.
        stopped: why the sequence ended before its last record; "" if it did not, and for what is read from a folder.

    norm_growth is |W - W0| / |W0|, in Frobenius norms, of the edited layer that has grown most: W as it is after the
    edit, W0 as it was before the first.
    """

    edits: pd.DataFrame
    checkpoints: pd.DataFrame
    stopped: str = ""


def _rome(model: Model, request: EditRequest) -> Edit:
    return rome(model, request, progress=False)


@checked
def rome_sequence(
    model: Model,
    records: Sequence[EditRecord],
    *,
    out: str | os.PathLike[str],
    method: Method = _rome,
    checkpoints: Iterable[int] = (1, 10, 25, 50, 100),
    text: str | None = None,
    perplexity_tokens: int = 20_000,
    stop: StopRule | None = None,
    progress: bool = True,
) -> EditSequence:
    """Edits a model with one record after the other, each edit computed on the model as edited so far and kept applied.

    At the end, and when anything raises, the edited matrices are bit for bit what they were.

    Everything is saved in `out` as it is made: each edit as a safetensors file (00001.safetensors, ...), and what was
    measured in rows.jsonl. A sequence that was killed goes on from there when it is called again with the same
    arguments: saved edits are applied again and no row is measured twice. More records or checkpoints, or another stop
    rule, may be given as well; another method may not, and is not noticed.

    Args:
        model: is edited and put back.
        records: in the order of the edits.
        out: a folder for this sequence alone; made if it is missing.
        method: makes an edit for a request on the model as it is; `rome` with its defaults, or for example
            `lambda model, request: rome(model, request, config=config, progress=False)`.
        checkpoints: after how many edits all records edited so far are scored, and the perplexity measured. The last
            edit is always a checkpoint.
        text: what to measure the perplexity on; None: it is left out.
        perplexity_tokens: how many of its tokens are read; see `perplexity`.
        stop: ends the sequence early; None: never.
        progress: shows a bar.

    Returns:
        The tables. If an edit could not be computed (EditError), the sequence ends before it and `stopped` says so.

    Raises:
        ValueError: there are no records, or a checkpoint is below 1.
        FormatError: the folder holds the sequence of other records, another text or another model.
    """
    if not records:
        raise ValueError("records is empty, expected one EditRecord or more.")
    wanted = set(checkpoints)
    if any(checkpoint < 1 for checkpoint in wanted):
        raise ValueError(f"checkpoints are {sorted(wanted)}, expected numbers of edits from 1 on.")
    folder, stop = Path(out), StopRule() if stop is None else stop
    rows = _Rows(folder / _ROWS)
    text_digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
    rows.check("sequence", 0, [str(model.cfg.model_name), architecture_digest(model), text_digest, perplexity_tokens])

    def perplexity_after(edits: int) -> float | None:
        if text is None:
            return None
        measure = partial(perplexity, model, text, tokens=perplexity_tokens, progress=False)
        return rows.get("perplexity", edits, measure)

    def check_point(edits: int) -> float | None:
        rows.get("scores", edits, lambda: [score_record(model, record) for record in records[:edits]])
        return perplexity_after(edits)

    base = perplexity_after(0)
    for number, record in enumerate(records, start=1):
        rows.get("base", number, partial(score_record, model, record))
    stopped, done = "", 0
    originals: dict[int, Tensor] = {}
    with ExitStack() as put_back, tqdm(total=len(records), desc="edits", disable=not progress) as bar:
        for number, record in enumerate(records, start=1):
            try:
                edit = _saved(folder / f"{number:05}.safetensors", record.request, partial(method, model))
            except EditError as error:
                stopped = f"edit {number} could not be computed: {error}"
                break
            for update in edit.updates:
                if update.layer not in originals:
                    originals[update.layer] = put_back.enter_context(kept_output_matrix(model, update.layer))
            edit.apply(model)
            done = number
            rows.check("weights", number, [digest(output_matrix(model, layer)) for layer in originals])
            rows.get("edit", number, partial(_after, model, record, edit, originals))
            value = check_point(number) if number in wanted else None
            bar.update()
            if reason := stop.reason(edit.health, value, base):
                stopped = f"after edit {number}, {reason}"
                break
        if done:
            check_point(done)
    return _tables(rows.all, done, stopped)


@checked
def load_sequence(folder: str | os.PathLike[str]) -> EditSequence:
    """What `rome_sequence` has measured so far in a folder, without a model.

    Raises:
        FileNotFoundError: there is no sequence in this folder.
        FormatError: the file of rows holds something else.
    """
    path = Path(folder) / _ROWS
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, expected a folder that rome_sequence wrote.")
    rows = _Rows(path).all
    with foreign(path, "holds no rows of a sequence", "Choose another folder."):
        return _tables(rows, max((number for kind, number in rows if kind == "edit"), default=0), "")


class _Rows:
    """What was measured, by kind and number of edits, on disk as soon as it is there."""

    def __init__(self, path: Path):
        self._path = path
        read = read_lines(
            path, lambda entry: ((str(entry["kind"]), int(entry["number"])), entry["row"]), first_key="kind", what="row"
        )
        self.all: dict[tuple[str, int], Any] = dict(read)

    def get(self, kind: str, number: int, measure: Callable[[], Any]) -> Any:
        """The row, measured now unless it was before."""
        if (kind, number) not in self.all:
            row = measure()
            append_line(self._path, {"kind": kind, "number": number, "row": row})
            self.all[kind, number] = row
        return self.all[kind, number]

    def check(self, kind: str, number: int, now: Any) -> None:
        """Raises FormatError if the row was another one before."""
        if self.get(kind, number, lambda: now) != now:
            raise FormatError(
                f"{self._path} belongs to another sequence: {kind} {number} was {self.all[kind, number]} and is {now}. "
                "Choose another folder, or give the model, records and text that this one was begun with."
            )


def _saved(path: Path, request: EditRequest, make: Callable[[EditRequest], Edit]) -> Edit:
    """The edit in this file, or else a new one, saved there."""
    if not path.exists():
        make(request).save(path)
    edit = Edit.load(path)
    if edit.requests != (request,):
        raise FormatError(f"{path} holds the edit {edit}, expected one of {request}. Choose another folder.")
    return edit


def _after(
    model: Model,
    record: EditRecord,
    edit: Edit,
    originals: Mapping[int, Float[Tensor, "d_mlp d_model"]],
) -> dict[str, Any]:
    """What is measured after each edit."""
    growth = {
        layer: ((output_matrix(model, layer).detach().float() - old.float()).norm() / old.float().norm()).item()
        for layer, old in originals.items()
    }
    return {
        "case_id": record.case_id,
        "request": asdict(record.request),
        "norm_growth": {str(layer): value for layer, value in growth.items()},
        "scores": score_record(model, record),
        "health": edit.health.to_dict() if edit.health else {},
    }


def _tables(rows: Mapping[tuple[str, int], Any], done: int, stopped: str) -> EditSequence:
    edits = [(number, rows["edit", number]) for number in range(1, done + 1)]
    growth = {0: 0.0} | {number: max(row["norm_growth"].values(), default=0.0) for number, row in edits}
    table = [
        {"edit": number, "case_id": row["case_id"]}
        | {name: row["request"][name] for name in ("subject", "target")}
        | {"norm_growth": growth[number], **row["scores"]}
        | {"problems": "; ".join(EditHealth(**row["health"]).problems) if row["health"] else "", **row["health"]}
        for number, row in edits
    ]
    base = [row for (kind, _), row in sorted(rows.items()) if kind == "base"]
    scores = {0: base} | {number: row for (kind, number), row in sorted(rows.items()) if kind == "scores"}
    checkpoints = [
        {"edits": number, "perplexity": float(rows.get(("perplexity", number), "nan")), "norm_growth": growth[number]}
        | _summary(each)
        | pd.DataFrame(base[: len(each)]).mean().add_prefix("base_").to_dict()
        for number, each in scores.items()
        if number <= done and each
    ]
    return EditSequence(pd.DataFrame(table), pd.DataFrame(checkpoints), stopped)


def _summary(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The columns of `summarize`, for the scores of some records."""
    long = [(i, "", metric, value) for i, each in enumerate(scores) for metric, value in each.items()]
    (row,) = summarize(pd.DataFrame(long, columns=["case_id", "method", "metric", "value"])).to_dict("records")
    return {str(name): value for name, value in row.items() if name not in ("method", "failed")}
