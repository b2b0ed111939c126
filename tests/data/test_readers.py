"""Fact sets are read in their original schemas; broken ones are refused with the record that is broken."""

import copy
import json
from pathlib import Path

import pytest
import torch

import rome_lens as rl
from rome_lens.data.records import EditRecord, EditRequest, Fact
from rome_lens.errors import FormatError
from rome_lens.models import logits, pad, run
from rome_lens.models.tokens import tokenize, tokenize_continuation

RECORD = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "français", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
    "attribute_prompts": ["J.R.R. Tolkien, a native"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
KNOWN = {
    "known_id": 3,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is in",
    "prediction": " Antarctica, and",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}


def write(folder: Path, content: object) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def without(record: dict, *path: str) -> dict:
    """The record without the field that a path of names leads to."""
    record = copy.deepcopy(record)
    inner = record
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return record


def test_a_counterfact_record_keeps_every_field(tmp_path):
    assert rl.load_counterfact(write(tmp_path, [RECORD])) == [
        EditRecord(
            request=EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
            target_true="français",
            paraphrase_prompts=("Danielle Darrieux, a native",),
            neighborhood_prompts=(
                "The mother tongue of Léon Blum is",
                "The native language of Montesquieu is",
            ),
            attribute_prompts=("J.R.R. Tolkien, a native",),
            generation_prompts=("Danielle Darrieux's mother tongue is",),
            case_id=7,
            relation="P103",
            target_id="Q1860",
        )
    ]


def test_records_keep_their_order(tmp_path):
    path = write(tmp_path, [{**RECORD, "case_id": number} for number in (5, 2, 9)])
    assert [record.case_id for record in rl.load_counterfact(path)] == [5, 2, 9]


def test_a_record_without_wikidatas_names_is_read(tmp_path):
    bare = without(without(RECORD, "requested_rewrite", "relation_id"), "requested_rewrite", "target_new", "id")
    (record,) = rl.load_counterfact(write(tmp_path, [bare]))
    assert (record.relation, record.target_id) == ("", "")


def test_a_known_fact_takes_its_answer_from_the_attribute(tmp_path):
    expected = Fact("{} is located in the continent of", "Vinson Massif", "Antarctica")
    assert rl.data.load_known_facts(write(tmp_path, [KNOWN])) == [expected]


def test_a_known_facts_prompt_counts_not_its_template(tmp_path):
    (fact,) = rl.data.load_known_facts(write(tmp_path, [{**KNOWN, "template": "{} and {}"}]))
    assert fact.text == KNOWN["prompt"]


def test_a_known_facts_subject_is_its_first_occurrence_in_the_prompt(tmp_path):
    record = {**KNOWN, "prompt": "Paris fans say Paris is", "subject": "Paris", "template": "Paris fans say {} is"}
    (fact,) = rl.data.load_known_facts(write(tmp_path, [record]))
    assert fact.prompt == "{} fans say Paris is"


@pytest.mark.parametrize(
    "field",
    [
        ("case_id",),
        ("requested_rewrite",),
        ("requested_rewrite", "prompt"),
        ("requested_rewrite", "subject"),
        ("requested_rewrite", "target_new"),
        ("requested_rewrite", "target_true", "str"),
    ],
)
def test_a_missing_field_is_told_with_the_records_index(tmp_path, field):
    path = write(tmp_path, [RECORD, RECORD, without(RECORD, *field)])
    with pytest.raises(FormatError, match=rf"Record 2 of .*data\.json lacks the field '{field[-1]}'"):
        rl.load_counterfact(path)


@pytest.mark.parametrize("field", ["prompt", "subject", "attribute"])
def test_a_missing_field_of_a_known_fact_is_told_with_the_records_index(tmp_path, field):
    with pytest.raises(FormatError, match=rf"Record 1 of .*data\.json lacks the field '{field}'"):
        rl.data.load_known_facts(write(tmp_path, [KNOWN, without(KNOWN, field)]))


@pytest.mark.parametrize("broken", [None, 3, "text", [RECORD], {**RECORD, "requested_rewrite": None}])
def test_a_record_of_another_shape_is_told_with_its_index(tmp_path, broken):
    with pytest.raises(FormatError, match="Record 1 of .* is broken"):
        rl.load_counterfact(write(tmp_path, [RECORD, broken]))


@pytest.mark.parametrize(
    ("field", "value"), [("subject", ""), ("prompt", "no place"), ("prompt", "{} {}"), ("target_new", {"str": " "})]
)
def test_a_record_with_an_unusable_value_is_told_with_its_index(tmp_path, field, value):
    broken = {**RECORD, "requested_rewrite": {**RECORD["requested_rewrite"], field: value}}
    with pytest.raises(FormatError, match=r"Record 0 of .* is broken: The (subject|prompt|target)"):
        rl.load_counterfact(write(tmp_path, [broken]))


def test_a_known_fact_whose_subject_is_not_in_its_prompt_is_told_with_its_index(tmp_path):
    with pytest.raises(FormatError, match="Record 0 of .* is broken: The subject 'Mont Blanc' is not in the prompt"):
        rl.data.load_known_facts(write(tmp_path, [{**KNOWN, "subject": "Mont Blanc"}]))


@pytest.mark.parametrize("read", [rl.load_counterfact, rl.data.load_known_facts])
@pytest.mark.parametrize(("content", "kind"), [({"records": []}, "dict"), ("text", "str"), (None, "NoneType")])
def test_a_file_that_holds_no_list_is_refused(tmp_path, read, content, kind):
    with pytest.raises(FormatError, match=f"holds a JSON {kind}, expected a list of records"):
        read(write(tmp_path, content))


@pytest.mark.parametrize("read", [rl.load_counterfact, rl.data.load_known_facts])
def test_a_truncated_file_is_refused(tmp_path, read):
    path = write(tmp_path, [RECORD, KNOWN])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match="is damaged or is not JSON"):
        read(path)


