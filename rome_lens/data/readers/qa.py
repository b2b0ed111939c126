"""Flat records of questions: QAEdit, EasyEdit's zsRE, KnowEdit's WikiBio, UltraEdit's files."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.readers.plain import knowedit_questions
from rome_lens.data.readers.reading import (
    first_answer,
    list_field,
    needed_answer,
    number_field,
    object_field,
    text_field,
)
from rome_lens.data.readers.zsre import nq_question
from rome_lens.data.records import Continuation, EditRequest, Question, QuestionRecord, template_about


def request_about(
    record: Mapping[str, Any], prompt: str, target: str, true: str | None = None, *, subject: str = "subject"
) -> EditRequest:
    """The request of a record, from the names of its fields; the true answer only where there is one."""
    about = text_field(record[subject], subject)
    known = first_answer(record[true], true) if true and record.get(true) is not None else None
    written = needed_answer(record[target], target)
    return EditRequest(template_about(about, text_field(record[prompt], prompt)), about, written, true_answer=known)


def paraphrases(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """The one paraphrase of a record, if it has one."""
    return () if record.get(field) is None else (text_field(record[field], field),)


def qaedit_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """QAEdit (Yang et al. 2025, arXiv 2502.11177). The authors' loader uses the first locality question alone."""
    asked = [object_field(each, "locality question") for each in list_field(record["locality"], "locality")]
    locality = tuple(Continuation(text_field(q["loc"], "loc"), needed_answer(q["loc_ans"], "loc_ans")) for q in asked)
    return QuestionRecord(
        request_about(record, "prompt", "target"),
        paraphrases(record, "rephrase"),
        locality={"nq": locality} if locality else {},
        case_id=number_field(record.get("id", index), "id"),
    )


def zsre_portability_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """EasyEdit's zsRE with a question one hop further (zsre_mend_eval_portability_gpt4); the target is `alt`."""
    return QuestionRecord(
        request_about(record, "src", "alt", "answers"),
        paraphrases(record, "rephrase"),
        portability={"one_hop": (one_hop(record),)},
        locality=nq_question(record),
        case_id=index,
    )


def one_hop(record: Mapping[str, Any]) -> Question:
    """The question of EasyEdit's `portability`, and EVOKE's, which also tells the answer before the edit."""
    asked = object_field(record["portability"], "portability")
    original = asked.get("Original Answer")
    return Question(
        text_field(asked["New Question"], "New Question"),
        needed_answer(asked["New Answer"], "New Answer"),
        instead=None if original is None else needed_answer(original, "Original Answer"),
    )


def wikibio_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """KnowEdit's WikiBio: the next sentence of a passage."""
    request = request_about(record, "text", "labels", subject="concept")
    return QuestionRecord(request, locality=knowedit_questions(record, "locality"), case_id=index)


def ultraedit_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """UltraEdit's files: UltraEditBench (prompt), zsRE (src) and WikiBigEdit (update)."""
    prompt = next(name for name in ("update", "src", "prompt") if name in record)
    rephrase = "rephrase_prompt" if prompt == "prompt" else "rephrase"
    asked = text_field(record["loc"], "loc")
    kept = Continuation(asked if asked.endswith("?") else f"{asked}?", needed_answer(record["loc_ans"], "loc_ans"))
    hop = record.get("mhop")
    hops = () if hop is None else (Question(text_field(hop, "mhop"), needed_answer(record["mhop_ans"], "mhop_ans")),)
    return QuestionRecord(
        request_about(record, prompt, "ans"),
        (*paraphrases(record, rephrase), *paraphrases(record, "personas")),
        portability={"multi_hop": hops} if hops else {},
        locality={"nq": (kept,)},
        case_id=index,
    )
