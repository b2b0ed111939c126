"""Questions with passages for answers: UnKEBench (TrustedLLM/UnKE) and EditEverything (jianghoucheng/AnyEdit)."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.readers.qa import paraphrases
from rome_lens.data.readers.reading import list_field, needed_answer, number_field, text_field
from rome_lens.data.records import PLACE, EditRequest, Question, QuestionRecord

SUB_QUESTION = "sub_question"


def long_answer_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """A question and a passage. No subject is named, so the whole question stands for it: its last token is edited by
    methods that edit a subject's, as the authors do.

    The questions about parts of the passage, which EditEverything lacks, are portability of one kind.
    """
    asked = list_field(record.get("sub_question", []), "sub_question")
    answers = list_field(record.get("sub_answer", []), "sub_answer")
    if len(asked) != len(answers):
        raise ValueError(f"There are {len(asked)} sub_questions and {len(answers)} sub_answers, expected as many.")
    parts = tuple(
        Question(text_field(question, "sub_question"), needed_answer(answer, "sub_answer"))
        for question, answer in zip(asked, answers, strict=True)
    )
    return QuestionRecord(
        EditRequest(
            PLACE, text_field(record["question"], "question").strip(), text_field(record["answer"], "answer").strip()
        ),
        paraphrases(record, "para_question"),
        portability={SUB_QUESTION: parts} if parts else {},
        case_id=number_field(record.get("id", index), "id"),
    )
