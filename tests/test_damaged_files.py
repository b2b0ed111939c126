"""Damaged files, in every public reader: a whole result or one of our errors; no hang, and no great memory."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

import rome_lens as rl
from tests.damaged_readers import READERS, serve
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
