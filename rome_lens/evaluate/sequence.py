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

from rome_lens.checking import check_positive, check_whole, checked, checked_result
from rome_lens.data.records import EditRecord, EditRequest
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.written import keeping
from rome_lens.edit.methods.memory import FactMemory
from rome_lens.edit.methods.rome import rome
from rome_lens.edit.search.targets import check_requests
from rome_lens.errors import EditError, NotFiniteError
from rome_lens.evaluate.measuring import Method, Record, Scorer, check_call, requests_of, scored
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.evaluate.scorers.zsre import score_zsre
from rome_lens.evaluate.sequence_edits import SequenceEdits, as_one
from rome_lens.evaluate.sequence_tables import EditSequence, Key, check_names, number_or_nan, tables
from rome_lens.evaluate.side_effects.perplexity import perplexity
from rome_lens.models import MlpMatrix, Model, find_matrix, model_identity
from rome_lens.models.tokens import check_unicode
from rome_lens.storage import Journal, check_same, digest, foreign, open_journal, plain, read_journal

_KIND = "rome_lens sequence of edits 1"
Originals = dict[tuple[int, MlpMatrix], Float[Tensor, "d_in d_out"]]


@checked_result
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

    def __post_init__(self) -> None:
        check_positive(self, "perplexity_factor")

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
    records: Sequence[Record],
    method: Method = rome,
    *,
    batch: int = 1,
    score: Scorer | None = None,
    out: str | os.PathLike[str] | None = None,
    checkpoints: Iterable[int] = (1, 10, 25, 50, 100),
    text: str | None = None,
    perplexity_tokens: int = 20_000,
    stop: StopRule | None = None,
    progress: bool = True,
) -> EditSequence:
    """Edits a model batch by batch: each edit is computed on the model as edited so far, and kept applied.

    A method with the argument `memory` (ultraedit, alphaedit, memit) gets an EditMemory that goes from batch to batch:
    the keys of earlier batches, or running statistics.

    At the end, and when anything raises, the edited matrices are bit for bit what they were.

    With `out`, everything is saved as it is made: each batch's edit as a file (00001.safetensors, ...), what the method
    keeps, and what was measured in rows.jsonl. A sequence that was killed goes on from there when it is called again
    with the same arguments: saved edits are applied again and no row is measured twice. More records (after whole
    batches) or checkpoints, or another stop rule, may be given as well. Another method is refused; what of it is
    compared, `score_edits` says.

    Args:
        model: is edited and put back.
        records: in the order of the edits.
        method: Makes an Edit of the model as edited so far and a request, for example `partial(rome, config=config)`;
            of a list of requests with a `batch` above 1 or where a record has several.
        batch: How many records are written at once; the last batch may be smaller.
        score: Scores a record: `score(model, record)`; None: `score_record` for EditRecords, `score_zsre` for others.
        out: Folder for this sequence alone, made if missing; None: nothing is kept on disk.
        checkpoints: after how many edits all records edited so far are scored, and the perplexity measured: after the
            batch that reaches this number. The last edit is always a checkpoint.
        text: what to measure the perplexity on; None: it is left out.
        perplexity_tokens: how many of its tokens are read; see `perplexity`.
        stop: ends the sequence early; None: never.
        progress: shows a bar.

    Returns:
        The tables, and all edits as one (None for memories, each of which has the facts of its batch). If an edit could
        not be computed or applied (EditError), the sequence ends before it, and `stopped` says so.

    Raises:
        TypeError: `score` cannot be called with a model and a record alone.
        ValueError: there are no records, a checkpoint or `batch` is below 1, two requests of a batch contradict each
            other, or a score has the name of a column of the tables.
    """
    if not records:
        raise ValueError("records is empty, expected at least 1 EditRecord.")
    wanted = set(checkpoints)
    if any(checkpoint < 1 for checkpoint in wanted):
        raise ValueError(f"checkpoints are {sorted(wanted)}, expected numbers of edits, at least 1.")
    check_whole(batch=batch, perplexity_tokens=perplexity_tokens)
    starts = range(0, len(records), batch)
    for start in starts:
        check_requests(_requests(records[start : start + batch]))
    stop = StopRule() if stop is None else stop
    check_unicode(text or "")
    text_digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
    depends = {"text": text_digest, "perplexity_tokens": perplexity_tokens, "method": plain(method)}
    depends |= {"batch": batch, "score": plain(score)}
    scorer: Scorer = score_record if isinstance(records[0], EditRecord) else score_zsre
    scorer = scorer if score is None else score
    check_call("score", scorer, "model", "record")

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
        rows.get("scores", edits, lambda: [_scores(scorer, model, record)[0] for record in records[:edits]])
        return perplexity_after(edits)

    stopped, done = "", 0
    made: list[Edit | FactMemory] = []
    originals: Originals = {}
    with (
        open_journal(
            out, kind=_KIND, identity=depends if out is None else model_identity(model) | depends, read=_read
        ) as journal,
        ExitStack() as put_back,
        tqdm(total=len(records), desc="edits", disable=not progress) as bar,
    ):
        rows = _Rows(journal)
        edits = SequenceEdits(model, method, None if out is None else Path(out), batch=batch)
        for number, record in enumerate(records, start=1):
            rows.check("record", number, plain(record))
        base = perplexity_after(0)
        for number, record in enumerate(records, start=1):
            check_names(rows.get("base", number, partial(scored, scorer, model, record)))
        for number, start in enumerate(starts, start=1):
            part = records[start : start + batch]
            try:
                edit = edits.get(number, _requests(part))
                if isinstance(edit, FactMemory):
                    put_back.enter_context(edit.applied(model))
                else:
                    _apply(model, edit, originals, put_back)
            except EditError as error:
                stopped = f"edit {start + 1} could not be computed: {error}"
                break
            made.append(edit)
            reached = {each for each in wanted if done < each <= start + len(part)}
            done = start + len(part)
            rows.check("weights", done, [digest(find_matrix(model, *place).values) for place in originals])
            growth = _growth(model, originals)
            for i, record in enumerate(part, start=start + 1):
                rows.get("edit", i, partial(_after, scorer, model, record, edit, growth))
                bar.update()
            value = check_point(done) if reached else None
            if reason := stop.reason(edit.health, value, base):
                stopped = f"after edit {done}, {reason}"
                break
        if done:
            check_point(done)
    return tables(rows.all, done, stopped, as_one(made))


