"""How probable a model finds texts, and what it would say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, QuestionRecord
from rome_lens.models import Model, check_finite, logits, run_tree
from rome_lens.models.tokens import batches, tokenize, tokenize_continuation


@torch.no_grad()
def mean_log_probabilities(
    model: Model, continuations: Sequence[Continuation], *, tokens_per_batch: int = 4096
) -> Float[Tensor, " continuation"]:
    """The mean log-probability of each continuation's tokens, in nats a token, by teacher forcing, on the CPU.

    That is what the authors' evaluation compares (experiments/py/eval_utils_counterfact.py).

    Args:
        model: is run, not changed.
        continuations: prompts and what follows.
        tokens_per_batch: bounds memory; the result does not depend on it.

    Raises:
        ValueError: a continuation has no tokens, or is longer than the model's context with its prompt.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    result = torch.empty(len(continuations))
    for numbers, lengths, scores, wanted in teacher_forced(model, continuations, tokens_per_batch=tokens_per_batch):
        log_probs = scores.log_softmax(-1).gather(-1, wanted[:, None])[:, 0].cpu()
        for i, each in zip(numbers, log_probs.split(lengths), strict=True):
            result[i] = each.mean()
    return result


def teacher_forced(
    model: Model, continuations: Sequence[Continuation], *, tokens_per_batch: int = 4096
) -> Iterator[tuple[list[int], list[int], Float[Tensor, "token d_vocab"], Int[Tensor, " token"]]]:
    """What the model predicts for each token of continuations when it has read the prompt and the tokens before it.

    What continuations begin with alike is computed once, and only needed positions are unembedded. Gives, batch by
    batch: the numbers of the continuations in it, how many tokens each has, and, for all their tokens one after the
    other, the logits that predict them and the tokens themselves. For callers that ask for no gradient.

    Raises:
        ValueError: a continuation has no tokens, or is longer than the model's context with its prompt.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    encoded = [tokenize_continuation(model, c.prompt, c.text, space=c.space) for c in continuations]
    rows = [(text.ids, start) for text, start in encoded]
    yield from teacher_forced_rows(model, rows, tokens_per_batch=tokens_per_batch)


def teacher_forced_rows(
    model: Model, rows: Sequence[tuple[tuple[int, ...], int]], *, tokens_per_batch: int = 4096
) -> Iterator[tuple[list[int], list[int], Float[Tensor, "token d_vocab"], Int[Tensor, " token"]]]:
    """`teacher_forced` for texts that are tokens already, each with the position where what is asked for starts."""
    inputs = [ids[:-1] for ids, _ in rows]
    for batch in batches(sorted(set(inputs), key=len), tokens_per_batch):
        states = dict(zip(batch, run_tree(model, batch), strict=True))
        here = [i for i, ids in enumerate(inputs) if ids in states]
        asked = [rows[i][0][rows[i][1] :] for i in here]
        needed = torch.cat([states[inputs[i]][rows[i][1] - 1 :] for i in here])
        wanted = torch.tensor([token for tokens in asked for token in tokens], device=needed.device)
        lengths = [len(tokens) for tokens in asked]
        scores = logits(model, needed)
        check_finite(
            model, scores, [rows[i][0] for i, length in zip(here, lengths, strict=True) for _ in range(length)]
        )
        yield here, lengths, scores, wanted


@torch.no_grad()
def next_token_log_probabilities(
    model: Model, prompts: Sequence[str], *, tokens_per_batch: int = 4096
) -> Float[Tensor, "prompt d_vocab"]:
    """The log-probabilities of the token after each prompt, in nats, on the CPU.

    Raises:
        ValueError: a prompt is longer than the model's context.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    inputs = [tokenize(model, prompt).ids for prompt in prompts]
    found: dict[tuple[int, ...], Tensor] = {}
    for batch in batches(sorted(set(inputs), key=len), tokens_per_batch):
        last = torch.stack([states[-1] for states in run_tree(model, batch)])
        scores = logits(model, last)
        check_finite(model, scores, batch)
        found |= dict(zip(batch, scores.log_softmax(-1).cpu(), strict=True))
    return torch.stack([found[ids] for ids in inputs]) if inputs else torch.empty(0, model.cfg.d_vocab)


def divergence(before: Float[Tensor, "*n d_vocab"], after: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n"]:
    """KL(before || after) of log-probabilities, in nats."""
    return (before.exp() * (before - after)).sum(-1)


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
