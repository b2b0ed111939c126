"""How probable a model finds texts, and which tokens it predicts in their place, by teacher forcing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, QuestionRecord, target_rows
from rome_lens.models import Model
from rome_lens.models.teacher_forcing import TargetRow, score_targets, target_log_probabilities


def mean_log_probabilities(
    model: Model, continuations: Sequence[Continuation], *, tokens_per_batch: int = 4096
) -> Float[Tensor, " continuation"]:
    """The mean log-probability of each continuation's tokens, in nats per token, on the CPU.

    The authors' evaluation compares these (experiments/py/eval_utils_counterfact.py).

    Args:
        continuations: Prompts and what follows them.
    """
    found = token_log_probabilities(model, continuations, tokens_per_batch=tokens_per_batch)
    return torch.tensor([each.mean() for each in found])


def token_log_probabilities(
    model: Model, continuations: Sequence[Continuation], *, tokens_per_batch: int = 4096
) -> list[Float[Tensor, " token"]]:
    """The log-probability of each token of each continuation. Arguments and errors are those of
    `mean_log_probabilities`.
    """
    return _scored(model, target_rows(model, continuations), target_log_probabilities, tokens_per_batch)


@checked
@dataclass(frozen=True)
class Prediction:
    """A continuation's tokens, and the token that the model predicts in place of each.

    Attributes:
        wanted: the continuation's token ids.
        predicted: for each of them, the id with the largest logit (the first of equal ones) after the prompt and the
            true tokens before it.
    """

    wanted: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """The share of the tokens that are predicted."""
        return _share_equal(self.wanted, self.predicted)

    def agreement(self, other: "Prediction") -> float:
        """The share of the positions at which both predict the same token, right or wrong."""
        return _share_equal(self.predicted, other.predicted)


def predict_tokens(
    model: Model, continuations: Sequence[Continuation], *, tokens_per_batch: int = 4096
) -> list[Prediction]:
    """The model's predictions at each continuation's tokens. Arguments and errors are those of
    `mean_log_probabilities`.
    """
    rows = target_rows(model, continuations)
    found = _scored(model, rows, lambda scores, _: scores.argmax(-1), tokens_per_batch)
    return [Prediction(ids[start:], tuple(each.tolist())) for (ids, start), each in zip(rows, found, strict=True)]


def _scored(
    model: Model, rows: Sequence[TargetRow], score: Callable[[Tensor, Tensor], Tensor], tokens_per_batch: int
) -> list[Tensor]:
    """`score_targets` in the order of the rows."""
    found = dict(score_targets(model, rows, score, tokens_per_batch=tokens_per_batch))
    return [found[i] for i in range(len(rows))]


@checked
def locality_predictions(model: Model, record: QuestionRecord) -> dict[str, list[Prediction]]:
    """The model's predictions at the answers of a record's locality questions, by kind.

    `score_zsre` and `score_knowedit` take those of the unedited model as `before`.
    """
    return predict_kinds(model, record.locality)


def predict_kinds(model: Model, kinds: Mapping[str, Sequence[Continuation]]) -> dict[str, list[Prediction]]:
    """`predict_tokens` for continuations by kind, in one call."""
    found = iter(predict_tokens(model, [each for questions in kinds.values() for each in questions]))
    return {kind: [next(found) for _ in questions] for kind, questions in kinds.items()}


def _share_equal(some: tuple[int, ...], others: tuple[int, ...]) -> float:
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)


def with_means(scores: Mapping[str, float]) -> dict[str, float]:
    """With portability and locality, the means over their kinds."""
    found = dict(scores)
    for name in ("portability", "locality"):
        kinds = [value for group, value in scores.items() if group.startswith(f"{name}_")]
        if kinds:
            found[name] = fmean(kinds)
    return found
