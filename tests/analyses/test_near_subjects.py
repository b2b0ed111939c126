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
    asked = near_subjects.questions(2 * len(near_subjects.WORDS))
    assert len({request.text for request, _, _ in asked}) == len(asked)
    for request, scored, listed in asked:
        assert len(scored) == near_subjects.SCORED
        assert len(listed) == near_subjects.LISTED
        assert len({request.subject, *scored, *listed}) == 1 + len(scored) + len(listed)


def test_what_is_measured_is_the_divergence_and_the_top_token_of_each_subject(tiny):
    edit = made_up(tiny)
    rows = pd.DataFrame(near_subjects.measured(tiny, REQUEST, SUBJECTS, iter([("made up", edit)])))
    prompts = [REQUEST.prompt.replace("{}", subject) for subject in SUBJECTS]
    compared = rl.compare_models(tiny, edit, prompts, progress=False)
    assert rows["near_kl"].tolist() == pytest.approx(compared.divergence["kl"].tolist(), rel=1e-3)
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
    assert list(table["method"]) == ["rome", "rome +list", "rome +auto"]
    assert set(frame.groupby(["case_id", "method"]).size()) == {near_subjects.SCORED}
    assert table["near_kl"].tolist() == pytest.approx(
        frame.groupby("method", sort=False)["near_kl"].mean().tolist(), rel=1e-4
    )
    monkeypatch.setattr(near_subjects, "measured", None)
    near_subjects.main(command)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "near_subjects.csv"), frame)
    refused(near_subjects.main, command, tiny)
