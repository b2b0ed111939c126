"""Tensors and facts come back as they were; a damaged or foreign file is refused with what to do."""

import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rome_lens.errors import FormatError
from rome_lens.storage import load_tensors, save_tensors
from rome_lens.storage.tensors import seal

ZEROS = "0" * 64
TENSORS = {"u": torch.arange(6.0).reshape(2, 3), "v": torch.tensor([1.5, -2.5], dtype=torch.float64)}
FACTS = {"layer": 5, "name": "Élysée", "list": [1, 2.5, None]}
TYPES = {"layer": int, "name": str, "list": list}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "edit.safetensors"
    save_tensors(path, TENSORS, kind="edit", facts=FACTS)
    return path


def test_tensors_and_facts_come_back_bit_equal(saved):
    tensors, facts = load_tensors(saved, kind="edit", facts=TYPES)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0)


def test_views_and_parameters_are_saved_by_value(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    save_tensors(tmp_path / "a", {"p": parameter, "t": parameter.T}, kind="k", facts={})
    tensors, _ = load_tensors(tmp_path / "a", kind="k", facts={})
    torch.testing.assert_close(tensors["t"], parameter.detach().T, rtol=0, atol=0)
    torch.testing.assert_close(tensors["p"], parameter.detach(), rtol=0, atol=0)


def test_saving_tensors_refuses_an_existing_file(saved):
    before = saved.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        save_tensors(saved, {}, kind="edit", facts={})
    assert saved.read_bytes() == before


def test_facts_that_are_not_json_leave_no_file(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        save_tensors(tmp_path / "a", TENSORS, kind="k", facts={"bad": object()})
    assert os.listdir(tmp_path) == []


def test_safetensors_of_another_kind_are_refused(saved):
    with pytest.raises(FormatError, match="holds 'edit', expected a 'covariance'"):
        load_tensors(saved, kind="covariance", facts=TYPES)


def test_safetensors_without_metadata_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a")
    with pytest.raises(FormatError, match="holds 'tensors of another program', expected a 'edit'"):
        load_tensors(tmp_path / "a", kind="edit", facts=TYPES)


@pytest.mark.parametrize(
    ("facts", "message"),
    [({}, "are not JSON"), ({"facts": "{"}, "are not JSON"), ({"facts": "[1]"}, "are a list, expected a JSON object")],
)
def test_damaged_facts_in_the_header_are_refused(tmp_path, facts, message):
    save_file(TENSORS, tmp_path / "a", metadata={"kind": "edit", "sha256": ZEROS, **facts})
    seal(tmp_path / "a", ZEROS)
    with pytest.raises(FormatError, match=message):
        load_tensors(tmp_path / "a", kind="edit", facts=TYPES)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_safetensors_are_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    with pytest.raises(FormatError, match="is damaged or is not a safetensors file"):
        load_tensors(saved, kind="edit", facts=TYPES)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, -1, -8])
def test_safetensors_cut_at_the_edges_of_their_parts_are_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(FormatError, match="is damaged or is not a safetensors file"):
        load_tensors(saved, kind="edit", facts=TYPES)


@pytest.mark.parametrize(
    "garbage",
    [b"no safetensors at all", b"\xff" * 64, struct.pack("<Q", 2) + b"{}x", struct.pack("<Q", 4) + b"\xff\xfe{}"],
)
def test_garbage_is_refused_as_safetensors(tmp_path, garbage):
    (tmp_path / "a").write_bytes(garbage)
    with pytest.raises(FormatError, match="is damaged or is not a safetensors file"):
        load_tensors(tmp_path / "a", kind="edit", facts=TYPES)


def test_no_flipped_bit_passes(saved):
    """All of them, one after the other: numbers, names, facts, the checksum, the header's blanks."""
    content = bytearray(saved.read_bytes())
    for place in range(len(content)):
        bit = 1 << place % 8
        content[place] ^= bit
        saved.write_bytes(content)
        with pytest.raises(FormatError):
            load_tensors(saved, kind="edit", facts=TYPES)
        content[place] ^= bit


def test_a_file_without_a_checksum_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a", metadata={"kind": "edit", "facts": "{}"})
    with pytest.raises(FormatError, match="does not fit its checksum"):
        load_tensors(tmp_path / "a", kind="edit", facts={})


def test_missing_and_folder_paths_are_told_as_missing_files(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file .* that holds a edit"):
            load_tensors(path, kind="edit", facts=TYPES)
