"""Edit.load on files from strangers: a valid edit comes back, or a FormatError; nothing else happens."""

import hashlib
import json
import struct
from collections import Counter
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rome_lens as rl
from tests.damaged_readers import EDIT
from tests.torture import times


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the tests' check of shapes, which would hide what the reader itself misses."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of a saved edit."""
    EDIT.save(tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def split(content: bytes) -> tuple[dict, bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict, tensors: bytes) -> bytes:
    """The file, with its checksum made to fit where it has one, so that what is behind the checksum is tried."""
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + tensors
    try:
        written = header["__metadata__"]["sha256"]
        place = 8 + text.index(written.encode())
    except (KeyError, TypeError, ValueError, AttributeError):
        return content
    if len(written) != 64:
        return content
    found = hashlib.sha256(content.replace(written.encode(), b"0" * 64, 1)).hexdigest()
    return content[:place] + found.encode() + content[place + 64 :]


def with_facts(content: bytes, facts: str | dict) -> bytes:
    header, tensors = split(content)
    header["__metadata__"]["facts"] = facts if isinstance(facts, str) else json.dumps(facts)
    return joined(header, tensors)


def facts_of(content: bytes) -> dict:
    return json.loads(split(content)[0]["__metadata__"]["facts"])


# ------------------------------------------------------------------------------------------------------------ fuzzing

NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0])
TEXTS = st.text(max_size=8) | st.sampled_from(["{}", "a" * 64, "F32", "BF16", "F64", "I64", "F8_E4M3"])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def places(value, path=()) -> list[tuple]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, inner in items for place in places(inner, (*path, key))]


@st.composite
def altered(draw, value):
    """A JSON value with one to three of its places set to junk, removed or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(value) or [("new",)]))
        holder = value
        for key in path:
            holder = holder[key]
        match draw(st.sampled_from(["junk", "junk", "remove", "again"])):
            case "junk":
                holder[last] = draw(JUNK)
            case "remove" if last != "new":
                del holder[last]
            case _ if isinstance(holder, list):
                holder.append(holder[last])
            case _:
                holder[draw(TEXTS)] = holder.get(last)
    return value


@st.composite
def flipped(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


@st.composite
def spliced(draw, content):
    """A piece cut out, and random bytes or another piece of the file put there."""
    ends = st.integers(0, len(content))
    start, stop = sorted((draw(ends), draw(ends)))
    other = sorted((draw(ends), draw(ends)))
    return content[:start] + draw(st.binary(max_size=40) | st.just(content[slice(*other)])) + content[stop:]


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    header, tensors = split(content)
    return st.one_of(
        flipped(content),
        spliced(content),
        st.integers(0, len(content) - 1).map(lambda length: content[:length]),
        altered(header).map(lambda header: joined(header, tensors)),
        altered(facts_of(content)).map(lambda facts: with_facts(content, facts)),
        altered(facts_of(content)).map(lambda facts: with_facts(content, facts)),
    )


@pytest.mark.torture
def test_damaged_files_load_as_valid_edits_or_not_at_all(whole, tmp_path):
    """Flipped bits, truncations, splices, junk in the header's JSON. What loads can be shown, saved, loaded again."""
    outcomes: Counter[str] = Counter()
    path, again = tmp_path / "damaged", tmp_path / "again"

    @settings(derandomize=True, max_examples=times(500, 2000), deadline=None, database=None)
    @given(damaged(whole))
    def read(content):
        path.write_bytes(content)
        try:
            edit = rl.Edit.load(path)
        except rl.errors.FormatError:
            outcomes["refused"] += 1
            return
        outcomes["loaded"] += 1
        assert str(edit)
        assert edit.health is None or edit.health.problems is not None
        for update in edit.updates:
            assert update.left.dtype == update.right.dtype == torch.float32
            assert all((factor.abs() < torch.inf).all() for factor in (update.left, update.right))
            assert (update.left @ update.right).shape == update.shape
            assert 0 <= update.layer < 2**63
        edit.save(again, overwrite=True)
        assert rl.Edit.load(again).requests == edit.requests

    read()
    assert outcomes["refused"] > times(250, 1000)
    assert outcomes["loaded"] > times(10, 50)


