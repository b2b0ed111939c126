"""Flat records: KnowEdit's, EasyEdit's flat CounterFact, and tables of a user's own."""

import ast
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from rome_lens.data.readers.reading import (
    first_answer,
    list_field,
    needed_answer,
    number_field,
    object_field,
    text_field,
)
from rome_lens.data.records import Continuation, EditRequest, Question, QuestionRecord, template_about

_NAMES = {
    "prompt": "question template src",
    "subject": "entity",
    "target_new": "target new_target object_new new_object new_answer edit_target",
    "ground_truth": "target_true true_target true_answer target_old old_target old_answer object_true object_old",
    "rephrase_prompt": "rephrase rephrased paraphrase paraphrased paraphrase_prompt paraphrased_prompt",
    "neighborhood_prompt": "neighborhood neighbor neighbour neighbourhood neighbourhood_prompt",
    "locality_prompt": "locality_question loc",
    "locality_ground_truth": "locality_answer loc_ans loc_answer",
    "case_id": "id",
    "portability": "",
    "locality": "",
}
PLAIN_NAMES = {other: name for name, others in _NAMES.items() for other in (name, *others.split())}
"""What each column is for, by its names (docs/own_data.md lists them)."""
_SEVERAL = ("rephrase_prompt", "neighborhood_prompt")


def plain_name(column: str) -> str | None:
    """What a column is for; of those that hold several texts, plurals and numbers ("paraphrase_2") will do as well."""
    name = re.sub(r"[\s-]+", "_", str(column).strip().lower())
    several = PLAIN_NAMES.get(re.sub(r"s?(_?\d+)?$", "", name))
    return PLAIN_NAMES.get(name) or (several if several in _SEVERAL else None)


def plain_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """A record; a field that is missing, null, NaN or blank is one it does not have.

    The subject stands in the prompt, or {} does in its place. A paraphrase is a text or a list of texts, in a table as
    JSON or Python write one. What follows from the new fact, and what is to stay, is as in KnowEdit (by kind), or one
    locality_prompt with its answer, or neighborhood_prompts, which the true answer follows.
    """
    found: dict[str, list[tuple[str, Any]]] = {}
    for column in record:
        if name := plain_name(column):
            value = record[column]
            if not (value is None or value != value or value == ""):
                found.setdefault(name, []).append((column, value))
    for name, columns in found.items():
        if len(columns) > 1 and name not in _SEVERAL:
            names = " and ".join(column for column, _ in columns)
            raise ValueError(f"It has {names}, of which one is expected. Rename the other.")
    given = {name: columns[0][1] for name, columns in found.items()}
    subject = text_field(given["subject"], "subject").strip()
    prompt = template_about(subject, text_field(given["prompt"], "prompt"))
    target = needed_answer(given["target_new"], "target_new").strip()
    known = first_answer(given["ground_truth"], "ground_truth") if "ground_truth" in given else None
    request = EditRequest(prompt, subject, target, true_answer=known and known.strip())
    locality = dict(knowedit_questions(given, "locality"))
    if neighbours := _texts(found.get("neighborhood_prompt", ())):
        if known is None:
            raise ValueError("It has neighborhood prompts and no ground_truth, which is to follow them.")
        locality["neighborhood"] = tuple(Question(text, known, instead=target) for text in neighbours)
    if "locality_prompt" in given:
        answer = needed_answer(given["locality_ground_truth"], "locality_ground_truth")
        kept = Continuation(text_field(given["locality_prompt"], "locality_prompt"), answer)
        locality["neighborhood"] = (*locality.get("neighborhood", ()), kept)
    return QuestionRecord(
        request,
        _texts(found.get("rephrase_prompt", ())),
        portability=knowedit_questions(given, "portability"),
        locality=locality,
        case_id=number_field(given.get("case_id", index), "case_id"),
    )


def knowedit_questions(record: Mapping[str, Any], name: str) -> dict[str, tuple[Continuation, ...]]:
    """KnowEdit's questions by kind; those without an answer are left out."""
    found: dict[str, tuple[Continuation, ...]] = {}
    kinds = record.get(name)
    for kind, questions in object_field({} if kinds is None else kinds, name).items():
        kept = []
        for question in list_field([] if questions is None else questions, kind):
            prompt = text_field(object_field(question, f"question in {kind}")["prompt"], f"{kind} prompt")
            if answer := first_answer(question["ground_truth"], f"{kind} ground_truth"):
                kept.append(Continuation(prompt, answer))
        if kept:
            found[kind] = tuple(kept)
    return found


def _texts(columns: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """All texts of these columns, in their order."""
    return tuple(text_field(text, column) for column, value in columns for text in _listed(value))


def _listed(value: Any) -> list[Any]:
    """The value as a list: it is one, or it is the text of one, as a table's cell holds it, or it stands alone."""
    if isinstance(value, str) and value.strip().startswith("["):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # a text that begins with a bracket
            value = ast.literal_eval(value.strip())
    return value if isinstance(value, list) else [value]
