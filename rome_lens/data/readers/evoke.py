"""Records that extend CounterFact's: EVOKE, EasyEdit's CounterFact with portability, and its flat table of facts."""

from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.data.readers.counterfact import counterfact_record
from rome_lens.data.readers.qa import one_hop
from rome_lens.data.readers.reading import list_field, needed_answer, object_field, text_field
from rome_lens.data.records import EditRecord, EditRequest, Question, QuestionRecord


def evoke_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """EVOKE, evoke_main.json (Zhang et al., ICLR 2025; Acruxos/EVOKE)."""
    plain = counterfact_record(record, index)
    distracting = prompts(record, "prefix_distraction")
    return _extended(
        plain,
        {"multi_hop": (one_hop(record),)} if record.get("portability") else {},
        {
            "relation_specificity": _still_true(plain, plain.neighborhood_prompts),
            "prefix_distraction": _still_true(plain, distracting),
        },
    )


def evoke_subject_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """EVOKE, evoke_subj_spec.json: another fact about the same subject."""
    plain = counterfact_record(record, index)
    asked = object_field(record["relation_specificity"], "relation_specificity")
    answer = object_field(asked["answer"], "answer")
    question = Question(
        text_field(asked["prompt"], "relation_specificity prompt"),
        text_field(answer["value"], "answer value"),
        aliases=aliases_of(answer),
        instead=plain.request.target,
    )
    return _extended(plain, {}, {"subject_specificity": (question,)})


def counterfact_portability_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """EasyEdit's CounterFact with a question one hop further, other attribution, and distracting neighbours."""
    plain = counterfact_record(record, index)
    other = object_field(record["unrelated_relation"], "unrelated_relation")
    unrelated = Question(text_field(other["question"], "question"), needed_answer(other["object"], "object"))
    return _extended(
        plain,
        {"one_hop": (one_hop(record),)} if record.get("portability") else {},
        {
            "neighborhood": _still_true(plain, plain.neighborhood_prompts),
            "distracting_neighbor": _still_true(plain, prompts(record, "distracting_neighborhood_prompts")),
            "other_attribution": (unrelated,),
        },
    )


def counterfact_tracing_record(record: Mapping[str, Any], index: int) -> EditRecord:
    """NeelNanda/counterfact-tracing, whose texts begin with the space before them."""
    before, after = (str(record[name] or "") for name in ("relation_prefix", "relation_suffix"))
    subject, true, false = (
        text_field(record[name], name).strip() for name in ("subject", "target_true", "target_false")
    )
    space = " " if before and not before.endswith(" ") else ""
    request = EditRequest(f"{before}{space}{{}}{after}", subject, false, true_answer=true)
    return EditRecord(request, true, case_id=index, relation=str(record.get("relation_id") or ""))


def aliases_of(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """The other names of an answer, those that are not blank."""
    found = list_field(answer.get("aliases") or [], "aliases")
    return tuple(text_field(alias, "alias") for alias in found if str(alias).strip())


def prompts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(text_field(text, field) for text in list_field(record[field], field))


def _still_true(record: EditRecord, asked: Sequence[str]) -> tuple[Question, ...]:
    """Prompts that the true object still follows, and not the new one."""
    return tuple(Question(prompt, record.target_true, instead=record.request.target) for prompt in asked)


def _extended(
    plain: EditRecord, portability: Mapping[str, tuple[Question, ...]], locality: Mapping[str, tuple[Question, ...]]
) -> QuestionRecord:
    request = plain.request
    known = EditRequest(request.prompt, request.subject, request.target, true_answer=plain.target_true)
    kinds = {kind: questions for kind, questions in locality.items() if questions}
    return QuestionRecord(known, plain.paraphrase_prompts, dict(portability), kinds, plain.case_id)
