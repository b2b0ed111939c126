"""How files are read: only plain files are opened, and whatever a foreign reader raises becomes a FormatError."""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from rome_lens.errors import FormatError, UnavailableError

MOST_JSON_BYTES = 1 << 29
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|DefaultCPUAllocator|annot allocate memory|an't allocate memory")
_LOOSE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a plain file. `what` names what was expected there, for the error.

    Raises:
        FileNotFoundError: there is nothing, or a folder, a broken link, a pipe or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = ": it is a link that leads nowhere" if os.path.islink(path) else ""
        raise FileNotFoundError(f"There is no file {path}, expected {what}{why}.") from error
    if not stat.S_ISREG(mode):
        raise FileNotFoundError(
            f"There is no file {path}, expected {what}: it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}."
        )
    return path


@contextmanager
def foreign(path: str | os.PathLike[str], problem: str, advice: str = "Save or fetch it again.") -> Iterator[None]:
    """Turns whatever a foreign reader raises for the file or folder `path` into a FormatError.

    Errors of this package pass unchanged, and so does what stops a program (KeyboardInterrupt). A panic of Rust code is
    turned too, although it is no Exception: safetensors and tokenizers are written in Rust. Where memory ran out, the
    file may be whole: that becomes an UnavailableError.

    Args:
        path: The file or folder.
        problem: What is wrong with it, to follow its name ("is damaged or is not a safetensors file").
        advice: What to do about it.
    """
    try:
        yield
    except (FormatError, UnavailableError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if is_out_of_memory(error):
            raise UnavailableError(
                f"There is not enough memory to read {path} ({_reason(error)}). Free some, or read it on a larger "
                "machine."
            ) from error
        raise FormatError(f"{path} {problem} ({_reason(error)}). {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that memory ran out: Python's, NumPy's, torch's or the system's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or _OUT_OF_MEMORY.search(f"{type(seen).__name__}: {seen}"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _reason(error: BaseException) -> str:
    text = (str(error).strip() or "no reason given").partition("\n")[0][:300]
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def load_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file, as `parse_json` reads its text.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is not JSON in UTF-8, or is larger than 512 MB.
    """
    path = existing_file(path, "a JSON file")
    with foreign(path, "is damaged or is not JSON", "Fetch it again."):
        check_size(path, MOST_JSON_BYTES)
        return parse_json(path.read_text(encoding="utf-8"))


def check_size(path: Path, most: int, advice: str = "Is it another file?") -> None:
    """Raises FormatError if the file is larger than `most` bytes."""
    if (size := path.stat().st_size) > most:
        raise FormatError(f"{path} is {size} bytes long, but at most {most} are read. {advice}")


def parse_json(text: str) -> Any:
    """Parses strict JSON: no name twice, numbers finite and at most 64 bits wide, strings valid Unicode.

    Raises:
        ValueError: the text is not such JSON, or is nested too deeply.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once)
        if _LOOSE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair is a UnicodeEncodeError, which is a ValueError
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply: {error}") from error
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    if not isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"{digits[:20]} is too large a number")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(named := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return named
