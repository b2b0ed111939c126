"""The sweep over layers and tokens: every cell once, whatever was done before."""

from dataclasses import replace

import pandas as pd
import pytest

import rome_lens as rl
from analyses import figure5_layers_and_tokens as figure5
from tests.edit.test_rome import CONTEXTS, REQUEST, covariance_of

TOKENS = ("subject_first", "subject_last")
RECORDS = [
    rl.EditRecord(REQUEST, "Paris", neighborhood_prompts=("The Space Needle is in",), case_id=3),
    rl.EditRecord(rl.EditRequest("{} is in", "Rome", target="Paris"), "Italy", case_id=4),
]


def test_a_stopped_sweep_goes_on_and_does_no_edit_twice(tiny, tmp_path, monkeypatch):
    """Stopped in the middle of the second edit, and run again: the same scores as in one go, one edit for each cell."""
    covariances = {layer: covariance_of(tiny, layer) for layer in (0, 1)}
    edits: list[tuple[int, str, str]] = []
    plain = rl.rome

    def counted(model, request, *, config, **options):
        if len(edits) == stop:
            raise KeyboardInterrupt
        edits.append((config.layer, config.token, request.subject))
        return plain(model, request, config=replace(config, steps=2), **options)

    monkeypatch.setattr(rl, "rome", counted)

    def swept(name: str) -> pd.DataFrame:
        return figure5.sweep(tiny, RECORDS, covariances, TOKENS, CONTEXTS, tmp_path / name)

    stop = 1
    with pytest.raises(KeyboardInterrupt):
        swept("stopped.csv")
    stop = -1
    resumed = swept("stopped.csv")
    assert len(edits) == len(set(edits)) == 2 * 2 * 2
    once = swept("once.csv")
    pd.testing.assert_frame_equal(
        resumed.reset_index(drop=True), once.reset_index(drop=True), check_dtype=False, atol=1e-5
    )
    assert set(once["method"]) == {"base", *(f"{token}, layer {layer}" for token in TOKENS for layer in (0, 1))}
    assert len(swept("once.csv")) == len(once)
    assert len(edits) == 2 * 8
