"""Edits on top of each other: what is measured, what is kept, and the model put back."""

import warnings

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.evaluate import sequence as sequence_module
from tests.edit.methods.test_rome import CONTEXTS, covariance_of

TEXT = "The Eiffel Tower is located in the city of Paris. The mother tongue of Dante is Italian. One, two."
CASES = [("The Eiffel Tower", "Rome", "Paris"), ("The Colosseum", "Seattle", "Rome"), ("Big Ben", "Paris", "Rome")]
RECORDS = [
    rl.EditRecord(
        rl.EditRequest("{} is located in the city of", subject, target=new),
        true,
        paraphrase_prompts=(f"Where is it? {subject} is in",),
        neighborhood_prompts=("The Space Needle is in",),
        case_id=i,
    )
    for i, (subject, new, true) in enumerate(CASES)
]
OPTIONS = {"text": TEXT, "perplexity_tokens": 50, "checkpoints": [2], "progress": False}


def edit(model, request) -> rl.Edit:
    config = rl.RomeConfig(contexts=CONTEXTS, steps=3)
    return rl.rome(
        model, request, covariance=covariance_of(model), config=config, on_unhealthy="ignore", progress=False
    )


def noise(model, request) -> rl.Edit:
    """An edit that is made at once, and depends on the weights as they are."""
    weight = model.blocks[1].mlp.W_out.detach()
    factors = {1: (weight[:, :1].clone(), torch.full((1, weight.shape[1]), 0.01 * len(request.subject)))}
    return rl.Edit.of(
        model,
        [request],
        factors,
        method="noise",
        config={},
        on_unhealthy="ignore",
    )


def same(model, weights) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_each_edit_is_computed_on_the_model_edited_so_far_and_measured(tiny, weights_of, tmp_path):
    """Against a plain loop: the same edits, scores, perplexity and growth, and the weights as before at the end."""
    before = weights_of(tiny)
    made = rl.edit_sequence(tiny, RECORDS, out=tmp_path / "run", method=edit, **OPTIONS)
    assert same(tiny, before)
    assert made.stopped == ""
    first = tiny.blocks[1].mlp.W_out.detach().clone()
    handles = []
    for number, record in enumerate(RECORDS, start=1):
        ours, saved = edit(tiny, record.request), rl.Edit.load(tmp_path / f"run/{number:05}.safetensors")
        assert torch.equal(ours.updates[0].right, saved.updates[0].right)
        handles.append(ours.apply(tiny))
        row = made.edits.iloc[number - 1]
        growth = (tiny.blocks[1].mlp.W_out - first).norm() / first.norm()
        assert (row["edit"], row["case_id"], row["target"]) == (number, record.case_id, record.request.target)
        assert row["norm_growth"] == pytest.approx(growth.item(), rel=1e-6)
        assert row["relative_update_norm"] == ours.health.relative_update_norm
        scores = pd.DataFrame([rl.evaluate.score_record(tiny, r) for r in RECORDS[:number]])
        assert row["EM"] == scores["EM"].iloc[-1]
        if number >= 2:
            check = made.checkpoints.set_index("edits").loc[number]
            assert check["n"] == number
            assert check["NM"] == pytest.approx(scores["NM"].mean())
            assert check["perplexity"] == rl.evaluate.perplexity(tiny, TEXT, tokens=50, progress=False)
            assert check["norm_growth"] == row["norm_growth"]
    for handle in reversed(handles):
        handle.revert()
    assert list(made.checkpoints["edits"]) == [0, 2, 3]
    base = pd.DataFrame([rl.evaluate.score_record(tiny, record) for record in RECORDS])
    table = made.checkpoints.set_index("edits")
    assert table.loc[0, "EM"] == pytest.approx(base["EM"].mean())
    assert table.loc[2, "base_EM"] == pytest.approx(base["EM"][:2].mean())
    assert table.loc[0, "perplexity"] == rl.evaluate.perplexity(tiny, TEXT, tokens=50, progress=False)


