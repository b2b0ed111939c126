"""Restoring a set of states at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.data.records import Fact
from rome_lens.locate.config import TraceConfig, counted_from_start, with_options
from rome_lens.locate.corruption import Corruption, CorruptionFunction, corrupted_embeddings
from rome_lens.locate.metrics import Metric, MetricName, make_measures
from rome_lens.locate.prompt import TracedPrompt, prepare_prompt, warn_if_not_predicted
from rome_lens.locate.runs import answer_logits, put_in_place
from rome_lens.models import EMBEDDING, Kind, Model, run, state_name
from rome_lens.models.prediction import most_probable


@checked
@dataclass(frozen=True)
class State:
    """One hidden state: a block's output, its MLP's, its attention's, or one head's, at one position.

    Position and layer count from the end if they are negative: -1 is the last.
    """

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
    corruption: Corruption | CorruptionFunction | None = None,
    metric: MetricName | Metric = "prob",
    wrong_answer: str | None = None,
) -> float:
    """The metric, mean over the samples, when all these states of the corrupted run are put back to their clean values.

    An empty list gives the corrupted run's value; all residual states of one layer give the clean run's.

    Args:
        fact: Prompt, subject and, optionally, answer.
        states: States to restore.
        samples: This and the next three are as in `TraceConfig`.
        corruption: How the subject is hidden; None: Gaussian noise of 3 sigma.
        metric: What is read from the logits.
        wrong_answer: For "logit_diff".

    Raises:
        ValueError: a state does not exist; and as `causal_trace`.
    """
    options = {"samples": samples, "corruption": corruption, "metric": metric, "wrong_answer": wrong_answer}
    config = with_options(None, options)
    prompt, states = _prepared(model, fact, states)
    (measure,) = make_measures(model, fact, prompt, [config.metric], config.wrong_answer)
    return measure(_restored_logits(model, fact, prompt, states, config)).mean().item()


@checked
def predict_restored(
    model: Model,
    fact: Fact,
    states: Sequence[State],
    *,
    samples: int = 10,
    corruption: Corruption | CorruptionFunction | None = None,
    top: int = 5,
) -> pd.DataFrame:
    """The model's most probable next tokens when these states of the corrupted run are put back to their clean values.

    The arguments are those of `restore_states`.

    Returns:
        A row for each of the `top` most probable tokens after the prompt: token, probability (mean over the samples).

    Raises:
        ValueError: as `restore_states`; or `top` is below 1 or above the vocabulary's size.
    """
    config = with_options(None, {"samples": samples, "corruption": corruption})
    if not 1 <= top <= model.cfg.d_vocab:
        raise ValueError(f"top is {top}, expected a number from 1 to {model.cfg.d_vocab}.")
    prompt, states = _prepared(model, fact, states)
    logits = _restored_logits(model, fact, prompt, states, config)
    best = most_probable(model, logits[:, 0].softmax(-1).mean(0), top)
    return pd.DataFrame(best, columns=["token", "probability"])


def _prepared(model: Model, fact: Fact, states: Sequence[State]) -> tuple[TracedPrompt, list[State]]:
    """The prompt with its clean run, and the states, counted from the start. Raises ValueError if one does not
    exist.
    """
    prompt = prepare_prompt(model, fact, kinds={state.kind for state in states})
    warn_if_not_predicted(model, fact, prompt)
    for state in states:
        counted_from_start("layers", [state.layer], model.cfg.n_layers, str(model.cfg.model_name))
        counted_from_start("positions", [state.position], len(prompt.tokens), f"{state}: the prompt")
        if (state.head is not None) != (state.kind == "head") or not 0 <= (state.head or 0) < model.cfg.n_heads:
            raise ValueError(
                f"{state}: expected a head from 0 to {model.cfg.n_heads - 1} with kind 'head' and no other."
            )
    length, layers = len(prompt.tokens), model.cfg.n_layers
    return prompt, [replace(each, position=each.position % length, layer=each.layer % layers) for each in states]


@torch.no_grad()
def _restored_logits(
    model: Model, fact: Fact, prompt: TracedPrompt, states: Sequence[State], config: TraceConfig
) -> Float[Tensor, "sample answer vocab"]:
    """The logits that predict the answer's tokens, with these states restored."""

    def restore(state: State) -> Callable[..., Tensor]:
        index = (state.position,) if state.head is None else (state.position, state.head)
        clean = prompt.clean.states[state.kind][(state.layer, *index)]

        def put(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            value[(slice(None), *index)] = clean
            return value

        return put

    embedded = corrupted_embeddings(model, fact, prompt, config.corruption, config.samples)
    restoring = [(state_name(state.kind, state.layer), restore(state)) for state in states]
    hooks = [(EMBEDDING, put_in_place(prompt.subject, embedded)), *restoring]
    residual = run(model, prompt.tokens.expand(len(embedded), -1), hooks=hooks)
    return answer_logits(model, residual, len(prompt.answer))
