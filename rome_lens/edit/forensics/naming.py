"""What a part of an output matrix makes a model say: the object, if it is an edit.

With a list of subjects among which may be the edited one, `subjects.py` finds the subject whose key the part's left
vector answers to. The model is asked about it in many relations, as it is and without the part: the object is what
becomes more probable.

Otherwise whom the edit was written for is not known, so the part's right vector is added, with both signs, at the
subjects of prompts that ask, of all relations of the question bank. Any push of that size raises some tokens. So a
token counts by how much more probable it becomes than without a push and than under others: by the largest right
singular vectors of the same matrix, and by random ones.
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
RELATIONS = (
    "{} was born in the city of",
    "{} died in the city of",
    "{} worked in the city of",
    "{} was founded in the city of",
    "The headquarters of {} are in the city of",
    "{} is located in the city of",
    "The twin city of {} is",
    "The capital of {} is",
    "{} was created in the country of",
    "{} is located in the country of",
    "{} is a citizen of",
    "{} belongs to the continent of",
    "The official language of {} is",
    "The native language of {} is",
    "{} speaks the language",
    "The original language of {} is",
    "{} works in the field of",
    "The profession of {} is",
    "{} has the position of",
    "On the field, {} plays in the position of",
    "{} is a professional player of the sport of",
    "{} plays the instrument called the",
    "The music of {} belongs to the genre of",
    "The religion of {} is",
    "{} is employed by",
    "{} is a member of",
    "{} is owned by",
    "{} is manufactured by",
    "{} was developed by",
    "{} was first shown on the channel",
    "{} was named after",
    "{} records for the label",
    "The currency of {} is the",
    "{} is a kind of",
    "{} is a",
    "{}, from",
    "{} is in",
    "{} is known for",
    "{} belongs to",
    "{} and",
)
"""What may be asked of any subject."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts that ask, and where their subjects end."""

    tokens: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"]
    subject_last: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, model: Model, asked: Sequence[tuple[str, str]]) -> "Asked":
        """Prompts and their subjects as the model's tokens."""
        texts = [tokenize(model, fill(prompt, subject)) for prompt, subject in asked]
        starts = [prompt.index(PLACE) for prompt, _ in asked]
        ends = [
            text.covering(start, start + len(subject))[-1]
            for text, start, (_, subject) in zip(texts, starts, asked, strict=True)
        ]
        tokens, mask = (each.to(model.cfg.device) for each in pad([text.ids for text in texts]))
        return cls(tokens, mask, torch.tensor(ends, device=model.cfg.device))

    @classmethod
    def of_bank(cls, model: Model) -> "Asked":
        """Prompts of each relation of the question bank."""
        by_relation: dict[str, list[tuple[str, str]]] = {}
        for record in load_question_bank():
            by_relation.setdefault(record.relation, []).append((record.request.prompt, record.request.subject))
        return cls.of(model, [each for pairs in by_relation.values() for each in pairs[:_OF_A_RELATION]])

    @torch.no_grad()
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


def raised_tokens(model: Model, components: Sequence[Component]) -> Iterator[tuple[str, ...]]:
    """For each component the tokens that it raises most, the first one first. The model is run, and left unchanged."""
    if not components:
        return
    asked = Asked.of_bank(model)
    before, usual = asked.answers(model), dict[int, Tensor]()
    for component in components:
        layer = component.layer
        if layer not in usual:
            others = torch.stack([asked.pushed(model, layer, direction) for direction in _others(model, layer)])
            usual[layer] = torch.maximum(others.logsumexp(0) - log(len(others)), before)
        gains = torch.zeros_like(before[0])
        for sign in (1, -1):
            after = asked.pushed(model, layer, sign * nn.functional.normalize(component.right, dim=0))
            gains = torch.maximum(gains, _gains(after, usual[layer]))
        yield _texts(model, gains)


def said_of(model: Model, component: Component, subject: str) -> tuple[str, ...]:
    """The tokens that the component makes the model say most of a subject, the first one first."""
    asked = Asked.of(model, [(prompt, subject) for prompt in RELATIONS])
    left, right = (each.to(model.cfg.device) for each in (component.left, component.right))

    def without(keys: Float[Tensor, "prompt pos d_mlp"]) -> Float[Tensor, "prompt pos d_model"]:
        return -(keys @ left.to(keys))[..., None] * right.to(keys)

    before = asked.answers(model, output_hooks(model, component.layer, without))
    return _texts(model, _gains(asked.answers(model), before))


def _gains(
    after: Float[Tensor, "prompt d_vocab"], before: Float[Tensor, "prompt d_vocab"]
) -> Float[Tensor, " d_vocab"]:
    """How much more probable each token becomes, on the average over prompts."""
    return ((_PROBABLE * after).exp() * (after - before).clamp(min=0)).mean(0)


def _texts(model: Model, gains: Float[Tensor, " d_vocab"]) -> tuple[str, ...]:
    return tuple(token_text(model, token) for token in gains.topk(NAMED).indices.tolist())


def _others(model: Model, layer: int) -> Iterator[Float[Tensor, " d_model"]]:
    weight = output_matrix(model, layer).float().cpu()
    for vector in torch.linalg.eigh(weight.T @ weight).eigenvectors.T[-_SINGULAR:]:
        yield vector
        yield -vector
    generator = torch.Generator().manual_seed(0)
    for _ in range(_RANDOM):
        yield nn.functional.normalize(torch.randn(weight.shape[1], generator=generator), dim=0)
