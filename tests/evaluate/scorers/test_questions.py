"""zsRE's and KnowEdit's scores: against plain forward passes, and cases worked out by hand."""

import copy

import pytest
import torch

import rome_lens as rl
from rome_lens.data.records import Continuation, QuestionRecord
from rome_lens.evaluate.likelihood import Prediction, predict_tokens
from rome_lens.evaluate.scorers.generation import ngram_entropy
from tests.edit.artifact.test_edit import made_up

RECORD = QuestionRecord(
    request=rl.EditRequest("What is the capital of {}?", "France", target="Rome, Italy"),
    paraphrase_prompts=("France is ruled from", "The capital city of France is"),
    portability={
        "Reasoning": (Continuation("The Louvre is in", "Rome"), Continuation("The Seine runs through", "Rome, Italy")),
        "Subject_Aliasing": (Continuation("The capital of the French Republic is", "Rome, Italy"),),
    },
    locality={
        "Relation_Specificity": (Continuation("The language of France is", "French"), Continuation("Dante is", "dead")),
        "Forgetfulness": (Continuation("A capital of France was", "Versailles of old"),),
    },
    case_id=4,
)
LOCALITY = [question for questions in RECORD.locality.values() for question in questions]


@torch.no_grad()
def plain(model, question: Continuation) -> tuple[list[int], list[int]]:
    """The answer's tokens and the most probable ones in their places, by a pass for each token."""
    start = model.to_tokens(question.prompt).shape[1]
    tokens = model.to_tokens(f"{question.prompt} {question.text}")[0]
    predicted = [model(tokens[None, :i])[0, -1].argmax().item() for i in range(start, len(tokens))]
    return tokens[start:].tolist(), predicted


def accuracy(model, prompt: str, answer: str) -> float:
    wanted, predicted = plain(model, Continuation(prompt, answer))
    return sum(a == b for a, b in zip(wanted, predicted, strict=True)) / len(wanted)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_shares_worked_out_by_hand():
    now = Prediction(wanted=(5, 6, 7, 8), predicted=(5, 1, 7, 2))
    then = Prediction(wanted=(5, 6, 7, 8), predicted=(5, 1, 3, 2))
    assert now.accuracy == 0.5
    assert then.accuracy == 0.25
    assert now.agreement(then) == then.agreement(now) == 0.75, "equal and wrong counts as unchanged"


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_batched_predictions_equal_one_pass_for_each_token(tiny_model, family, bos, tokens_per_batch):
    model = tiny_model(family, bos=bos)
    found = predict_tokens(model, LOCALITY, tokens_per_batch=tokens_per_batch)
    expected = [plain(model, question) for question in LOCALITY]
    assert [(list(each.wanted), list(each.predicted)) for each in found] == expected


def test_a_model_with_one_word_scores_what_can_be_counted(tiny):
    """A model that says " of" everywhere: each of an answer's tokens counts, and a record's kinds count the same."""
    model = copy.deepcopy(tiny)
    (of,) = model.tokenizer(" of", add_special_tokens=False)["input_ids"]
    model.unembed.b_U.data[of] = 1e4
    record = QuestionRecord(
        request=rl.EditRequest("Who is {}?", "Dante", target="of of of city"),
        paraphrase_prompts=("Dante is", "Dante was"),
        portability={
            "a": (Continuation("Rome is", "of"), Continuation("Paris is", "city of")),
            "b": (Continuation("Seattle is", "city"),),
        },
        locality={"nq": (Continuation("Who?", "city"), Continuation("Where?", "of city"))},
    )
    before = rl.evaluate.locality_predictions(model, record)
    assert rl.evaluate.score_zsre(model, record, before=before) == {
        "efficacy": 0.75,
        "paraphrase": 0.75,
        "specificity": 0.25,
        "unchanged": 1,
    }
    assert rl.evaluate.score_knowedit(model, record, before=before, fluency=False) == {
        "edit_success": 0.75,
        "portability": 0.375,
        "portability_a": 0.75,
        "portability_b": 0,
        "locality": 1,
        "locality_nq": 1,
    }
    changed = {"nq": [Prediction(each.wanted, (of + 1,) * len(each.wanted)) for each in before["nq"]]}
    assert rl.evaluate.score_zsre(model, record, before=changed)["unchanged"] == 0
    assert rl.evaluate.score_knowedit(model, record, before=changed, fluency=False)["locality"] == 0


