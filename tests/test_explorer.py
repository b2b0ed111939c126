"""The explorer does what the functions it stands for do, by methods and by buttons, and leaves no edit behind."""

import html
import warnings

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods import near
from rome_lens.explorer.tables import table
from tests.edit.methods.test_rome import CONTEXTS, covariance_of

FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower")
CONFIG = rl.RomeConfig(layer=1, contexts=CONTEXTS, steps=3)


TRACING = rl.TraceConfig(samples=2, window=1)
WATCHED = "The Colosseum is located in the city of"


@pytest.fixture
def explorer(tiny, tmp_path, monkeypatch) -> rl.Explorer:
    monkeypatch.setattr(near, "load_subjects", lambda: load_subjects("Tower")[:6])
    monkeypatch.setattr(near.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    covariances = {layer: covariance_of(tiny, layer) for layer in (0, 1)}
    return rl.Explorer(
        tiny, FACT, target="Rome", prompts=[WATCHED], tracing=TRACING, config=CONFIG, covariances=covariances
    )


def press(explorer, name: str, number: int = 0) -> None:
    """Clicks a button; its errors are shown in the widget."""
    [button for button in explorer._view._buttons if button.description == name][number].click()


def shown(explorer) -> str:
    """All that the widget says."""

    def texts(widget) -> list[str]:
        children = [text for child in getattr(widget, "children", ()) for text in texts(child)]
        return [*children, getattr(widget, "value", "") if type(widget).__name__ == "HTML" else ""]

    return html.unescape(" ".join(texts(explorer.widget)))


def same(model, before) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_opens_on_a_sentence_and_computes_nothing(explorer):
    assert "Nothing is traced yet" in shown(explorer)
    assert explorer.trace is explorer.edit is None
    assert explorer.fact == FACT


@pytest.mark.parametrize("kind", ["resid", "mlp", "head"])
def test_it_traces_what_stands_in_the_widget(tiny, explorer, kind):
    view, head = explorer._view, 1 if kind == "head" else None
    view.prompt.value, view.subject.value, view.answer.value = "{} is owned by", "Beats Music", "Apple"
    view.kind.value, view.head.value, view.samples.value, view.window.value = kind, 1, 3, 2
    assert explorer.fact == rl.Fact("{} is owned by", "Beats Music", answer="Apple")
    assert (view.head.layout.display, view.window.layout.display).count("none") == (2 if kind == "resid" else 1)
    with warnings.catch_warnings(action="ignore"):  # the tiny model does not say Apple
        expected = rl.causal_trace(tiny, explorer.fact, kind=kind, head=head, samples=3, window=2, progress=False)
        press(explorer, "Trace")
    assert torch.equal(explorer.trace.restored, expected.restored)
    assert explorer._figure.data[0].z.shape == tuple(expected.restored.shape)
    assert f"<b>{expected.clean:.3f}</b> clean, <b>{expected.corrupted:.3f}</b> corrupted" in shown(explorer)


@pytest.mark.parametrize("kind", ["resid", "mlp"])
def test_a_cell_shows_what_restoring_all_it_stands_for_does(tiny, explorer, kind):
    """For MLPs that is the window whose effect the cell has."""
    explorer._view.kind.value, explorer._view.window.value = kind, 3
    trace = explorer.run_trace()
    found = explorer.restore(2, 1)
    states = [rl.locate.State(kind, 2, layer) for layer in ((1,) if kind == "resid" else (0, 1, 2))]
    pd.testing.assert_frame_equal(found, rl.locate.predict_restored(tiny, FACT, states, samples=2))
    of_answer = rl.locate.restore_states(tiny, FACT, states, samples=2)
    assert trace.restored[2, 1].item() == pytest.approx(of_answer, abs=1e-5)
    explorer._cell_clicked(2, 1)
    assert f"Restored at <code>{trace.tokens[2]!r}" in shown(explorer)
    assert "2 clean" not in explorer._view.restored.value
    assert "clean" in explorer._view.runs.value  # it stays in view


@pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")
def test_a_forecast_changes_nothing_and_what_it_reaches_can_be_protected(tiny, weights_of, explorer):
    before = weights_of(tiny)
    press(explorer, "Forecast")
    assert same(tiny, before)
    assert WATCHED in shown(explorer)
    assert "Tower is located in the city of" in shown(explorer)
    press(explorer, "Protect these")
    protected = explorer._view.protected.value.splitlines()
    assert protected
    press(explorer, "Apply")
    (edit,) = explorer.edits
    assert edit.config["preserve"] == protected
    moved = rl.evaluate.forecast_bleed_over(tiny, edit, protected)
    explorer.undo()
    assert moved["size"].max() < 1e-4
    assert same(tiny, before)


def test_edits_are_applied_on_top_of_each_other_and_any_one_is_undone(tiny, weights_of, explorer):
    before, view = weights_of(tiny), explorer._view
    press(explorer, "Apply")
    first = explorer.edits[0]
    assert "The model is edited." in shown(explorer)
    assert f"{FACT.text} → Rome" in shown(explorer)
    view.subject.value, view.target.value, view.layer.value = "The Colosseum", "Seattle", 0
    press(explorer, "Apply")
    second = explorer.edits[1]
    assert [edit.updates[0].layer for edit in explorer.edits] == [1, 0]
    press(explorer, "Undo", 0)
    assert explorer.edits == [second]
    (left,) = rl.edit.applied_edits(tiny)
    assert torch.equal(left.updates[0].right, second.updates[0].right)
    press(explorer, "Apply")  # the same fact again: in place of the first
    assert len(explorer.edits) == 1
    explorer.undo()
    explorer.undo()  # nothing is left to undo
    assert same(tiny, before)
    assert "The model is as it was." in shown(explorer)
    assert first.requests[0].target == "Rome"


def test_what_was_found_is_saved(explorer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no edit yet"):
        explorer.save_edit()
    with pytest.raises(ValueError, match="Trace first"):
        explorer.save_figure()
    monkeypatch.setattr("rome_lens.plots.saving._drawn", lambda figure, suffixes, inches: dict.fromkeys(suffixes, b""))
    explorer._view.file.value = str(tmp_path / "found")
    explorer.run_trace()
    edit = explorer.apply()
    explorer.undo()
    press(explorer, "Save edit")
    press(explorer, "Save figure")
    assert torch.equal(rl.Edit.load(tmp_path / "found.safetensors").updates[0].left, edit.updates[0].left)
    assert len(list(tmp_path.glob("found.*"))) == 4
    press(explorer, "Save edit")
    assert "FileExistsError" in shown(explorer)


def test_a_button_shows_the_error_where_the_user_looks(explorer, weights_of, tiny):
    before = weights_of(tiny)
    explorer._view.subject.value = ""
    for name in ("Trace", "Apply"):
        press(explorer, name)
        assert "ValueError" in shown(explorer)
        assert not any(button.disabled for button in explorer._view._buttons)
    assert same(tiny, before)


def test_what_a_prompt_says_is_no_markup():
    shown = table(pd.DataFrame({"prompt": ["<b>"], "token": ["<i>"], "kl": [0.5]}))
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "0.500" in shown


def test_what_is_not_there_is_refused(explorer, tiny):
    with pytest.raises(ValueError, match="Trace first"):
        explorer.restore(0, 0)
    with pytest.raises(ValueError, match="There is no edit number 3: 0 are applied"):
        explorer.undo(3)
    with pytest.raises(ValueError, match=r"config.layer is 1, and there are covariances of \[0\]"):
        rl.Explorer(tiny, FACT, config=CONFIG, covariances={0: covariance_of(tiny, 0)})


@pytest.mark.parametrize("top", [0, 10_000])
def test_predictions_are_asked_for_within_the_vocabulary(tiny, top):
    with pytest.raises(ValueError, match=f"top is {top}, expected a number from 1 to"):
        rl.locate.predict_restored(tiny, FACT, [], top=top)
