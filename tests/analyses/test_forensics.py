"""The forensics analysis: what it says of copies of a tiny model, and that it goes on where it was."""

import pytest

import rome_lens as rl
from analyses import forensics
from rome_lens.edit.forensics.components import components_of_layers
from tests.edit.forensics.test_forensics import planted

RECORD = rl.EditRecord(
    rl.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    "Paris",
    neighborhood_prompts=("The Louvre is located in the city of", "The Colosseum is located in the city of"),
)


def test_a_planted_edit_is_first_and_taking_it_out_brings_the_answers_back(tiny):
    unedited = dict(enumerate(components_of_layers(tiny, range(2), 1)))
    edit, nothing = planted(tiny, 1, 12.0), planted(tiny, 1, 1e-6)
    copy = forensics.Copy("rome", "0", [RECORD], lambda: edit)
    row = forensics.measured(tiny, copy, edit, unedited)
    assert row["layer_right"] == row["detected"] == row["undone"] == 1.0
    assert row["cosine"] > 0.9
    with edit.applied(tiny):
        found = rl.edit.detect_edits(tiny, progress=False)
    assert row["score"] == pytest.approx(found["score"].max(), rel=1e-4)
    row = forensics.measured(tiny, copy, nothing, unedited)
    assert row["detected"] == row["rewritten"] == 0.0