def test_zsre_scores_are_those_computed_by_hand(tiny):
    request = RECORD.request
    scores = rl.evaluate.score_zsre(tiny, RECORD)
    assert scores == {
        "efficacy": accuracy(tiny, request.text, request.target),
        "paraphrase": mean(accuracy(tiny, prompt, request.target) for prompt in RECORD.paraphrase_prompts),
        "specificity": mean(accuracy(tiny, question.prompt, question.text) for question in LOCALITY),
    }


def test_the_two_specificities_differ_as_their_definitions_do(tiny):
    """Against the true answers a model before any edit is what it is; against itself it is unchanged."""
    before = rl.evaluate.locality_predictions(tiny, RECORD)
    scores = rl.evaluate.score_zsre(tiny, RECORD, before=before)
    assert scores["unchanged"] == 1
    assert scores["specificity"] < 1
    past = [plain(tiny, question)[1] for question in LOCALITY]
    with made_up(tiny, scale=1.0).applied(tiny):
        changed = rl.evaluate.score_zsre(tiny, RECORD, before=before)["unchanged"]
        now = [plain(tiny, question)[1] for question in LOCALITY]
    shares = [mean(a == b for a, b in zip(*pair, strict=True)) for pair in zip(past, now, strict=True)]
    assert changed == pytest.approx(mean(shares))
    assert changed < 1


def test_knowedit_scores_are_those_computed_by_hand(tiny):
    request = RECORD.request
    before = rl.evaluate.locality_predictions(tiny, RECORD)
    with made_up(tiny, scale=1.0).applied(tiny):
        scores = rl.evaluate.score_knowedit(tiny, RECORD, before=before, seed=5)
        kinds = {
            kind: mean(accuracy(tiny, question.prompt, question.text) for question in questions)
            for kind, questions in RECORD.portability.items()
        }
        now = rl.evaluate.locality_predictions(tiny, RECORD)
        text = rl.evaluate.generate_texts(tiny, [request.text], seed=5)[0]
        assert scores["edit_success"] == accuracy(tiny, request.text, request.target)
    for kind, value in kinds.items():
        assert scores[f"portability_{kind}"] == pytest.approx(value)
    assert scores["portability"] == pytest.approx(mean(kinds.values())), "each kind counts the same, however large"
    unchanged = {
        kind: mean(a.agreement(b) for a, b in zip(now[kind], before[kind], strict=True)) for kind in RECORD.locality
    }
    for kind, value in unchanged.items():
        assert scores[f"locality_{kind}"] == pytest.approx(value)
    assert scores["locality"] == pytest.approx(mean(unchanged.values()))
    assert 0 < scores["locality"] < 1
    assert scores["fluency"] == ngram_entropy(text)
    assert len(scores) == 8


def test_scores_without_questions_or_the_model_before_are_left_out(tiny):
    bare = QuestionRecord(RECORD.request)
    assert set(rl.evaluate.score_zsre(tiny, bare, before={})) == {"efficacy"}
    assert set(rl.evaluate.score_knowedit(tiny, bare, before={}, fluency=False)) == {"edit_success"}
    with pytest.warns(rl.errors.DataWarning, match="need before=locality_predictions"):
        found = rl.evaluate.score_knowedit(tiny, RECORD, fluency=False)
    assert set(found) == {"edit_success", "portability", "portability_Reasoning", "portability_Subject_Aliasing"}


@pytest.mark.parametrize(
    "score", [rl.evaluate.score_zsre, lambda *a, **b: rl.evaluate.score_knowedit(*a, **b, fluency=False)]
)
def test_score_edits_notes_the_model_before_and_gives_rows_that_summarize_reads(tiny, weights_of, score):
    weights = weights_of(tiny)
    bare = QuestionRecord(RECORD.request, case_id=5)
    frame = rl.score_edits(
        tiny,
        [RECORD, bare],
        {"rome": lambda *_: made_up(tiny, scale=1.0)},
        score=score,
        before=rl.evaluate.locality_predictions,
        progress=False,
    )
    summary = rl.summarize(frame).set_index("method")
    locality = "unchanged" if score is rl.evaluate.score_zsre else "locality"
    assert summary.loc["base", locality] == 1
    assert summary.loc["rome", locality] < 1
    assert list(summary["n"]) == [2, 2]
    values = frame.set_index(["case_id", "method", "metric"])["value"]
    assert summary.loc["rome", locality] == values[4, "rome", locality], "the mean is over the records that have it"
    assert all(torch.equal(value, weights[name]) for name, value in tiny.state_dict().items())
