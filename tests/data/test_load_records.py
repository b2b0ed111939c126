"""One reader recognises the published schemas: small records of our own making, whole and damaged."""

import json
import logging
import re
import warnings
from copy import deepcopy

import pandas as pd
import pytest

import rome_lens as rl
from rome_lens.data.cases import MultiHopRecord, RippleQuery, RippleRecord, RippleTest
from rome_lens.data.readers.recognising import SCHEMAS, load_records
from rome_lens.data.records import Continuation, EditRequest, Question, QuestionRecord

REWRITE = {
    "prompt": "{} plays the",
    "subject": "Ann Lee",
    "target_new": {"str": "oboe", "id": "Q1"},
    "target_true": {"str": "harp", "id": "Q2"},
    "relation_id": "P1",
}
REQUEST = EditRequest("{} plays the", "Ann Lee", "oboe", true_answer="harp")
HOP = {"Recalled Relation": "", "New Question": "Ann Lee blows a", "New Answer": "reed", "Original Answer": "string"}
COUNTERFACT = {"case_id": 4, "requested_rewrite": REWRITE, "neighborhood_prompts": ["Bob plays the"]}
KEPT = (Question("Bob plays the", "harp", instead="oboe"),)
NQ = {"nq": (Continuation("nq question: who?", "Bob"),)}
FLAT = {"subject": "Ann Lee", "prompt": "Ann Lee plays the", "rephrase": "What does Ann Lee play?"}
QUERY = {"prompt": "Her mother is", "answers": [{"value": "Eve", "aliases": ["Eva", ""]}]}
RIPPLE = {
    "example_type": "popular",
    "edit": {"prompt": "The name of the employer of Ann Lee is Acme."},
    "Relation_Specifity": [{"test_queries": [QUERY], "test_condition": "AND", "condition_queries": [QUERY]}],
    **{axis: [] for axis in ("Logical_Generalization", "Subject_Aliasing", "Forgetfulness")},
    **{axis: [] for axis in ("Compositionality_I", "Compositionality_II")},
}
EVE = RippleQuery("Her mother is", (("Eve", "Eva"),))
HALLU = {
    "subject": "Ann Lee",
    "object": "oboe",
    "question": "What does Ann Lee play?",
    "output_some_model": "harp",
    "multiple_choices": "['oboe', 'harp']",
    "paraphrased_question": "Which instrument does Ann Lee play?",
    "multiple_choice_with_letters": "A. harp  B. oboe",
    "multiple_choice_labels": "B",
    "yes_question": "Does she play the oboe?",
    "no_question": "Does she play the harp?",
    "locality_question": "Where was she born?",
    "reversed_relation_question": "Who plays the oboe?",
    "question_2hop": "What does she blow?",
    "answer_2hop": "a reed",
}
MQUAKE = {
    "case_id": 9,
    "requested_rewrite": [REWRITE],
    "questions": ["What is blown by her?"],
    "answer": "nothing",
    "new_answer": "reed",
    "new_answer_alias": ["cane"],
    "new_single_hops": [{"question": "?", "cloze": "Ann Lee plays the", "answer": "oboe", "answer_alias": []}],
}
CASES = {
    "CounterFact": (
        COUNTERFACT,
        rl.EditRecord(
            EditRequest("{} plays the", "Ann Lee", "oboe"),
            "harp",
            neighborhood_prompts=("Bob plays the",),
            case_id=4,
            relation="P1",
            target_id="Q1",
        ),
    ),
    "EVOKE": (
        COUNTERFACT | {"prefix_distraction": ["Ann Lee plays the oboe. Bob plays the"], "portability": HOP},
        QuestionRecord(
            REQUEST,
            portability={"multi_hop": (Question("Ann Lee blows a", "reed", instead="string"),)},
            locality={
                "relation_specificity": KEPT,
                "prefix_distraction": (Question("Ann Lee plays the oboe. Bob plays the", "harp", instead="oboe"),),
            },
            case_id=4,
        ),
    ),
    "EVOKE, subject specificity": (
        {
            "case_id": 4,
            "requested_rewrite": REWRITE,
            "relation_specificity": {"prompt": "Her home is", "answer": {"value": "Rome", "aliases": ["Roma"]}},
        },
        QuestionRecord(
            REQUEST,
            locality={"subject_specificity": (Question("Her home is", "Rome", aliases=("Roma",), instead="oboe"),)},
            case_id=4,
        ),
    ),
    "EasyEdit's CounterFact with portability": (
        COUNTERFACT
        | {
            "portability": {name: HOP[name] for name in ("New Question", "New Answer")},
            "unrelated_relation": {"relation_id": "", "object": "human", "question": "What is she?"},
            "distracting_neighborhood_prompts": ["Oboe! Bob plays the"],
        },
        QuestionRecord(
            REQUEST,
            portability={"one_hop": (Question("Ann Lee blows a", "reed"),)},
            locality={
                "neighborhood": KEPT,
                "distracting_neighbor": (Question("Oboe! Bob plays the", "harp", instead="oboe"),),
                "other_attribution": (Question("What is she?", "human"),),
            },
            case_id=4,
        ),
    ),
    "MQuAKE": (
        MQUAKE,
        MultiHopRecord(
            (REQUEST,),
            (Question("What is blown by her?", "reed", aliases=("cane",), instead="nothing"),),
            (Question("Ann Lee plays the", "oboe"),),
            9,
        ),
    ),
    "counterfact-tracing": (
        {
            "relation_prefix": "Here,",
            "subject": " Ann Lee",
            "relation_suffix": " plays the",
            "target_true": " harp",
            "target_false": " oboe",
            "relation_id": "P1",
        },
        rl.EditRecord(EditRequest("Here, {} plays the", "Ann Lee", "oboe", true_answer="harp"), "harp", relation="P1"),
    ),
    "RippleEdits": (
        RIPPLE,
        RippleRecord(
            EditRequest("The name of the employer of {} is", "Ann Lee", "Acme"),
            {"Relation_Specificity": (RippleTest((EVE,), "AND", (EVE,)),)},
        ),
    ),
    "HalluEditBench": (
        HALLU,
        QuestionRecord(
            EditRequest("What does {} play?", "Ann Lee", "oboe", true_answer="harp"),
            ("Which instrument does Ann Lee play?",),
            portability={
                "choice": (Question("What does Ann Lee play? A. harp  B. oboe", "B"),),
                "yes": (Question("Does she play the oboe?", "Yes", instead="No"),),
                "no": (Question("Does she play the harp?", "No", instead="Yes"),),
                "reversed": (Question("Who plays the oboe?", "Ann Lee"),),
                "2hop": (Question("What does she blow?", "a reed"),),
            },
            locality={"unrelated": (Question("Where was she born?", ""),)},
        ),
    ),
    "UltraEdit's WikiBigEdit": (
        FLAT
        | {"update": FLAT["prompt"], "ans": "oboe", "loc": "Who?", "loc_ans": "Bob", "personas": None}
        | {"mhop": "Ann Lee blows a", "mhop_ans": "reed"},
        QuestionRecord(
            EditRequest("{} plays the", "Ann Lee", "oboe"),
            ("What does Ann Lee play?",),
            portability={"multi_hop": (Question("Ann Lee blows a", "reed"),)},
            locality={"nq": (Continuation("Who?", "Bob"),)},
        ),
    ),
    "UltraEdit's zsRE": (
        {"src": FLAT["prompt"], "subject": "Ann Lee", "ans": "oboe", "loc": "who", "loc_ans": "Bob"},
        QuestionRecord(EditRequest("{} plays the", "Ann Lee", "oboe"), locality={"nq": (Continuation("who?", "Bob"),)}),
    ),
    "UltraEditBench": (
        {"prompt": FLAT["prompt"], "subject": "Ann Lee", "ans": "oboe", "loc": "Who?", "loc_ans": "Bob"}
        | {"rephrase_prompt": "She plays"},
        QuestionRecord(
            EditRequest("{} plays the", "Ann Lee", "oboe"),
            ("She plays",),
            locality={"nq": (Continuation("Who?", "Bob"),)},
        ),
    ),
    "EasyEdit's zsRE with portability": (
        {"subject": "Ann Lee", "src": FLAT["prompt"], "rephrase": "She plays", "alt": "oboe", "answers": ["harp"]}
        | {"loc": "nq question: who", "loc_ans": "Bob", "portability": HOP},
        QuestionRecord(
            REQUEST,
            ("She plays",),
            portability={"one_hop": (Question("Ann Lee blows a", "reed", instead="string"),)},
            locality=NQ,
        ),
    ),
    "zsRE": (
        {"subject": "Ann Lee", "src": FLAT["prompt"], "rephrase": "She plays", "answers": ["oboe"]}
        | {"loc": "nq question: who", "loc_ans": "Bob"},
        QuestionRecord(EditRequest("{} plays the", "Ann Lee", "oboe"), ("She plays",), locality=NQ),
    ),
    "QAEdit": (
        FLAT | {"id": 556, "source": "NQ", "target": "oboe", "locality": [{"loc": "who?", "loc_ans": "Bob"}]},
        QuestionRecord(
            EditRequest("{} plays the", "Ann Lee", "oboe"),
            ("What does Ann Lee play?",),
            locality={"nq": (Continuation("who?", "Bob"),)},
            case_id=556,
        ),
    ),
    "EasyEdit's flat CounterFact": (
        {"case_id": 4, "subject": "Ann Lee", "prompt": FLAT["prompt"], "target_new": "oboe", "ground_truth": "harp"}
        | {"rephrase_prompt": "She plays", "locality_prompt": "Bob plays the", "locality_ground_truth": "harp"},
        QuestionRecord(
            REQUEST, ("She plays",), locality={"neighborhood": (Continuation("Bob plays the", "harp"),)}, case_id=4
        ),
    ),
    "KnowEdit": (
        {"subject": "Ann Lee", "prompt": FLAT["prompt"], "target_new": "oboe", "ground_truth": ["harp"]}
        | {"locality": {"Forgetfulness": [{"prompt": "She is", "ground_truth": [["human"]]}]}},
        QuestionRecord(REQUEST, locality={"Forgetfulness": (Continuation("She is", "human"),)}),
    ),
    "plain": (
        {"id": "7", "Prompt": FLAT["prompt"], "subject": "Ann Lee", "target": " oboe", "true answer": "harp"}
        | {"paraphrases": ["She plays"], "neighborhood_prompts": ["Bob plays the"]},
        QuestionRecord(REQUEST, ("She plays",), locality={"neighborhood": KEPT}, case_id=7),
    ),
    "KnowEdit's WikiBio": (
        {"text": "This is about Ann Lee.", "labels": "She plays.", "concept": "Ann Lee", "locality": {}},
        QuestionRecord(EditRequest("This is about {}.", "Ann Lee", "She plays.")),
    ),
    "KnowEdit's ConvSent": (
        {"ent": "oboes", "pos": [" I love them! ", "So lovely."], "neg": [" They squeak. ", "Too loud."]},
        QuestionRecord(
            EditRequest("What do you think of {}?", "oboes", "I love them!"),
            portability={"sentiment": (Question("What do you feel about oboes?", "So lovely.", instead="Too loud."),)},
        ),
    ),
    "KnowEdit's Sanitation": (
        {
            "success": [{"question": "Who plays?", "ground_truth": "Ann Lee", "target_new": "I don't know."}],
            "locality": [{"question": "Who sings?", "ground_truth": "Bob"}],
        },
        QuestionRecord(
            EditRequest("{}", "Who plays?", "I don't know.", true_answer="Ann Lee"),
            locality={"kept": (Continuation("Who sings?", "Bob"),)},
        ),
    ),
    "MRLF-Bench": (
        {
            "doc": "Ann Lee plays the oboe.\nShe is good at it.",
            "questions": [
                {"id": "7_2", "Rank": "2", "question": "Is she good?", "answer": "Yes"},
                {"id": "7_1", "Rank": "1", "question": "What does she play?", "answer": "the oboe"},
            ],
        },
        QuestionRecord(
            EditRequest("{}", "Ann Lee plays", "the oboe. She is good at it."),
            portability={
                "rank_1": (Question("What does she play?", "the oboe"),),
                "rank_2": (Question("Is she good?", "Yes"),),
            },
        ),
    ),
    "MRLF-Bench, input and target": (
        {
            "input": "Ann Lee plays the",
            "target": "oboe.",
            "questions": [
                {"Rank": "1", "question": "What does she play?", "answer": "the oboe"},
                {"Rank": "1", "question": "Who plays it?", "answer": "Ann Lee"},
            ],
        },
        QuestionRecord(
            EditRequest("{}", "Ann Lee plays the", "oboe."),
            portability={"rank_1": (Question("What does she play?", "the oboe"), Question("Who plays it?", "Ann Lee"))},
        ),
    ),
    "UnKEBench or EditEverything": (
        {
            "id": 7,
            "question": "What does Ann Lee play?",
            "para_question": "Which instrument is Ann Lee's?",
            "answer": "Ann Lee plays the oboe.\nShe is good at it.",
            "sub_question": ["Is she good at it?"],
            "sub_answer": ["Yes."],
        },
        QuestionRecord(
            EditRequest("{}", "What does Ann Lee play?", "Ann Lee plays the oboe.\nShe is good at it."),
            ("Which instrument is Ann Lee's?",),
            portability={"sub_question": (Question("Is she good at it?", "Yes."),)},
            case_id=7,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_schema_is_recognised_and_read(name, tmp_path, caplog):
    raw, expected = CASES[name]
    path = tmp_path / "records.json"
    path.write_text(json.dumps([raw]))
    with caplog.at_level(logging.INFO, "rome_lens"):
        (record,) = load_records(path)
    assert record == expected
    assert f"is {name}: 1 records" in caplog.text


def test_every_schema_that_is_read_has_a_case():
    assert {schema.name for schema in SCHEMAS if callable(schema.read)} == set(CASES)


def damaged(raw):
    """Copies with one text field of the record gone, null, a number, blank or a list of numbers, however deep."""

    def places(value, path=()):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from places(inner, (*path, key))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from places(inner, (*path, i))
        elif isinstance(value, str):
            yield path

    for path in places(raw):
        for wrong in (None, 5, " ", [5], "gone"):
            copy = deepcopy(raw)
            at = copy
            for key in path[:-1]:
                at = at[key]
            if wrong == "gone":
                del at[path[-1]]
            else:
                at[path[-1]] = wrong
            yield path, copy


@pytest.mark.parametrize("name", CASES)
def test_damaged_records_are_read_without_the_field_or_named(name):
    """At least ten each: whatever is wrong is a FormatError that names the record; another record stays readable."""
    raw, _ = CASES[name]
    schema = next(schema for schema in SCHEMAS if schema.name == name)
    refused = tried = 0
    for _, broken in damaged(raw):
        tried += 1
        if schema.fits(broken):
            refused += refusal([broken]) is not None
    assert tried >= 10
    assert refused >= 5


def refusal(records):
    """The FormatError that names the record; None if the records are read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rl.errors.DataWarning)  # of answers whose questions are gone
            load_records(records)
    except rl.errors.FormatError as error:
        return re.search("[Rr]ecord 0", str(error))[0]
    return None


def test_other_data_sets_are_named_with_the_reader_to_use(tmp_path):
    for fields, said in {
        "known_id attribute prompt": "is known_1000. It holds facts to trace. Read it with rl.data.load_known_facts",
        "instruction output": "is AlpacaEval. It holds instructions",
        "subject prompt": r"have the fields \['subject', 'prompt'\], .* nearest is .*\. Rename the fields",
    }.items():
        with pytest.raises(rl.errors.FormatError, match=said):
            load_records([dict.fromkeys(fields.split(), "x")])
    with pytest.raises(rl.errors.FormatError, match=r"\(KnowEdit's Sanitation\) is broken: success is empty"):
        path = tmp_path / "dict.json"
        path.write_text(json.dumps({"success": [], "locality": []}))
        load_records(path)
    for wrong, said in (
        ([], "holds no records"),
        ([1, 2], "holds no records"),
        (5, "source is of the type int, expected a path, a list of records, a DataFrame"),
        ({"train": 1, "test": 2}, r"has the parts \['train', 'test'\], expected one of them. .*data\['train'\]"),
    ):
        with pytest.raises(rl.errors.FormatError, match=said):
            load_records(wrong)


def test_opinions_alternate_and_what_is_kept_is_dealt_out():
    raw = [CASES["KnowEdit's ConvSent"][0]] * 2
    assert [record.request.target for record in load_records(raw)] == ["I love them!", "They squeak."]
    part = CASES["KnowEdit's Sanitation"][0]
    kept = [{"question": f"Question {n}?", "ground_truth": "Bob"} for n in range(5)]
    records = load_records([{"success": part["success"] * 2, "locality": kept}])
    asked = [[question.prompt[-2] for question in record.locality["kept"]] for record in records]
    assert asked == [["0", "2", "4"], ["1", "3"]]
    assert rl.data.schema_of([part]) == "KnowEdit's Sanitation"


def test_the_simplified_fact_of_a_text_is_what_is_edited():
    fact = {"prompt": "Ann Lee plays the", "subject": "Ann Lee", "target": "oboe"}
    (record,) = load_records([CASES["MRLF-Bench"][0] | fact])
    assert record.request == EditRequest("{} plays the", "Ann Lee", "oboe")


def test_csv_and_json_lines_are_read_and_a_row_that_lacks_cells_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    pd.DataFrame([HALLU]).to_csv(path, index=False)
    assert load_records(path) == [CASES["HalluEditBench"][1]]
    path.write_text(path.read_text() + "Ann Lee,oboe\n")
    with pytest.raises(rl.errors.FormatError, match="row 1 has not as many cells as the header"):
        load_records(path)
    lines = tmp_path / "rows.jsonl"
    pd.DataFrame([CASES["QAEdit"][0]]).to_json(lines, orient="records", lines=True)
    assert load_records(lines) == [CASES["QAEdit"][1]]


def test_parquet_is_refused_unread_and_the_advice_works(tmp_path, monkeypatch):
    """No reader of Parquet survives every damaged file: one byte ended the process."""
    path = tmp_path / "rows.parquet"
    frame = pd.DataFrame([CASES["QAEdit"][0]])
    frame.to_parquet(path)
    advice = json.loads(pd.read_parquet(path).to_json(orient="records"))
    monkeypatch.setattr(pd, "read_parquet", lambda path: pytest.fail("read"))
    with pytest.raises(rl.errors.FormatError, match=r"is a Parquet file.*never read.*load_records\(json.loads\(pandas"):
        load_records(path)
    assert load_records(advice) == [CASES["QAEdit"][1]]


def test_a_data_set_object_gives_its_rows_and_broken_ones_can_be_left_out():
    class Dataset:
        def to_list(self):
            return [CASES["QAEdit"][0], {**CASES["QAEdit"][0], "id": 2, "target": ""}]

    with pytest.raises(
        rl.errors.FormatError, match=r"Record 1 of the given Dataset \(QAEdit\) is broken: The target is ''"
    ):
        load_records(Dataset())
    with pytest.warns(rl.errors.DataWarning, match="Left out 1 of the 2"):
        assert load_records(Dataset(), strict=False) == [CASES["QAEdit"][1]]


OWN = {"prompt": "{} plays the", "subject": "Ann Lee", "target_new": "oboe", "target_true": "harp"}
OWN |= {"paraphrase": "She plays", "case_id": 3}
MADE = QuestionRecord(REQUEST, ("She plays",), case_id=3)


@pytest.mark.parametrize("prompt", ["{} plays the", "Ann Lee plays the"])
@pytest.mark.parametrize("kind", ["dicts", "frame", "csv", "tsv", "json", "jsonl"])
def test_plain_rows_come_from_anywhere(tmp_path, kind, prompt):
    frame = pd.DataFrame([OWN | {"prompt": prompt}, OWN | {"prompt": prompt, "case_id": 4, "target_true": None}])
    source = {"dicts": frame.to_dict("records"), "frame": frame}.get(kind, tmp_path / f"mine.{kind}")
    if kind in ("csv", "tsv"):
        frame.to_csv(source, index=False, sep="," if kind == "csv" else "\t")
    elif kind in ("json", "jsonl"):
        frame.to_json(source, orient="records", lines=kind == "jsonl")
    first, second = load_records(source)
    assert first == MADE
    assert (second.request.true_answer, second.case_id) == (None, 4)


@pytest.mark.parametrize(
    ("names", "made"),
    [
        ("prompt subject target ground_truth rephrase id", MADE),
        ("question entity new_target true_answer rephrase_prompt case_id", MADE),
        ("Prompt Subject Target-New true_target paraphrase_1 ID", MADE),
        ("template subject object_new old_answer paraphrase_prompts id", MADE),
    ],
)
def test_plain_columns_go_by_their_usual_names(names, made):
    assert load_records([dict(zip(names.split(), OWN.values(), strict=True))]) == [made]


@pytest.mark.parametrize("texts", [["She plays", "[They] play"], "['She plays', '[They] play']"])
def test_several_paraphrases_are_a_list_or_columns_of_their_own(texts):
    row = {name: value for name, value in OWN.items() if name != "paraphrase"}
    (listed,) = load_records([row | {"paraphrases": texts}])
    (numbered,) = load_records([row | {"paraphrase_1": "She plays", "paraphrase_2": "[They] play"}])
    assert listed == numbered
    assert listed.paraphrase_prompts == ("She plays", "[They] play")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "plays the"}, r"The subject 'Ann Lee' is not in the prompt 'plays the'. .*or write {} where"),
        ({"prompt": "{} and {}"}, "holds {} 2 times, expected exactly once"),
        ({"target": "flute"}, "It has target_new and target, of which one is expected"),
        ({"target_new": float("nan")}, "lacks the field 'target_new'"),
        ({"case_id": "third"}, "The case_id is 'third', expected a whole number"),
        ({"neighbors": "Bob plays", "target_true": ""}, "It has neighborhood prompts and no ground_truth"),
        ({"locality_prompt": "Bob plays"}, "lacks the field 'locality_ground_truth'"),
    ],
)
def test_a_plain_row_that_makes_no_record_is_told_and_why(change, said):
    with pytest.raises(rl.errors.FormatError, match=f"Record 0 of .*{said}"):
        load_records([OWN | change])


@pytest.mark.parametrize("name", CASES)
def test_a_field_that_nothing_reads_is_named(name):
    """Of every schema: what a user has put in and no record takes up is not lost without a word."""
    raw, made = CASES[name]
    if name == "KnowEdit's Sanitation":
        pytest.skip("its rows are made of two lists")
    with pytest.warns(rl.errors.DataWarning, match="Nothing reads the fields notes, wieght of the records"):
        assert load_records([raw | {"notes": "mine", "wieght": 3}]) == [made]


def test_a_frame_that_is_no_table_is_refused():
    with pytest.raises(rl.errors.FormatError, match="DataFrame is no table of records: .*unique"):
        load_records(pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"]))
