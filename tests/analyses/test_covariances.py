"""Where analyses take ROME's covariance from."""

import argparse
from pathlib import Path

import pandas as pd
import pytest

import rome_lens as rl
from analyses import table4_counterfact
from analyses.common.options import add_covariance_arguments, rome_covariance
from rome_lens.edit.presets.layers import SUGGESTED_LAYERS
from tests import tiny as models


def options(*argv: str) -> argparse.Namespace:
    arguments = argparse.ArgumentParser()
    add_covariance_arguments(arguments)
    return arguments.parse_args(argv)


def test_table4_of_a_model_without_a_covariance_collects_one_of_the_suggested_layer(given, tiny, tmp_path, monkeypatch):
    """And keeps it: a second run needs no text."""
    monkeypatch.setitem(SUGGESTED_LAYERS, "gpt2", (2, "this test"))
    (tmp_path / "corpus.txt").write_text(models.CORPUS * 20)
    folder = ["--covariances", str(tmp_path / "covariances")]
    asked = [*given["plain"], "--count", "1", "--method", "rome", *folder]
    table4_counterfact.main([*asked, "--texts", str(tmp_path / "corpus.txt"), "--tokens", "200"])
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["method"]) == ["base", "rome"]
    kept = rome_covariance(tiny, options(*folder))
    assert (kept.layer, kept.tokens) == (2, 200)


def test_a_covariance_that_is_given_goes_first(given, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(SUGGESTED_LAYERS, "gpt2", (2, "this test"))
    assert rome_covariance(tiny, options("--covariance", str(tmp_path / "covariance.safetensors"))).layer == 1


def test_without_a_text_or_a_network_a_sentence_says_what_to_do(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(SUGGESTED_LAYERS, "gpt2", (2, "this test"))
    with pytest.raises(rl.errors.UnavailableError, match="Salesforce/wikitext.*Connect"):
        rome_covariance(tiny, options("--covariances", str(tmp_path)))


def test_a_model_without_a_known_layer_is_refused(tiny, tmp_path: Path):
    with pytest.raises(ValueError, match="No edit layer is known for 'gpt2'"):
        rome_covariance(tiny, options("--covariances", str(tmp_path)))
