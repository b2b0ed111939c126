"""Tensors with facts about their origin, in a safetensors file with a checksum over every byte of it.

The header's metadata holds `kind`, `facts` (JSON) and `sha256`: the SHA-256 of the whole file with zeros in place of
these 64 digits. So a flipped bit is noticed anywhere: in a number, a name, a fact or the padding.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_lens.errors import FormatError
from rome_lens.storage.files import new_file
from rome_lens.storage.reading import check_size, existing_file, foreign, parse_json

_MOST_HEADER_BYTES = 16 << 20
_ZEROS = "0" * 64


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes a safetensors file whose header holds `kind`, `facts` (as JSON) and a checksum of all of it.

    Raises:
        TypeError, ValueError: a fact is not JSON that `parse_json` reads; and as `new_file`.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, allow_nan=False)
    try:
        parse_json(text)  # what is written can be read
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: a text or a number in it cannot be kept ({error}).") from error
    metadata = {"kind": kind, "facts": text, "sha256": _ZEROS}
    with new_file(path, overwrite=overwrite) as temporary:
        save_file(contiguous, temporary, metadata=metadata)
        seal(temporary, _ZEROS)


def seal(path: Path, written: str) -> None:
    """Replaces the 64 digits `written` in the file's header by its checksum."""
    with path.open("r+b") as opened:
        place, found = _checksum(opened, written)
        opened.seek(place)
        opened.write(found.encode())


def load_tensors(
    path: str | os.PathLike[str],
    *,
    kind: str,
    facts: Mapping[str, type | UnionType],
    max_bytes: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote: the tensors, in the CPU's memory, and the facts.

    A file can have a checksum that fits and hold nonsense: tensors are checked to be finite numbers, in float32 or
    float64, and facts to have their types. What they are to each other is the caller's to check.

    Args:
        path: The file.
        kind: The kind that it has to be.
        facts: Names and types of exactly the facts that it has to hold.
        max_bytes: Larger files are refused; None: no bound.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is too large, damaged, no safetensors file, or of another kind.
    """
    path = existing_file(path, f"a safetensors file that holds a {kind}")
    if max_bytes is not None:
        check_size(path, max_bytes, advice="Pass a larger max_bytes if it is yours.")
    with foreign(path, "is damaged or is not a safetensors file"):
        _check_header(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("kind") != kind:
                found = metadata.get("kind", "tensors of another program")
                raise FormatError(f"{path} holds {found!r}, expected a {kind!r}.")
            _check_checksum(path, metadata.get("sha256", ""))
            # Copies, because safetensors gives views of the file, which somebody may write to later.
            tensors = {name: _finite(name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return tensors, _facts_of(path, metadata.get("facts", ""), facts)


def check_shapes(tensors: Mapping[str, Tensor], **expected: tuple[int | None, ...]) -> None:
    """Raises ValueError unless the tensors have exactly these names, are in float32 and have these shapes.

    A None in a shape stands for any length.
    """
    if tensors.keys() != expected.keys():
        raise ValueError(f"it holds the tensors {sorted(tensors)[:6]}, expected {sorted(expected)}")
    for name, shape in expected.items():
        found = tensors[name]
        fits = len(found.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
        if not fits or found.dtype != torch.float32:
            raise ValueError(f"{name} is {list(found.shape)} in {found.dtype}, expected {list(shape)} in torch.float32")


def _finite(name: str, tensor: Tensor) -> Tensor:
    """A copy in memory of its own. Raises ValueError unless it holds finite numbers in float32 or float64."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is in {tensor.dtype}, expected float32")
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
        raise ValueError(f"{name} holds NaN or infinity")
    return tensor.clone()


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of what `save_tensors` wrote to a file; "" where that cannot be told."""
    try:
        path = existing_file(path, "a safetensors file")
        _check_header(path)
        with safe_open(path, framework="pt") as opened:
            return (opened.metadata() or {}).get("kind", "")
    except (OSError, ValueError, SafetensorError):
        return ""


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's entries in its dtype; the same for any memory order and device."""
    return hashlib.sha256(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _check_checksum(path: Path, stored: str) -> None:
    with path.open("rb") as opened:
        if len(stored) != len(_ZEROS) or _checksum(opened, stored)[1] != stored:
            raise FormatError(f"{path} is damaged: its content does not fit its checksum. Save or fetch it again.")


def _checksum(opened: BinaryIO, written: str) -> tuple[int, str]:
    """The place of these 64 digits in the header, and the SHA-256 of the file with zeros there.

    Raises ValueError if the header does not have them.
    """
    start = opened.read(8)
    header = opened.read(int.from_bytes(start, "little"))
    place = header.index(written.encode())
    found = hashlib.sha256(start + header[:place] + _ZEROS.encode() + header[place + len(_ZEROS) :])
    while block := opened.read(1 << 20):
        found.update(block)
    return len(start) + place, found.hexdigest()


def _check_header(path: Path) -> None:
    """Raises ValueError if the header says that it is longer than any that is written here."""
    with path.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if header > _MOST_HEADER_BYTES:
        raise ValueError(f"its header would be {header} bytes long, at most {_MOST_HEADER_BYTES} are read")


def _facts_of(path: Path, text: str, expected: Mapping[str, type | UnionType]) -> dict[str, Any]:
    with foreign(f"The header of {path}", "holds facts that are not JSON"):
        facts = parse_json(text)
    check_facts(path, facts, expected)
    return facts


def check_facts(path: Path, facts: Any, expected: Mapping[str, type | UnionType]) -> None:
    """Raises FormatError unless the facts are exactly these, of these types."""
    if not isinstance(facts, dict):
        raise FormatError(f"The facts in the header of {path} are a {type(facts).__name__}, expected a JSON object.")
    if facts.keys() != expected.keys():
        raise FormatError(f"The facts in the header of {path} are {sorted(facts)}, expected {sorted(expected)}.")
    for name, kind in expected.items():
        if not isinstance(facts[name], kind) or isinstance(facts[name], bool):
            found, wanted = type(facts[name]).__name__, getattr(kind, "__name__", kind)
            raise FormatError(f"The fact {name!r} in the header of {path} is a {found}, expected {wanted}.")
