"""Scores that are kept on disk: the rows of a run in memory, whatever kills it, and nothing of somebody else's."""

import json
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

import rome_lens as rl
from tests.evaluate.test_sequence import RECORDS, noise, same

run = partial(rl.score_edits, progress=False)


def louder(model, request) -> rl.Edit:
    edit = noise(model, request)
    return edit + edit


def failing(model, request) -> rl.Edit:
    """Cannot edit the second record."""
    if request == RECORDS[1].request:
        raise rl.errors.EditError("The loss is not finite.")
    return noise(model, request)


METHODS = {"noise": noise, "louder": louder}


def test_rows_are_those_of_each_method_alone_in_memory(tiny, weights_of, tmp_path):
    """And the weights are as they were, bit for bit, when each record is begun and at the end."""
    before, states = weights_of(tiny), []

    def watched(model, request):
        states.append(same(model, before))
        return noise(model, request)

    frame = run(tiny, RECORDS, {"noise": watched, "louder": louder}, out=tmp_path)
    assert states == [True] * 3
    assert same(tiny, before)
    for name, method in METHODS.items():
        plain = run(tiny, RECORDS, {name: method})
        ours = frame[frame["method"].isin(["base", name])].reset_index(drop=True)
        pd.testing.assert_frame_equal(ours, plain)
    assert list(frame["method"].unique()) == ["base", "noise", "louder"]


def test_what_is_there_is_not_measured_again_and_more_may_be_asked(tiny, tmp_path):
    """First two records and one method, then all: each state of each record is scored once."""
    scored, made = [], []

    def score(model, record):
        scored.append(record.case_id)
        return rl.evaluate.score_record(model, record)

    def counted(model, request):
        made.append(request.subject)
        return noise(model, request)

    first = run(tiny, RECORDS[:2], {"noise": counted}, out=tmp_path, score=score)
    whole = run(tiny, RECORDS[::-1], {"louder": louder, "noise": counted}, out=tmp_path, score=score)
    assert made == [record.request.subject for record in RECORDS]
    assert sorted(scored) == [0] * 3 + [1] * 3 + [2] * 3
    assert list(whole["case_id"].unique()) == [2, 1, 0]
    assert list(whole["method"].unique()) == ["base", "louder", "noise"]
    again = run(tiny, RECORDS[:2], {"noise": counted}, out=tmp_path, score=score)
    pd.testing.assert_frame_equal(again, first)
    loaded = rl.evaluate.load_scores(tmp_path)
    assert len(scored) == 9
    pd.testing.assert_frame_equal(loaded, whole.sort_values(["case_id", "method"], kind="stable", ignore_index=True))


def test_before_is_noted_on_the_model_without_the_edit_also_when_a_run_goes_on(tiny, tmp_path):
    score, before = rl.evaluate.score_specificity, rl.evaluate.neighborhood_log_probabilities
    run(tiny, RECORDS, {}, out=tmp_path, score=score, before=before)
    frame = run(tiny, RECORDS, {"noise": noise}, out=tmp_path, score=score, before=before)
    plain = run(tiny, RECORDS, {"noise": noise}, score=score, before=before)
    pd.testing.assert_frame_equal(frame, plain)


def test_an_edit_that_cannot_be_computed_is_kept_counted_and_told(tiny, weights_of, tmp_path):
    before = weights_of(tiny)
    with pytest.warns(
        rl.errors.EditWarning, match="1 edits by 'failing' could not .* that of record 1: The loss is not"
    ):
        frame = run(tiny, RECORDS, {"failing": failing, "noise": noise}, out=tmp_path)
    assert same(tiny, before)
    failed = frame[frame["error"] != ""]
    assert failed[["case_id", "method", "metric", "error"]].values.tolist() == [
        [1, "failing", "", "The loss is not finite."]
    ]
    assert failed["value"].isna().all()
    summary = rl.summarize(frame).set_index("method")
    assert summary[["n", "failed"]].to_dict("index") == {
        "base": {"n": 3, "failed": 0},
        "failing": {"n": 2, "failed": 1},
        "noise": {"n": 3, "failed": 0},
    }
    others = frame[(frame["method"] == "noise") & (frame["case_id"] != 1)]
    assert summary.loc["failing", "EM"] == others.loc[others["metric"] == "EM", "value"].mean()
    with pytest.warns(rl.errors.EditWarning):
        again = run(tiny, RECORDS, {"failing": failing, "noise": noise}, out=tmp_path)  # not tried again
    pd.testing.assert_frame_equal(again, frame)


