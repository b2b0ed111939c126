"""The forensics analysis: what it says of an edit that a tiny model is given, and that it goes on where it was."""

import pytest

import rome_lens as rl
from analyses import forensics
from tests.edit.forensics.test_forensics import planted

RECORD = rl.EditRecord(
    rl.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    "Paris",
    neighborhood_prompts=("The Louvre is located in the city of", "The Colosseum is located in the city of"),
)


def test_a_planted_edit_is_first_and_taking_it_out_brings_the_answers_back(tiny):
    control = rl.edit.detect_edits(tiny, progress=False)
    row = forensics.measured(tiny, RECORD, planted(tiny, 1, 12.0), control)
    assert row["layer_right"] == row["detected"] == row["auc"] == 1.0
    assert row["cosine"] > 0.9
    assert row["score"] > control["score"].max()
    nothing = forensics.measured(tiny, RECORD, planted(tiny, 1, 1e-6), control)
    assert nothing["detected"] == nothing["rewritten"] == 0.0
    assert nothing["cosine"] == pytest.approx(0.0, abs=0.3)
