"""A fact as the tokens that a trace runs on, and the clean run on them."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.data.records import Fact, subject_range
from rome_lens.errors import warn
from rome_lens.locate.runs import CleanRun, clean_run
from rome_lens.models import Kind, Model, check_finite
from rome_lens.models.labels import token_text, token_texts
from rome_lens.models.tokens import tokenize_continuation


@dataclass(frozen=True, eq=False)
class TracedPrompt:
    """A fact as tokens, and the clean run.

    Attributes:
        tokens: the prompt's tokens, followed by all but the last of the answer's (teacher forcing).
        answer: the answer's tokens.
        subject: positions of the subject's tokens.
        length: number of tokens of the prompt.
        predicted: the model's own top token after the prompt.
        clean: the run on `tokens`; `clean.logits`, [answer, vocab], predict the answer's tokens.
        wrong: first token of the wrong answer, if the config names one.
    """

    tokens: Int[Tensor, " pos"]
    answer: Int[Tensor, " answer"]
    subject: range
    length: int
    predicted: int
    clean: CleanRun
    wrong: int | None = None


@torch.no_grad()
def prepare_prompt(model: Model, fact: Fact, *, kinds: Collection[Kind] = ()) -> TracedPrompt:
    """Tokenises the fact and runs it once, keeping the states of `kinds`.

    The answer of a fact without one is the model's own top token.
    """
    text, subject = subject_range(model, fact)
    tokens, answer, start = torch.tensor(text.ids, device=model.cfg.device), None, len(text.ids)
    if fact.answer is not None:
        whole, start = tokenize_continuation(model, text.text, fact.answer, space=fact.space)
        tokens, answer = tokens.new_tensor(whole.ids[:-1]), tokens.new_tensor(whole.ids[start:])
    clean = clean_run(model, tokens, len(tokens) - start + 1, kinds)
    check_finite(model, clean.logits, [tokens.tolist()] * len(clean.logits))
    top = clean.logits[0].argmax()
    return TracedPrompt(tokens, top[None] if answer is None else answer, subject, start, int(top), clean)


def warn_if_not_predicted(model: Model, fact: Fact, prompt: TracedPrompt) -> None:
    """Warns if the model does not predict the fact's answer."""
    if int(prompt.answer[0]) != prompt.predicted:
        warn(
            f"The model does not predict {''.join(token_texts(model, prompt.answer.tolist()))!r} after {fact.text!r} "
            f"but {token_text(model, prompt.predicted)!r}. The trace follows the answer that was named; leave the "
            "answer out to trace the model's own, or give the fact space=True or False if a space is the difference.",
            UserWarning,
        )
