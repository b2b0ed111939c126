"""Files that are either whole or not there, lines that survive a kill, and tensors with facts about their origin."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from types import UnionType
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_lens.errors import FormatError
from rome_lens.reading import check_size, existing_file, foreign, parse_json

_MOST_HEADER_BYTES = 16 << 20
_MOST_BYTES_OF_LINES = 1 << 30
T = TypeVar("T")


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what is written there becomes `path` when the body ends well.

    Missing parent folders are made. When the body raises, `path` is as it was before.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false, or `path` is a folder.
        NotADirectoryError: a parent of `path` is a file.
    """
    path = Path(path)
    check_new_file(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raises, before any work is done, what `new_file` would raise for this path."""
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder, expected the name of a file to write. Choose another name.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name, or pass overwrite=True to replace it.")
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise NotADirectoryError(f"{parent} is a file, expected a folder for {path.name}. Move it away.")
            break


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes a safetensors file whose header holds `kind` and `facts` (as JSON).

    Raises:
        TypeError, ValueError: a fact is not JSON, or is NaN or infinite; and what `new_file` raises.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with new_file(path, overwrite=overwrite) as temporary:
        save_file(contiguous, temporary, metadata={"kind": kind, "facts": json.dumps(facts, allow_nan=False)})


def load_tensors(
    path: str | os.PathLike[str],
    *,
    kind: str,
    facts: Mapping[str, type | UnionType],
    max_bytes: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote: the tensors (on the CPU, apart from the file) and the facts.

    Args:
        path: the file.
        kind: what it has to hold.
        facts: the facts it has to hold, neither more nor fewer, and their types.
        max_bytes: larger files are refused; None: no bound.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is too large, damaged, no safetensors file, or holds something else.
    """
    path = existing_file(path, f"a safetensors file that holds a {kind}")
    _check_size(path, max_bytes)
    with foreign(path, "is damaged or is not a safetensors file"), safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        # Copies: what safetensors gives are views of the file, which somebody may write to later.
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    if metadata.get("kind") != kind:
        raise FormatError(f"{path} holds {metadata.get('kind', 'tensors of another program')!r}, expected a {kind!r}.")
    return tensors, _checked_facts(path, metadata.get("facts", ""), facts)


def _check_size(path: Path, max_bytes: int | None) -> None:
    size = path.stat().st_size
    if max_bytes is not None and size > max_bytes:
        raise FormatError(
            f"{path} is {size} bytes long, but at most {max_bytes} are read. Pass a larger max_bytes if it is yours."
        )
    with path.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if header > _MOST_HEADER_BYTES:
        raise FormatError(
            f"{path} is damaged or is not a safetensors file (its header would be {header} bytes long, at most "
            f"{_MOST_HEADER_BYTES} are read). Save or fetch it again."
        )


def _checked_facts(path: Path, text: str, expected: Mapping[str, type | UnionType]) -> dict[str, Any]:
    try:
        facts = parse_json(text)
    except ValueError as error:
        raise FormatError(
            f"The facts in the header of {path} are not JSON ({error}). Save or fetch it again."
        ) from error
    if not isinstance(facts, dict):
        raise FormatError(f"The facts in the header of {path} are a {type(facts).__name__}, expected a JSON object.")
    if facts.keys() != expected.keys():
        raise FormatError(f"The facts in the header of {path} are {sorted(facts)}, expected {sorted(expected)}.")
    for name, kind in expected.items():
        if not isinstance(facts[name], kind) or isinstance(facts[name], bool):
            found, wanted = type(facts[name]).__name__, getattr(kind, "__name__", kind)
            raise FormatError(f"The fact {name!r} in the header of {path} is a {found}, expected {wanted}.")
    return facts


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's entries in its dtype, whatever their memory order and device."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def changed(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of `asked` that were others when something was begun: as they were then, and as they are."""
    names = [name for name in asked if begun.get(name) != asked[name]]
    return {name: begun.get(name) for name in names}, {name: asked[name] for name in names}


def append_line(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """Adds an object to a file of JSON lines, in one write that reaches the disk."""
    with Path(path).open("ab") as opened:
        opened.write((json.dumps(entry) + "\n").encode())
        opened.flush()
        os.fsync(opened.fileno())


def read_lines(
    path: str | os.PathLike[str], read: Callable[[Mapping[str, Any]], T], *, first_key: str, what: str
) -> list[T]:
    """What `read` makes of each object in a file that `append_line` wrote. A file that is not there has no lines.

    A last line without its end is cut off the file: a kill left it. Missing parent folders are made.

    Args:
        path: the file.
        read: raises KeyError, TypeError or ValueError for an object that it cannot read.
        first_key: the first key of each object.
        what: the objects are, in an error.

    Raises:
        FormatError: the file holds something else; it is left as it is.
    """
    path = Path(path)
    if not path.exists():
        check_new_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    existing_file(path, f"lines of {what}s")
    check_size(path, _MOST_BYTES_OF_LINES)
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    cut_off = content[len(whole) :]
    if not cut_off.startswith(f'{{"{first_key}": '.encode()[: len(cut_off)]):
        raise FormatError(f"{path} does not end as a file of {what}s does. Choose another file.")
    entries = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entries.append(read(json.loads(line)))
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise FormatError(f"Line {number} of {path} is no {what} ({error}). Choose another file.") from error
    if cut_off:
        with path.open("r+b") as opened:
            opened.truncate(len(whole))
    return entries


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
