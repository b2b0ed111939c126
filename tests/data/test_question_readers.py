"""zsRE, KnowEdit and attribute snippets are read in their original schemas."""

import pytest

import rome_lens as rl
from rome_lens.data.records import Continuation, EditRequest, QuestionRecord
from rome_lens.errors import FormatError
from tests.data.test_readers import without, write

ZSRE = {
    "subject": "Vueling",
    "src": "What company is Vueling part of? Vueling is part of",
    "pred": "Barclay, Curle",
    "rephrase": "To which company is Vueling?",
    "alt": "Vueling Holdings",
    "answers": ["International Airlines Group", "IAG"],
    "loc": "nq question: who plays gram",
    "loc_ans": "Max Shippee",
    "cond": "",
}
KNOWEDIT = {
    "subject": "Claire Froggatt",
    "prompt": "The number of children Claire Froggatt has is",
    "target_new": "3",
    "portability": {
        "Reasoning": [{"prompt": "Her brother has", "ground_truth": [["two nieces", "2 nieces"], ["cousins"]]}],
        "Subject_Aliasing": [{"prompt": "Mrs Froggatt has", "ground_truth": []}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Her spouse is", "ground_truth": [[], ["Paul Scholes", "Paul Aaron Scholes"]]},
            {"prompt": "Her gender is", "ground_truth": [[" ", "female"]]},
            {"prompt": "Her car is", "ground_truth": [[]]},
        ]
    },
}
SNIPPETS = {
    "relation_id": "P101",
    "target_id": "Q11190",
    "samples": [
        {"name": "Galen", "target": "medicine", "text": "Galen wrote on medicine."},
        {"name": "Paracelsus", "target": "medicine", "text": "Paracelsus saw medicine as an art."},
    ],
}
READERS = [(rl.data.load_zsre, ZSRE), (rl.data.load_knowedit, KNOWEDIT), (rl.data.load_attribute_snippets, SNIPPETS)]


def test_a_zsre_record_takes_the_first_answer_and_asks_the_locality_question(tmp_path):
    """The released code's reading: the first answer counts, and the question gets the mark that the file leaves out."""
    records = rl.data.load_zsre(write(tmp_path, [ZSRE, ZSRE]))
    assert records[1] == QuestionRecord(
        request=EditRequest(
            "What company is {} part of? Vueling is part of", "Vueling", "International Airlines Group"
        ),
        paraphrase_prompts=("To which company is Vueling?",),
        locality={"nq": (Continuation("nq question: who plays gram?", "Max Shippee"),)},
        case_id=1,
    )
    assert records[0].case_id == 0


def test_a_zsre_record_can_take_the_alternative_that_mend_is_trained_on(tmp_path):
    path = write(tmp_path, [ZSRE])
    (answered,), (alternative,) = rl.data.load_zsre(path), rl.data.load_zsre(path, target="alt")
    assert alternative.request.target == "Vueling Holdings"
    assert alternative.request.text == answered.request.text
    assert (alternative.paraphrase_prompts, alternative.locality) == (answered.paraphrase_prompts, answered.locality)
    with pytest.raises(FormatError, match="lacks the field 'alt'"):
        rl.data.load_zsre(write(tmp_path, [without(ZSRE, "alt")]), target="alt")


def test_a_knowedit_question_has_its_first_alias_and_none_without_an_answer_is_kept(tmp_path):
    (record,) = rl.data.load_knowedit(write(tmp_path, [KNOWEDIT]))
    assert record.request == EditRequest("The number of children {} has is", "Claire Froggatt", "3")
    assert record.portability == {"Reasoning": (Continuation("Her brother has", "two nieces"),)}
    assert record.locality == {
        "Relation_Specificity": (
            Continuation("Her spouse is", "Paul Scholes"),
            Continuation("Her gender is", "female"),
        )
    }


