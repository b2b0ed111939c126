"""KnowEdit (Zhang et al. 2024, arXiv 2401.01286)."""

import os
from collections.abc import Mapping
from typing import Any

from rome_lens.checking import checked
from rome_lens.data.readers.reading import (
    file,
    first_answer,
    list_field,
    object_field,
    of_type,
    parse_records,
    text_field,
)
from rome_lens.data.records import Continuation, EditRequest, QuestionRecord, template_about

_KNOWEDIT = ("wiki_recent", "wiki_counterfact")


@checked
def load_knowedit(path: str | os.PathLike[str], *, strict: bool = True, refresh: bool = False) -> list[QuestionRecord]:
    """Reads KnowEdit's WikiData_recent or WikiData_counterfact (Zhang et al. 2024, arXiv 2401.01286).

    The kinds of portability and locality are the file's own (Subject_Aliasing, Reasoning, Logical_Generalization;
    Relation_Specificity, Forgetfulness). A question's answer is the first alias of its first answer, as in EasyEdit's
    examples/run_knowedit_llama2.py; a question without one is left out. A record's case_id is its index in the file.

    Args:
        path: A file; or "wiki_recent" or "wiki_counterfact", whose test sets are downloaded once into the user's cache.
        strict: As in `load_counterfact`, whose errors are raised here too.
        refresh: As in `load_counterfact`.
    """
    known = path in _KNOWEDIT
    return parse_records(file(None if known else path, str(path), refresh), knowedit_record, strict)


def knowedit_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """A record of KnowEdit's schema."""
    subject, rephrased = text_field(record["subject"], "subject"), record.get("rephrase_prompt")
    known = record.get("ground_truth")
    return QuestionRecord(
        request=EditRequest(
            template_about(subject, text_field(record["prompt"], "prompt")),
            subject,
            of_type(str, record["target_new"], "target_new", "a string"),
            true_answer=first_answer(known, "ground_truth") if known is not None else None,
        ),
        paraphrase_prompts=(text_field(rephrased, "rephrase_prompt"),) if rephrased is not None else (),
        portability=knowedit_questions(record, "portability"),
        locality=knowedit_questions(record, "locality"),
        case_id=index,
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
