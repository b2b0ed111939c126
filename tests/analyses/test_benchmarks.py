"""Benchmarks run on a tiny model: both sides give the same, and the tables say what made them. Times are not judged."""

import json
from pathlib import Path

import pandas as pd
import pytest

from analyses import (
    benchmark_covariance,
    benchmark_editing,
    benchmark_evaluation,
    benchmark_forward,
    benchmark_generation,
    benchmark_loading,
    benchmark_tracing,
)

SMALL = {
    benchmark_covariance: ["--layers", "0", "1", "--tokens", "512", "--counts", "500", "1000"],
    benchmark_editing: ["--layer", "1", "--steps", "2"],
    benchmark_evaluation: ["--count", "2"],
    benchmark_forward: ["--prompts", "1", "2", "--repeats", "1"],
    benchmark_generation: ["--count", "1", "--new-tokens", "5"],
    benchmark_tracing: ["--samples", "1"],
}


@pytest.mark.parametrize("benchmark", SMALL, ids=lambda module: module.__name__.split(".")[1])
def test_both_sides_of_a_benchmark_agree_and_it_says_what_made_it(benchmark, given, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(benchmark_covariance, "LENGTH", 64)  # a tiny model reads no more than 128
    benchmark.main([*SMALL[benchmark], "--out", str(tmp_path / "out")])
    tables = [pd.read_csv(path) for path in (tmp_path / "out").glob("*.csv")]
    differences = [table.filter(regex="^(largest|relative).*difference") for table in tables]
    compared = [frame for frame in differences if not frame.empty]
    assert compared
    assert pd.concat(compared).abs().max().max() < 1e-4
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["arguments"]["out"].endswith("out")


def test_loading_is_compared_with_the_plain_way_on_the_same_files(tmp_path: Path, monkeypatch):
    seconds = {"plain": 2.0, "load_model": 3.0}
    monkeypatch.setattr(benchmark_loading, "save", lambda folder, family, stored: None)
    monkeypatch.setattr(benchmark_loading, "measure", lambda folder, dtype, way: {"seconds": seconds[way], "peak": 1.1})
    benchmark_loading.main(["--families", "gpt2", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "loading.csv")
    assert list(table["stored"]) == ["float32", "float32", "bfloat16", "bfloat16"]
    assert list(table["seconds_to_plain"]) == [1.0, 1.5, 1.0, 1.5]