@checked
def load_sequence(folder: str | os.PathLike[str]) -> EditSequence:
    """What `edit_sequence` has measured so far in a folder, without a model.

    Raises:
        FileNotFoundError: there is no sequence in this folder.
    """
    rows = dict(read_journal(folder, kind=_KIND, read=_read))
    with foreign(folder, "holds rows that belong to no sequence", "Measure it again in another folder."):
        return tables(rows, max((number for kind, number in rows if kind == "edit"), default=0), "")


def _apply(model: Model, edit: Edit, originals: Originals, put_back: ExitStack) -> None:
    """Applies an edit; matrices that none changed before are noted, to be put back."""
    for update in edit.updates:
        if (update.layer, update.matrix) not in originals:
            found = find_matrix(model, update.layer, update.matrix)
            put_back.enter_context(keeping([found]))
            originals[update.layer, update.matrix] = found.values.clone()
    edit.apply(model)


def _requests(records: Iterable[Record]) -> list[EditRequest]:
    """What a batch writes."""
    return [request for record in records for request in requests_of(record)]


def _read(row: Mapping[str, Any]) -> tuple[Key, Any]:
    """A row by its kind and the number of edits. Raises TypeError, ValueError or KeyError if it lacks what it needs."""
    kind, number, value = str(row["kind"]), int(row["number"]), row["row"]
    check_whole(least=0, number=number)
    scores = {"base": [value], "scores": value, "perplexity": [{kind: value}]}.get(kind, [])
    if kind == "edit":
        EditRequest(**value["request"])
        EditHealth(**({"update_norm": 0.0, "relative_update_norm": 0.0} | value["health"]))
        scores = [value["scores"], value["norm_growth"]]
        if not isinstance(error := value.get("error", ""), str):
            raise TypeError(f"the error is {error!r}, expected a text")
    for each in scores:
        if not all(isinstance(score, int | float | None) for score in each.values()):
            raise TypeError(f"the numbers are {str(each)[:80]}")
    return (kind, number), value


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


def _growth(model: Model, originals: Originals) -> dict[str, float]:
    """|W - W0| / |W0| of each edited matrix."""
    growth = {}
    for (layer, matrix), original in originals.items():
        old, new = original.float(), find_matrix(model, layer, matrix).values.float()
        growth[str(layer) if matrix == "out" else f"{layer}.{matrix}"] = ((new - old).norm() / old.norm()).item()
    return growth


def _after(
    score: Scorer, model: Model, record: Record, edit: Edit | FactMemory, growth: Mapping[str, float]
) -> dict[str, Any]:
    """What is measured after each edit."""
    scores, error = _scores(score, model, record)
    return {
        "case_id": record.case_id,
        "request": asdict(record.request),
        "norm_growth": dict(growth),
        "scores": scores,
        "error": error,
        "health": edit.health.to_dict() if edit.health else {},
    }


def _scores(score: Scorer, model: Model, record: Record) -> tuple[dict[str, float], str]:
    """The scores; or none and why not, if edits have left a model whose output is not finite."""
    try:
        return scored(score, model, record), ""
    except NotFiniteError as error:
        return {}, str(error)
