"""Files are whole or not there; damaged and foreign ones are refused with what to do."""

import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rome_lens.errors import FormatError
from rome_lens.files import (
    append_line,
    check_new_file,
    load_tensors,
    new_file,
    read_lines,
    save_tensors,
)
from rome_lens.reading import load_json

TENSORS = {"u": torch.arange(6.0).reshape(2, 3), "v": torch.tensor([1.5, -2.5], dtype=torch.float64)}
FACTS = {"layer": 5, "name": "Élysée", "list": [1, 2.5, None]}
TYPES = {"layer": int, "name": str, "list": list}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "edit.safetensors"
    save_tensors(path, TENSORS, kind="edit", facts=FACTS)
    return path


def test_new_file_becomes_the_path_with_all_that_was_written(tmp_path):
    with new_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_new_file_makes_missing_parent_folders(tmp_path):
    with new_file(tmp_path / "deep" / "er" / "a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "deep" / "er" / "a.txt").read_text() == "x"


def test_new_file_accepts_a_string_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_file("a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_new_file_leaves_the_old_content_when_the_body_raises(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"), new_file(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError("interrupted")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_new_file_leaves_nothing_when_the_body_is_interrupted_by_the_user(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_new_file_refuses_an_existing_file_before_the_body_runs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    message = r"a\.txt exists already\. Choose another name, or pass overwrite=True"
    with pytest.raises(FileExistsError, match=message), new_file(path):
        pytest.fail("the body ran")
    assert path.read_text() == "old"


def test_new_file_overwrites_when_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("overwrite", [False, True])
def test_new_file_refuses_a_folder_even_with_overwrite(tmp_path, overwrite):
    (tmp_path / "folder").mkdir()
    message = "is a folder, expected the name of a file"
    with pytest.raises(FileExistsError, match=message), new_file(tmp_path / "folder", overwrite=overwrite):
        pytest.fail("the body ran")
    assert (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("below", ["a.txt", "deep/er/a.txt"])
def test_new_file_refuses_a_file_where_a_folder_is_needed(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    message = r"file is a file, expected a folder for a\.txt"
    with pytest.raises(NotADirectoryError, match=message), new_file(tmp_path / "file" / below):
        pytest.fail("the body ran")
    assert (tmp_path / "file").read_text() == "mine"


def test_new_file_gets_the_permissions_of_an_ordinary_file(tmp_path):
    before = os.umask(0o027)
    try:
        with new_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_check_new_file_touches_nothing(tmp_path):
    check_new_file(tmp_path / "deep" / "a.txt")
    assert os.listdir(tmp_path) == []


def test_tensors_and_facts_come_back_bit_equal(saved):
    tensors, facts = load_tensors(saved, kind="edit", facts=TYPES)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0)


def test_views_and_parameters_are_saved_by_value(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    save_tensors(tmp_path / "a", {"p": parameter, "t": parameter.T}, kind="k", facts={})
    tensors, _ = load_tensors(tmp_path / "a", kind="k", facts={})
    torch.testing.assert_close(tensors["t"], parameter.detach().T, rtol=0, atol=0)
    torch.testing.assert_close(tensors["p"], parameter.detach(), rtol=0, atol=0)


def test_saving_tensors_refuses_an_existing_file(saved):
    before = saved.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        save_tensors(saved, {}, kind="edit", facts={})
    assert saved.read_bytes() == before


def test_facts_that_are_not_json_leave_no_file(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        save_tensors(tmp_path / "a", TENSORS, kind="k", facts={"bad": object()})
    assert os.listdir(tmp_path) == []


def test_safetensors_of_another_kind_are_refused(saved):
    with pytest.raises(FormatError, match="holds 'edit', expected a 'covariance'"):
        load_tensors(saved, kind="covariance", facts=TYPES)


def test_safetensors_without_metadata_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a")
    with pytest.raises(FormatError, match="holds 'tensors of another program', expected a 'edit'"):
        load_tensors(tmp_path / "a", kind="edit", facts=TYPES)


@pytest.mark.parametrize(
    ("facts", "message"),
    [({}, "are not JSON"), ({"facts": "{"}, "are not JSON"), ({"facts": "[1]"}, "are a list, expected a JSON object")],
)
def test_damaged_facts_in_the_header_are_refused(tmp_path, facts, message):
    save_file(TENSORS, tmp_path / "a", metadata={"kind": "edit", **facts})
    with pytest.raises(FormatError, match=message):
        load_tensors(tmp_path / "a", kind="edit", facts=TYPES)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_safetensors_are_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    with pytest.raises(FormatError, match="is damaged or is not a safetensors file"):
        load_tensors(saved, kind="edit", facts=TYPES)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, -1, -8])
def test_safetensors_cut_at_the_edges_of_their_parts_are_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(FormatError, match="is damaged or is not a safetensors file"):
        load_tensors(saved, kind="edit", facts=TYPES)


@pytest.mark.parametrize(
    "garbage",
    [b"no safetensors at all", b"\xff" * 64, struct.pack("<Q", 2) + b"{}x", struct.pack("<Q", 4) + b"\xff\xfe{}"],
)
def test_garbage_is_refused_as_safetensors(tmp_path, garbage):
    (tmp_path / "a").write_bytes(garbage)
    with pytest.raises(FormatError, match="is damaged or is not a safetensors file"):
        load_tensors(tmp_path / "a", kind="edit", facts=TYPES)


def test_missing_and_folder_paths_are_told_as_missing_files(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file .* that holds a edit"):
            load_tensors(path, kind="edit", facts=TYPES)


def test_json_is_read_as_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes('{"ville": "Évry", "n": [1]}'.encode())
    assert load_json(tmp_path / "a.json") == {"ville": "Évry", "n": [1]}


@pytest.mark.parametrize(
    "content", [b"", b'[{"a": 1', b"<html>", '{"ville": "Évry"}'.encode("latin-1"), b"\xff\xfe[\x00"]
)
def test_truncated_or_foreign_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.json is damaged or is not JSON"):
        load_json(tmp_path / "a.json")


def test_missing_json_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*, expected a JSON file"):
        load_json(tmp_path / "a.json")


def test_lines_come_back_in_order_and_a_cut_off_one_is_cut_off_the_file(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    options = {"read": lambda entry: entry["n"], "first_key": "n", "what": "row"}
    assert read_lines(path, **options) == []
    for n in (1, 2.5, "Évry"):
        append_line(path, {"n": n})
    whole = path.read_bytes()
    for end in (b'{"', b'{"n": [1, ', b'{"n": 3}'):
        path.write_bytes(whole + end)
        assert read_lines(path, **options) == [1, 2.5, "Évry"]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"mine", b'{"m": 1}\n', b'{"n": 1}\nmine\n{"n": 2', b'{"n": 1}\n\xff\n'])
def test_another_file_of_lines_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="Choose another file"):
        read_lines(path, lambda entry: entry["n"], first_key="n", what="row")
    assert path.read_bytes() == content
