"""What many edits, one on top of the other, do to a model and to each other."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import EditRecord
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.kept import kept_edit
from rome_lens.edit.artifact.written import keeping
from rome_lens.edit.methods.rome import rome
from rome_lens.errors import EditError, NotFiniteError
from rome_lens.evaluate.measuring import Method
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.evaluate.sequence_tables import EditSequence, Key, number_or_nan, tables
from rome_lens.evaluate.side_effects.perplexity import perplexity
from rome_lens.models import Model, find_output_matrix, model_identity, output_matrix
from rome_lens.storage import Journal, check_same, digest, open_journal, plain, read_journal

_KIND = "rome_lens sequence of edits 1"


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
def edit_sequence(
    model: Model,
    records: Sequence[EditRecord],
    method: Method = rome,
    *,
    out: str | os.PathLike[str] | None = None,
    checkpoints: Iterable[int] = (1, 10, 25, 50, 100),
    text: str | None = None,
    perplexity_tokens: int = 20_000,
    stop: StopRule | None = None,
    progress: bool = True,
) -> EditSequence:
    """Edits a model with one record after the other, each edit computed on the model as edited so far and kept applied.

    At the end, and when anything raises, the edited matrices are bit for bit what they were.

    With `out`, everything is saved as it is made: each edit as a file (00001.safetensors, ...), and what was
    measured in rows.jsonl. A sequence that was killed goes on from there when it is called again with the same
    arguments: saved edits are applied again and no row is measured twice. More records or checkpoints, or another stop
    rule, may be given as well. Another method is refused; what of it is compared, `score_edits` says.

    Args:
        model: is edited and put back.
        records: in the order of the edits.
        method: Makes an Edit of the model as edited so far and a request, for example `partial(rome, config=config)`.
        out: Folder for this sequence alone, made if missing; None: nothing is kept on disk.
        checkpoints: after how many edits all records edited so far are scored, and the perplexity measured. The last
            edit is always a checkpoint.
        text: what to measure the perplexity on; None: it is left out.
        perplexity_tokens: how many of its tokens are read; see `perplexity`.
        stop: ends the sequence early; None: never.
        progress: shows a bar.

    Returns:
        The tables. If an edit could not be computed or applied (EditError), the sequence ends before it, and `stopped`
        says so.

    Raises:
        ValueError: there are no records, or a checkpoint is below 1.
        FormatError: the folder was begun with other records, another method, another text, another model or other
            weights, or holds other files or damaged ones.
        UnavailableError: another run has the folder open, or its disk is full or may not be written to.
    """
    if not records:
        raise ValueError("records is empty, expected at least 1 EditRecord.")
    wanted = set(checkpoints)
    if any(checkpoint < 1 for checkpoint in wanted):
        raise ValueError(f"checkpoints are {sorted(wanted)}, expected numbers of edits from 1 on.")
    stop = StopRule() if stop is None else stop
    text_digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
    depends = {"text": text_digest, "perplexity_tokens": perplexity_tokens, "method": plain(method)}

    def perplexity_after(edits: int) -> float | None:
        if text is None:
            return None

        def measure() -> float | None:
            try:
                return perplexity(model, text, tokens=perplexity_tokens, progress=False)
            except NotFiniteError:
                return None

        return number_or_nan(rows.get("perplexity", edits, measure))

    def check_point(edits: int) -> float | None:
        rows.get("scores", edits, lambda: [_scores(model, record)[0] for record in records[:edits]])
        return perplexity_after(edits)

    stopped, done = "", 0
    originals: dict[int, Tensor] = {}
    with (
        open_journal(
            out, kind=_KIND, identity=depends if out is None else model_identity(model) | depends, read=_read
        ) as journal,
        ExitStack() as put_back,
        tqdm(total=len(records), desc="edits", disable=not progress) as bar,
    ):
        rows = _Rows(journal)
        for number, record in enumerate(records, start=1):
            rows.check("record", number, plain(record))
        base = perplexity_after(0)
        for number, record in enumerate(records, start=1):
            rows.get("base", number, partial(score_record, model, record))
        for number, record in enumerate(records, start=1):
            make = partial(method, model, record.request)
            try:
                edit = (
                    make() if out is None else kept_edit(Path(out) / f"{number:05}.safetensors", record.request, make)
                )
                for update in edit.updates:
                    if update.layer not in originals:
                        put_back.enter_context(keeping([find_output_matrix(model, update.layer)]))
                        originals[update.layer] = output_matrix(model, update.layer).clone()
                edit.apply(model)
            except EditError as error:
                stopped = f"edit {number} could not be computed: {error}"
                break
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
    return tables(rows.all, done, stopped)


@checked
def load_sequence(folder: str | os.PathLike[str]) -> EditSequence:
    """What `edit_sequence` has measured so far in a folder, without a model.

    Raises:
        FileNotFoundError: there is no sequence in this folder.
        FormatError: the file of rows holds something else.
    """
    rows = dict(read_journal(folder, kind=_KIND, read=_read))
    return tables(rows, max((number for kind, number in rows if kind == "edit"), default=0), "")


def _read(row: Mapping[str, Any]) -> tuple[Key, Any]:
    """A row by its kind and the number of edits."""
    return (str(row["kind"]), int(row["number"])), row["row"]


class _Rows:
    """What was measured, by kind and number of edits, on disk as soon as it is there."""

    def __init__(self, journal: Journal[tuple[Key, Any]]):
        self._journal = journal
        self.all: dict[Key, Any] = dict(journal.rows)

    def get(self, kind: str, number: int, measure: Callable[[], Any]) -> Any:
        """The row, measured now unless it was before."""
        if (kind, number) not in self.all:
            row = measure()
            self._journal.append({"kind": kind, "number": number, "row": row})
            self.all[kind, number] = row
        return self.all[kind, number]

    def check(self, kind: str, number: int, now: Any) -> None:
        """Raises FormatError if the row was another one before."""
        name = f"{kind} {number}"
        check_same(self._journal.folder, {name: self.get(kind, number, lambda: now)}, {name: now})


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
    scores, error = _scores(model, record)
    return {
        "case_id": record.case_id,
        "request": asdict(record.request),
        "norm_growth": {str(layer): value for layer, value in growth.items()},
        "scores": scores,
        "error": error,
        "health": edit.health.to_dict() if edit.health else {},
    }


def _scores(model: Model, record: EditRecord) -> tuple[dict[str, float], str]:
    """The scores; or none and why not, if edits have left a model whose output is not finite."""
    try:
        return score_record(model, record), ""
    except NotFiniteError as error:
        return {}, str(error)
