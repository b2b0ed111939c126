"""Restoring a set of states at once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import Fact
from rome_lens.locate.corruption import Corruption, GaussianNoise
from rome_lens.locate.metrics import MetricName, make_metric
from rome_lens.locate.prompt import Question, tokenize_question, warn_if_not_predicted
from rome_lens.locate.runs import answer_logits, put_in_place
from rome_lens.models import EMBEDDING, Kind, Model, check_layer, embed, run, state_name
from rome_lens.models.labels import token_text


@checked
@dataclass(frozen=True)
class State:
    """One hidden state: a block's output, its MLP's, its attention's, or one head's, at one position."""

    kind: Kind
    position: int
    layer: int
    head: int | None = None


@checked
def restore_states(
    model: Model,
    fact: Fact,
    states: Sequence[State],
    *,
    samples: int = 10,
    corruption: Corruption | None = None,
    metric: MetricName = "prob",
) -> float:
    """The metric, mean over the samples, when all these states of the corrupted run are put back to their clean values.

    None gives the corrupted run's value; all of one layer's residual states give the clean one.

    Raises:
        ValueError: a state does not exist; and as `causal_trace`.
    """
    check_whole(samples=samples)
    question = _question(model, fact, states)
    values = make_metric(metric, question.answer, None, question.clean.logits)
    return values(_restored_logits(model, fact, question, states, samples, corruption)).mean().item()


@checked
def predict_restored(
    model: Model,
    fact: Fact,
    states: Sequence[State],
    *,
    samples: int = 10,
    corruption: Corruption | None = None,
    top: int = 5,
) -> pd.DataFrame:
    """What the model would say next when these states of the corrupted run are put back, as `restore_states` does it.

    Returns:
        A row for each of the `top` most probable tokens after the prompt: token, probability (mean over the samples).

    Raises:
        ValueError: as `restore_states`; or `top` is below 1 or above the vocabulary's size.
    """
    check_whole(samples=samples)
    if not 1 <= top <= model.cfg.d_vocab:
        raise ValueError(f"top is {top}, expected a number from 1 to {model.cfg.d_vocab}.")
    question = _question(model, fact, states)
    logits = _restored_logits(model, fact, question, states, samples, corruption)
    best = logits[:, 0].softmax(-1).mean(0).topk(top)
    tokens = [token_text(model, token) for token in best.indices.tolist()]
    return pd.DataFrame({"token": tokens, "probability": best.values.tolist()})


def _question(model: Model, fact: Fact, states: Sequence[State]) -> Question:
    """Raises ValueError if the model has no such states."""
    question = tokenize_question(model, fact, kinds={state.kind for state in states})
    warn_if_not_predicted(model, fact, question)
    for state in states:
        check_layer(model, state.layer)
        if not 0 <= state.position < len(question.tokens):
            raise ValueError(f"{state} does not exist: the prompt has {len(question.tokens)} tokens.")
        if (state.head is not None) != (state.kind == "head") or not 0 <= (state.head or 0) < model.cfg.n_heads:
            raise ValueError(
                f"{state}: expected a head from 0 to {model.cfg.n_heads - 1} with kind 'head' and no other."
            )
    return question


@torch.no_grad()
def _restored_logits(
    model: Model,
    fact: Fact,
    question: Question,
    states: Sequence[State],
    samples: int,
    corruption: Corruption | None,
) -> Float[Tensor, "sample answer vocab"]:
    """Where the answer is predicted."""
    subject = question.subject
    clean_subject = embed(model, question.tokens)[subject.start : subject.stop]
    embedded = (corruption or GaussianNoise()).corrupted(model, fact, clean_subject, samples)

    by_name: dict[str, list[State]] = defaultdict(list)
    for state in states:
        by_name[state_name(state.kind, state.layer)].append(state)

    def restore(here: list[State]) -> Callable[..., Tensor]:
        def put(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            for state in here:
                index = (state.position,) if state.head is None else (state.position, state.head)
                value[(slice(None), *index)] = question.clean.states[state.kind][(state.layer, *index)]
            return value

        return put

    hooks = [(EMBEDDING, put_in_place(subject, embedded)), *((name, restore(here)) for name, here in by_name.items())]
    residual = run(model, question.tokens.expand(len(embedded), -1), hooks=hooks)
    return answer_logits(model, residual, len(question.answer))
