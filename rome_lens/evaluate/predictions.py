"""Which tokens a model would choose where an answer's tokens stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rome_lens.checking import checked
from rome_lens.evaluate.scores import teacher_forced
from rome_lens.facts import Continuation, QuestionRecord
from rome_lens.models import Model


@checked
@dataclass(frozen=True)
class Prediction:
    """A continuation's tokens, and the most probable token at each of their places, by teacher forcing.

    Attributes:
        wanted: the continuation's token ids.
        predicted: for each, the id with the largest logit (the first of equal ones) after the prompt and the wanted
            tokens before it.
    """

    wanted: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """The share of the tokens that are predicted."""
        return _share_equal(self.wanted, self.predicted)

    def agreement(self, other: "Prediction") -> float:
        """The share of the places where both predict the same token, right or wrong."""
        return _share_equal(self.predicted, other.predicted)


@torch.no_grad()
def predict_tokens(
    model: Model, continuations: Sequence[Continuation], *, tokens_per_batch: int = 4096
) -> list[Prediction]:
    """What the model predicts at each continuation's tokens.

    Args:
        model: is run, not changed.
        continuations: prompts and what follows.
        tokens_per_batch: bounds memory; the result does not depend on it.

    Raises:
        ValueError: a continuation has no tokens, or is longer than the model's context with its prompt.
    """
    found: dict[int, Prediction] = {}
    for numbers, lengths, scores, wanted in teacher_forced(model, continuations, tokens_per_batch=tokens_per_batch):
        parts = zip(wanted.cpu().split(lengths), scores.argmax(-1).cpu().split(lengths), strict=True)
        found |= {
            i: Prediction(tuple(tokens.tolist()), tuple(predicted.tolist()))
            for i, (tokens, predicted) in zip(numbers, parts, strict=True)
        }
    return [found[i] for i in range(len(continuations))]


@checked
def locality_predictions(model: Model, record: QuestionRecord) -> dict[str, list[Prediction]]:
    """What the model predicts at the answers of a record's locality questions, by kind.

    Of the model before an edit, this is what `score_zsre` and `score_knowedit` take as `before`.
    """
    return predict_kinds(model, record.locality)


def predict_kinds(model: Model, kinds: Mapping[str, Sequence[Continuation]]) -> dict[str, list[Prediction]]:
    """`predict_tokens` for continuations by kind, all at once."""
    found = iter(predict_tokens(model, [asked for questions in kinds.values() for asked in questions]))
    return {kind: [next(found) for _ in questions] for kind, questions in kinds.items()}


def _share_equal(some: tuple[int, ...], others: tuple[int, ...]) -> float:
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)