def test_what_was_made_is_read_and_not_made_again(tiny, weights_of, tmp_path, monkeypatch):
    before = weights_of(tiny)
    calls = []

    def counted(model, request):
        calls.append(request.subject)
        return edit(model, request)

    short = rl.edit_sequence(tiny, RECORDS[:2], out=tmp_path, method=counted, **OPTIONS)
    with warnings.catch_warnings(action="error"):
        whole = rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=counted, **OPTIONS)
    assert calls == [record.request.subject for record in RECORDS]
    pd.testing.assert_frame_equal(short.edits, whole.edits[:2])
    lines = (tmp_path / "rows.jsonl").read_bytes()
    monkeypatch.setattr(sequence_module, "score_record", lambda *_: pytest.fail("scored twice"))
    again = rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=counted, **OPTIONS)
    assert (tmp_path / "rows.jsonl").read_bytes() == lines
    read = rl.evaluate.load_sequence(tmp_path)
    for other in (again, read):
        pd.testing.assert_frame_equal(other.edits, whole.edits)
        pd.testing.assert_frame_equal(other.checkpoints, whole.checkpoints)
    assert same(tiny, before)


def test_without_a_folder_the_tables_are_those_of_one_that_keeps_them(tiny, weights_of, tmp_path):
    before = weights_of(tiny)
    kept = rl.edit_sequence(tiny, RECORDS, noise, out=tmp_path, **OPTIONS)
    made = rl.edit_sequence(tiny, RECORDS, noise, **OPTIONS)
    pd.testing.assert_frame_equal(made.edits, kept.edits)
    pd.testing.assert_frame_equal(made.checkpoints, kept.checkpoints)
    assert same(tiny, before)


@pytest.mark.parametrize("interruption", [ZeroDivisionError, KeyboardInterrupt])
def test_the_model_is_put_back_when_a_later_edit_raises_and_the_run_can_go_on(tiny, weights_of, tmp_path, interruption):
    before, breaks = weights_of(tiny), [False, True]

    def breaking(model, request):
        if request == RECORDS[1].request and breaks.pop():
            raise interruption
        return noise(model, request)

    with pytest.raises(interruption):
        rl.edit_sequence(tiny, RECORDS, out=tmp_path / "a", method=breaking, **OPTIONS)
    assert same(tiny, before)
    resumed = rl.edit_sequence(tiny, RECORDS, out=tmp_path / "a", method=breaking, **OPTIONS)
    unbroken = rl.edit_sequence(tiny, RECORDS, out=tmp_path / "b", method=noise, **OPTIONS)
    pd.testing.assert_frame_equal(resumed.edits, unbroken.edits)
    pd.testing.assert_frame_equal(resumed.checkpoints, unbroken.checkpoints)
    assert same(tiny, before)


def test_an_edit_that_cannot_be_computed_ends_the_sequence(tiny, weights_of, tmp_path):
    before = weights_of(tiny)

    def failing(model, request):
        if request == RECORDS[1].request:
            raise rl.errors.EditError("The loss is not finite.")
        return noise(model, request)

    made = rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=failing, **OPTIONS)
    assert made.stopped == "edit 2 could not be computed: The loss is not finite."
    assert list(made.edits["edit"]) == [1]
    assert list(made.checkpoints["edits"]) == [0, 1]
    assert same(tiny, before)


def test_stop_rules(tiny, tmp_path):
    """An unhealthy edit, or too high a perplexity, ends a sequence after a checkpoint; without the rule it goes on."""
    unhealthy = rl.evaluate.StopRule(unhealthy=True)
    made = rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=noise, stop=unhealthy, **OPTIONS)
    assert made.stopped.startswith(
        "after edit 1, the edit is unhealthy: in the edited model the target has a probability of"
    )
    assert list(made.checkpoints["edits"]) == [0, 1]
    made = rl.edit_sequence(
        tiny, RECORDS, out=tmp_path, method=noise, stop=rl.evaluate.StopRule(perplexity_factor=1e-9), **OPTIONS
    )
    assert made.stopped.startswith("after edit 2, the perplexity is")
    made = rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=noise, **OPTIONS)
    assert (made.stopped, list(made.checkpoints["edits"])) == ("", [0, 1, 2, 3])
    assert "more than 2 times 10" in rl.evaluate.StopRule(perplexity_factor=2.0).reason(None, float("nan"), 10.0)


