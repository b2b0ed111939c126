"""JSON that is read from files."""

import json
import os
from math import isfinite
from pathlib import Path
from typing import Any

from rome_lens.errors import FormatError


def load_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is not JSON in UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, expected a JSON file.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged or is not JSON ({error}). Fetch it again.") from error


def strict_json(text: str) -> Any:
    """JSON without Python's extensions: names once, numbers finite and of 64 bits at most. Raises ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    def finite(digits: str) -> float:
        if not isfinite(value := float(digits)):
            raise ValueError(f"{digits[:20]} is too large a number")
        return value

    def whole(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            raise ValueError(f"{digits[:20]} is too large a number")
        return int(digits)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(named := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in one object")
        return named

    return json.loads(text, parse_constant=refuse, parse_float=finite, parse_int=whole, object_pairs_hook=once)
