"""What a model predicts as the next token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.models.kinds import Model
from rome_lens.models.labels import token_text
from rome_lens.models.running.forward import check_finite, logits
from rome_lens.models.running.prefix_tree import run_tree
from rome_lens.models.tokens import batches, tokenize


@torch.no_grad()
def next_token_log_probabilities(
    model: Model, prompts: Sequence[str], *, tokens_per_batch: int = 4096
) -> Float[Tensor, "prompt d_vocab"]:
    """The log-probabilities of the token after each prompt, in nats, on the CPU."""
    inputs = [tokenize(model, prompt).ids for prompt in prompts]
    found: dict[tuple[int, ...], Tensor] = {}
    for batch in batches(sorted(set(inputs), key=len), tokens_per_batch):
        last = torch.stack([states[-1] for states in run_tree(model, batch)])
        scores = logits(model, last)
        check_finite(model, scores, batch)
        found |= dict(zip(batch, scores.log_softmax(-1).cpu(), strict=True))
    return torch.stack([found[ids] for ids in inputs]) if inputs else torch.empty(0, model.cfg.d_vocab)


def most_probable(model: Model, probabilities: Float[Tensor, " d_vocab"], top: int) -> list[tuple[str, float]]:
    """The `top` most probable tokens, the first one first: (text, probability)."""
    best = probabilities.topk(top)
    return [(token_text(model, i), p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def divergence(before: Float[Tensor, "*n d_vocab"], after: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n"]:
    """KL(before || after) of log-probabilities, in nats. Differentiable."""
    return (before.exp() * (before - after)).sum(-1)
