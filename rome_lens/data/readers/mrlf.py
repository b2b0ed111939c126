"""MRLF-Bench: free texts to write into a model, with questions of four ranks about each (zeaoji/EvoEdit)."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.readers.qa import request_about
from rome_lens.data.readers.reading import list_field, needed_answer, object_field, of_type, text_field
from rome_lens.data.records import PLACE, EditRequest, Question, QuestionRecord

_BEGINNING = 3  # words


def mrlf_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """A text to write. The simplified fact (prompt, subject, target), if there is one, is what is edited; else `target`
    after `input`; else the rest of `doc` after its first three words. The questions are portability, by their rank.
    """
    kinds: dict[str, list[Question]] = {}
    for each in list_field(record["questions"], "questions"):
        asked = object_field(each, "question")
        rank = of_type(str, asked["Rank"], "Rank", "a text").strip()
        if not rank:
            raise ValueError("The Rank of a question is empty, expected 1, 2, 3 or 4.")
        answer = needed_answer(asked["answer"], "answer")
        kinds.setdefault(f"rank_{rank}", []).append(Question(text_field(asked["question"], "question"), answer.strip()))
    questions = {kind: tuple(found) for kind, found in sorted(kinds.items())}
    return QuestionRecord(_request(record), portability=questions, case_id=index)


def _request(record: Mapping[str, Any]) -> EditRequest:
    if {"prompt", "subject", "target"} <= record.keys():
        return request_about(record, "prompt", "target")
    if {"input", "target"} <= record.keys():
        given = text_field(record["input"], "input").strip()
        return EditRequest(PLACE, given, text_field(record["target"], "target").strip())
    words = text_field(record["doc"], "doc").split()
    if len(words) <= _BEGINNING:
        raise ValueError(f"The doc is {record['doc']!r}, expected more than {_BEGINNING} words.")
    return EditRequest(PLACE, " ".join(words[:_BEGINNING]), " ".join(words[_BEGINNING:]))
