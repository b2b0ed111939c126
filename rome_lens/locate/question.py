"""A fact as the tokens that a trace runs on."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.facts import Fact, subject_range
from rome_lens.models import logits, run
from rome_lens.tokens import tokenize_continuation


@dataclass(frozen=True, eq=False)
class Question:
    """A fact as tokens.

    Attributes:
        tokens: the prompt's, followed by the answer's but the last (teacher forcing).
        answer: the answer's.
        subject: positions of the subject's.
        length: how many are the prompt's.
        predicted: the model's own top token after the prompt.
    """

    tokens: Int[Tensor, " pos"]
    answer: Int[Tensor, " answer"]
    subject: range
    length: int
    predicted: int


@torch.no_grad()
def tokenize_question(model: HookedTransformer, fact: Fact) -> Question:
    """Tokenises the fact; its answer is the model's own top token if it names none.

    Raises:
        ValueError: as `subject_range` and `tokenize_continuation`.
    """
    text, subject = subject_range(model, fact)
    prompt = torch.tensor(text.ids, device=model.cfg.device)
    top = int(logits(model, run(model, prompt[None])[:, -1]).argmax())
    if fact.answer is None:
        return Question(prompt, prompt.new_tensor([top]), subject, len(prompt), top)
    whole, start = tokenize_continuation(model, text.text, fact.answer)
    tokens = prompt.new_tensor(whole.ids)
    return Question(tokens[:-1], tokens[start:], subject, start, top)


def warn_if_not_predicted(model: HookedTransformer, fact: Fact, question: Question, *, stacklevel: int) -> None:
    """Says so if the answer that the fact names is not what the model predicts."""
    if int(question.answer[0]) != question.predicted:
        warnings.warn(
            f"The model does not predict {fact.answer!r} after {fact.text!r} but "
            f"{model.tokenizer.decode([question.predicted]).strip()!r}. The trace follows the answer that was named; "
            "leave the answer out to trace the model's own.",
            stacklevel=stacklevel + 1,
        )
