"""The two runs that tracing compares: the prompt as it is, and with its subject corrupted (paper section 2.1)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.models import (
    EMBEDDING,
    HookList,
    Kind,
    Model,
    PastState,
    check_exposed,
    input_name,
    logits,
    run,
    run_with_past,
    state_name,
)

Sublayer = Literal["mlp", "attn"]


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The run without corruption: the states to restore, and the logits that predict the answer."""

    states: dict[Kind, Float[Tensor, "layer pos *state"]]
    logits: Float[Tensor, "answer vocab"]


@dataclass(frozen=True, eq=False)
class CorruptedRun:
    """The run with corruption.

    Attributes:
        residual: residual states before each block and after the last.
        past: keys and values of each layer.
        logits: those that predict the answer.
        sublayers: outputs of the severed sublayers, by their kind.
    """

    residual: Float[Tensor, "layer_and_end sample pos d_model"]
    past: list[PastState]
    logits: Float[Tensor, "sample answer vocab"]
    sublayers: dict[Sublayer, Float[Tensor, "layer sample pos d_model"]]


def answer_logits(
    model: Model, residual: Float[Tensor, "row pos d_model"], length: int
) -> Float[Tensor, "row answer vocab"]:
    """The logits of the last `length` positions, which predict the answer's tokens."""
    states = rearrange(residual[:, -length:], "row answer d -> (row answer) d")
    return rearrange(logits(model, states), "(row answer) vocab -> row answer vocab", answer=length)


def clean_run(model: Model, tokens: Int[Tensor, " pos"], answer_length: int, kinds: Collection[Kind]) -> CleanRun:
    """Runs the prompt as it is, keeping the states of `kinds`. Raises ValueError if the model does not expose them."""
    states: dict[Kind, list[Tensor]] = {kind: [] for kind in kinds}
    hooks = [
        (state_name(kind, i), keep(states[kind], tokens.device)) for kind in states for i in range(model.cfg.n_layers)
    ]
    stream: list[Tensor] = []  # GPT-1 does not expose the residual stream, so it cannot be run block by block
    residual = run(model, tokens[None], hooks=[*hooks, (state_name("resid", 0), keep(stream))])
    check_exposed(model, [] if stream else [state_name("resid", 0)])
    check_exposed(model, [state_name(kind, 0) for kind, values in states.items() if len(values) < model.cfg.n_layers])
    kept = {kind: torch.cat(values) for kind, values in states.items()}
    return CleanRun(kept, answer_logits(model, residual, answer_length)[0])


def put_in_place(subject: range, embedded: Float[Tensor, "sample token d_model"]) -> Callable[..., Tensor]:
    """A hook that replaces the embeddings of the subject's tokens, in the last rows of the batch."""

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[-len(embedded) :, subject.start : subject.stop] = embedded
        return value

    return corrupt


def corrupted_run(
    model: Model,
    tokens: Int[Tensor, " pos"],
    subject: range,
    embedded: Float[Tensor, "sample token d_model"],
    answer_length: int,
    severed: Sequence[Sublayer] = (),
) -> CorruptedRun:
    """Runs the prompt once for each sample, with `embedded` in place of the embeddings of the subject's tokens."""
    n_layers, samples = model.cfg.n_layers, len(embedded)
    states: list[Tensor] = []
    outputs: dict[Sublayer, list[Tensor]] = {kind: [] for kind in severed}
    hooks: HookList = [
        (EMBEDDING, put_in_place(subject, embedded)),
        *((input_name(layer), keep(states, tokens.device)) for layer in range(n_layers)),
        *((state_name(kind, i), keep(outputs[kind], tokens.device)) for kind in severed for i in range(n_layers)),
    ]
    residual, past = run_with_past(model, tokens.expand(samples, -1), hooks=hooks)
    return CorruptedRun(
        torch.stack([*states, residual]),
        past,
        answer_logits(model, residual, answer_length),
        {kind: torch.stack(values) for kind, values in outputs.items()},
    )


def keep(states: list[Tensor], device: torch.device | None = None) -> Callable[..., None]:
    """A hook that appends each tensor it sees to `states`, moved to `device` (None: where it is)."""

    def append(value: object, hook: object) -> None:
        if isinstance(value, Tensor):
            states.append(value.to(device))

    return append
