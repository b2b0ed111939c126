"""Files of records: a JSON list or JSON lines, in UTF-8. The error for another file says what kind of file it is."""

import os
from pathlib import Path
from typing import Any

from rome_lens.errors import FormatError
from rome_lens.storage import MOST_JSON_BYTES, check_size, existing_file, foreign, parse_json

_UNPACK = "Unpack it first, and give the JSON file inside."
_CONVERT = "Write it as JSON lines: pandas.read_{}(path).to_json('records.jsonl', orient='records', lines=True)."
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"PAR1",
        "a Parquet file",
        "That is never read: one damaged byte can end the process. If you trust it, give what pandas makes of it: "
        "load_records(json.loads(pandas.read_parquet(path).to_json(orient='records'))).",
    ),
    (b"ARROW1", "an Arrow (Feather) file", _CONVERT.format("feather")),
    (b"\xff\xff\xff\xff", "an Arrow stream", "Write it as JSON lines: datasets.Dataset.from_file(path).to_json(...)."),
    (b"ORC", "an ORC file", _CONVERT.format("orc")),
    (b"Obj\x01", "an Avro file", "Write its records as JSON lines."),
    (b"PK", "a zip archive (or an Excel or PyTorch file)", _UNPACK),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    *(
        (bytes([0x80, version]), "a pickle", "That is never read: it can run code. Ask for JSON.")
        for version in range(6)
    ),
    (b"\x89HDF", "an HDF5 file", "Write its records as JSON lines."),
    (b"\x93NUMPY", "a NumPy array", "Write its records as JSON lines."),
    (b"SQLite format 3", "an SQLite database", "Write its records as JSON lines."),
    (b"GGUF", "a GGUF model", "Give the file of records."),
    (b"%PDF", "a PDF", "Give the file of records."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull."),
    (b"\xff\xfe", "text in UTF-16", "Save it in UTF-8."),
    (b"\xfe\xff", "text in UTF-16", "Save it in UTF-8."),
)
_LINES = (".jsonl", ".ndjson")


def read_records(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file, or a list with the value of each line of a JSON lines file.

    A byte order mark is skipped.
    """
    path = existing_file(path, "a JSON file")
    check_size(path, MOST_JSON_BYTES)
    content = path.read_bytes()
    if named := _named(content):
        raise FormatError(f"{path} is {named[0]}, expected records as JSON in UTF-8. {named[1]}")
    with foreign(path, "is damaged or is not JSON in UTF-8", "Fetch it again."):
        text = content.decode("utf-8-sig")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and lines[0][1].strip()[-1] in "}]" and _is_json(lines[0][1]):
        return [_parsed(path, f"Line {number} of {path}", line) for number, line in lines]
    whole = _parsed(path, str(path), text)
    return [whole] if path.suffix.lower() in _LINES and isinstance(whole, dict) else whole


def _named(content: bytes) -> tuple[str, str] | None:
    """What kind of file this is by its first bytes, and what to do about it; None: perhaps JSON."""
    for start, name, advice in _KINDS:
        if content.startswith(start):
            return name, advice
    if content[:9].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page", "The download went wrong, perhaps for want of a login. Fetch the raw file."
    if content[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if content[8:9] == b"{" and content[:8].endswith(b"\x00\x00"):
        return "a safetensors file", "Give the file of records."
    return None


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _parsed(path: Path, where: str, text: str) -> Any:
    table = path.suffix.lower() in (".csv", ".tsv")
    advice = "Write its rows as JSON lines, with the fields of the data set." if table else "Fetch it again."
    with foreign(where, "is damaged or is not JSON", advice):
        return parse_json(text)
