"""The question bank holds what `recommend_layers` asks for."""

from collections import Counter

from rome_lens.data.readers.question_bank import load_question_bank


def test_the_bank_has_enough_facts_that_can_be_scored():
    records = load_question_bank()
    relations = Counter(record.relation for record in records)
    assert len(records) == 338  # as its docstring says
    assert len(relations) == 17
    assert len({record.case_id for record in records}) == len({record.request.text for record in records}) == 338
    for record in records:
        assert record.request.target != record.target_true
        assert len(record.paraphrase_prompts) == 2
        assert record.neighborhood_prompts
        assert record.request.text not in record.neighborhood_prompts
        assert all(record.request.subject in prompt for prompt in record.paraphrase_prompts)


def test_neighbours_have_the_true_object_and_attribute_prompts_the_new_one():
    records = load_question_bank()
    objects = {record.request.text: record.target_true for record in records}
    for record in records:
        assert {objects[prompt] for prompt in record.neighborhood_prompts} == {record.target_true}
        assert {objects[prompt] for prompt in record.attribute_prompts} == {record.request.target}