@pytest.mark.parametrize("read", [rl.load_counterfact, rl.data.load_known_facts])
def test_a_missing_file_is_told(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read(tmp_path / "none.json")


@pytest.mark.parametrize("read", [rl.load_counterfact, rl.data.load_known_facts])
def test_a_file_with_no_records_gives_none(tmp_path, read):
    assert read(write(tmp_path, [])) == []


# ------------------------------------------------------------------------------------------- the records that ship


@pytest.fixture(scope="module")
def builtin() -> list[EditRecord]:
    return rl.load_builtin_records()


def test_there_are_enough_builtin_records_of_enough_relations(builtin):
    assert len(builtin) >= 60
    assert len({record.relation for record in builtin}) >= 8


def test_builtin_records_have_the_prompts_that_scores_need(builtin):
    assert {len(record.paraphrase_prompts) for record in builtin} == {2}
    assert min(len(record.neighborhood_prompts) for record in builtin) >= 5
    assert min(len(record.generation_prompts) for record in builtin) >= 1


def test_builtin_case_ids_are_unique(builtin):
    assert len({record.case_id for record in builtin}) == len(builtin)


def test_builtin_records_change_something(builtin):
    assert all(record.request.target != record.target_true for record in builtin)


def test_builtin_records_ask_about_their_own_subject_only_where_they_should(builtin):
    for record in builtin:
        subject = record.request.subject
        assert all(subject in prompt for prompt in record.paraphrase_prompts + record.generation_prompts), subject
        assert not any(subject in prompt for prompt in record.neighborhood_prompts), subject


def test_builtin_prompts_are_distinct_and_do_not_end_in_spaces(builtin):
    for record in builtin:
        prompts = [record.request.text, *record.paraphrase_prompts, *record.neighborhood_prompts]
        assert len(set(prompts)) == len(prompts), record.case_id
        assert not any(prompt != prompt.strip() for prompt in prompts), record.case_id


@pytest.mark.smollm2
@torch.no_grad()
def test_smollm2_predicts_every_builtin_fact(smollm2, builtin):
    rows = [tokenize(smollm2, record.request.text).ids for record in builtin]
    tokens, mask = pad(rows)
    last = torch.tensor([len(row) - 1 for row in rows])
    residual = run(smollm2, tokens, mask=mask)[torch.arange(len(rows)), last]
    predicted = logits(smollm2, residual).argmax(-1).tolist()
    for record, token in zip(builtin, predicted, strict=True):
        text, start = tokenize_continuation(smollm2, record.request.text, record.target_true)
        assert token == text.ids[start], record.request.text
