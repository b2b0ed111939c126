"""The list of short subjects: what it holds, and how failures are counted."""

import pandas as pd
import pytest

from analyses.short_subjects import CONTEXTS, measured, requests, summary
from tests.edit.methods.test_rome import covariance_of


@pytest.mark.smollm2
def test_a_third_of_the_subjects_has_each_length_and_each_begins_its_prompt(smollm2):
    lengths = [len(smollm2.tokenizer(request.subject)["input_ids"]) for request in requests()]
    assert sorted(lengths) == [1] * 20 + [2] * 20 + [3] * 20
    assert all(request.text.startswith(request.subject) for request in requests())


def test_an_edit_is_measured_in_the_edited_model_in_each_context(tiny):
    row = measured(tiny, next(iter(requests())), covariance_of(tiny))
    assert set(row) == {*CONTEXTS, "problems"}
    assert all(0 < row[context] < 1 for context in CONTEXTS)
    assert "in the edited model the target has a probability of" in row["problems"], "a random model cannot learn it"


def test_only_failures_without_a_problem_are_silent():
    rows = [(1, 0.9, 0.2, 0.9, ""), (1, 0.4, 0.6, 0.6, "told"), (2, 0.1, 0.1, 0.1, ""), (2, 0.5, 0.5, 0.5, "told")]
    table = summary(pd.DataFrame(rows, columns=["tokens", *CONTEXTS, "problems"])).set_index("tokens")
    assert table.loc["1"].tolist() == [2, 1, 1, 2, 0]
    assert table.loc["2"].tolist() == [2, 1, 1, 1, 1]
    assert table.loc["all"].tolist() == [4, 2, 2, 3, 1]
