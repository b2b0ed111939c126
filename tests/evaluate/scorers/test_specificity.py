"""CounterFact+ and the neighbourhood's KL divergence: against plain forward passes."""

import math

import pandas as pd
import pytest
import torch

import rome_lens as rl
from tests.edit.artifact.test_edit import made_up
from tests.evaluate.scorers.test_counterfact import RECORD, plain_log_probability

STATED = "The Eiffel Tower is located in the city of Rome. "


def next_log_probs(model, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return model(model.to_tokens(prompt))[0, -1].log_softmax(-1)


@torch.no_grad()
def test_the_edit_stands_before_each_neighbourhood_prompt(tiny):
    gains = [
        math.exp(plain_log_probability(tiny, STATED + prompt, "Paris"))
        - math.exp(plain_log_probability(tiny, STATED + prompt, "Rome"))
        for prompt in RECORD.neighborhood_prompts
    ]
    scores = rl.evaluate.score_specificity(tiny, RECORD)
    assert scores["NS+"] == sum(gain > 0 for gain in gains) / 2
    assert scores["NM+"] == pytest.approx(sum(gains) / 2, abs=1e-6)
    assert set(scores) == {"NS+", "NM+"}


def test_the_divergence_is_that_of_the_next_token_from_before_to_now(tiny):
    prompts = {"NKL": RECORD.neighborhood_prompts, "NKL+": [STATED + p for p in RECORD.neighborhood_prompts]}
    past = {name: [next_log_probs(tiny, prompt) for prompt in those] for name, those in prompts.items()}
    before = rl.evaluate.neighborhood_log_probabilities(tiny, RECORD)
    with made_up(tiny, scale=0.3).applied(tiny):
        scores = rl.evaluate.score_specificity(tiny, RECORD, before=before)
        now = {name: [next_log_probs(tiny, prompt) for prompt in those] for name, those in prompts.items()}
    for name in prompts:
        pairs = zip(past[name], now[name], strict=True)
        each = [(p.exp() * (p - q)).sum().item() for p, q in pairs]
        assert scores[name] == pytest.approx(sum(each) / 2, rel=1e-3)
        assert scores[name] > 1e-3


def test_a_model_and_itself_do_not_diverge(tiny):
    scores = rl.evaluate.score_specificity(
        tiny, RECORD, before=rl.evaluate.neighborhood_log_probabilities(tiny, RECORD)
    )
    assert scores["NKL"] == scores["NKL+"] == 0


def test_without_neighbours_there_are_no_scores(tiny):
    record = rl.EditRecord(RECORD.request, "Paris")
    before = rl.evaluate.neighborhood_log_probabilities(tiny, record)
    assert before.shape == (0, tiny.cfg.d_vocab)
    assert rl.evaluate.score_specificity(tiny, record, before=before) == {}


def test_scores_of_one_record_go_into_one_summary(tiny):
    """Each score has its own rows, under its name; what another score measures is missing there."""
    options = {"methods": {"rome": lambda *_: made_up(tiny)}, "progress": False}
    further = rl.score_edits(
        tiny,
        [RECORD],
        score=rl.evaluate.score_specificity,
        before=rl.evaluate.neighborhood_log_probabilities,
        **options,
    )
    frame = pd.concat([further, rl.score_edits(tiny, [RECORD], **options)])
    summary = rl.summarize(frame).set_index(["protocol", "method"])
    metrics = [name for name in summary if "_" not in name]
    assert metrics == ["n", "failed", "NS+", "NM+", "NKL", "NKL+", "S", "ES", "EM", "PS", "PM", "NS", "NM"]
    assert summary.loc[("score_specificity", "base"), "NKL"] == 0
    assert summary.loc[("score_specificity", "rome"), "NKL"] > 0
    assert summary.loc["probability", "NKL"].isna().all()
