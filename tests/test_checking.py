"""What a call that cannot be made says: the nearest keyword, and the line that makes what is expected."""

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.checking import check_returned, check_tensor
from rome_lens.data.records import EditRequest, Fact, QuestionRecord

TEXTS = ("{} is in", "Rome", "Spain")
ROW = {"prompt": "Rome is in", "subject": "Rome", "target": "Spain"}
NAMES = {"EditRequest": EditRequest, "Fact": Fact, "QuestionRecord": QuestionRecord, "load_records": rl.load_records}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rl.rome(layr=5), r"rome has no argument 'layr'\. Its arguments are model, request, covariance"),
        (
            lambda: rl.rome(layer=5),
            r"no argument 'layer'\. It is one of the config: config=RomeConfig\(layer=",
        ),
        (lambda: rl.memit(covariance=5), "memit has no argument 'covariance'. Did you mean 'covariances'"),
        (lambda: rl.TraceConfig(wrong="x"), "TraceConfig has no argument 'wrong'. Did you mean 'wrong_answer'"),
        (lambda: rl.rome(), r"rome: missing a required argument: 'model'\. Its arguments are model, request"),
    ],
)
def test_a_call_that_does_not_fit_names_the_nearest_keyword(call, said):
    with pytest.raises(TypeError, match=said) as caught:
        call()
    assert "rome_lens." not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (TEXTS, "EditRequest('{} is in', 'Rome', 'Spain')"),
        (["Rome is in", "Rome", "Spain"], "EditRequest('{} is in', 'Rome', 'Spain')"),
        ([TEXTS, TEXTS], "EditRequest('{} is in', 'Rome', 'Spain')"),
        (ROW, "load_records([row])[0].request"),
        (pd.DataFrame([ROW]), "load_records(frame)[0].request"),
        (QuestionRecord(EditRequest(*TEXTS)), "record.request"),
    ],
)
@pytest.mark.parametrize("method", [rl.rome, rl.memit, rl.edit.finetune])
def test_what_is_no_request_is_told_the_line_that_makes_one(tiny, method, given, line):
    with pytest.raises(TypeError) as caught:
        method(tiny, given)
    assert f" Write {line}." in str(caught.value)
    known = NAMES | {"row": ROW, "frame": pd.DataFrame([ROW]), "record": given}
    assert eval(line, known) == EditRequest(*TEXTS)


def test_texts_alone_and_records_are_told_too(tiny):
    with pytest.raises(TypeError, match=r'request is .*Write EditRequest\("... {} ...", subject, target\)'):
        rl.rome(tiny, "Rome is in")
    with pytest.raises(TypeError, match=r"fact is 'Rome is in'.*Write Fact.from_text\(text, subject\)"):
        rl.causal_trace(tiny, "Rome is in")
    with pytest.raises(TypeError, match=r"Write Fact\('{} is in', 'Rome', 'Spain'\)"):
        rl.causal_trace(tiny, TEXTS)
    for given, line in (
        ([EditRequest(*TEXTS)], r"QuestionRecord\(request, case_id=0\)"),
        ([ROW], r"load_records\(\[row\]\)"),
        (pd.DataFrame([ROW]), r"load_records\(frame\)"),
        ([TEXTS], r"QuestionRecord\(EditRequest\('{} is in', 'Rome', 'Spain'\)\)"),
    ):
        for score in (rl.score_edits, rl.edit_sequence):
            with pytest.raises(TypeError, match=f"Write {line}"):
                score(tiny, given, rl.rome)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned None, expected a number"),
        ("yes", "returned 'yes', expected a number"),
        (7, "returned 7, expected a finite number from 0 to 1"),
        (float("nan"), "returned nan, expected a finite number from 0 to 1"),
        (torch.tensor(float("inf")), "expected a finite number"),
    ],
)
def test_what_a_function_of_ones_own_returns_is_said(value, said):
    with pytest.raises((TypeError, ValueError), match=f"The judge mine {said}" if said.startswith("ret") else said):
        check_returned("The judge mine", value, float | int | torch.Tensor, least=0.0, most=1.0) if isinstance(
            value, torch.Tensor
        ) else check_returned("The judge mine", value, float | int, least=0.0, most=1.0)


@pytest.mark.parametrize(
    "value", [None, 0.5, torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.tensor([0.0, float("nan")])]
)
def test_a_tensor_of_ones_own_is_of_the_right_size_and_finite(value):
    with pytest.raises(ValueError, match=r"The metric mine returned .*, expected a tensor \[2\] of finite"):
        check_tensor("The metric mine", value, 2)
    assert check_tensor("The encoder", torch.ones(2, 5), 2, "width").shape == (2, 5)
