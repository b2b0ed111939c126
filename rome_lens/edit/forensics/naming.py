"""What a part of an output matrix makes a model say: the object, if it is an edit.

Whom the edit was written for is not known, so the part's right vector is added, with both signs, at the subjects of
prompts that ask, of all relations of the question bank. Any push of that size raises some tokens. So a token counts by
how much more probable it becomes than without a push and than under others: by the largest right singular vectors of
the same matrix, and by random ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rome_lens.data.readers.question_bank import load_question_bank
from rome_lens.data.records import PLACE, fill
from rome_lens.edit.artifact.hooks import output_hooks
from rome_lens.edit.forensics.components import Component
from rome_lens.models import HookList, Model, logits, mlp_output, output_matrix, pad, run
from rome_lens.models.labels import token_text
from rome_lens.models.tokens import tokenize

NAMED = 5
_PUSH = 4.0  # norms of the MLP's own output, which is how far the search for v* may go
_OF_A_RELATION = 2  # prompts
_SINGULAR, _RANDOM = 3, 4  # vectors to compare with; the singular ones with both signs
_PROBABLE = 0.2  # exponent: how much it counts that a token becomes probable, and not only more so


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts that ask, of each relation of the question bank, and where their subjects end."""

    tokens: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"]
    subject_last: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, model: Model) -> "Asked":
        """The prompts as the model's tokens."""
        by_relation: dict[str, list[tuple[str, str]]] = {}
        for record in load_question_bank():
            by_relation.setdefault(record.relation, []).append((record.request.prompt, record.request.subject))
        asked = [each for pairs in by_relation.values() for each in pairs[:_OF_A_RELATION]]
        texts = [tokenize(model, fill(prompt, subject)) for prompt, subject in asked]
        starts = [prompt.index(PLACE) for prompt, _ in asked]
        ends = [
            text.covering(start, start + len(subject))[-1]
            for text, start, (_, subject) in zip(texts, starts, asked, strict=True)
        ]
        tokens, mask = (each.to(model.cfg.device) for each in pad([text.ids for text in texts]))
        return cls(tokens, mask, torch.tensor(ends, device=model.cfg.device))

    def answers(self, model: Model, hooks: HookList = ()) -> Float[Tensor, "prompt d_vocab"]:
        """Log-probabilities of the next token, in nats, on the CPU."""
        states = run(model, self.tokens, mask=self.mask, hooks=hooks)
        rows = torch.arange(len(states), device=states.device)
        return logits(model, states[rows, self.mask.sum(1) - 1]).float().log_softmax(-1).cpu()

    def pushed(self, model: Model, layer: int, direction: Float[Tensor, " d_model"]) -> Float[Tensor, "prompt d_vocab"]:
        """The same with a vector of this direction added to what the MLP puts out at the subjects' last tokens."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)

        def push(keys: Float[Tensor, "prompt pos d_mlp"]) -> Float[Tensor, "prompt pos d_model"]:
            output = mlp_output(model, layer, keys)
            added = torch.zeros_like(output)
            size = _PUSH * output[rows, self.subject_last].norm(dim=-1, keepdim=True)
            added[rows, self.subject_last] = size * direction.to(output)
            return added

        return self.answers(model, output_hooks(model, layer, push))


@torch.no_grad()
def raised_tokens(model: Model, components: Sequence[Component]) -> Iterator[tuple[str, ...]]:
    """For each component the tokens that it raises most, the first one first. The model is run, and left unchanged."""
    if not components:
        return
    asked = Asked.of(model)
    before, usual = asked.answers(model), dict[int, Tensor]()
    for component in components:
        layer = component.layer
        if layer not in usual:
            others = torch.stack([asked.pushed(model, layer, direction) for direction in _others(model, layer)])
            usual[layer] = torch.maximum(others.logsumexp(0) - log(len(others)), before)
        gains = torch.zeros_like(before[0])
        for sign in (1, -1):
            after = asked.pushed(model, layer, sign * nn.functional.normalize(component.right, dim=0))
            gains = torch.maximum(gains, ((_PROBABLE * after).exp() * (after - usual[layer]).clamp(min=0)).mean(0))
        yield tuple(token_text(model, token) for token in gains.topk(NAMED).indices.tolist())


def _others(model: Model, layer: int) -> Iterator[Float[Tensor, " d_model"]]:
    weight = output_matrix(model, layer).float().cpu()
    for vector in torch.linalg.eigh(weight.T @ weight).eigenvectors.T[-_SINGULAR:]:
        yield vector
        yield -vector
    generator = torch.Generator().manual_seed(0)
    for _ in range(_RANDOM):
        yield nn.functional.normalize(torch.randn(weight.shape[1], generator=generator), dim=0)
