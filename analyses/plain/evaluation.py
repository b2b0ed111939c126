"""The scores of a CounterFact record the plain ways, by whole forward passes with the logits of every position.

The tests compare `score_record` with them, and the benchmark its speed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import rome_lens as rl
from rome_lens.models import Model, pad

LogProbabilities = Callable[[Model, list[tuple[str, str]]], list[float]]


def one_pass_each(model: Model, asked: list[tuple[str, str]]) -> list[float]:
    """The mean log-probability of each target's tokens after its prompt, one forward pass for each."""
    return [log_probability for each in asked for log_probability in one_batch(model, [each])]


@torch.no_grad()
def one_batch(model: Model, asked: list[tuple[str, str]]) -> list[float]:
    """The same by one padded batch, every prompt with every target, as the authors' code has it."""
    rows = [model.to_tokens(f"{prompt} {target}")[0].tolist() for prompt, target in asked]
    starts = [model.to_tokens(prompt).shape[1] for prompt, _ in asked]
    log_probs = model(pad(rows)[0]).log_softmax(-1)
    return [
        _mean(log_probs[i, start - 1 :], row[start:]) for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def _mean(log_probs: Tensor, wanted: list[int]) -> float:
    return sum(log_probs[i, token].item() for i, token in enumerate(wanted)) / len(wanted)


def plain_scores(model: Model, record: rl.EditRecord, log_probabilities: LogProbabilities) -> dict[str, float]:
    """ES, EM, PS, PM, NS and NM (paper section 3.4)."""
    groups = {"E": [record.request.text], "P": record.paraphrase_prompts, "N": record.neighborhood_prompts}
    asked = [
        (p, t) for prompts in groups.values() for p in prompts for t in (record.request.target, record.target_true)
    ]
    probabilities = torch.tensor(log_probabilities(model, asked), dtype=torch.float64).exp().view(-1, 2)
    parts = (probabilities[:, 0] - probabilities[:, 1]).split([len(prompts) for prompts in groups.values()])
    scores: dict[str, float] = {}
    for name, sign, gain in zip(groups, (1, 1, -1), parts, strict=True):
        scores |= {f"{name}S": (sign * gain > 0).double().mean().item(), f"{name}M": sign * gain.mean().item()}
    return scores