def test_snippets_are_found_by_object_and_by_subject(tmp_path):
    more = {**SNIPPETS, "samples": [{"name": "Galen", "target": "medicine", "text": "Galen healed."}]}
    other = {**SNIPPETS, "target_id": "Q5", "samples": [{"name": "Galen", "target": "men", "text": "Galen was a man."}]}
    snippets = rl.data.load_attribute_snippets(write(tmp_path, [SNIPPETS, more, other]))
    about = ["Galen wrote on medicine.", "Paracelsus saw medicine as an art.", "Galen healed."]
    assert snippets.about_target("P101", "Q11190") == about
    assert snippets.about_subject("Galen") == ["Galen wrote on medicine.", "Galen healed.", "Galen was a man."]
    assert snippets.texts() == [*about, "Galen was a man."]
    assert snippets.about_target("P101", "Q6") == snippets.about_subject("Hippocrates") == []


@pytest.mark.parametrize(
    ("read", "record", "field"),
    [(rl.data.load_zsre, ZSRE, field) for field in ("subject", "src", "answers", "loc", "loc_ans")]
    + [(rl.data.load_knowedit, KNOWEDIT, field) for field in ("subject", "prompt", "target_new")]
    + [(rl.data.load_attribute_snippets, SNIPPETS, field) for field in ("relation_id", "target_id", "samples")],
)
def test_a_missing_field_is_told_with_the_records_index(tmp_path, read, record, field):
    with pytest.raises(FormatError, match=f"Record 1 of .* lacks the field '{field}'"):
        read(write(tmp_path, [record, without(record, field)]))


@pytest.mark.parametrize(
    ("read", "broken", "reason"),
    [
        (rl.data.load_zsre, {**ZSRE, "answers": []}, "It has no answers"),
        (rl.data.load_zsre, {**ZSRE, "src": "Who?"}, "The subject 'Vueling' is not in the prompt"),
        (rl.data.load_zsre, {**ZSRE, "loc_ans": ""}, "The locality answer is empty"),
        (
            rl.data.load_knowedit,
            {**KNOWEDIT, "target_new": " "},
            "The target_new is ' ', expected a text",
        ),
        (
            rl.data.load_knowedit,
            {**KNOWEDIT, "locality": {"a": [{"prompt": "", "ground_truth": []}]}},
            "The a prompt is",
        ),
        (rl.data.load_attribute_snippets, {**SNIPPETS, "samples": [{"name": "x", "text": ""}]}, "The text is empty"),
    ],
)
def test_a_broken_record_is_told_or_left_out_with_its_reason(tmp_path, read, broken, reason):
    path = write(tmp_path, [broken, *(record for reader, record in READERS if reader is read)])
    with pytest.raises(FormatError, match=f"Record 0 of .* is broken: {reason}"):
        read(path)
    with pytest.warns(rl.errors.DataWarning, match=rf"Left out 1 of the 2 records of .*: record 0 is broken: {reason}"):
        kept = read(path, strict=False)
    assert len(kept.texts() if read is rl.data.load_attribute_snippets else kept) == (2 if "samples" in broken else 1)


def test_many_broken_records_are_all_named(tmp_path):
    path = write(tmp_path, [*[3] * 12, ZSRE])
    with pytest.warns(rl.errors.DataWarning) as caught:
        assert [record.case_id for record in rl.data.load_zsre(path, strict=False)] == [12]
    text = str(caught[0].message)
    assert text.startswith("Left out 12 of the 13 records")
    assert text.count("is broken: ") == 10
    assert text.endswith("and the records [10, 11].")


@pytest.mark.parametrize("read", [reader for reader, _ in READERS])
def test_a_file_without_a_whole_record_is_another_data_set(tmp_path, read):
    with pytest.raises(FormatError, match="None of the 2 records of .* is whole: record 0 "):
        read(write(tmp_path, [{}, {}]), strict=False)


def test_the_locality_prompt_of_flat_counterfact_is_kept_by_every_reader(tmp_path):
    flat = {"case_id": 4, "prompt": "Rome is in", "subject": "Rome", "target_new": "Spain", "ground_truth": "Italy"}
    flat |= {"rephrase_prompt": "Rome lies in", "locality_prompt": "Milan is in", "locality_ground_truth": "Italy"}
    path = write(tmp_path, [flat])
    (record,) = rl.data.load_knowedit(path)
    assert record.locality == {"neighborhood": (Continuation("Milan is in", "Italy"),)}
    assert [record] == rl.load_records(path)
