"""In every file that the package reads back, one flipped bit is a FormatError, wherever it is."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import rome_lens as rl
from tests.edit.covariance import test_collect as collecting
from tests.edit.methods import test_batch as batch
from tests.edit.methods import test_mend as mend
from tests.evaluate.test_sequence import RECORDS, noise
from tests.locate.test_many_facts import FACTS, OPTIONS
from tests.torture import times

QUIET = {"progress": False}


def _edit(model, folder: Path) -> tuple[Path, Callable]:
    noise(model, RECORDS[0].request).save(folder / "edit")
    return folder / "edit", lambda: rl.Edit.load(folder / "edit")


def _covariance(model, folder: Path) -> tuple[Path, Callable]:
    rl.collect_covariance(model, [1], texts=collecting.TEXTS, tokens=100, **QUIET)[1].save(folder / "covariance")
    return folder / "covariance", lambda: rl.KeyCovariance.load(folder / "covariance")


def _covariance_checkpoint(model, folder: Path) -> tuple[Path, Callable]:
    def collect():
        return rl.collect_covariance(model, [1], texts=collecting.TEXTS, tokens=50, out=folder / "sums", **QUIET)

    collect()
    return folder / "sums" / "checkpoint.safetensors", collect


def _editor(model, folder: Path) -> tuple[Path, Callable]:
    rl.edit.MendEditor.untrained(model, config=mend.CONFIG).save(folder / "editor")
    return folder / "editor", lambda: rl.edit.MendEditor.load(folder / "editor")


def _training(model, folder: Path) -> tuple[Path, Callable]:
    def train():
        return mend.train(model, steps=1, out=folder / "training")

    train()
    return folder / "training" / "checkpoint.safetensors", train


def _targets(model, folder: Path) -> tuple[Path, Callable]:
    batch.found(model).save(folder / "targets")
    return folder / "targets", lambda: rl.edit.MemitTargets.load(folder / "targets")


def _search(model, folder: Path) -> tuple[Path, Callable]:
    def search():
        return batch.targets_of(model, out=folder / "search")

    search()
    return folder / "search" / "checkpoint.safetensors", search


def _traces(model, folder: Path) -> tuple[Path, Callable]:
    rl.trace_facts(model, FACTS, kinds=["resid"], out=folder / "traces", **OPTIONS)
    return folder / "traces" / "rows.jsonl", lambda: rl.locate.load_traces(folder / "traces")


def _evaluation(model, folder: Path) -> tuple[Path, Callable]:
    rl.score_edits(model, RECORDS, {"noise": noise}, out=folder / "evaluation", **QUIET)
    return folder / "evaluation" / "rows.jsonl", lambda: rl.evaluate.load_scores(folder / "evaluation")


def _sequence(model, folder: Path) -> tuple[Path, Callable]:
    rl.edit_sequence(model, RECORDS, out=folder / "sequence", method=noise, **QUIET)
    return folder / "sequence" / "rows.jsonl", lambda: rl.evaluate.load_sequence(folder / "sequence")


MADE = [
    _edit,
    _covariance,
    _covariance_checkpoint,
    _editor,
    _training,
    _targets,
    _search,
    _traces,
    _evaluation,
    _sequence,
]


@pytest.mark.torture
@pytest.mark.parametrize("make", MADE)
def test_one_flipped_bit_is_refused(tiny, tmp_path, make):
    path, read = make(tiny, tmp_path)
    content = bytearray(path.read_bytes())
    flips, moments = times(20, 200), random.Random(0)
    for _ in range(flips):
        place, bit = moments.randrange(len(content)), 1 << moments.randrange(8)
        content[place] ^= bit
        path.write_bytes(content)
        with pytest.raises(rl.errors.FormatError):
            read()
        content[place] ^= bit
    path.write_bytes(content)
    read()
    print(f"{make.__name__[1:]}: {flips} bits flipped, 0 passed")
