"""Each data set is scored by its own scorer, records edited together are written at once, and a run goes on."""

import json

import pandas as pd
import pytest

import rome_lens as rl
from analyses import published_scores
from rome_lens.evaluate import scoring
from tests.analyses.cases import refused, whole
from tests.data.test_load_records import CASES, REWRITE

METHODS = ["--methods", "ft"]


@pytest.fixture
def files(tmp_path):
    """A file of EVOKE's schema and one of MQuAKE's, of two records each."""
    evoke, mquake = CASES["EVOKE"][0], CASES["MQuAKE"][0]
    second = REWRITE | {"subject": "Bob"}
    given = {
        "evoke": [evoke, evoke | {"case_id": 5, "requested_rewrite": second}],
        "mquake": [mquake, mquake | {"case_id": 5, "requested_rewrite": [REWRITE, second]}],
    }
    for name, records in given.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    return [str(tmp_path / f"{name}.json") for name in given]


def test_each_file_has_the_scores_of_its_own_scorer(given, files, tiny, tmp_path, monkeypatch):
    arguments = ["--out", str(tmp_path / "out"), "--records", *files, *METHODS]
    published_scores.main(arguments)
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert list(table.groupby("data", sort=False)["schema"].first()) == ["EVOKE", "MQuAKE"]
    records = rl.load_records(files[0])
    expected = pd.DataFrame([rl.evaluate.score_evoke(tiny, record) for record in records]).mean()
    base = table[(table["data"] == "evoke") & (table["method"] == "base")].set_index("metric")["mean"]
    assert base.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)
    assert set(table.loc[table["data"] == "mquake", "metric"]) >= {"multi_hop", "edit_wise", "instance_wise"}
    beside = pd.read_csv(tmp_path / "out" / "by_method.csv").set_index(["data", "metric"])
    assert len(beside) == (table["method"] == "base").sum()
    for row in table[table["data"] == "evoke"].to_dict("records"):
        name = row["method"]
        shown = beside.loc[("evoke", row["metric"]), [name, f"{name}_low", f"{name}_high"]]
        assert shown.to_list() == pytest.approx([row["mean"], row["low"], row["high"]])
    assert set(whole(tmp_path / "out")["inputs"]) == {"evoke.json", "mquake.json"}
    monkeypatch.setattr(scoring, "measured", lambda *_, **__: pytest.fail("This was done already."))
    published_scores.main(arguments)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "table.csv"), table)


def test_a_second_file_goes_on_though_its_methods_had_found_something_for_the_first(
    given, files, covariances, tmp_path, monkeypatch
):
    methods = [*covariances, "--methods", "memit", "--layers", "0", "1"]
    arguments = ["--out", str(tmp_path / "out"), "--records", *files, *methods]
    published_scores.main(arguments)
    monkeypatch.setattr(scoring, "measured", lambda *_, **__: pytest.fail("This was done already."))
    published_scores.main(arguments)
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")["data"].unique()) == 2


def test_records_together_are_one_edit_of_each_request_once(tiny):
    records = rl.load_records([CASES["MQuAKE"][0], CASES["MQuAKE"][0] | {"case_id": 5}])
    chunks = published_scores.chunks(records, 2)
    assert chunks == (records[0].requests,)
    asked = []

    def method(model, requests):
        asked.append(requests)
        return rl.edit.finetune(model, requests, on_unhealthy="ignore", progress=False)

    both = published_scores.Together(method, chunks)
    edits = [both(tiny, record.request) for record in records]
    assert edits[0] is edits[1]
    assert asked == [list(chunks[0])]


def test_methods_for_one_request_are_refused_where_there_are_several(given, files, tmp_path):
    for more in (files[1:], [files[0], "--together", "2"]):
        arguments = ["--out", str(tmp_path / "out"), "--records", *more, "--methods", "rome"]
        with pytest.raises(SystemExit, match="rome write one request at once, but .* Choose among memit"):
            published_scores.main(arguments)
    assert not (tmp_path / "out").exists()


def test_what_the_model_knows_already_is_left_out():
    rows = [(case, method, "efficacy", float(case == 1)) for case in (1, 2) for method in ("base", "rome")]
    scores = pd.DataFrame(rows, columns=["case_id", "method", "metric", "value"])
    assert set(published_scores.wrong_before(scores)["case_id"]) == {2}


def test_a_run_by_another_model_is_refused(given, files, tiny, tmp_path):
    arguments = ["--out", str(tmp_path / "out"), "--records", files[0], *METHODS]
    published_scores.main(arguments)
    refused(published_scores.main, arguments, tiny)
