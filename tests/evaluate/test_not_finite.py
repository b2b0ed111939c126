"""A model whose output is NaN or infinite has no scores: each reader of logits says so, and long runs note it."""

import copy

import pytest
import torch

import rome_lens as rl
from rome_lens.models import find_output_matrix

RECORDS = [
    rl.EditRecord(
        rl.EditRequest("{} is located in the city of", subject, "Rome"),
        "Paris",
        paraphrase_prompts=(f"{subject} is in",),
        generation_prompts=(f"{subject} is",),
        neighborhood_prompts=("The Louvre is in",),
        case_id=number,
    )
    for number, subject in enumerate(["The Eiffel Tower", "Big Ben", "The Colosseum"])
]
QUESTIONS = rl.data.QuestionRecord(RECORDS[0].request, locality={"a": (rl.data.Continuation("Rome is", "in Italy"),)})


@pytest.fixture(params=["nan", "inf"])
def broken(tiny, request):
    model = copy.deepcopy(tiny)
    model.unembed.W_U.data[0, 5] = float(request.param)
    return model


@pytest.mark.parametrize(
    "read",
    [
        lambda model: rl.evaluate.score_record(model, RECORDS[0]),
        lambda model: rl.evaluate.score_specificity(model, RECORDS[0]),
        lambda model: rl.evaluate.score_generation(model, RECORDS[0], length=20),
        lambda model: rl.evaluate.score_zsre(model, QUESTIONS),
        lambda model: rl.evaluate.score_knowedit(model, QUESTIONS),
        lambda model: rl.evaluate.locality_predictions(model, QUESTIONS),
        lambda model: rl.evaluate.perplexity(model, "One, two. " * 9, progress=False),
        lambda model: rl.evaluate.generate_texts(model, ["One"], length=9),
        lambda model: rl.compare_models(model, model, ["One"], progress=False),
        lambda model: rl.causal_trace(model, RECORDS[0].fact, progress=False),
        lambda model: rl.trace_facts(model, [RECORDS[0].fact], progress=False),
        lambda model: rl.score_edits(model, RECORDS, {}, progress=False),
    ],
)
def test_logits_that_are_not_finite_are_refused(broken, read):
    with pytest.raises(
        rl.errors.NotFiniteError, match=r"The logits of gpt2 are NaN or infinite in row \d+ of \d+ \('.*Check"
    ):
        read(broken)


def test_a_token_that_is_never_said_is_no_fault(tiny):
    model = copy.deepcopy(tiny)
    model.unembed.b_U.data[5] = -torch.inf
    assert rl.evaluate.score_record(model, RECORDS[0])["EM"] != 0


def collapsing(model, request):
    """For the second record it overflows the output, though each weight stays finite; else it does nothing."""
    left = torch.zeros(model.cfg.d_mlp, 1)
    right = torch.full((1, model.cfg.d_model), float(len(request.subject)))  # no two records have the same edit
    if request == RECORDS[1].request:
        left += 1e19
        right += torch.linspace(1e19, 3e19, model.cfg.d_model)
    return rl.Edit((rl.edit.Update(1, left, right),), (request,), method="collapsing")


def test_an_edit_after_which_the_output_is_not_finite_has_a_row_with_the_reason(tiny):
    with pytest.warns(
        rl.errors.EditWarning, match="1 edits by 'x' could not be computed or scored.*of record 1: The logits"
    ):
        frame = rl.score_edits(tiny, RECORDS, {"x": collapsing}, progress=False)
    failed = frame[frame["error"] != ""]
    assert list(failed["case_id"]) == [1]
    assert list(rl.summarize(frame)["failed"]) == [0, 1]


def test_a_sequence_that_collapses_keeps_its_rows_and_says_why(tiny, weights_of, tmp_path):
    before = weights_of(tiny)
    options = {
        "out": tmp_path,
        "method": collapsing,
        "text": "One, two. " * 9,
        "checkpoints": [1, 2],
        "progress": False,
    }
    made = rl.edit_sequence(tiny, RECORDS, **options)
    assert made.edits["ES"].isna().tolist() == [False, True, True]
    assert ["NaN or infinite" in text for text in made.edits["problems"]] == [False, True, True]
    assert made.checkpoints["perplexity"].isna().tolist() == [False, False, True, True]
    assert made.checkpoints["n"].tolist() == [3, 1, 0, 0]
    assert made.checkpoints["failed"].tolist() == [0, 0, 2, 3]
    again = rl.edit_sequence(tiny, RECORDS, **options)
    assert made.checkpoints.equals(again.checkpoints)
    assert rl.edit_sequence(
        tiny, RECORDS, **options, stop=rl.evaluate.StopRule(perplexity_factor=9.0)
    ).stopped.startswith("after edit 2, the perplexity is nan")
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert find_output_matrix(tiny, 1).values.isfinite().all()


def test_a_text_is_not_sampled_from_nan(broken):
    for sample in (
        lambda: rl.edit.sample_contexts(broken, [(3, 2)]),
        lambda: next(rl.edit.texts_from_model(broken).read()),
    ):
        with pytest.raises(rl.errors.NotFiniteError, match="logits of .* are NaN or infinite"):
            sample()
