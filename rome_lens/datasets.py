"""Readers for fact sets in their original schemas, and the fact set that ships with the package."""

import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Literal, TypeVar

from rome_lens.checking import checked
from rome_lens.downloads import downloaded
from rome_lens.errors import DataWarning, FormatError, warn
from rome_lens.facts import Continuation, EditRecord, EditRequest, Fact, QuestionRecord, check_text, template_about
from rome_lens.record_files import read_records

T = TypeVar("T")
_KNOWEDIT = ("wiki_recent", "wiki_counterfact")
_REASONS_SHOWN = 10


@checked
def load_counterfact(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> list[EditRecord]:
    """Reads CounterFact's JSON (paper section 3.4; `counterfact.json` of kmeng01/rome).

    The prompts besides the request's own may be missing or null; then their scores are left out.

    Args:
        path: a file, a JSON list or JSON lines; None downloads the authors' once, into the user's cache.
        strict: whether a broken record is an error. If not, it is left out, and a DataWarning tells which and why.
        refresh: downloads the file again, although the cache has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `refresh` with a path.
        FormatError: not JSON, or a record lacks a field, has a broken one, or the case_id of another; the message tells
            which. Also if it is not strict and no record is whole.
        UnavailableError: there is no path, and the file cannot be downloaded.
    """
    return _records(_file(path, "counterfact", refresh), _counterfact_record, strict)


@checked
def load_known_facts(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> list[Fact]:
    """Reads the facts of the causal traces (paper section 2; `known_1000.json` of kmeng01/rome).

    The prompt is the record's `prompt` (its `template` is at times a shorter one), the answer its `attribute`. For the
    arguments and what is raised, see `load_counterfact`.
    """
    return _records(_file(path, "known_1000", refresh), _known_fact, strict)


@checked
def load_zsre(
    path: str | os.PathLike[str] | None = None,
    *,
    target: Literal["answers", "alt"] = "answers",
    strict: bool = True,
    refresh: bool = False,
) -> list[QuestionRecord]:
    """Reads zsRE as MEND's and ROME's evaluation use it (paper section 3.3; `zsre_mend_eval.json` of kmeng01/rome).

    A record asks `src`, with the subject's first occurrence as its place (the released code puts {} for each). Its
    paraphrase is `rephrase`; its locality question, of the kind "nq", is `loc` with a question mark, answered by
    `loc_ans` (dsets/zsre.py). A record's number is its place in the file. For the other arguments and what is raised,
    see `load_counterfact`.

    Args:
        target: what to write: the first of `answers`, as ROME's evaluation does; or `alt`, a wrong answer that some
            model gave, as MEND is trained on.
    """
    read = partial(_zsre_record, target=target)
    return _records(_file(path, "zsre_mend_eval", refresh), read, strict)


@checked
def load_knowedit(path: str | os.PathLike[str], *, strict: bool = True, refresh: bool = False) -> list[QuestionRecord]:
    """Reads KnowEdit's WikiData_recent or WikiData_counterfact (Zhang et al. 2024, arXiv 2401.01286).

    The kinds of portability and locality are the file's own (Subject_Aliasing, Reasoning, Logical_Generalization;
    Relation_Specificity, Forgetfulness). A question's answer is the first alias of its first answer, as in EasyEdit's
    examples/run_knowedit_llama2.py; a question without any is left out. A record's number is its place in the file.

    Args:
        path: a file; or "wiki_recent" or "wiki_counterfact", whose test sets are downloaded once, into the user's
            cache.
        strict, refresh: see `load_counterfact`, also for what is raised.
    """
    known = path in _KNOWEDIT
    return _records(_file(None if known else path, str(path), refresh), _knowedit_record, strict)


@checked
def load_builtin_records() -> list[EditRecord]:
    """The facts that ship with this package: SmolLM2-135M predicts each of them; CounterFact's schema."""
    with resources.as_file(resources.files("rome_lens") / "data" / "facts.json") as path:
        return load_counterfact(path)


@checked
@dataclass(frozen=True)
class AttributeSnippets:
    """Sentences about subjects that have a certain object in a relation, to compare a model's own texts with.

    Attributes:
        samples: for each relation and object (Wikidata's names, such as P101 and Q11190), (subject, sentence) pairs.
    """

    samples: Mapping[tuple[str, str], tuple[tuple[str, str], ...]]

    def texts(self) -> list[str]:
        """All sentences, in the file's order."""
        return [text for pairs in self.samples.values() for _, text in pairs]

    def about_target(self, relation: str, target_id: str) -> list[str]:
        """The sentences about subjects with this object; none if there are none."""
        return [text for _, text in self.samples.get((relation, target_id), ())]

    def about_subject(self, subject: str) -> list[str]:
        """The sentences about a subject, under whatever relation and object; none if there are none."""
        return [text for pairs in self.samples.values() for name, text in pairs if name == subject]


@checked
def load_attribute_snippets(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> AttributeSnippets:
    """Reads texts about objects for the consistency score (paper section 3.4; `attribute_snippets.json`).

    For the arguments and what is raised, see `load_counterfact`.
    """
    found: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    for key, pairs in _records(_file(path, "attribute_snippets", refresh), _snippets, strict):
        found[key] = (*found.get(key, ()), *pairs)
    return AttributeSnippets(found)


def _file(path: str | os.PathLike[str] | None, name: str, refresh: bool) -> str | os.PathLike[str]:
    """The path, or if there is none, the file of the data set `name` that is downloaded."""
    if path is None:
        return downloaded(name, refresh=refresh)
    if refresh:
        raise ValueError(f"refresh=True fetches a data set again, but a file was given: {path}. Leave one of them out.")
    return path


def _records(path: str | os.PathLike[str], read: Callable[[Mapping[str, Any], int], T], strict: bool) -> list[T]:
    """What `read` makes of each record and its index."""
    raw = read_records(path)
    if not isinstance(raw, list):
        raise FormatError(f"{path} holds a JSON {type(raw).__name__}, expected a list of records.")
    records: dict[int, T] = {}
    broken: dict[int, str] = {}
    for index, record in enumerate(raw):
        try:
            records[index] = read(_mapping(record, "record"), index)
        except KeyError as error:
            broken[index] = f"lacks the field {error}"
        except (TypeError, ValueError) as error:
            broken[index] = f"is broken: {error}"
    numbered: dict[int, int] = {}
    for index, made in records.items():
        if isinstance(made, EditRecord) and (first := numbered.setdefault(made.case_id, index)) != index:
            broken[index] = f"has the case_id {made.case_id} of record {first}"
    if broken and strict:
        index, reason = next(iter(broken.items()))
        raise FormatError(
            f"Record {index} of {path} {reason}. Is it another data set? strict=False leaves such records out."
        )
    records = {index: made for index, made in records.items() if index not in broken}
    if broken and not records:
        raise FormatError(f"None of the {len(raw)} records of {path} is whole: record 0 {broken[0]}.")
    if broken:
        reasons = "; ".join(f"record {index} {reason}" for index, reason in list(broken.items())[:_REASONS_SHOWN])
        more = f"; and the records {list(broken)[_REASONS_SHOWN:]}" if len(broken) > _REASONS_SHOWN else ""
        warn(f"Left out {len(broken)} of the {len(raw)} records of {path}: {reasons}{more}.", DataWarning)
    return list(records.values())


def _counterfact_record(record: Mapping[str, Any], index: int) -> EditRecord:
    rewrite = _mapping(record["requested_rewrite"], "requested_rewrite")
    prompt, subject = (_text(rewrite[name], name) for name in ("prompt", "subject"))
    new, true = (_mapping(rewrite[name], name) for name in ("target_new", "target_true"))
    return EditRecord(
        request=EditRequest(prompt, subject, _text(new["str"], "target_new")),
        target_true=_text(true["str"], "target_true"),
        paraphrase_prompts=_prompts(record, "paraphrase_prompts"),
        neighborhood_prompts=_prompts(record, "neighborhood_prompts"),
        attribute_prompts=_prompts(record, "attribute_prompts"),
        generation_prompts=_prompts(record, "generation_prompts"),
        case_id=_number(record["case_id"], "case_id"),
        relation=_name(rewrite, "relation_id"),
        target_id=_name(new, "id"),
    )


def _known_fact(record: Mapping[str, Any], index: int) -> Fact:
    prompt, subject, answer = (_text(record[name], name) for name in ("prompt", "subject", "attribute"))
    return Fact.from_text(prompt, subject, answer)


def _zsre_record(record: Mapping[str, Any], index: int, *, target: str) -> QuestionRecord:
    subject = _text(record["subject"], "subject")
    written = _first_answer(record[target], target)
    if written is None:
        raise ValueError(f"It has no {target}.")
    return QuestionRecord(
        request=EditRequest(template_about(subject, _text(record["src"], "src")), subject, written),
        paraphrase_prompts=(_text(record["rephrase"], "paraphrase"),) if record.get("rephrase") is not None else (),
        locality=_nq_question(record),
        case_id=index,
    )


def _nq_question(record: Mapping[str, Any]) -> dict[str, tuple[Continuation, ...]]:
    """zsRE's question about something else, if the record has one."""
    if record.get("loc") is None and record.get("loc_ans") is None:
        return {}
    answer = _first_answer(record["loc_ans"], "loc_ans")
    if answer is None:
        raise ValueError(f"The locality answer is empty (loc_ans: {reprlib.repr(record['loc_ans'])}).")
    return {"nq": (Continuation(_text(record["loc"], "locality question") + "?", answer),)}


def _knowedit_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    subject, rephrased = _text(record["subject"], "subject"), record.get("rephrase_prompt")
    return QuestionRecord(
        request=EditRequest(
            template_about(subject, _text(record["prompt"], "prompt")),
            subject,
            _of(str, record["target_new"], "target_new", "a string"),
        ),
        paraphrase_prompts=(_text(rephrased, "rephrase_prompt"),) if rephrased is not None else (),
        portability=_questions(record, "portability"),
        locality=_questions(record, "locality"),
        case_id=index,
    )


def _questions(record: Mapping[str, Any], name: str) -> dict[str, tuple[Continuation, ...]]:
    """KnowEdit's questions by kind; those without an answer are left out."""
    found: dict[str, tuple[Continuation, ...]] = {}
    kinds = record.get(name)
    for kind, questions in _mapping({} if kinds is None else kinds, name).items():
        kept = []
        for question in _list([] if questions is None else questions, kind):
            prompt = _text(_mapping(question, f"question in {kind}")["prompt"], f"{kind} prompt")
            if answer := _first_answer(question["ground_truth"], f"{kind} ground_truth"):
                kept.append(Continuation(prompt, answer))
        if kept:
            found[kind] = tuple(kept)
    return found


def _snippets(record: Mapping[str, Any], index: int) -> tuple[tuple[str, str], tuple[tuple[str, str], ...]]:
    samples = [_mapping(sample, "sample") for sample in _list(record["samples"], "samples")]
    pairs = tuple((_text(sample["name"], "name"), _text(sample["text"], "text")) for sample in samples)
    return (_text(record["relation_id"], "relation_id"), _text(record["target_id"], "target_id")), pairs


def _first_answer(value: Any, field: str) -> str | None:
    """The first answer that is not blank of "x", ["x", ...] or [["x", an alias, ...], ...]; None if there is none."""
    answers = value if isinstance(value, list) else [value]
    aliases = [alias for answer in answers for alias in (answer if isinstance(answer, list) else [answer])]
    texts = [_of(str, alias, field, "a text, a list of texts or a list of lists of texts") for alias in aliases]
    return next((text for text in texts if text.strip()), None)


def _prompts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts that may be missing."""
    value = record.get(field)
    return () if value is None else tuple(_text(text, field) for text in _list(value, field))


def _name(record: Mapping[str, Any], field: str) -> str:
    """A name of Wikidata's that may be missing."""
    value = record.get(field)
    return "" if value is None else _of(str, value, field, "a string")


def _text(value: Any, field: str) -> str:
    check_text(_of(str, value, field, "a string"), field)
    return value


def _number(value: Any, field: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"The {field} is {value!r}, expected a whole number.")
    return _of(int, value, field, "a whole number")


def _list(value: Any, field: str) -> list[Any]:
    return _of(list, value, field, "a list")


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    return _of(dict, value, field, "an object with named fields")


def _of(kind: type[T], value: Any, field: str, what: str) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"The {field} is {reprlib.repr(value)}, expected {what}.")
    return value
