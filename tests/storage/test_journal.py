"""A journal loses no row and doubles none; it refuses other work, a second run, and every damage but a kill's."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rome_lens.errors import FormatError, UnavailableError
from rome_lens.storage import open_journal, read_journal
from tests.torture import times

KIND = "list of rows"
IDENTITY = {"model": "gpt2", "config": {"layer": 4, "contexts": ["{}"]}}


def opened(folder, **changes):
    return open_journal(folder, **({"kind": KIND, "identity": IDENTITY, "read": lambda row: row["n"]} | changes))


def rows_of(folder) -> list:
    return read_journal(folder, kind=KIND, read=lambda row: row["n"])


@pytest.fixture
def begun(tmp_path) -> Path:
    folder = tmp_path / "run"
    with opened(folder) as journal:
        for n in (1, 2.5, "Évry J*"):
            journal.append({"n": n})
    return folder


def test_rows_come_back_in_order_and_more_can_follow(begun):
    with opened(begun) as journal:
        assert journal.rows == [1, 2.5, "Évry J*"]
        journal.append({"n": float("inf")})
    assert rows_of(begun) == [1, 2.5, "Évry J*", float("inf")]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as journal:
        journal.append({"n": 1})
    assert journal.rows == []
    assert os.listdir(tmp_path) == []


def test_what_a_kill_cut_off_is_cut_off_the_file(begun):
    """At every byte of the last line, also while another process only reads."""
    content = (begun / "rows.jsonl").read_bytes()
    start = content[:-1].rindex(b"\n") + 1
    for end in range(start, len(content)):
        (begun / "rows.jsonl").write_bytes(content[:end])
        assert rows_of(begun) == [1, 2.5]
        assert (begun / "rows.jsonl").read_bytes() == content[:end]
        with opened(begun) as journal:
            assert journal.rows == [1, 2.5]
            journal.append({"n": "Évry J*"})
        assert (begun / "rows.jsonl").read_bytes() == content


@pytest.mark.torture
def test_no_flipped_bit_passes(begun):
    """Also in a line's end, which would look like a line that a kill cut off."""
    content = bytearray((begun / "rows.jsonl").read_bytes())
    places = [(place, bit) for place in range(len(content)) for bit in range(8)]
    quick = random.Random(0).sample(places, 300) + places[-8:]
    for place, bit in quick[: times(len(quick), 0)] or places:
        content[place] ^= 1 << bit
        (begun / "rows.jsonl").write_bytes(content)
        with pytest.raises(FormatError, match=r"Line \d of .* is damaged|holds no"):
            rows_of(begun)
        content[place] ^= 1 << bit
    print(f"{times(len(quick), len(places))} bits flipped, 0 passed")


def test_a_line_that_is_missing_moved_or_doubled_is_damage(begun):
    path = begun / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for order, number in (([0, 2, 3], 2), ([0, 2, 1, 3], 2), ([0, 1, 1, 2, 3], 3), ([1, 2, 3], 1)):
        path.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(FormatError, match=f"Line {number} of .* is damaged"):
            rows_of(begun)


@pytest.mark.parametrize("content", [b"", b"mine", b'{"m": 1}\n', b"\xff\n", b"\n"])
def test_another_file_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="Choose another folder"), opened(tmp_path):
        pytest.fail("the body ran")
    assert path.read_bytes() == content


def test_other_work_is_refused_with_what_differs(begun):
    before = (begun / "rows.jsonl").read_bytes()
    changed = {"model": "gpt2", "config": {"layer": 5, "contexts": ["{}"]}}
    message = r"run was begun with {'config.layer': 4}, but {'config.layer': 5} was given. Choose another folder"
    with pytest.raises(FormatError, match=message), opened(begun, identity=changed):
        pytest.fail("the body ran")
    with pytest.raises(FormatError, match="holds no other kind"), opened(begun, kind="other kind"):
        pytest.fail("the body ran")
    assert (begun / "rows.jsonl").read_bytes() == before


def test_what_the_work_depends_on_may_grow_but_not_change(begun):
    with opened(begun) as journal:
        journal.claim({"method a": 1})
    with opened(begun, identity=IDENTITY | {"method b": 2}) as journal:
        journal.append({"n": 4})
        with pytest.raises(FormatError, match="begun with {'method a': 1}, but {'method a': 3}"):
            journal.claim({"method a": 3})
    assert rows_of(begun)[-1] == 4


def test_a_folder_of_somebody_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    message = r"holds \['notes.txt'\] and no list of rows. Choose a new or an empty"
    with pytest.raises(FormatError, match=message), opened(tmp_path):
        pytest.fail("the body ran")
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_what_a_kill_left_is_removed_and_a_users_file_is_not(begun):
    users = [".notes.tmp", "notes.tmp", ".rows.jsonl.old.tmp", ".rome_lens.toml"]
    for name in [*users, ".rome_lens-abc123.tmp"]:
        (begun / name).write_text("half")
    with opened(begun):
        pass
    assert set(os.listdir(begun)) - {"rows.jsonl", ".rome_lens.lock"} == set(users)


def test_a_second_run_is_refused_in_this_process_and_in_a_thread(begun):
    told = []

    def second():
        try:
            with opened(begun):
                told.append("opened")
        except UnavailableError as error:
            told.append(str(error))

    with opened(begun):
        second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    second()
    assert [text.partition(" has ")[0] for text in told] == ["Another run", "Another run", "opened"]


HOLD = """
import sys
from tests.storage.test_journal import opened
with opened(sys.argv[1]) as journal:
    journal.append({"n": 4})
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_dead(begun):
    """The lock goes with a process that is killed."""
    command = [sys.executable, "-c", HOLD, str(begun)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(UnavailableError, match="Another run has .* open. Wait until it has ended"), opened(begun):
            pytest.fail("the body ran")
        assert rows_of(begun)[-1] == 4
        first.kill()
    with opened(begun) as journal:
        assert journal.rows[-1] == 4


def test_a_row_that_cannot_be_read_is_named(begun):
    with pytest.raises(FormatError, match="Line 2 of .*rows.jsonl is damaged"):
        read_journal(begun, kind=KIND, read=lambda row: row["m"])
    with pytest.raises(FileNotFoundError, match="expected a folder that holds a list of rows"):
        read_journal(begun / "none", kind=KIND, read=dict)
    assert json.loads((begun / "rows.jsonl").read_text().splitlines()[0])["identity"]["kind"] == KIND
