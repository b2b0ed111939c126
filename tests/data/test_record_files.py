"""Files of records: JSON and JSON lines are read, with or without a byte order mark; others are named."""

import gzip
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import rome_lens as rl
from rome_lens.errors import FormatError
from tests.data.test_question_readers import KNOWEDIT, SNIPPETS, ZSRE
from tests.data.test_readers import KNOWN, RECORD, without, write
from tests.torture import times

SECOND = {**RECORD, "case_id": 8}
FLAT = {"prompt": "{} is", "subject": "Rome"}
READERS = [
    (rl.load_counterfact, RECORD),
    (rl.data.load_known_facts, KNOWN),
    (rl.data.load_zsre, ZSRE),
    (rl.data.load_knowedit, KNOWEDIT),
    (rl.data.load_attribute_snippets, SNIPPETS),
]
DATA = Path(os.environ.get("ROME_LENS_DATA", "shared/data"))


def question(answer: object) -> dict:
    return {**KNOWEDIT, "locality": {"a": [{"prompt": "Her car is", "ground_truth": answer}]}, "portability": {}}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_json_lines_are_read(tmp_path, mark, end):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in (RECORD, SECOND)]
    path.write_bytes((mark + end.join([*lines, ""])).encode())
    assert rl.load_counterfact(path) == rl.load_counterfact(write(tmp_path, [RECORD, SECOND]))
    path.write_bytes((mark + lines[0]).encode())
    assert len(rl.load_counterfact(path)) == 1


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(SECOND)[:-9], encoding="utf-8")
    with pytest.raises(FormatError, match="Line 2 of .* is damaged or is not JSON"):
        rl.load_counterfact(path)


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("data.json", "[]")
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"PAR1\x15\x04", "a Parquet file.*read_parquet"),
        (zipped(), "a zip archive.*Unpack it"),
        (gzip.compress(b"[]", mtime=0), "compressed with gzip.*Unpack it"),
        (b"ARROW1\0\0", "an Arrow"),
        (pickle.dumps([RECORD]), "a pickle.*never read"),
        (json.dumps([RECORD]).encode("utf-16"), "UTF-16"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"SQLite format 3\0", "an SQLite database"),
    ],
)
@pytest.mark.parametrize(("read", "_"), READERS)
def test_another_kind_of_file_is_named(tmp_path, content, name, read, _):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"is .*{name}"):
        read(path)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("x", "x"),
        (["x"], "x"),
        (["x", "y"], "x"),
        ([["x", "y"], ["z"]], "x"),
        ([[], [" ", "y"]], "y"),
        ([["x"], "y"], "x"),
    ],
)
def test_an_answer_is_a_text_a_list_or_a_list_of_lists(tmp_path, answer, read):
    """A text never becomes its letters."""
    (record,) = rl.data.load_knowedit(write(tmp_path, [question(answer)]))
    assert [asked.text for asked in record.locality["a"]] == [read]
    (record,) = rl.data.load_zsre(write(tmp_path, [{**ZSRE, "answers": answer, "loc_ans": answer}]))
    assert (record.request.target, record.locality["nq"][0].text) == (read, read)


@pytest.mark.parametrize("answer", [None, 3, True, {"x": "y"}, [3], [["x", None]], [[["x"]]], [{"value": "x"}]])
def test_other_nestings_of_answers_are_refused(tmp_path, answer):
    for reader, record in ((rl.data.load_knowedit, question(answer)), (rl.data.load_zsre, {**ZSRE, "answers": answer})):
        with pytest.raises(FormatError, match=r"Record 0 of .* is broken: The (a ground_truth|answers) is .*expected"):
            reader(write(tmp_path, [record]))


OPTIONAL = [
    (rl.load_counterfact, RECORD, f"{kind}_prompts")
    for kind in ("paraphrase", "neighborhood", "attribute", "generation")
]
OPTIONAL += [(rl.data.load_zsre, ZSRE, "rephrase")]
OPTIONAL += [(rl.data.load_knowedit, KNOWEDIT, field) for field in ("portability", "locality")]


@pytest.mark.parametrize(("read", "record", "field"), OPTIONAL)
def test_what_scoring_does_not_need_may_be_missing_or_null(tmp_path, read, record, field):
    missing = read(write(tmp_path, [without(record, field)]))
    assert missing == read(write(tmp_path, [{**record, field: None}]))
    assert len(missing) == 1


