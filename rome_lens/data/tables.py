"""Records from files of any kind that data sets are published in: JSON, JSON lines, CSV, Parquet, Hugging Face's."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_lens.data.record_files import read_records
from rome_lens.errors import FormatError, UnavailableError
from rome_lens.storage import MOST_JSON_BYTES, check_size, existing_file, foreign

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def raw_records(source: Any) -> Any:
    """What a file or a data set holds, as JSON's values."""
    if isinstance(source, str | os.PathLike):
        path = existing_file(source, "a file of records")
        with path.open("rb") as opened:
            start = opened.read(4)
        if start == b"PAR1":
            return _parquet_rows(path)
        if path.suffix.lower() in _SEPARATORS:
            return _csv_rows(path)
        return read_records(path)
    if isinstance(source, Mapping):
        raise FormatError(
            f"source has the parts {list(source)}, expected one of them. Choose, for example "
            f"load_records(data[{next(iter(source), 'test')!r}])."
        )
    rows = source if isinstance(source, list) else getattr(source, "to_list", lambda: None)()
    if not isinstance(rows, list):
        raise FormatError(
            f"source is of the type {type(source).__name__}, expected a path, a list of records, or a data set of "
            "Hugging Face's."
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


def _parquet_rows(path: Path) -> Any:
    import pandas as pd

    check_size(path, MOST_JSON_BYTES)
    try:
        with foreign(path, "is damaged or is not Parquet", "Fetch it again."):
            return json.loads(pd.read_parquet(path).to_json(orient="records"))
    except FormatError as error:
        if isinstance(error.__cause__, ImportError):
            raise UnavailableError(
                f"{path} is a Parquet file, and nothing is installed that reads it: pip install pyarrow."
            ) from error
        raise
