"""Files are whole or not there; damaged and foreign ones are refused with what to do."""

import errno
import os
import stat
import subprocess

import pytest
import torch
from safetensors import SafetensorError

from rome_lens.errors import FormatError, UnavailableError
from rome_lens.storage import check_new_file, check_room, load_json, new_file, open_journal, save_tensors


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


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 64 KB, if this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_what_was_there_stays(full_disk):
    """Whatever writes: plain files, safetensors, whose own error is no OSError, and a journal's rows."""
    path = full_disk / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(100)}, kind="k", facts={})
    before = path.read_bytes()
    with pytest.raises(UnavailableError, match="There is no room for .*Free some"):
        save_tensors(path, {"a": torch.zeros(100_000)}, kind="k", facts={}, overwrite=True)
    with pytest.raises(UnavailableError, match="There is no room for"), new_file(full_disk / "b") as temporary:
        temporary.write_bytes(bytes(100_000))
    assert os.listdir(full_disk) == ["a.safetensors"]
    assert path.read_bytes() == before
    kept = {"kind": "rows", "identity": {}, "read": str}
    with open_journal(full_disk / "journal", **kept) as journal:
        journal.append("short")
        with pytest.raises(UnavailableError, match="There is no room for"):
            journal.append("long " * 20_000)
        journal.append("short again")
    with open_journal(full_disk / "journal", **kept) as journal:
        assert journal.rows == ["short", "short again"]
    with pytest.raises(UnavailableError, match=r"disk needs 1 MB, but 0 MB of its disk are free"):
        check_room(full_disk, 1_000_000)


def test_a_read_only_disk_is_told_before_any_work(full_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    with pytest.raises(UnavailableError, match="cannot be written .*Choose a place that you may write to"):
        check_new_file(full_disk / "a")
    with (
        pytest.raises(UnavailableError, match="cannot be written"),
        open_journal(full_disk / "new", kind="rows", identity={}, read=str),
    ):
        pytest.fail("the body ran")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "There is no room for .*No space left"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written .*Read-only"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "There is no room for"),
    ],
)
def test_what_a_disk_raises_becomes_our_error(tmp_path, error, says):
    with pytest.raises(UnavailableError, match=says) as told, new_file(tmp_path / "a"):
        raise error
    assert told.value.__cause__ is error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("a download broke off"), ConnectionError("reset"), SafetensorError("odd")])
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error), match=str(error)), new_file(tmp_path / "a"):
        raise error
