"""One command gives the table of methods that write passages, and goes on where it was."""

import json

import pandas as pd
import pytest

import rome_lens as rl
from analyses import long_answers
from rome_lens.evaluate import scoring
from tests.analyses.cases import whole
from tests.data.test_load_records import CASES
from tests.edit.methods.test_rome import covariance_of


def test_the_table_has_each_method_and_kind_of_question(given, tiny, tmp_path, monkeypatch):
    small = covariance_of(tiny).second_moment / 1000  # so that AlphaEdit finds a null space
    (tmp_path / "covariances").mkdir()
    covariance = rl.KeyCovariance.from_matrix(small, layer=1, tokens=1000)
    covariance.save(tmp_path / "covariances" / "layer1.safetensors")
    path = tmp_path / "unke.json"
    path.write_text(json.dumps([CASES["UnKEBench or EditEverything"][0] | {"id": i} for i in range(2)]))
    (tmp_path / "texts.txt").write_text("The capital of France is Paris. " * 20)
    arguments = [
        *("--out", str(tmp_path / "out"), "--records", str(path), "--count", "1", "--layers", "1", "--steps", "2"),
        *("--new-tokens", "4", "--perplexity-texts", str(tmp_path / "texts.txt")),
        *("--covariances", str(tmp_path / "covariances")),
    ]
    long_answers.main(arguments)
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    assert list(table.index) == ["base", *long_answers.CHOICES]
    assert (table["failed"] == 0).all()
    assert table[list(long_answers.SHOWN[:-1])].stack().between(0, 1).all()
    assert (table["perplexity"] > 1).all()
    assert whole(tmp_path / "out")["arguments"]["count"] == 1
    monkeypatch.setattr(scoring, "measured", lambda *_, **__: pytest.fail("This was done already."))
    long_answers.main(arguments)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "table.csv").set_index("method"), table)
