"""The bleed-over analysis: forecasts beside what the scores say changed."""

import pandas as pd
import pytest

import rome_lens as rl
from analyses.bleed_over import bleed_over, correlations
from tests.edit.artifact.test_edit import REQUEST, made_up

NEIGHBOURS = ("The Colosseum is located in the city of", "The Space Needle is located in the city of")


def test_the_measured_change_is_that_of_the_scores(tiny):
    """lead_gain, averaged over the neighbours, is the gain in score_record's NM; a prompt may stand there twice."""
    record = rl.EditRecord(REQUEST, "Paris", neighborhood_prompts=(*NEIGHBOURS, NEIGHBOURS[0]), case_id=7)
    edit = made_up(tiny)
    frame = bleed_over(tiny, record, edit)
    before = rl.evaluate.score_record(tiny, record)["NM"]
    with edit.applied(tiny):
        after = rl.evaluate.score_record(tiny, record)["NM"]
    assert frame["lead_gain"].mean() == pytest.approx(after - before, abs=1e-6)
    assert list(frame["prompt"]) == list(record.neighborhood_prompts)
    compared = rl.compare_models(tiny, edit, NEIGHBOURS, progress=False).divergence.set_index("prompt")["kl"]
    assert frame["kl"].tolist() == pytest.approx([compared[prompt] for prompt in frame["prompt"]], rel=1e-3)


def test_correlations_are_of_ranks_over_all_and_within_records():
    """The ranks agree within each record and not between them."""
    rows = [(case, i + 10 * case, (1 + i) ** 3 - 100 * case) for case in range(2) for i in range(5)]
    frame = pd.DataFrame(rows, columns=["case_id", "size", "kl"])
    frame = frame.assign(share=frame["size"], last_share=-frame["size"], lead_gain=frame["kl"], lead_change=frame["kl"])
    table = correlations(frame).set_index(["forecast", "change"])
    assert table.loc[("size", "kl"), "mean_within_record"] == pytest.approx(1)
    assert table.loc[("last_share", "kl"), "mean_within_record"] == pytest.approx(-1)
    assert table.loc[("size", "kl"), "spearman"] < 0
    assert (table["n"] == 10).all()
