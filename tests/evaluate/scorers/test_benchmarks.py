"""The scorers of published benchmarks against cases that are computed by hand."""

import copy
import math
from functools import partial
from statistics import fmean

import pytest
import torch

import rome_lens as rl
from rome_lens.data.cases import MultiHopRecord, RippleQuery, RippleRecord, RippleTest
from rome_lens.data.records import Question, QuestionRecord
from rome_lens.evaluate.judges import ModelJudge, Preference, exact_match, normalize_answer
from rome_lens.evaluate.scorers import evoke, mquake, mrlf, ripple
from tests.evaluate.test_scoring import run
from tests.evaluate.test_sequence import noise

REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", true_answer="Paris")


@pytest.fixture
def saying(tiny):
    """Gives a copy of a model that says a word everywhere, and other words as probable as they are listed."""

    def make(*words: str):
        model = copy.deepcopy(tiny)
        with torch.no_grad():
            for place, word in enumerate(words):
                tokens = model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
                model.unembed.b_U[tokens] = 1e4 - 10 * place
        return model

    return make


def test_evoke_compares_the_correct_answer_with_the_target_and_the_old_one(saying):
    """The model finds Rome most probable, then Paris, then Honda, whatever is asked."""
    record = QuestionRecord(
        REQUEST,
        ("Where is it? In",),
        portability={"multi_hop": (Question("It is in the country of", "Honda", instead="Paris"),)},
        locality={
            "prefix_distraction": (
                Question("The Louvre is in", "Paris", instead="Rome"),
                Question("The Forum is in", "Rome", instead="Rome"),
            )
        },
    )
    scores = evoke.score_evoke(saying("Rome", "Paris", "Honda"), record)
    assert {name: scores[name] for name in scores if name[:3] in ("EOS", "AMS")} == {
        "AMS_efficacy": 1,
        "AMS_paraphrase": 1,
        "EOS_multi_hop": 0,
        "AMS_multi_hop": 0,
        "EOS_prefix_distraction": 0,
    }
    assert scores["CAP_efficacy"] == pytest.approx(1, abs=0.01)
    assert scores["CAP_prefix_distraction"] == pytest.approx(0.5, abs=0.01)
    assert scores["DP_prefix_distraction"] == pytest.approx(1, abs=0.01)
    other = evoke.score_evoke(saying("Paris", "Honda", "Rome"), record)
    assert (other["AMS_efficacy"], other["EOS_multi_hop"], other["EOS_prefix_distraction"]) == (0, 1, 0.5)


def log_p(model, prompt: str, word: str) -> float:
    """Of a word of one token after a prompt."""
    (token,) = model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return model(model.to_tokens(prompt))[0, -1].double().log_softmax(-1)[token].item()


def test_an_opinion_is_held_and_the_topic_kept(saying):
    questions = (Question("What of it?", "Rome", instead="Paris"), Question("How is it?", "Rome", instead="Paris"))
    record = QuestionRecord(REQUEST, portability={"sentiment": questions})
    models = saying("Rome", "Paris"), saying("Paris", "Rome")
    wanted, other = (
        [fmean(log_p(model, question.prompt, word) for question in questions) for model in models]
        for word in ("Rome", "Paris")
    )
    assert [rl.evaluate.sentiment_log_likelihood(model, record) for model in models] == pytest.approx(wanted, abs=1e-3)
    assert wanted[0] > -0.01
    assert wanted[1] < -5
    for i, before in enumerate(reversed(wanted)):
        scores = rl.evaluate.score_sentiment(models[i], record, before=before)
        z_sentiment, z_topic = 1 / (1 + math.exp(other[i] - wanted[i])), min(1, math.exp(wanted[i] - before))
        assert scores["z_sentiment"] == pytest.approx(z_sentiment, rel=1e-2)
        assert scores["z_topic"] == pytest.approx(z_topic, rel=1e-2)
        assert scores["sentiment"] == pytest.approx(z_sentiment * z_topic, rel=2e-2)
    with pytest.raises(ValueError, match="Record 0 holds no opinions, expected some in its portability, 'sentiment'"):
        rl.evaluate.score_sentiment(models[0], QuestionRecord(REQUEST), before=0.0)


def test_mrlf_has_the_published_match_with_swapped_roles_and_what_is_written(saying):
    """Of "abc" against "abcde": all 1-, 2- and 3-grams, no 4-gram (.1 of 1), and shorter: exp(1 - 5 / 3)."""
    assert mrlf.greedy_match("abcde", "abc") == pytest.approx(math.exp(1 - 5 / 3) * 0.1**0.4)
    assert mrlf.greedy_match("abcd", "abcd") == 1
    questions = {"rank_1": (Question("Where is it?", "Rome"),), "rank_2": (Question("Who made it?", "Honda"),)}
    model = saying("Rome", "Honda")
    scores = rl.evaluate.score_mrlf(model, QuestionRecord(REQUEST, portability=questions))
    assert scores["greedy_match_rank_1"] == pytest.approx(mrlf.greedy_match(" Rome", " Rome"))
    assert scores["greedy_match_rank_2"] == pytest.approx(mrlf.greedy_match(" Rome", " Honda"))
    assert scores["greedy_match"] == pytest.approx((scores["greedy_match_rank_1"] + scores["greedy_match_rank_2"]) / 2)
    assert [scores[f"contains_rank_{rank}"] for rank in (1, 2)] == [1, 0]
    asked = "Directly answer the Query.\n\nQuery: Who made it?\nAnswer:"
    assert scores["answer_perplexity_rank_2"] == pytest.approx(math.exp(-log_p(model, asked, "Honda")), rel=1e-2)
    said = log_p(model, REQUEST.text, REQUEST.target)
    assert scores["perplexity_doc"] == pytest.approx(math.exp(-said), rel=1e-3)
    assert rl.evaluate.score_mrlf(model, QuestionRecord(REQUEST)).keys() == {"perplexity_doc"}  # without questions
    assert 0 < scores["bleu_words_rank_1"] < 0.2  # Rome, and then Rome again and again