def test_a_method_that_always_fails_has_no_means(tiny, tmp_path):
    with pytest.warns(rl.errors.EditWarning):
        frame = run(tiny, RECORDS[1:2], {"failing": failing}, out=tmp_path)
    summary = rl.summarize(frame).set_index("method")
    assert summary.loc["failing", ["n", "failed"]].to_list() == [0, 1]
    assert summary.loc["failing", ["ES", "S", "NM_low"]].isna().all()
    assert summary.loc["base", "n"] == 1


def test_another_error_ends_the_run_and_what_was_measured_is_kept(tiny, weights_of, tmp_path):
    before = weights_of(tiny)

    breaks = [True]

    def broken(model, request):
        if request == RECORDS[2].request and breaks.pop():
            raise ZeroDivisionError
        return noise(model, request)

    with pytest.raises(ZeroDivisionError):
        run(tiny, RECORDS, {"noise": broken}, out=tmp_path / "a")
    assert same(tiny, before)
    assert set(rl.evaluate.load_scores(tmp_path / "a")["case_id"]) == {0, 1}
    breaks.append(False)
    resumed = run(tiny, RECORDS, {"noise": broken}, out=tmp_path / "a")
    pd.testing.assert_frame_equal(resumed, run(tiny, RECORDS, {"noise": noise}, out=tmp_path / "b"))


def test_a_folder_of_another_model_score_or_record_is_refused_and_kept(tiny, tiny_model, tmp_path):
    run(tiny, RECORDS, {"noise": noise}, out=tmp_path)
    kept = rl.evaluate.load_scores(tmp_path)
    with pytest.raises(rl.errors.FormatError, match="begun with {'weights': .*Choose another folder"):
        run(tiny_model("gpt2", seed=1), RECORDS, {"louder": louder}, out=tmp_path)
    with pytest.raises(rl.errors.FormatError, match="'model': 'gpt2'"):
        run(tiny_model("llama"), RECORDS, {"louder": louder}, out=tmp_path)
    with noise(tiny, RECORDS[0].request).applied(tiny), pytest.raises(rl.errors.FormatError, match="edits reverted"):
        run(tiny, RECORDS, {"louder": louder}, out=tmp_path)
    with pytest.raises(rl.errors.FormatError, match="'score': 'rome_lens.evaluate.scorers.counterfact.score_record'"):
        run(tiny, RECORDS, {"louder": louder}, out=tmp_path, score=rl.evaluate.score_specificity)
    with pytest.raises(rl.errors.FormatError, match="begun with {'record 1.target_true': 'Rome'}, but .* 'Milan'}"):
        run(tiny, [replace(RECORDS[1], target_true="Milan")], {"louder": louder}, out=tmp_path)
    with pytest.raises(
        rl.errors.FormatError, match=r"{'method noise': '.*\.noise'}, but {'method noise': '.*\.louder'}"
    ):
        run(tiny, RECORDS, {"noise": louder}, out=tmp_path)
    pd.testing.assert_frame_equal(rl.evaluate.load_scores(tmp_path), kept)


def scaled(model, request, *, config) -> rl.Edit:
    return noise(model, request)


def test_a_method_of_the_same_name_with_another_configuration_is_refused(tiny, tmp_path):
    """As a partial's argument, and as what a function takes from around it."""

    def taking(config):
        return lambda model, request: scaled(model, request, config=config)

    first, second = rl.RomeConfig(layer=1), rl.RomeConfig(layer=2)
    for name, make in (("partial", lambda config: partial(scaled, config=config)), ("closure", taking)):
        out = tmp_path / name
        run(tiny, RECORDS[:1], {"mine": make(first)}, out=out)
        with pytest.raises(rl.errors.FormatError, match="begun with {'method mine.config.layer': 1}, but"):
            run(tiny, RECORDS, {"mine": make(second)}, out=out)
        run(tiny, RECORDS[:1], {"mine": make(rl.RomeConfig(layer=1)), "other": make(second)}, out=out)


