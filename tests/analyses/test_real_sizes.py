"""A model of a given shape is measured beside its forecast, and what was measured is not measured again."""

import json

import pandas as pd
import pytest

from analyses import real_sizes
from tests.tiny import CONFIGS


def test_each_piece_of_work_has_a_row_that_is_kept(tmp_path, monkeypatch, capsys):
    CONFIGS["gpt2"]().save_pretrained(tmp_path / "shape")
    out = tmp_path / "out"
    given = ["--model", str(tmp_path / "shape"), "--tokens", "6", "--samples", "1", "--cells", "3"]
    given += ["--covariance-tokens", "256", "--out", str(out)]
    edit, failing = real_sizes.edit, pytest.fail.Exception
    monkeypatch.setattr(real_sizes, "edit", lambda *rest, **options: pytest.fail("stopped"))
    with pytest.raises(failing, match="stopped"):
        real_sizes.main(given)
    assert capsys.readouterr().out.count("planned_gib") == 5
    monkeypatch.setattr(real_sizes, "edit", edit)
    real_sizes.main(given)
    assert capsys.readouterr().out.count("{'work'") == 1
    table = pd.read_csv(out / "sizes.csv")
    names = [work.partition(" (")[0] for work in table["work"]]
    assert names == ["loading", *["a trace"] * 3, "a covariance", "an edit"]
    assert table["of_weights"][0] > 0.5
    assert (table["relative_difference"][1:4] < 1e-4).all()
    assert (table[["cpu_seconds", "planned_cpu_seconds"]][1:] > 0).all().all()
    assert table["times_plain"].notna().sum() == 3
    assert not (out / "model").exists()
    assert json.loads((out / "manifest.json").read_text())["arguments"]["samples"] == 1
