"""Ways to damage a file: what disks, networks, editors and strangers do to it, drawn from a seeded generator."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from random import Random
from typing import Any

from rome_lens.storage.journal import _BODY, _line
from rome_lens.storage.tensors import _ZEROS, seal

_SEALED = b'"sha256"'
_MARK = "\ue000here\ue000"
_JUNK = [  # as JSON text: some of it is none
    *("null", "true", "-1", "0", "1", "3.5", "10000000", "2147483648", "9223372036854775807", "9223372036854775808"),
    *("1" + "0" * 400, "9" * 5000, "1e999", "-1e308", "NaN", "Infinity", "-Infinity", '""', '"{}"', '"a"', '" "'),
    *('"\\ud800"', '"\\u0000"', '"' + "x" * 100_000 + '"', "[]", "{}", "[[]]", '["a"]', "[1]", '{"a": 1}', "[null]"),
    *('{"a": 1, "a": 2}', "[" * 600 + "]" * 600, "[" * 100_000, '{"a":' * 100_000, "[1,2", '"open', "torch.float32"),
    *("[1e30]", "[-5]", "[" + "0," * 5000 + "0]", '"../outside"', '"/dev/zero"', '"F64"', "1099511627776"),
]


def damage(file: Path, random: Random) -> str:
    """Damages a file in one way, in place, and says in which."""
    content = file.read_bytes()
    ways: list[Callable[[Path, Random], Any]] = [*_BYTES, *_BYTES, *_PLACES] if content else [*_PLACES]
    if content and _json_parts(content):
        ways += [_json_junk] * (2 * len(_BYTES)) + [_json_removed, _json_doubled]
    if _SEALED in content[:4096]:
        ways += [_resealed_json] * len(ways) + [_resealed_numbers] * len(_BYTES)
    way = random.choice(ways)
    way(file, random)
    return way.__name__.strip("_")


# ------------------------------------------------------------------------------------------------------------- bytes


def _flip(file: Path, random: Random) -> None:
    content = bytearray(file.read_bytes())
    near = min(len(content), random.choice([64, 4096, len(content)]))  # headers come first
    for _ in range(random.randint(1, 8)):
        content[random.randrange(near)] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, random: Random) -> None:
    file.write_bytes(file.read_bytes()[: random.randrange(file.stat().st_size)])


def _insert(file: Path, random: Random) -> None:
    content = file.read_bytes()
    at = random.randrange(len(content))
    file.write_bytes(content[:at] + random.randbytes(random.randint(1, 40)) + content[at:])


def _copy_range(file: Path, random: Random) -> None:
    content = file.read_bytes()
    start, stop, at = (random.randrange(len(content)) for _ in range(3))
    file.write_bytes(content[:at] + content[min(start, stop) : max(start, stop)] + content[at:])


def _zero_range(file: Path, random: Random) -> None:
    content = file.read_bytes()
    start, stop = sorted(random.randrange(len(content)) for _ in range(2))
    file.write_bytes(content[:start] + bytes(stop - start) + content[stop:])


def _large_number(file: Path, random: Random) -> None:
    content = bytearray(file.read_bytes())
    number = struct.pack("<Q", random.choice([2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, 10**7]))
    at = random.randrange(min(len(content), random.choice([32, 4096])))
    content[at : at + 8] = number
    file.write_bytes(content)


def _noise(file: Path, random: Random) -> None:
    file.write_bytes(random.randbytes(random.randint(1, 400)))


def _other_text(file: Path, random: Random) -> None:
    pages = [
        "<html>Not found</html>",
        '{"error": "Not found"}',
        "[]",
        "{}",
        "null",
        "1",
        '"text"',
        "\ufeff[]",
        "PK\3\4",
    ]
    file.write_bytes(random.choice(pages).encode())


_BYTES = [_flip, _cut, _insert, _copy_range, _zero_range, _large_number, _noise, _other_text]


# ------------------------------------------------------------------------------------------- what stands in its place


def _empty(file: Path, random: Random) -> None:
    file.write_bytes(b"")


def _missing(file: Path, random: Random) -> None:
    file.unlink()


def _folder(file: Path, random: Random) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").write_text("{}")


def _dangling_link(file: Path, random: Random) -> None:
    file.unlink()
    file.symlink_to(file.parent / "gone")


def _circular_link(file: Path, random: Random) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _pipe(file: Path, random: Random) -> None:
    file.unlink()
    os.mkfifo(file)


def _device(file: Path, random: Random) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _sparse(file: Path, random: Random) -> None:
    """4 GB long, and takes no room."""
    with file.open("r+b") as opened:
        opened.truncate(4 << 30)


def _swapped(file: Path, random: Random) -> None:
    """With another of its folder."""
    others = sorted(other for other in file.parent.rglob("*") if other.is_file() and other != file)
    if others:
        shutil.copyfile(random.choice(others), file)
    else:
        _noise(file, random)


_PLACES = [_empty, _missing, _folder, _dangling_link, _circular_link, _pipe, _device, _sparse, _swapped]


# -------------------------------------------------------------------------------------------------------------- JSON


def _json_junk(file: Path, random: Random) -> None:
    """At any place of a file's JSON: another type, a number without bounds, nesting without end, what is no JSON."""

    def change(holder: Any, key: Any) -> None:
        holder[key] = _MARK

    _change_json(file, random, change, random.choice(_JUNK))