@pytest.mark.parametrize("wrong", [3, True, {"a": 3}, [3], [""], [" "], [None], [["x"]]])
@pytest.mark.parametrize(("read", "record", "field"), OPTIONAL)
def test_but_it_may_not_be_something_else(tmp_path, read, record, field, wrong):
    with pytest.raises(FormatError, match="Record 0 of .* is broken: The "):
        read(write(tmp_path, [{**record, field: wrong}]))


@pytest.mark.parametrize("field", ["paraphrase_prompts", "neighborhood_prompts", "generation_prompts"])
def test_a_text_in_place_of_a_list_of_prompts_is_refused(tmp_path, field):
    with pytest.raises(FormatError, match=f"Record 0 of .* is broken: The {field} is 'The mother.*expected a list"):
        rl.load_counterfact(write(tmp_path, [{**RECORD, field: "The mother tongue of Léon Blum is"}]))


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (rl.load_counterfact, [RECORD, SECOND, RECORD, RECORD]),
        (rl.load_records, [RECORD, SECOND, RECORD, RECORD]),
        (rl.load_records, [{**FLAT, "id": number, "target": "x"} for number in (7, 8, 7, "7")]),
        (rl.data.load_knowedit, [{**FLAT, "case_id": number, "target_new": "x"} for number in (7, 8, 7, 7.0)]),
    ],
)
def test_records_of_one_number_are_numbered_anew(tmp_path, read, rows):
    """Published files repeat ids; whatever reads them keeps all records, and each has a number of its own."""
    with pytest.warns(rl.errors.DataWarning, match=r"2 of the 4 .* case_id of an earlier .* numbered anew: \[9, 10\]"):
        assert [record.case_id for record in read(write(tmp_path, rows))] == [7, 8, 9, 10]


def test_a_target_that_is_true_already_is_said():
    with pytest.warns(rl.errors.DataWarning, match="The record 3 asks for what is true already"):
        rl.EditRecord(rl.EditRequest("{} of", "Rome", "Italy"), " Italy", case_id=3)


def test_blank_prompts_are_refused_in_python_too():
    with pytest.raises(ValueError, match="The generation prompt is empty"):
        rl.EditRecord(rl.EditRequest("{} of", "Rome", "Italy"), "France", generation_prompts=("Rome is", " "))


FAMILIES = [
    *((rl.load_records, name) for name in ("qaedit_1k_sample", "counterfact_edit_flat_sample")),
    *((rl.load_counterfact, f"{name}_sample") for name in ("counterfact", "evoke_main", "evoke_subj_spec")),
    (rl.load_counterfact, "counterfact_portability_locality_sample"),
    (rl.data.load_known_facts, "known_1000"),
    *((rl.data.load_zsre, f"zsre_{name}") for name in ("mend_eval_sample", "mend_train_1k", "portability_sample")),
    *((rl.data.load_knowedit, f"knowedit_{name}_sample") for name in ("wiki_recent", "wiki_counterfact", "zsre")),
    (rl.data.load_attribute_snippets, "attribute_snippets_lama_trex"),
]


@pytest.mark.parametrize(("read", "name"), FAMILIES)
@pytest.mark.filterwarnings("ignore:.*numbered anew", "ignore:Nothing reads the fields")
def test_published_files_are_read_whole(read, name):
    """Every record of the samples, where they are at hand, and no answer that is a single letter of a longer one."""
    path = DATA / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    count = len(json.loads(path.read_text(encoding="utf-8")))
    made = read(path)
    assert len(made.samples if read is rl.data.load_attribute_snippets else made) == count


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore::rome_lens.errors.DataWarning")
def test_records_with_any_field_changed_are_read_or_refused(tmp_path):
    """Whatever stands in a field, the reader gives records or a FormatError; no text becomes letters."""
    chosen, counts = random.Random(0), pd.Series(0, index=["read", "refused"])
    values = [
        None,
        3,
        0.5,
        True,
        "",
        " ",
        "x",
        [],
        {},
        [[]],
        ["x"],
        [["x"]],
        [3],
        {"str": "x"},
        {"a": ["x"]},
        float("nan"),
    ]
    for _ in range(times(300, 6000)):
        read, record = chosen.choice(READERS)
        record = json.loads(json.dumps(record))
        place = record
        while True:
            key = chosen.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if chosen.random() < 0.4 or not isinstance(place[key], dict | list) or not place[key]:
                break
            place = place[key]
        place[key] = chosen.choice(values)
        try:
            read(write(tmp_path, [record]))
            counts["read"] += 1
        except FormatError:
            counts["refused"] += 1
    print(f"changed records: {counts.to_dict()}, foreign exceptions: 0")
