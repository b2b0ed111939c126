"""The study of memories: that its rivals are what they are said to be, and that it goes on where it was."""

import json

import pandas as pd
import pytest
import torch

import rome_lens as rl
from analyses import fact_memory
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods import memory, near
from rome_lens.edit.methods.closed_forms import memit_factor
from rome_lens.models import in_float64
from tests.analyses.cases import refused
from tests.edit.methods.test_rome import covariance_of


@pytest.fixture(autouse=True)
def _few_subjects(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "load_subjects", lambda: load_subjects("Tower"))
    monkeypatch.setattr(near, "load_subjects", lambda: load_subjects("Tower"))
    monkeypatch.setattr(near.platformdirs, "user_cache_path", lambda name: tmp_path / name)


def made_up(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def test_the_first_power_of_the_kernel_is_memit_and_the_nearest_key_is_told_within_reach(tiny):
    keys, residuals, entering = made_up(5, tiny.cfg.d_mlp), made_up(5, 3), made_up(6, tiny.cfg.d_mlp)[None]
    covariance = covariance_of(tiny)
    left = memit_factor(in_float64(keys), covariance, rl.MemitConfig().weight(tiny.cfg.d_mlp)).float()
    found = fact_memory._kernel(keys, residuals, covariance, 1)(entering)
    torch.testing.assert_close(found, entering @ left @ residuals, rtol=1e-3, atol=1e-5)
    near_keys = keys[None, :2] + torch.tensor([0.0, 1.0])[:, None]
    told = fact_memory._nearest(keys, residuals, 0.5, near_keys)
    assert torch.equal(told[0, 0], residuals[0])
    assert not told[0, 1].any()


def test_each_method_is_measured_and_gone_on_with(given, tiny, tmp_path, monkeypatch):
    others = [
        {"case_id": i, "prompt": f"The city of {name} is", "target_new": "Rome", "subject": name, "ground_truth": "x"}
        | {"rephrase_prompt": f"{name} is", "locality_prompt": "One is", "locality_ground_truth": "two"}
        for i, name in enumerate(("Dante", "Victor Hugo"))
    ]
    (tmp_path / "others.json").write_text(json.dumps(others))
    (tmp_path / "text").write_text("One, two. The capital of Italy is Rome. " * 20)
    methods = [method for method in fact_memory.METHODS if method != "alphaedit"]  # it needs directions without keys
    command = [
        *given["records"],
        *("--others", str(tmp_path / "others.json"), "--searched", "2", "--count", "2", "--facts", "2", "4"),
        *("--near", "1", "--perplexity-texts", str(tmp_path / "text"), "--perplexity-tokens", "60"),
        *("--methods", *methods),
    ]
    fact_memory.main(command)
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert list(zip(table["facts"], table["method"], strict=True)) == [(n, m) for n in (2, 4) for m in methods]
    assert (table["n"] == 2).all()
    base = table[table["method"] == "base"]
    assert (base["near_kl"] == 0).all()
    assert table.loc[table["method"] == "memory", "share_of_pass"].notna().all()
    monkeypatch.setattr(rl.evaluate, "score_record", None)
    fact_memory.main(command)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "table.csv"), table)
    refused(fact_memory.main, command, tiny)