def case(**changes) -> MultiHopRecord:
    given = {
        "requests": (REQUEST, rl.EditRequest("The capital of {} is", "Italy", "Honda")),
        "questions": (Question("Where?", "Roma", aliases=("rome",), instead="Paris"), Question("Which?", "Roma")),
        "hops": (Question("It is in", "Rome"), Question("It was in", "Honda", aliases=("Rome",))),
    }
    return MultiHopRecord(**given | changes)


def test_mquake_counts_any_question_each_edit_and_all_hops(saying):
    rome = saying("Rome")
    score = lambda model, record: mquake.score_mquake(model, record, new_tokens=1)  # noqa: E731
    assert score(rome, case()) == {"multi_hop": 1, "unchanged": 0, "edit_wise": 0.5, "instance_wise": 1}
    assert score(saying("Paris"), case()) == {"multi_hop": 0, "unchanged": 1, "edit_wise": 0, "instance_wise": 0}
    hops = (Question("It is in", "Rome"), Question("It was in", "Honda"))
    assert score(rome, case(hops=hops))["instance_wise"] == 0
    assert "instance_wise" not in score(rome, case(hops=()))


def test_all_requests_of_a_case_are_edited_together(tiny):
    given = []

    def method(model, requests):
        given.append(requests)
        return noise(model, requests[0])

    short = partial(mquake.score_mquake, new_tokens=1)
    run(tiny, [case()], {"several": method}, score=short)
    assert given == [list(case().requests)]
    one = case(requests=(REQUEST,))
    run(tiny, [one], {"one": lambda model, request: noise(model, request)}, score=short)


def test_protocols_refuse_a_record_that_has_a_scorer_of_its_own(tiny):
    with pytest.raises(TypeError, match="asks the questions of an EditRecord or a QuestionRecord; this is a MultiHop"):
        run(tiny, [case()], {}, protocols=["generated"])


def test_ripple_runs_tests_whose_conditions_hold_and_wants_every_answer(saying, monkeypatch):
    """The model says Rome time and again: a query is answered if each of its answers is in there by some name."""
    rome, both = RippleQuery("It is in", (("Rom", "Rome"),)), RippleQuery("They are in", (("Rome",), ("Paris",)))
    tests = {
        "Forgetfulness": (RippleTest((rome, both), "OR"), RippleTest((rome, both), "AND"), RippleTest((both,))),
        "Subject_Aliasing": (RippleTest((rome,), "OR", (both,)),),
        "Compositionality_I": (RippleTest((rome,), "AND", (rome,)),),
    }
    monkeypatch.setattr(ripple, "_NEW_TOKENS", 3)
    record, model = RippleRecord(REQUEST, tests), saying("Rome")
    before = ripple.ripple_conditions(model, record)
    assert before == {
        "Forgetfulness": [True, True, True],
        "Subject_Aliasing": [False],
        "Compositionality_I": [True],
    }
    assert ripple.score_ripple(model, record, before=before) == {
        "Forgetfulness": pytest.approx(1 / 3),
        "Compositionality_I": 1,
        "ripple": pytest.approx(2 / 3),
        "executed": pytest.approx(4 / 5),
    }
    frame = run(model, [record], {}, score=ripple.score_ripple, before=ripple.ripple_conditions)
    assert set(frame["protocol"]) == {"score_ripple"}
    assert ripple.score_ripple(model, RippleRecord(REQUEST), before={}) == {}


def test_answers_are_normalised_as_published():
    assert normalize_answer(" The  Eiffel-Tower, a tower! ") == "eiffeltower tower"
    assert exact_match("", ("Paris", "the City of Light"), "City of light.") == 1
    assert exact_match("", ("Paris",), "Paris, France") == 0


def test_a_model_judges_by_the_more_probable_letter(saying):
    a, b = saying("A", "B"), saying("B", "A")
    short = "{question} {answer} {written}"
    assert ModelJudge(a, name="yes", prompt=short)("Who?", ("Dante",), "Hugo") == 1
    assert ModelJudge(b, name="no", prompt=short)("Who?", ("Dante",), "Dante") == 0
    prefers_a = Preference(a, name="first", prompt="{instruction} {first} {second}")
    assert prefers_a("Write {first}.", "one", "two") == 0.5  # it prefers a place, so both orders cancel
    with pytest.raises(ValueError, match="lacks {written}. Write them where they go"):
        ModelJudge(a, name="x", prompt="{question} {answer}")
