"""The command that recommends a layer leaves the evidence, as a table and a figure."""

import pandas as pd

from analyses import recommend_layers
from tests import tiny as models
from tests.analyses.cases import whole


def test_the_evidence_is_left_and_the_layer_said(given, tiny, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text(models.CORPUS * 20)
    texts = ["--texts", str(tmp_path / "corpus.txt"), "--tokens", "600", "--candidates", "1", "2"]
    recommend_layers.main([*given["plain"], *texts])
    table = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert list(table["layer"]) == [0, 1, 2]
    assert list(table["n"].notna()) == [False, True, True]
    layer = whole(tmp_path / "out", "layers")["layer"]
    assert layer in (1, 2)
    assert f"\nlayer {layer}, in " in capsys.readouterr().out
