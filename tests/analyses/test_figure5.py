"""The sweep over layers and tokens edits where its rows say."""

import pandas as pd

import rome_lens as rl
from analyses import figure5_layers_and_tokens as figure5
from tests.edit.methods.test_rome import CONTEXTS, REQUEST, covariance_of

TOKENS = ("subject_first", "subject_last")
RECORDS = [
    rl.EditRecord(REQUEST, "Paris", neighborhood_prompts=("The Space Needle is in",), case_id=3),
    rl.EditRecord(rl.EditRequest("{} is in", "Rome", target="Paris"), "Italy", case_id=4),
]


def test_each_cell_is_edited_where_its_row_says_and_scored_once(tiny, tmp_path):
    covariances = {layer: covariance_of(tiny, layer) for layer in (0, 1)}
    methods = figure5.methods_of_cells(covariances, TOKENS, CONTEXTS)
    configs = {name: method(tiny, REQUEST).config for name, method in methods.items()}
    rows = rl.score_edits(tiny, RECORDS, methods, out=tmp_path / "records", progress=False)
    summary = figure5.with_cells(rl.summarize(rows)).set_index("method")
    assert list(summary.index) == ["base", *methods]
    assert (summary.loc["base", "token"], summary.loc["base", "layer"]) == ("", -1)
    for name, config in configs.items():
        assert (summary.loc[name, "token"], summary.loc[name, "layer"]) == (config["token"], config["layer"])
    cells = summary.drop(index="base")[["token", "layer"]]
    expected = pd.MultiIndex.from_product([(0, 1), TOKENS])
    assert set(zip(cells["layer"], cells["token"], strict=True)) == set(expected)
    assert (summary["n"] == len(RECORDS)).all()
    effects = pd.DataFrame(
        [(kind, "last subject token", layer, 0.1 * layer, 0.0, 0.5) for kind in ("resid", "mlp") for layer in range(3)],
        columns=["kind", "role", "layer", "mean", "ci_low", "ci_high"],
    )
    beside = figure5.beside_effects(summary.reset_index(), effects)
    assert list(beside["effect"]) == [0.0, 0.1, 0.2]
    assert beside.set_index("layer")["ES"].notna().to_dict() == {0: True, 1: True, 2: False}
