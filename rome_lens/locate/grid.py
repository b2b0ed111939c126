"""The restoration grid: what the model says when one state of a corrupted run is put back to its clean value.

This is the one place of the algorithm. Restoring a state at (position, layer) changes nothing at earlier positions and
in earlier layers, so nothing of that is computed again: rows join the batch at the first layer that their restoration
can change, hold only the positions from theirs on, and read the keys and values of earlier positions from the corrupted
run. Only the positions that predict the answer are unembedded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.locate.metrics import Metric
from rome_lens.models import (
    EMBEDDING,
    HookList,
    Kind,
    PastState,
    input_name,
    logits,
    run,
    run_blocks,
    run_with_past,
    state_name,
)

Sublayer = str  # "mlp" or "attn"


@dataclass(frozen=True, eq=False)
class CleanRun:
    """What one run without corruption leaves: the states to restore, and the logits where the answer is predicted."""

    states: Float[Tensor, "layer pos *state"]
    logits: Float[Tensor, "answer vocab"]


@dataclass(frozen=True, eq=False)
class CorruptedRun:
    """What one run with corruption leaves.

    Attributes:
        residual: the states before each block and after the last.
        past: keys and values of each layer.
        logits: where the answer is predicted.
        sublayers: outputs of the severed sublayers, by their kind.
    """

    residual: Float[Tensor, "layer_and_end sample pos d_model"]
    past: list[PastState]
    logits: Float[Tensor, "sample answer vocab"]
    sublayers: dict[Sublayer, Float[Tensor, "layer sample pos d_model"]]


def restored_layers(kind: Kind, layer: int, window: int, n_layers: int) -> range:
    """The layers whose states are restored at once: [l - w // 2, l + w // 2) for MLPs and attention, as the authors'
    code has it (window 10 covers l - 5 to l + 4; an odd window one layer more above), clipped to the model; residual
    states and heads are restored at one layer.
    """
    if kind in ("resid", "head"):
        return range(layer, layer + 1)
    return range(max(0, layer - window // 2), min(n_layers, layer - window // 2 + window))


def answer_logits(
    model: HookedTransformer, residual: Float[Tensor, "row pos d_model"], length: int
) -> Float[Tensor, "row answer vocab"]:
    """The logits of the last `length` positions, which predict the answer's tokens."""
    states = rearrange(residual[:, -length:], "row answer d -> (row answer) d")
    return rearrange(logits(model, states), "(row answer) vocab -> row answer vocab", answer=length)


def clean_run(model: HookedTransformer, tokens: Int[Tensor, " pos"], kind: Kind, answer_length: int) -> CleanRun:
    """Runs the prompt as it is, and keeps the states of `kind`."""
    states: list[Tensor] = []
    hooks = [(state_name(kind, layer), _keep(states)) for layer in range(model.cfg.n_layers)]
    residual = run(model, tokens[None], hooks=hooks)
    return CleanRun(torch.cat(states), answer_logits(model, residual, answer_length)[0])


def put_in_place(subject: range, embedded: Float[Tensor, "sample token d_model"]) -> Callable[..., Tensor]:
    """A hook on the embeddings that puts the corrupted ones where the subject's tokens are, in the last rows."""

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[-len(embedded) :, subject.start : subject.stop] = embedded
        return value

    return corrupt


def corrupted_run(
    model: HookedTransformer,
    tokens: Int[Tensor, " pos"],
    subject: range,
    embedded: Float[Tensor, "sample token d_model"],
    answer_length: int,
    severed: Sequence[Sublayer] = (),
) -> CorruptedRun:
    """Runs the prompt once for each sample, with `embedded` in place of the subject's embeddings."""
    n_layers, samples = model.cfg.n_layers, len(embedded)
    states: list[Tensor] = []
    outputs: dict[Sublayer, list[Tensor]] = {kind: [] for kind in severed}
    hooks: HookList = [
        (EMBEDDING, put_in_place(subject, embedded)),
        *((input_name(layer), _keep(states)) for layer in range(n_layers)),
        *((state_name(kind, i), _keep(outputs[kind])) for kind in severed for i in range(n_layers)),  # type: ignore[arg-type]
    ]
    residual, past = run_with_past(model, tokens.expand(samples, -1), hooks=hooks)
    return CorruptedRun(
        torch.stack([*states, residual]),
        past,
        answer_logits(model, residual, answer_length),
        {kind: torch.stack(values) for kind, values in outputs.items()},
    )


def _keep(states: list[Tensor]) -> Callable[..., None]:
    def keep(value: Tensor, hook: object) -> None:
        states.append(value)

    return keep


def restored_values(
    model: HookedTransformer,
    clean: CleanRun,
    corrupted: CorruptedRun,
    metrics: Sequence[Metric],
    *,
    kind: Kind,
    window: int,
    position: int,
    layers: Sequence[int],
    head: int | None = None,
    severed_positions: Sequence[int] | None = None,
) -> Float[Tensor, "metric layer"]:
    """The metrics, mean over the samples, with the states at `position` restored around each of `layers` (ascending).

    Outputs of the sublayers in `corrupted.sublayers` are held at their corrupted values at `severed_positions` (the
    restored position itself if None). The batch grows to len(layers) * samples rows of the positions from `position`
    on: choose `layers` to bound memory.
    """
    n_layers, samples = model.cfg.n_layers, corrupted.residual.shape[1]
    windows = [restored_layers(kind, layer, window, n_layers) for layer in layers]
    # A restored residual state is there when the next block starts; a window's first sublayer has to be run.
    entries = [w.stop if kind == "resid" else w.start for w in windows]
    past = {layer: state.upto(position) for layer, state in enumerate(corrupted.past)}
    length = corrupted.residual.shape[2]
    held = [p for p in ([position] if severed_positions is None else severed_positions) if position <= p < length]
    rows = corrupted.residual[0, :, position:][:0]
    covered = slice(0)

    def restore(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        at = (covered, 0) if head is None else (covered, 0, head)
        value[at] = clean.states[current, position] if head is None else clean.states[current, position, head]
        return value

    def sever(kind: Sublayer) -> Callable[..., Tensor]:
        def hold(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            kept = corrupted.sublayers[kind][current][:, held]
            value[:, [p - position for p in held]] = kept.repeat(len(value) // samples, 1, 1)
            return value

        return hold

    names = [state_name(kind, layer) for layer in range(n_layers)] if kind != "resid" else []
    hooks = [(name, restore) for name in names]
    for severed in corrupted.sublayers:
        hooks += [(state_name(severed, layer), sever(severed)) for layer in range(n_layers)]  # type: ignore[arg-type]
    with model.hooks(fwd_hooks=hooks):
        for current in range(min(entries), n_layers + 1):
            if new := entries.count(current):
                joining = repeat(corrupted.residual[current, :, position:], "s p d -> (new s) p d", new=new)
                if kind == "resid":
                    joining = joining.clone()
                    joining[:, 0] = clean.states[current - 1, position]
                rows = torch.cat([rows, joining])
            if current < n_layers:
                inside = [i for i, w in enumerate(windows) if current in w]
                covered = slice(inside[0] * samples, (inside[-1] + 1) * samples) if inside else slice(0)
                rows = run_blocks(model, rows, current, current + 1, past=past)
    found = answer_logits(model, rows, len(metrics[0].answer))
    return torch.stack([metric(found).unflatten(0, (len(layers), samples)).mean(1) for metric in metrics])
