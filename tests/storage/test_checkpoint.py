"""A checkpoint is replaced whole or not at all, and refuses other work, a second run, and damage."""

import errno
import os

import pytest
import torch

from rome_lens.errors import FormatError, UnavailableError
from rome_lens.storage import open_checkpoint, tensors

IDENTITY = {"model": "gpt2", "tokens": 100}


def opened(folder, **changes):
    return open_checkpoint(folder, **({"kind": "sums", "identity": IDENTITY, "facts": {"step": int}} | changes))


@pytest.fixture
def begun(tmp_path):
    with opened(tmp_path / "run") as kept:
        assert kept.found is None
        kept.save({"a": torch.arange(3.0)}, {"step": 1})
    return tmp_path / "run"


def test_the_last_state_is_found(begun):
    with opened(begun) as kept:
        kept.save({"a": torch.arange(5.0)}, {"step": 2})
    with opened(begun) as kept:
        arrays, facts = kept.found
        assert facts == {"step": 2}
        assert torch.equal(arrays["a"], torch.arange(5.0))


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as kept:
        kept.save({"a": torch.arange(3.0)}, {"step": 1})
        assert not kept.is_due
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"identity": IDENTITY | {"tokens": 200}}, "begun with {'tokens': 100}, but {'tokens': 200} was given"),
        ({"kind": "other"}, "holds 'sums', expected a 'other'"),
        ({"facts": {"step": str}}, "fact 'step' .* is a int, expected str"),
    ],
)
def test_other_work_is_refused(begun, changes, says):
    with pytest.raises(FormatError, match=says), opened(begun, **changes):
        pytest.fail("the body ran")


def test_a_second_run_is_refused(begun):
    with opened(begun), pytest.raises(UnavailableError, match="Another run has"), opened(begun):
        pytest.fail("the body ran")


def test_too_small_a_disk_is_told_before_any_work(begun):
    with pytest.raises(UnavailableError, match=r"needs \d+ MB, but .* are free"), opened(begun, size=1 << 60):
        pytest.fail("the body ran")


def test_a_disk_that_gets_full_leaves_what_was_there(begun, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(begun) as kept:
        monkeypatch.setattr(tensors, "save_file", full)
        with pytest.raises(UnavailableError, match="There is no room for .*checkpoint.safetensors"):
            kept.save({"a": torch.arange(5.0)}, {"step": 2})
    with opened(begun) as kept:
        assert kept.found[1] == {"step": 1}
