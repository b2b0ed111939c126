"""Damaged files, in every public reader: a whole result or one of our errors; no hang, and no great memory."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import plotly.graph_objects as go
import pytest

import rome_lens as rl
from tests.damaged_readers import EDIT, READERS, serve
from tests.edit.artifact.test_file import facts_of, with_facts
from tests.torture import times

SECONDS = 10
PARTS = sum(reader.share for reader in READERS)


class Worker:
    """A process that tries damaged files; one that hangs is ended, and another takes its place."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def outcome(self, name: str, number: int) -> tuple[str, str]:
        fresh = self._process is None
        if self._process is None or self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
        self._connection.send((name, number))
        try:
            if self._connection.poll(SECONDS + 110 * fresh):
                return self._connection.recv()
            found = "HANG", f"{name} {number}"
        except EOFError:
            found = "CRASH", f"{name} {number}"
        self.end()
        return found

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.end()


@pytest.mark.torture
def test_damaged_files_are_read_whole_or_refused(worker):
    """Goal in full: 15,000 damaged files, none with a foreign exception, none that takes 10 s or 1 GB."""
    attempts = times(600, 15_000)
    bad: list[str] = []
    for reader in READERS:
        counts: Counter[str] = Counter()
        for number in range(-(-attempts * reader.share // PARTS)):
            outcome, details = worker.outcome(reader.name, number)
            counts[outcome] += 1
            if details:
                bad.append(f"{outcome} {details}")
        print(f"{reader.name}: {sum(counts.values())} damaged, {dict(sorted(counts.items()))}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(("name", "number"), [("hidden_layers", 10**7), ("rank", 10**9)])
def test_a_mend_file_is_not_built_larger_than_its_numbers(tmp_path, tiny, name, number):
    """A file of a few kilobytes took minutes and all memory."""
    path = tmp_path / "mend.safetensors"
    rl.edit.MendEditor.untrained(tiny, config=rl.edit.MendConfig(layers=(1,), rank=4)).save(path)
    facts = facts_of(path.read_bytes())
    path.write_bytes(with_facts(path.read_bytes(), facts | {"config": facts["config"] | {name: number}}))
    with pytest.raises(rl.errors.FormatError, match="holds no whole editor"):
        rl.edit.MendEditor.load(path)


FOLDERS = [reader for reader in READERS if reader.whole_folder and not reader.name.startswith("load_model")]


@pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")
@pytest.mark.parametrize("reader", FOLDERS, ids=lambda reader: reader.name)
def test_a_pipe_or_a_folder_in_place_of_any_file_is_named_or_passed_over(reader, tmp_path):
    """A pipe hung whatever opened it, the lock and the cache included; a folder was an IsADirectoryError."""
    reader.make(tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert names
    for name in names:
        for stand_in in (os.mkfifo, Path.mkdir):
            (tmp_path / name).rename(tmp_path.parent / "kept")
            stand_in(tmp_path / name)
            with suppress(FileNotFoundError, FileExistsError, ValueError):
                reader.read(tmp_path)
            if (tmp_path / name).is_dir():
                (tmp_path / name).rmdir()
            (tmp_path.parent / "kept").replace(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "says"),
    [("a" * 300, "File name too long"), ("a/" * 3000, "File name too long"), ("\ud800", "surrogate"), ("a\0", "null")],
    ids=["name", "path", "half a character", "null"],
)
def test_a_name_that_no_file_can_have_is_said(tmp_path, tiny, name, says):
    path = os.path.join(tmp_path, name)
    writing = [
        lambda: EDIT.save(path),
        lambda: rl.trace_facts(tiny, [rl.Fact("{} is in", "Rome")], out=path, progress=False),
        lambda: rl.plots.save(go.Figure(), path, suffixes=[".json"]),
    ]
    for write in writing:
        with pytest.raises((rl.errors.UnavailableError, ValueError), match=says) as raised:
            write()
        assert not isinstance(raised.value, UnicodeError)
    reading = [rl.Edit.load, rl.KeyCovariance.load, rl.load_records, rl.edit.texts_from_file, rl.locate.load_traces]
    for read in reading:
        with pytest.raises((FileNotFoundError, ValueError), match="There is no file|half a surrogate pair"):
            read(path)
    for model in (path, f"{path}.gguf"):
        with pytest.raises(ValueError, match=r"There is no (model|file)|half a surrogate pair"):
            rl.load_model(model)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    edit = rl.Edit(EDIT.updates, EDIT.requests)
    object.__setattr__(edit, "method", "half \ud800")  # the constructor refuses it
    with pytest.raises(ValueError, match="cannot be kept"):
        edit.save(tmp_path / "edit.safetensors")
    assert list(tmp_path.iterdir()) == []
