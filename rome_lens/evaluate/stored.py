"""The rows of an evaluation on disk: Parquet files that are each whole, and a note of what they were measured with.

A folder holds identity.json, a file record-*.parquet for each record measured of late, and merged-*.parquet for the
others. Merging writes the rows once more before it deletes them, and rows that are there twice are read once, so a run
may be killed at any point.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from rome_lens.errors import FormatError
from rome_lens.evaluate.records import COLUMNS
from rome_lens.files import changed, check_new_file, new_file
from rome_lens.reading import existing_file, foreign, load_json

_KIND = "rome_lens evaluation 1"
_IDENTITY = "identity.json"
_ONE, _MANY = "record", "merged"
_RECORDS_BEFORE_MERGE = 200
_KEY = ["record", "method", "metric"]
_COLUMNS = [*COLUMNS, "record"]


class StoredRows:
    """What was measured so far in a folder, and the way to add to it.

    Rows are as `evaluate` gives them, with one more column: record, which tells it from others of the same case_id.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Raises FormatError if the folder holds other files or damaged ones, NotADirectoryError if it is a file."""
        self._folder = Path(folder)
        check_new_file(self._folder / _IDENTITY, overwrite=True)
        self._begun = _identity(self._folder)
        self._single = list(self._folder.glob(f"{_ONE}-*.parquet"))
        for left_by_a_kill in self._folder.glob(".*.tmp"):
            left_by_a_kill.unlink()

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raises FormatError if the rows were measured with something else."""
        before, now = changed(self._begun, identity) if self._begun else ({}, {})
        if now:
            raise FormatError(
                f"{self._folder} was begun with {before}, but {now} was given. Choose another folder, or give the "
                "model (edits reverted) and the score that this one was begun with."
            )

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Notes what rows are measured with, if the folder is new; raises FormatError if it was something else."""
        self.check(identity)
        if not self._begun:
            with new_file(self._folder / _IDENTITY) as temporary:
                temporary.write_text(json.dumps({"kind": _KIND, **identity}, indent=1), encoding="utf-8")
            self._begun = dict(identity)

    def read(self) -> pd.DataFrame:
        """All rows, each once; in no order, but a record's metrics are in theirs."""
        return _read_all(self._folder)

    def add(self, rows: pd.DataFrame) -> None:
        """Writes the rows of one record, whole or not at all."""
        self._single.append(self._write(_ONE, rows))
        if len(self._single) >= _RECORDS_BEFORE_MERGE:
            self.merge()

    def merge(self) -> None:
        """Puts the files of single records into one."""
        if len(self._single) > 1:
            self._write(_MANY, pd.concat([_read(path) for path in self._single], ignore_index=True))
            for path in self._single:
                path.unlink()
            self._single = []

    def _write(self, name: str, rows: pd.DataFrame) -> Path:
        path = self._folder / f"{name}-{uuid4().hex}.parquet"
        with new_file(path) as temporary:
            rows.to_parquet(temporary, engine="pyarrow", index=False)
        return path


def stored_rows(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The rows in a folder, which is left as it is, also while a run adds to it.

    Raises:
        FileNotFoundError: there is no evaluation in this folder.
        FormatError: it holds other files or damaged ones.
    """
    existing_file(Path(folder) / _IDENTITY, "a folder of run_evaluation")
    _identity(Path(folder))
    return _read_all(Path(folder))


def _identity(folder: Path) -> dict[str, Any]:
    """What the folder was begun with; nothing if it is new."""
    if (folder / _IDENTITY).exists():
        identity = load_json(folder / _IDENTITY)
        if isinstance(identity, dict) and identity.pop("kind", None) == _KIND:
            return identity
    elif not (others := [path.name for path in folder.glob("*") if path.suffix != ".tmp"]):
        return {}
    else:
        raise FormatError(f"{folder} holds {others[:3]} and no evaluation. Choose a new or an empty folder.")
    raise FormatError(f"{folder / _IDENTITY} is not that of an evaluation. Choose another folder.")


def _read_all(folder: Path) -> pd.DataFrame:
    while True:
        paths = list(folder.glob("*.parquet"))
        try:
            parts = [_read(path) for path in paths]
        except FileNotFoundError:
            if any(path.is_symlink() or (path.exists() and not path.is_file()) for path in paths):
                raise
            continue  # merged a moment ago, by a run that writes here
        return pd.concat(parts or [pd.DataFrame(columns=_COLUMNS)]).drop_duplicates(_KEY, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    existing_file(path, "a file of an evaluation's rows")
    with foreign(path, "is damaged or is not Parquet", "Delete it: its records are measured again."):
        rows = pd.read_parquet(path, engine="pyarrow")
    if list(rows.columns) != _COLUMNS:
        raise FormatError(f"{path} has the columns {list(rows.columns)}, expected {_COLUMNS}.")
    return rows