def _json_removed(file: Path, random: Random) -> None:
    def change(holder: Any, key: Any) -> None:
        del holder[key]

    _change_json(file, random, change)


def _json_doubled(file: Path, random: Random) -> None:
    """A second entry: of a list the same once more, of an object under a new name."""

    def change(holder: Any, key: Any) -> None:
        if isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder["added"] = holder[key]

    _change_json(file, random, change)


def _change_json(file: Path, random: Random, change: Callable[[Any, Any], None], junk: str = "null") -> None:
    content = file.read_bytes()
    start, stop = random.choice(_json_parts(content))
    value = json.loads(content[start:stop])
    metadata = value.get("__metadata__") if isinstance(value, dict) else None
    inner = metadata and "facts" in metadata and random.random() < 0.7
    whole = [json.loads(metadata["facts"])] if inner else [value]
    change(*random.choice(list(_places(whole))))
    text = json.dumps(whole[0]) if whole else ""
    text = text.replace(json.dumps(_MARK), junk)
    if inner:
        metadata["facts"] = text
        text = json.dumps(value)
    changed = text.encode("utf-8", "surrogatepass")
    if start == 8 and content[:1] not in b"{[":  # a safetensors file begins with its header's length
        content = struct.pack("<Q", len(changed)) + content[8:]
    file.write_bytes(content[:start] + changed + content[stop:])


def _json_parts(content: bytes) -> list[tuple[int, int]]:
    """Where a file holds JSON: all of it, each of its lines, or a safetensors file's header."""
    if len(content) > 8 and (length := int.from_bytes(content[:8], "little")) <= len(content) - 8 and length:
        parts = [(8, 8 + length)]
    else:
        parts = [(0, len(content))]
        if content.count(b"\n") and content[:1] == b"{" and not content.startswith(b"{\n"):
            ends = [i for i, byte in enumerate(content) if byte == 10]
            parts = list(zip([0, *(end + 1 for end in ends)], ends, strict=False))
    try:
        for start, stop in parts:
            json.loads(content[start:stop])
    except (ValueError, RecursionError):
        return []
    return parts


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and under which key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in list(items)[:200] for found in [(value, key), *_places(inner)]]


# -------------------------------------------------------------------------------- content whose checksum is made to fit


def _resealed_json(file: Path, random: Random) -> None:
    """Nonsense in the facts or the rows, behind a checksum that fits."""
    random.choice([_json_junk, _json_junk, _json_removed, _json_doubled])(file, random)
    _reseal(file)


def _resealed_numbers(file: Path, random: Random) -> None:
    """Arrays of other dtypes, shapes, names and numbers, behind a checksum that fits; of rows, some of another run."""
    content = file.read_bytes()
    if content.startswith(b"{"):
        lines = content.splitlines(keepends=True)
        lines.insert(random.randint(1, len(lines)), lines.pop(random.randrange(1, len(lines))) if lines[1:] else b"")
        file.write_bytes(b"".join(lines[: random.randint(1, len(lines))]))
        return _reseal(file)
    start = 8 + int.from_bytes(content[:8], "little")
    header, numbers = json.loads(content[8:start]), bytearray(content[start:])
    name = random.choice([name for name in header if name != "__metadata__"])
    shape, (first, last) = header[name]["shape"], header[name]["data_offsets"]
    width = {"F32": 4, "F64": 8}[header[name]["dtype"]]
    match random.randrange(4):
        case 0:
            other, narrower = random.choice(
                [("I32", 1), ("U32", 1), ("BF16", 2), ("F8_E4M3", 4), ("F8_E5M2", 4), ("U8", 4)]
            )
            header[name] |= {"dtype": other, "shape": [*shape, narrower * width // 4]}
        case 1:
            header[name]["shape"] = random.choice(
                [shape[::-1], [prod(shape)], [1, *shape], [*shape, 1], [prod(shape), 1]]
            )
        case 2:
            header[random.choice(["other", f"0.{name}", name.upper()])] = header.pop(name)
        case _:
            kind, count = ("<f" if width == 4 else "<d"), len(numbers[first:last]) // width
            for _ in range(random.choice([1, count])) if count else ():
                at = first + width * random.randrange(count)
                odd = random.choice([float("nan"), float("inf"), -float("inf"), 3e38, -1e30, 0.0, -1.0, 1e-40])
                numbers[at : at + width] = struct.pack(kind, odd)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(numbers))
    _reseal(file)


def _reseal(file: Path) -> None:
    """Makes the checksum of a file of arrays, or of each row, fit what is there; of what is neither any more, not."""
    content = file.read_bytes()
    if content.startswith(b"{"):
        last, lines = "", []
        for line in content.splitlines(keepends=True):
            whole, last = _line(last, line[_BODY:-1])
            lines.append(whole)
        file.write_bytes(b"".join(lines))
        return
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
        header["__metadata__"]["sha256"] = _ZEROS
    except (KeyError, TypeError, ValueError, RecursionError):
        return
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[start:])
    seal(file, _ZEROS)
