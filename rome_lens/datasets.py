"""Readers for fact sets in their original schemas, and the fact set that ships with the package."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Literal, TypeVar

from rome_lens.checking import checked
from rome_lens.downloads import downloaded
from rome_lens.errors import DataWarning, FormatError, warn
from rome_lens.facts import Continuation, EditRecord, EditRequest, Fact, QuestionRecord, check_text, template_about
from rome_lens.reading import load_json

T = TypeVar("T")
_KNOWEDIT = ("wiki_recent", "wiki_counterfact")
_REASONS_SHOWN = 10


@checked
def load_counterfact(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> list[EditRecord]:
    """Reads CounterFact's JSON (paper section 3.4; `counterfact.json` of kmeng01/rome).

    Args:
        path: a file; None downloads the authors' once, into the user's cache.
        strict: whether a broken record is an error. If not, it is left out, and a DataWarning tells which and why.
        refresh: downloads the file again, although the cache has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `refresh` with a path.
        FormatError: not JSON, or a record lacks a field or has a broken one; the message tells which. Also if it is not
            strict and no record is whole.
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
    raw = load_json(path)
    if not isinstance(raw, list):
        raise FormatError(f"{path} holds a JSON {type(raw).__name__}, expected a list of records.")
    records: list[T] = []
    broken: dict[int, str] = {}
    for index, record in enumerate(raw):
        try:
            records.append(read(record, index))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            broken[index] = f"lacks the field {error}" if isinstance(error, KeyError) else f"is broken: {error}"
            if strict:
                raise FormatError(
                    f"Record {index} of {path} {broken[index]}. Is it another data set? strict=False leaves such "
                    "records out."
                ) from error
    if broken and not records:
        raise FormatError(f"None of the {len(raw)} records of {path} is whole: record 0 {broken[0]}.")
    if broken:
        reasons = "; ".join(f"record {index} {reason}" for index, reason in list(broken.items())[:_REASONS_SHOWN])
        more = f"; and the records {list(broken)[_REASONS_SHOWN:]}" if len(broken) > _REASONS_SHOWN else ""
        warn(f"Left out {len(broken)} of the {len(raw)} records of {path}: {reasons}{more}.", DataWarning)
    return records


def _counterfact_record(record: Mapping[str, Any], index: int) -> EditRecord:
    rewrite = record["requested_rewrite"]
    return EditRecord(
        request=EditRequest(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"]),
        target_true=rewrite["target_true"]["str"],
        paraphrase_prompts=tuple(record["paraphrase_prompts"]),
        neighborhood_prompts=tuple(record["neighborhood_prompts"]),
        attribute_prompts=tuple(record["attribute_prompts"]),
        generation_prompts=tuple(record["generation_prompts"]),
        case_id=record["case_id"],
        relation=rewrite.get("relation_id", ""),
        target_id=rewrite["target_new"].get("id", ""),
    )


def _known_fact(record: Mapping[str, Any], index: int) -> Fact:
    return Fact.from_text(record["prompt"], record["subject"], record["attribute"])


def _zsre_record(record: Mapping[str, Any], index: int, *, target: str) -> QuestionRecord:
    subject = record["subject"]
    check_text(record["rephrase"], "paraphrase")
    check_text(record["loc"], "locality question")
    check_text(record["loc_ans"], "locality answer")
    if not record["answers"]:
        raise ValueError("It has no answers.")
    written = record["alt"] if target == "alt" else record["answers"][0]
    return QuestionRecord(
        request=EditRequest(template_about(subject, record["src"]), subject, written),
        paraphrase_prompts=(record["rephrase"],),
        locality={"nq": (Continuation(record["loc"] + "?", record["loc_ans"]),)},
        case_id=index,
    )


def _knowedit_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    subject = record["subject"]
    return QuestionRecord(
        request=EditRequest(template_about(subject, record["prompt"]), subject, record["target_new"]),
        portability=_questions(record["portability"]),
        locality=_questions(record["locality"]),
        case_id=index,
    )


def _questions(kinds: Mapping[str, Any]) -> dict[str, tuple[Continuation, ...]]:
    found = {}
    for kind, questions in kinds.items():
        kept = []
        for question in questions:
            check_text(question["prompt"], f"{kind} prompt")
            aliases = [alias for answer in question["ground_truth"] for alias in answer if alias.strip()]
            kept += [Continuation(question["prompt"], alias) for alias in aliases[:1]]
        if kept:
            found[kind] = tuple(kept)
    return found


def _snippets(record: Mapping[str, Any], index: int) -> tuple[tuple[str, str], tuple[tuple[str, str], ...]]:
    pairs = tuple((sample["name"], sample["text"]) for sample in record["samples"])
    for _, text in pairs:
        check_text(text, "text")
    check_text(record["relation_id"], "relation_id")
    check_text(record["target_id"], "target_id")
    return (record["relation_id"], record["target_id"]), pairs
