"""MQuAKE (Zhong et al. 2023, arXiv 2305.14795), also as AKEW extends it, and MQuAKE-Remastered."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.cases import MultiHopRecord
from rome_lens.data.readers.reading import list_field, number_field, object_field, text_field
from rome_lens.data.records import EditRequest, Question


def mquake_record(record: Mapping[str, Any], index: int) -> MultiHopRecord:
    """A case: its edits, its questions with the new answer, and the single hops of the new path (as clozes)."""
    new, old = text_field(record["new_answer"], "new_answer"), text_field(record["answer"], "answer")
    aliases = _texts(record.get("new_answer_alias"), "new_answer_alias")
    return MultiHopRecord(
        tuple(_request(object_field(each, "rewrite")) for each in list_field(record["requested_rewrite"], "rewrites")),
        tuple(Question(text, new, aliases=aliases, instead=old) for text in _texts(record["questions"], "questions")),
        tuple(_hop(object_field(each, "hop")) for each in list_field(record["new_single_hops"], "new_single_hops")),
        number_field(record["case_id"], "case_id"),
    )


def _request(rewrite: Mapping[str, Any]) -> EditRequest:
    prompt, subject = (text_field(rewrite[name], name) for name in ("prompt", "subject"))
    return EditRequest(prompt, subject, _target(rewrite, "target_new"), true_answer=_target(rewrite, "target_true"))


def _target(rewrite: Mapping[str, Any], name: str) -> str:
    """MQuAKE nests the text; MQuAKE-Remastered writes it as target_new_str."""
    if (flat := rewrite.get(f"{name}_str")) is not None:
        return text_field(flat, f"{name}_str")
    return text_field(object_field(rewrite[name], name)["str"], name)


def _hop(hop: Mapping[str, Any]) -> Question:
    cloze, answer = text_field(hop["cloze"], "cloze"), text_field(hop["answer"], "answer")
    return Question(cloze, answer, aliases=_texts(hop.get("answer_alias"), "answer_alias"))


def _texts(value: Any, field: str) -> tuple[str, ...]:
    return tuple(text_field(text, field) for text in list_field([] if value is None else value, field))