# ----------------------------------------------------------------------------------------------------- by their causes


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("layers", {"0": 1}, "'layers' .* is a dict, expected list"),
        ("layers", [1], "tensors .* for 1 updates"),
        ("layers", [1, "3"], "layer '3'"),
        ("layers", [1, True], "layer True"),
        ("layers", [1, -3], "counted from 0"),
        ("layers", [1, 2.0], "layer 2.0"),
        ("made_for", ["a"], "shorter"),
        ("made_for", ["a", None], "made for None"),
        ("requests", [["{}", "a", "b"]], "mapping"),
        ("requests", [{"prompt": "{}", "subject": 3, "target": "b"}], "subject is 3, expected a string"),
        ("requests", [{"prompt": "no place", "subject": "a", "target": "b"}], "expected exactly once"),
        ("requests", [{"prompt": "{}", "subject": "a", "target": "b", "more": 1}], "more"),
        ("method", 3, "'method' .* is a int, expected str"),
        ("config", [], "'config' .* is a list, expected dict"),
        ("health", 0, r"'health' .* is a int, expected dict \| None"),
        ("health", {}, "missing"),
        ("health", {"update_norm": None, "relative_update_norm": 1}, "'update_norm' .* is None, expected a number"),
        ("health", {"update_norm": 1, "relative_update_norm": 1, "__class__": 1}, "__class__"),
    ],
)
def test_a_fact_of_the_wrong_type_is_named(whole, tmp_path, name, value, says):
    path = tmp_path / "edit"
    path.write_bytes(with_facts(whole, facts_of(whole) | {name: value}))
    with pytest.raises(rl.errors.FormatError, match=says):
        rl.Edit.load(path)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ('{"config": NaN}', "NaN is no number"),
        ('{"config": -Infinity}', "-Infinity is no number"),
        ('{"config": 1e999}', "1e999 is too large a number"),
        ('{"config": 9223372036854775808}', "too large a number"),
        ('{"config": ' + "9" * 100_000 + "}", "too large a number"),
        ('{"config": {"a": 1, "a": 2}}', "a name occurs twice"),
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100_000, "recursion"),
        ('{"config": {}}', r"are \['config'\], expected \['architecture', "),
    ],
)
def test_facts_that_are_not_strict_json_are_refused(whole, tmp_path, facts, says):
    path = tmp_path / "edit"
    path.write_bytes(with_facts(whole, facts))
    with pytest.raises(rl.errors.FormatError, match=says):
        rl.Edit.load(path)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "I32"}, "torch.int32"),
        ({"dtype": "BF16", "shape": [6, 4]}, "torch.bfloat16"),
        ({"shape": [12]}, r"\[12\]"),
        ({"shape": [4, 3]}, r"\[4, 3\] .* expected float32 matrices"),
        ({"shape": [0, 2**63], "data_offsets": [0, 0]}, "damaged"),
        ({"shape": [2**40, 2**40]}, "damaged"),
    ],
)
def test_a_tensor_of_the_wrong_kind_is_refused(whole, tmp_path, entry, says):
    header, tensors = split(whole)
    header["0.left"] |= entry
    (tmp_path / "edit").write_bytes(joined(header, tensors))
    with pytest.raises(rl.errors.FormatError, match=says) as refused:
        rl.Edit.load(tmp_path / "edit")
    assert len(str(refused.value)) < 1000


def test_a_tensor_too_many_is_refused(tmp_path, whole):
    header, tensors = split(whole)
    header["2.left"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(tensors), len(tensors) + 4]}
    (tmp_path / "edit").write_bytes(joined(header, tensors + bytes(4)))
    with pytest.raises(rl.errors.FormatError, match=r"holds the tensors .*'2.left'.* for 2 updates"):
        rl.Edit.load(tmp_path / "edit")


def test_files_and_headers_beyond_the_bound_are_refused_unread(whole, tmp_path):
    path = tmp_path / "edit"
    path.write_bytes(whole)
    with pytest.raises(
        rl.errors.FormatError, match=rf"is {len(whole)} bytes long, but at most 100 are read. Pass a larger"
    ):
        rl.Edit.load(path, max_bytes=100)
    assert rl.Edit.load(path, max_bytes=len(whole)).requests == EDIT.requests
    with path.open("wb") as opened:
        opened.write(struct.pack("<Q", 1 << 30))
        opened.truncate(4 << 30)  # sparse: takes no room
    with pytest.raises(rl.errors.FormatError, match="4294967296 bytes long, but at most 2147483648 are read"):
        rl.Edit.load(path)
    with pytest.raises(
        rl.errors.FormatError, match="its header would be 1073741824 bytes long, at most 16777216 are read"
    ):
        rl.Edit.load(path, max_bytes=8 << 30)


def test_a_loaded_edit_does_not_change_when_its_file_does(whole, tmp_path):
    """safetensors gives views of the file's pages."""
    path = tmp_path / "edit"
    path.write_bytes(whole)
    edit = rl.Edit.load(path)
    with path.open("r+b") as opened:
        opened.seek(len(whole) - 64)
        opened.write(bytes(64))
    assert all((update.left == 1).all() and (update.right == 1).all() for update in edit.updates)


def test_an_edit_whose_numbers_are_not_finite_is_not_saved(tmp_path):
    health = rl.edit.EditHealth(update_norm=float("nan"), relative_update_norm=0.1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        rl.Edit(EDIT.updates, EDIT.requests, health=health).save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []
