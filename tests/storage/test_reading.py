"""One door for files: what is no plain file is named, and what a foreign reader raises becomes our error."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import rome_lens as rl
from rome_lens.storage.reading import existing_file, foreign, parse_json


class PanicException(BaseException):
    """As pyo3 raises it where Rust code panics."""


@pytest.mark.parametrize(
    "error",
    [KeyError("a"), RecursionError("deep"), OverflowError("large"), Exception("x"), PanicException()],
)
def test_whatever_a_foreign_reader_raises_becomes_our_error_with_its_cause(error):
    with (
        pytest.raises(rl.errors.FormatError, match=r"here is damaged \(.+\)\. Fetch it\.") as raised,
        foreign("here", "is damaged", "Fetch it."),
    ):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("f8")),
    ],
)
def test_a_lack_of_memory_is_no_damage(error):
    """Also where it is only the cause of what was raised."""

    def fail():
        try:
            raise error
        except BaseException as first:
            raise ValueError("could not be read") from first

    for raising in (fail, lambda: (_ for _ in ()).throw(error)):
        with (
            pytest.raises(rl.errors.UnavailableError, match="not enough memory to read here.*Free some"),
            foreign("here", "is damaged", "Fetch it."),
        ):
            raising()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), rl.errors.FormatError("ours"), rl.errors.UnavailableError("ours")]
)
def test_what_stops_a_program_and_our_own_errors_pass(error):
    with pytest.raises(type(error)) as raised, foreign("here", "is damaged"):
        raise error
    assert raised.value is error


def test_what_is_no_plain_file_is_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    kinds = {"pipe": "a pipe", "folder": "a folder", "dangling": "a link that leads nowhere"}
    kinds |= {"circle": "a link that leads nowhere"}
    for name, kind in kinds.items():
        with pytest.raises(FileNotFoundError, match=f"There is no file .*{name}, expected a text: it is {kind}"):
            existing_file(tmp_path / name, "a text")
    with pytest.raises(FileNotFoundError, match="it is a device"):
        existing_file("/dev/zero", "a text")
    for gone in (tmp_path / "gone", tmp_path / "a\0b", tmp_path / ("a" * 500)):
        with pytest.raises(FileNotFoundError, match="expected a text"):
            existing_file(gone, "a text")


@pytest.mark.parametrize(
    "text",
    ["NaN", "1e999", "1" + "0" * 400, '{"a": 1, "a": 2}', '"\\ud800"', '["\\uDC00 a"]', "[" * 100_000, "", "{'a': 1}"],
)
def test_json_is_read_strictly(text):
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_a_whole_pair_of_surrogates_is_a_character():
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
