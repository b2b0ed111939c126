"""Records from files of any kind that data sets are published in: JSON, JSON lines, CSV, Hugging Face's."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rome_lens.data.record_files import read_records
from rome_lens.errors import FormatError
from rome_lens.storage import MOST_JSON_BYTES, check_size, existing_file, foreign

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def raw_records(source: Any) -> Any:
    """What a file or a data set holds, as JSON's values."""
    if isinstance(source, str | os.PathLike):
        path = existing_file(source, "a file of records")
        if path.suffix.lower() in _SEPARATORS:
            return _csv_rows(path)
        return read_records(path)
    if isinstance(source, Mapping):
        raise FormatError(
            f"source has the parts {list(source)}, expected one of them. Choose, for example "
            f"load_records(data[{next(iter(source), 'test')!r}])."
        )
    if isinstance(source, pd.DataFrame):
        try:
            return _frame_rows(source)
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"The DataFrame is no table of records: {error}. Name each column once.") from error
    rows = source if isinstance(source, list) else getattr(source, "to_list", lambda: None)()
    if not isinstance(rows, list):
        raise FormatError(
            f"source is of the type {type(source).__name__}, expected a path, a list of records, a DataFrame, or "
            "a data set of Hugging Face's."
        )
    return rows


def _csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header, each with all its columns."""
    check_size(path, MOST_JSON_BYTES)
    with foreign(path, "is damaged or is no table in UTF-8", "Fetch it again."):
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_SEPARATORS[path.suffix.lower()], strict=True)
        rows = list(reader)
        for number, row in enumerate(rows):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has not as many cells as the header")
        return rows


def _frame_rows(frame: pd.DataFrame) -> Any:
    """The rows as JSON's values; a missing cell is None."""
    return json.loads(frame.to_json(orient="records", force_ascii=False))
