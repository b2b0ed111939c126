"""A check of a GGUF file's header that builds nothing: whatever the header counts has to fit into the file."""

import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NoReturn

from rome_lens.errors import FormatError

_MOST_ENTRIES = 1 << 22  # readers make an object of each; the largest vocabularies with their merges have 1.3 million
_MOST_NESTED = 4
_MOST_DIMENSIONS = 4
_LARGEST_NUMBER = 1 << 24  # of a setting that no tensor bounds, such as the length of the context
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def check_gguf(path: Path) -> None:
    """Checks a GGUF file's header before a reader builds what it counts.

    Every count and length fits into the file; the tensors have known types and lie one after the other, as llama.cpp
    demands; and the model's sizes fit its tensors. Needs the package gguf.

    Raises:
        FormatError: something is wrong; the message says what, and up to which byte the file was read.
        OSError: the file cannot be read.
    """
    with path.open("rb") as opened:
        if not path.stat().st_size:
            raise FormatError(f"{path} is damaged, or is not a GGUF file (it is empty). Fetch it again.")
        with mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
            _Header(path, content).check()


class _Header:
    def __init__(self, path: Path, content: mmap):
        self._path, self._content, self._size, self._at = path, content, len(content), 0
        self._order = "<"
        self._entries = 0
        self._elements = 0
        self._numbers: dict[str, int] = {}

    def check(self) -> None:
        if self._take(4) != b"GGUF":
            self._refuse("it does not begin with GGUF")
        version = self._number("I")
        if not version & 0xFFFF:
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            self._refuse(f"its version is {version}, expected 2 or 3")
        tensors, settings = self._number("Q"), self._number("Q")
        self._count(settings, 13, "settings")
        for _ in range(settings):
            name = self._name()
            self._value(name, self._number("I"))
        self._tensors(tensors)
        self._check_sizes(tensors)

    def _value(self, name: str, kind: int, depth: int = 0) -> None:
        if kind in _SCALARS:
            if depth or _SCALARS[kind] in "fd":
                self._take(struct.calcsize(_SCALARS[kind]))
            else:
                self._numbers[name] = self._number(_SCALARS[kind])
        elif kind == _STRING:
            self._take(self._number("Q"))
        elif kind == _ARRAY and depth < _MOST_NESTED:
            kind, length = self._number("I"), self._number("Q")
            width = struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else 8
            self._count(length, width, f"entries of {name}")
            if kind in _SCALARS:
                self._take(length * width)
            else:
                for _ in range(length):
                    self._value(name, kind, depth + 1)
        else:
            self._refuse(f"{name} has a value of the unknown type {kind}, or arrays in arrays in arrays")

    def _tensors(self, count: int) -> None:
        from gguf.constants import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        alignment = self._numbers.get("general.alignment", 32)
        if alignment < 1 or alignment & (alignment - 1):
            self._refuse(f"its alignment is {alignment}, expected a power of 2")
        self._count(count, 32, "tensors")
        end = bytes_before = 0
        for _ in range(count):
            name, dimensions = self._name(), self._number("I")
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                self._refuse(f"{name} has {dimensions} dimensions, expected 1 to {_MOST_DIMENSIONS}")
            shape = [self._number("Q") for _ in range(dimensions)]
            kind, offset = self._number("I"), self._number("Q")
            if kind not in sizes:
                self._refuse(f"{name} has the unknown type {kind}")
            together, width = sizes[kind]
            if not all(shape) or shape[0] % together:
                self._refuse(f"{name} has the shape {shape}, expected rows of whole blocks of {together}")
            if offset != bytes_before:
                self._refuse(f"{name} begins at byte {offset} of the tensors, expected {bytes_before}")
            elements = 1
            for length in shape:
                elements *= length
            end = offset + elements // together * width
            bytes_before = _aligned(end, alignment)
            self._elements += elements
            if end > self._size:
                self._refuse(f"{name} of shape {shape} would be larger than the file")
        end += _aligned(self._at, alignment)
        if not 0 <= self._size - end < alignment:
            self._refuse(f"its tensors end at byte {end}, and nothing may follow")

    def _check_sizes(self, tensors: int) -> None:
        for name, number in self._numbers.items():
            most = tensors if name.endswith(".block_count") else max(_LARGEST_NUMBER, self._elements)
            if name.partition(".")[0] not in ("general", "tokenizer", "split", "quantize") and number > most:
                self._refuse(f"{name} is {number}, but its {tensors} tensors of {self._elements} numbers allow {most}")

    def _count(self, count: int, smallest: int, what: str) -> None:
        """Refuses more entries than the rest of the file or a reader's memory can hold."""
        self._entries += count
        if count * smallest > self._size - self._at or self._entries > _MOST_ENTRIES:
            self._refuse(f"it would have {count} {what}")

    def _name(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            self._refuse("a name is not UTF-8")

    def _number(self, kind: str) -> int:
        return struct.unpack(self._order + kind, self._take(struct.calcsize(kind)))[0]

    def _take(self, length: int) -> bytes:
        if length > self._size - self._at:
            self._refuse(f"{length} bytes are expected here")
        self._at += length
        return self._content[self._at - length : self._at]

    def _refuse(self, reason: str) -> NoReturn:
        raise FormatError(
            f"{self._path} is damaged, or is not a GGUF file ({reason}; read up to byte {self._at} of {self._size}). "
            "Fetch it again."
        )


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