def test_a_folder_with_other_files_or_a_damaged_one_is_refused(tiny, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(rl.errors.FormatError, match=r"holds \['notes.txt'\] and no rome_lens table of scores"):
        run(tiny, RECORDS, {}, out=mine)
    with pytest.raises(NotADirectoryError):
        run(tiny, RECORDS, {}, out=mine / "notes.txt")
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    with pytest.raises(FileNotFoundError, match="expected a folder that holds a rome_lens table of scores"):
        rl.evaluate.load_scores(mine)
    (mine / "rows.jsonl").write_text(json.dumps({"kind": "passport"}))
    with pytest.raises(rl.errors.FormatError, match="Line 1 of .* is damaged"):
        rl.evaluate.load_scores(mine)
    whole = run(tiny, RECORDS, {}, out=tmp_path / "whole")
    rows = tmp_path / "whole" / "rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join([*lines[:2], lines[2].replace(b"EM", b"EN"), *lines[3:]]))
    with pytest.raises(
        rl.errors.FormatError, match="Line 3 of .* is damaged .* Cut the file before this line|or cut the file"
    ):
        run(tiny, RECORDS, {}, out=tmp_path / "whole")
    rows.write_bytes(b"".join(lines[:2]))
    pd.testing.assert_frame_equal(run(tiny, RECORDS, {}, out=tmp_path / "whole"), whole)


def test_bad_arguments_are_told_before_any_work(tiny, tmp_path):
    with pytest.raises(ValueError, match="records is empty"):
        run(tiny, [], METHODS, out=tmp_path)
    with pytest.raises(ValueError, match="3 records have 1 case_ids"):
        run(tiny, [replace(record, case_id=0) for record in RECORDS], METHODS, out=tmp_path)
    with pytest.raises(ValueError, match="A method is named 'base'"):
        run(tiny, RECORDS, {"base": noise}, out=tmp_path)
    with pytest.raises(
        TypeError, match=r"score is <lambda>\(record\), expected .* called with \(model, record\): too many"
    ):
        run(tiny, RECORDS, METHODS, out=tmp_path, score=lambda record: {})
    with pytest.raises(TypeError, match=r"score is .*called with \(model, record, before=before\(model, record\)\)"):
        run(
            tiny,
            RECORDS,
            METHODS,
            out=tmp_path,
            score=rl.evaluate.score_record,
            before=rl.evaluate.locality_predictions,
        )
    with pytest.raises(TypeError, match="The method 'mend' is mend.*'editor'. Bind what else it needs with functools"):
        run(tiny, RECORDS, {"mend": rl.edit.mend}, out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_a_method_or_score_returns_is_checked(tiny):
    with pytest.raises(TypeError, match="The score <lambda> returned 0.5, expected a dict of a string and a number"):
        run(tiny, RECORDS, {}, score=lambda model, record: 0.5)
    with pytest.raises(TypeError, match="The method 'noise' returned None, expected Edit"):
        run(tiny, RECORDS, {"noise": lambda model, request: None})


def test_one_method_goes_by_its_own_name(tiny):
    named = run(tiny, RECORDS, {"scaled": noise})
    for method in (noise, partial(noise)):
        frame = run(tiny, RECORDS, method)
        pd.testing.assert_frame_equal(frame, named.replace({"method": {"scaled": "noise"}}))


@pytest.mark.parametrize("name", ["n", "failed", "method"])
def test_a_metric_by_the_name_of_a_column_of_the_summary_is_refused(name):
    frame = pd.DataFrame({"case_id": [1], "method": ["rome"], "metric": [name], "value": [0.5]})
    with pytest.raises(ValueError, match=f"The metrics {name} have the names of columns of the summary"):
        rl.summarize(frame)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (float("nan"), "The score <lambda> returned nan for 'x', expected a finite number"),
        (float("inf"), "The score <lambda> returned inf for 'x', expected a finite number"),
        ("good", "The score <lambda> returned {'x': 'good'}, expected a dict of a string and a number"),
    ],
)
def test_a_score_that_is_no_number_ends_the_run_before_a_row_is_written(tiny, tmp_path, given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        run(tiny, RECORDS, {}, score=lambda model, record: {"x": given}, out=tmp_path / "scores")
    assert "value" not in (tmp_path / "scores" / "rows.jsonl").read_text()
    with pytest.raises((TypeError, ValueError), match=said):
        rl.edit_sequence(tiny, RECORDS, noise, score=lambda model, record: {"x": given}, progress=False)


@pytest.mark.parametrize("given", [7, -1, float("nan"), None, "yes"])
def test_a_judge_gives_a_number_from_0_to_1(tiny, given):
    def mine(question, answers, written):
        return given

    protocol = rl.evaluate.Protocol("mine", "generated", judge=mine, new_tokens=2)
    with pytest.raises((TypeError, ValueError), match=f"The judge mine returned {given!r}, expected a"):
        run(tiny, RECORDS[:1], {}, protocols=[protocol])
    case = rl.data.MultiHopRecord((RECORDS[0].request,), (rl.data.Question("Its country is", "Italy"),))
    with pytest.raises((TypeError, ValueError), match=f"The judge mine returned {given!r}, expected a"):
        rl.evaluate.score_mquake(tiny, case, judge=mine, new_tokens=2)