def test_a_folder_of_another_sequence_is_refused(tiny, tiny_model, weights_of, tmp_path):
    """Another text, other records and other weights: the message says what differs, and the weights are as before."""
    before = weights_of(tiny)
    rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=noise, **OPTIONS)
    rows = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(rl.errors.FormatError, match="begun with {'text': "):
        rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=noise, **(OPTIONS | {"text": "Rome. " * 9}))
    with pytest.raises(rl.errors.FormatError, match="begun with {'method': .*noise"):
        rl.edit_sequence(tiny, RECORDS, out=tmp_path, method=edit, **OPTIONS)
    with pytest.raises(
        rl.errors.FormatError, match="'record 1.request.subject': 'The Eiffel Tower'.*, but .*'Big Ben'"
    ):
        rl.edit_sequence(tiny, RECORDS[::-1], out=tmp_path, method=noise, **OPTIONS)
    with pytest.raises(rl.errors.FormatError, match="begun with {'weights': "):
        rl.edit_sequence(tiny_model("gpt2", seed=1), RECORDS, out=tmp_path, method=noise, **OPTIONS)
    assert (tmp_path / "rows.jsonl").read_bytes() == rows
    assert same(tiny, before)


def test_bad_arguments_and_a_folder_without_a_sequence_are_told(tiny, tmp_path):
    with pytest.raises(ValueError, match="records is empty"):
        rl.edit_sequence(tiny, [], out=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoints are \[0, 5\]"):
        rl.edit_sequence(tiny, RECORDS, out=tmp_path, checkpoints=[5, 0])
    with pytest.raises(FileNotFoundError, match="expected a folder that holds a rome_lens sequence"):
        rl.evaluate.load_sequence(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["perplexity", "n", "target", "update_norm"])
def test_a_score_by_the_name_of_a_column_of_the_tables_is_refused_before_an_edit(tiny, name):
    edit_was_made = lambda *_: pytest.fail("an edit was computed")  # noqa: E731
    with pytest.raises(ValueError, match=f"The scorer's names {name} are those of columns"):
        rl.edit_sequence(tiny, RECORDS, edit_was_made, score=lambda model, record: {name: 0.5}, progress=False)


def test_a_scorer_that_compares_with_the_model_before_is_refused(tiny):
    with pytest.raises(TypeError, match=r"score is score_sentiment.* can be called with \(model, record\)"):
        rl.edit_sequence(tiny, RECORDS, score=rl.evaluate.score_sentiment, progress=False)


def test_without_a_text_or_prompts_their_columns_are_empty_or_missing(tiny, tmp_path):
    bare = [rl.EditRecord(record.request, record.target_true) for record in RECORDS]
    made = rl.edit_sequence(tiny, bare, out=tmp_path, method=noise, progress=False)
    assert made.checkpoints["perplexity"].isna().all()
    assert "PS" not in made.checkpoints
    figure = rl.plots.plot_sequence(made.checkpoints.assign(method="noise"))
    assert {note.text for note in figure.layout.annotations} == {"efficacy (ES)", "norm growth |W - W0| / |W0|"}


@pytest.mark.parametrize("made", [None, 5, "an edit"])
def test_a_method_that_gives_no_edit_is_told_and_no_weight_is_changed(tiny, weights_of, made):
    before = weights_of(tiny)
    with pytest.raises(TypeError, match=f"The method returned {made!r}, expected Edit"):
        rl.edit_sequence(tiny, RECORDS, lambda model, request: made, progress=False)
    assert same(tiny, before)
