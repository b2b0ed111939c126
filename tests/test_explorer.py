"""The explorer does what the functions it stands for do, by methods and by buttons, and leaves no edit behind."""

import pandas as pd
import pytest
import torch

import rome_lens as rl
from tests.edit.methods.test_rome import CONTEXTS, covariance_of

FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower")
CONFIG = rl.RomeConfig(layer=1, contexts=CONTEXTS, steps=3)


@pytest.fixture
def explorer(tiny) -> rl.Explorer:
    options = {"config": CONFIG, "covariance": covariance_of(tiny), "samples": 2, "window": 1}
    return rl.Explorer(tiny, FACT, target="Rome", prompts=["The Colosseum is located in the city of"], **options)


def test_it_traces_the_fact_that_stands_in_the_widget(tiny, explorer):
    explorer._prompt.value = "{} is owned by"
    explorer._subject.value = "Beats Music"
    expected = rl.causal_trace(tiny, rl.Fact("{} is owned by", "Beats Music"), samples=2, window=1, progress=False)
    assert torch.equal(explorer.run_trace().restored, expected.restored)
    assert explorer._figure.data[0].z.shape == tuple(expected.restored.shape)


def test_a_cell_shows_what_restoring_its_state_does(tiny, explorer):
    trace = explorer.run_trace()
    found = explorer.restore(2, 1)
    expected = rl.locate.predict_restored(tiny, FACT, [rl.locate.State("resid", 2, 1)], samples=2)
    pd.testing.assert_frame_equal(found, expected)
    of_answer = rl.locate.restore_states(tiny, FACT, [rl.locate.State("resid", 2, 1)], samples=2)
    assert trace.restored[2, 1].item() == pytest.approx(of_answer, abs=1e-5)
    assert repr(trace.tokens[2]) in explorer._restored.value.replace("&#x27;", "'")


def test_applying_edits_the_model_and_undoing_puts_it_back_bit_for_bit(tiny, weights_of, explorer):
    before = weights_of(tiny)
    tokens = tiny.to_tokens(FACT.text)
    with torch.no_grad():
        edit = explorer.apply()
        explored = tiny(tokens)
        assert "The Colosseum" in explorer._predictions.value
        explorer.apply()  # the first one is taken back first
        assert torch.equal(tiny(tokens), explored)
        explorer.undo()
        with edit.applied(tiny):
            assert torch.equal(tiny(tokens), explored)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert explorer._buttons["Undo"].disabled


def test_a_button_shows_the_error_where_the_user_looks(explorer, weights_of, tiny):
    before = weights_of(tiny)
    explorer._subject.value = ""
    for button in ("Trace", "Apply"):
        explorer._buttons[button].click()
        assert "ValueError" in explorer._status.value
        assert not explorer._buttons[button].disabled
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_a_cell_cannot_be_restored_before_a_trace(explorer):
    with pytest.raises(ValueError, match="Trace first"):
        explorer.restore(0, 0)


@pytest.mark.parametrize("top", [0, 10_000])
def test_predictions_are_asked_for_within_the_vocabulary(tiny, top):
    with pytest.raises(ValueError, match=f"top is {top}, expected a number from 1 to"):
        rl.locate.predict_restored(tiny, FACT, [], top=top)
