"""The near-subject benchmark: whose numbers they are, and that scored subjects are never preserved."""

import pandas as pd
import pytest

import rome_lens as rl
from analyses import near_subjects
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods import near
from tests.analyses.cases import refused
from tests.edit.artifact.test_edit import REQUEST, made_up
from tests.edit.methods.test_rome import covariance_of

SUBJECTS = ("The Space Needle", "The Colosseum")


def test_there_are_twenty_words_or_more_with_scored_and_listed_subjects_apart():
    assert len(near_subjects.WORDS) >= 20
    cases = near_subjects.of_words(2 * len(near_subjects.WORDS))
    assert len({case.request.text for case in cases}) == len(cases)
    for case in cases:
        assert len(case.scored) == near_subjects.SCORED
        assert len(case.listed) == near_subjects.LISTED
        assert len({case.request.subject, *case.scored, *case.listed}) == 1 + len(case.scored) + len(case.listed)


def test_a_record_is_scored_at_subjects_with_the_same_last_token(tiny, monkeypatch):
    monkeypatch.setattr(near_subjects, "load_subjects", lambda: load_subjects("Tower"))
    monkeypatch.setattr(near_subjects, "SCORED_OF_RECORDS", 2)
    monkeypatch.setattr(near_subjects, "LISTED", 3)
    lone = rl.EditRecord(rl.EditRequest("{} is in", "X%", "Rome"), "Chicago")  # nothing else ends like it
    tower = rl.EditRecord(rl.EditRequest("{} is in", "Willis Tower", "Rome"), "Chicago", ("Where is Willis Tower? In",))
    (case,) = near_subjects.of_records(tiny, [lone, tower], 5)
    assert (case.record, case.request) == (tower, tower.request)
    names = [*case.scored, *case.listed]
    assert (len(case.scored), len(case.listed), len(set(names))) == (2, 3, 5)
    assert all(name.endswith("Tower") and "Willis" not in name for name in names)
    rows = near_subjects.measured(tiny, case, iter([near_subjects.Variant("unedited", None, 0.0)]))
    expected = rl.evaluate.score_record(tiny, tower)
    assert [(row["near_kl"], row["ES"], row["PS"]) for row in rows] == [(0, expected["ES"], expected["PS"])] * 2


def test_what_is_measured_is_the_divergence_and_the_top_token_of_each_subject(tiny):
    edit = made_up(tiny)
    case, variant = near_subjects.Case(REQUEST, list(SUBJECTS), []), near_subjects.Variant("made up", edit, 1.0)
    rows = pd.DataFrame(near_subjects.measured(tiny, case, iter([variant])))
    prompts = [REQUEST.prompt.replace("{}", subject) for subject in SUBJECTS]
    compared = rl.compare_models(tiny, edit, prompts, progress=False)
    assert rows["near_kl"].tolist() == pytest.approx(compared.divergence["kl"].tolist(), rel=1e-3)
    forecast = rl.evaluate.strongest_bleed_over(rl.evaluate.forecast_bleed_over(tiny, edit, prompts))
    assert rows["reach"].tolist() == pytest.approx(forecast.groupby("prompt", sort=False)["size"].max().tolist())
    tokens = compared.tokens
    for row, prompt in zip(rows.to_dict("records"), prompts, strict=True):
        best = tokens[(tokens["prompt"] == prompt) & (tokens["rank_after"] == 1)]
        assert row["unchanged"] == float(best["rank_before"].item() == 1)


def test_each_method_runs_with_and_without_and_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(rl, "load_model", lambda name: tiny)
    monkeypatch.setattr("rome_lens.plots.saving._drawn", lambda figure, suffixes, inches: dict.fromkeys(suffixes, b""))
    monkeypatch.setattr(near_subjects, "LISTED", 2)  # a tiny model has little room
    monkeypatch.setattr(near, "load_subjects", lambda: load_subjects("Tower") + load_subjects("University"))
    monkeypatch.setattr(near.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    covariance_of(tiny).save(tmp_path / "covariance.safetensors")
    given = ["--covariance", str(tmp_path / "covariance.safetensors"), "--out", str(tmp_path / "out")]
    command = [*given, "--count", "2", "--contexts", "0", "--steps", "2", "--methods", "rome"]
    near_subjects.main(command)
    frame, table = (pd.read_csv(tmp_path / "out" / name) for name in ("near_subjects.csv", "table.csv"))
    assert list(table["method"]) == ["unedited", "rome", "rome +list", "rome +auto"]
    assert set(frame.groupby(["case_id", "method"]).size()) == {near_subjects.SCORED}
    assert table["near_kl"].tolist() == pytest.approx(
        frame.groupby("method", sort=False)["near_kl"].mean().tolist(), rel=1e-4
    )
    monkeypatch.setattr(near_subjects, "measured", None)
    near_subjects.main(command)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "near_subjects.csv"), frame)
    refused(near_subjects.main, command, tiny)
