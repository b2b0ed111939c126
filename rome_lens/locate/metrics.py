"""What is read from the logits of a run: the quantity that restoring a state brings back.

Zhang and Nanda 2024 (arXiv 2309.16042, section 4) show that conclusions can change with this choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_tensor
from rome_lens.data.records import Fact
from rome_lens.locate.own import name_of
from rome_lens.locate.prompt import TracedPrompt
from rome_lens.models import Model
from rome_lens.models.tokens import tokenize_continuation

MetricName = Literal["prob", "logprob", "logit_diff", "kl"]


@runtime_checkable
class Metric(Protocol):
    """A metric of your own: a function, or an object with `__call__`. Its name becomes a column of the trace's frame.

    It is called on the clean run's logits, on the corrupted run's, and on those of many restored cells at once, so the
    value of a row may depend on that row only. method="attribution" takes its gradient.
    """

    def __call__(self, logits: Float[Tensor, "row answer vocab"], prompt: TracedPrompt, /) -> Float[Tensor, " row"]:
        """The metric of each row.

        Args:
            logits: At the positions that predict the answer's tokens; `logits[:, 0]` predicts the first.
            prompt: The fact as tokens (`prompt.answer`: ids of the answer), and the clean run (`prompt.clean.logits`).
        """


def prob(logits: Float[Tensor, "row answer vocab"], prompt: TracedPrompt) -> Float[Tensor, " row"]:
    """The answer's probability: the product over its tokens."""
    return logprob(logits, prompt).exp()


def logprob(logits: Float[Tensor, "row answer vocab"], prompt: TracedPrompt) -> Float[Tensor, " row"]:
    """The logarithm of the answer's probability, in nats."""
    index = prompt.answer.expand(len(logits), -1)[..., None]
    return logits.log_softmax(-1).gather(-1, index)[..., 0].sum(-1)


def logit_diff(logits: Float[Tensor, "row answer vocab"], prompt: TracedPrompt) -> Float[Tensor, " row"]:
    """The logit of the answer's first token minus that of the wrong answer's."""
    return logits[:, 0, prompt.answer[0]] - logits[:, 0, prompt.wrong]


def kl(logits: Float[Tensor, "row answer vocab"], prompt: TracedPrompt) -> Float[Tensor, " row"]:
    """The KL divergence, in nats, of the next token's distribution from that after the clean prompt."""
    clean = prompt.clean.logits[0].log_softmax(-1)
    return (clean.exp() * (clean - logits[:, 0].log_softmax(-1))).sum(-1)


METRICS: dict[str, Metric] = {"prob": prob, "logprob": logprob, "logit_diff": logit_diff, "kl": kl}


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric for one prompt."""

    metric: MetricName | Metric
    prompt: TracedPrompt

    def __call__(self, logits: Float[Tensor, "row answer vocab"]) -> Float[Tensor, " row"]:
        """The metric of each row. Raises ValueError if a metric of the user's own returns something else."""
        if isinstance(self.metric, str):
            return METRICS[self.metric](logits, self.prompt)
        return check_tensor(f"The metric {name_of(self.metric)}", self.metric(logits, self.prompt), len(logits))


def make_measures(
    model: Model, fact: Fact, prompt: TracedPrompt, metrics: Sequence[MetricName | Metric], wrong_answer: str | None
) -> list[Measure]:
    """The metrics for one fact."""
    if wrong_answer is not None:
        whole, start = tokenize_continuation(model, fact.text, wrong_answer, space=fact.space)
        prompt = replace(prompt, wrong=whole.ids[start])
    if "logit_diff" in metrics:
        if prompt.wrong is None:
            raise ValueError("The metric 'logit_diff' compares with a wrong answer: give wrong_answer='Rome', say.")
        if prompt.wrong == int(prompt.answer[0]):
            raise ValueError("The wrong answer begins with the same token as the answer. Give another.")
    return [Measure(metric, prompt) for metric in metrics]
