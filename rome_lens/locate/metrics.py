"""What is read off the logits of a run: the quantity that restoring a state brings back.

Zhang and Nanda 2024 (arXiv 2309.16042, section 4) show that conclusions can change with this choice.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

MetricName = Literal["prob", "logprob", "logit_diff", "kl"]


@dataclass(frozen=True, eq=False)
class Metric:
    """One of four numbers for each row of logits.

    Attributes:
        name: "prob", the answer's probability, its tokens' multiplied; "logprob", its logarithm in nats; "logit_diff",
            the logit of the answer's first token minus that of a wrong answer's; "kl", the divergence in nats of the
            next token's distribution from that after the clean prompt (0 when all is restored).
        answer: the answer's tokens.
        wrong: first token of the wrong answer, for "logit_diff".
        clean: log-probabilities of the next token after the clean prompt, for "kl".
    """

    name: MetricName
    answer: Int[Tensor, " answer"]
    wrong: int | None = None
    clean: Float[Tensor, " vocab"] | None = None

    def __call__(self, logits: Float[Tensor, "row answer vocab"]) -> Float[Tensor, " row"]:
        """The number for each row; `logits` are those of the positions that predict the answer's tokens."""
        if self.name == "logit_diff":
            return logits[:, 0, self.answer[0]] - logits[:, 0, self.wrong]
        log_probs = logits.log_softmax(-1)
        if self.name == "kl":
            assert self.clean is not None
            return (self.clean.exp() * (self.clean - log_probs[:, 0])).sum(-1)
        each = log_probs.gather(-1, self.answer.expand(len(logits), -1)[..., None])[..., 0]
        return each.sum(-1).exp() if self.name == "prob" else each.sum(-1)


def make_metric(
    name: MetricName, answer: Int[Tensor, " answer"], wrong: int | None, clean: Float[Tensor, "answer vocab"]
) -> Metric:
    """The metric of one fact; `clean` are the clean run's logits where the answer is predicted.

    Raises:
        ValueError: "logit_diff" without a wrong answer, or with one that begins as the answer does.
    """
    if name == "logit_diff":
        if wrong is None:
            raise ValueError("The metric 'logit_diff' compares with a wrong answer: give wrong_answer='Rome', say.")
        if wrong == int(answer[0]):
            raise ValueError("The wrong answer begins with the same token as the answer. Give another.")
    return Metric(name, answer, wrong, torch.log_softmax(clean[0], -1) if name == "kl" else None)
