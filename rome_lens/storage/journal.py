"""Rows that are appended to a file as they come, so that a stopped run resumes after the last one.

The file is JSON lines. The first line records what the work depends on. Each line has a checksum over itself and the
line before, so that a damaged, missing or moved line is noticed. A last line that a kill cut short is removed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from rome_lens.errors import FormatError
from rome_lens.storage.files import new_file, writing
from rome_lens.storage.folder import open_folder
from rome_lens.storage.identity import check_same
from rome_lens.storage.reading import existing_file, foreign

ROWS = "rows.jsonl"
_ADVICE = "Choose another folder; or cut the file before this line, and what is lost is made again."
_MOST_LINE_BYTES = 1 << 26
_START, _MIDDLE = b'{"sha256": "', b'", '
_BODY = len(_START) + 64 + len(_MIDDLE)  # where a line's own part begins
Row = TypeVar("Row")


@contextmanager
def open_journal(
    folder: str | os.PathLike[str] | None,
    *,
    kind: str,
    identity: Mapping[str, Any],
    read: Callable[[Any], Row],
) -> "Iterator[Journal[Row]]":
    """Opens the journal in a folder, or begins one, for this run alone.

    Args:
        folder: Where the rows are kept (see `open_folder`); None: nowhere.
        kind: Kind of work.
        identity: What the rows depend on, as `plain` values by name.
        read: Converts a row from JSON values; whatever it raises becomes a FormatError.

    Raises:
        FileNotFoundError: a folder or a pipe stands where the rows go.
        FormatError: the folder was begun with other work, or holds foreign or damaged files.
        NotADirectoryError, UnavailableError: as `open_folder`.
    """
    if folder is None:
        yield Journal(None, identity, [], "")
        return
    with open_folder(folder, holds=ROWS, what=kind) as opened:
        path = opened / ROWS
        if not os.path.lexists(path):
            with new_file(path) as temporary:
                temporary.write_bytes(_line("", _body({"identity": {"kind": kind, **identity}}))[0])
        journal, whole = _read(path, kind, read)
        if path.stat().st_size > whole:
            with writing(path):
                os.truncate(path, whole)
        journal.claim(identity)
        yield journal


def read_journal(folder: str | os.PathLike[str], *, kind: str, read: Callable[[Any], Row]) -> list[Row]:
    """The rows of a journal, even while a run appends to it. The folder is left unchanged.

    Raises:
        FileNotFoundError: there is no journal in this folder.
        FormatError: the folder holds something else, or is damaged.
    """
    return _read(Path(folder) / ROWS, kind, read)[0].rows


class Journal(Generic[Row]):
    """The rows of a run, as opened by `open_journal`.

    Attributes:
        folder: where they are kept; None: nowhere.
        rows: the rows that were there when it was opened.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], rows: list[Row], last: str):
        self.folder, self.rows = folder, rows
        self._identity, self._last = dict(identity), last

    def append(self, row: Any) -> None:
        """Adds a row of JSON values, which is complete on the disk when this returns.

        Raises:
            UnavailableError: the disk is full; the earlier rows are intact.
        """
        self._write({"row": row})

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Records what else the rows depend on. Raises FormatError where the work was begun with another value."""
        check_same(self.folder, self._identity, {n: identity[n] for n in identity if n in self._identity})
        if added := {name: value for name, value in identity.items() if name not in self._identity}:
            self._write({"identity": added})
            self._identity |= added

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        path = self.folder / ROWS
        line, last = _line(self._last, _body(entry))
        with writing(path), path.open("ab", buffering=0) as opened:
            size = opened.tell()
            try:
                left = memoryview(line)
                while left:
                    left = left[opened.write(left) :]
                os.fsync(opened.fileno())
            except BaseException:
                os.truncate(path, size)
                raise
        self._last = last


def _body(entry: Mapping[str, Any]) -> bytes:
    """An entry as JSON, without the brace at its start."""
    return json.dumps(entry).encode()[1:]


def _line(last: str, body: bytes) -> tuple[bytes, str]:
    """A line after the one with the checksum `last`, and its own checksum."""
    found = hashlib.sha256(last.encode() + body).hexdigest()
    return _START + found.encode() + _MIDDLE + body + b"\n", found


def _read(path: Path, kind: str, read: Callable[[Any], Row]) -> tuple[Journal[Row], int]:
    """The journal, and the number of bytes in its complete lines."""
    last, whole_bytes, number = "", 0, 0
    identity: dict[str, Any] = {}
    rows: list[Row] = []
    cut_off = b""
    with existing_file(path, f"a folder that holds a {kind}").open("rb") as opened:
        while line := opened.readline(_MOST_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                cut_off = line
                break
            with foreign(f"Line {number} of {path}", "is damaged", _ADVICE):
                whole, last = _line(last, line[_BODY:-1])
                if whole != line:
                    raise ValueError("it does not fit its checksum")
                entry = json.loads(b"{" + line[_BODY:])
                if "identity" in entry:
                    identity |= entry["identity"]
                else:
                    rows.append(read(entry["row"]))
            if number == 1 and identity.pop("kind", None) != kind:
                raise FormatError(f"{path} holds no {kind}. Choose another folder.")
            whole_bytes += len(line)
    if not whole_bytes:
        raise FormatError(f"Line 1 of {path} is damaged (it has no end). {_ADVICE}")
    begins = cut_off.startswith(_START[: len(cut_off)])
    if not begins or _line(last, cut_off[_BODY:-1])[0][:-1] == cut_off[:-1]:
        raise FormatError(f"Line {number} of {path} is damaged (a kill does not leave such an end). {_ADVICE}")
    return Journal(path.parent, identity, rows, last), whole_bytes
