"""The restoration grid: what the model says when one state of a corrupted run is put back to its clean value.

This is the one place of the algorithm. Restoring a state at (position, layer) changes nothing at earlier positions and
in earlier layers, so nothing of that is computed again: rows join the batch at the first layer that their restoration
can change, hold only the positions from theirs on, and read the keys and values of earlier positions from the corrupted
run. Only the positions that predict the answer are unembedded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.models import EMBEDDING, HookList, Kind, PastState, logits, run, run_blocks, run_with_past, state_name


@dataclass(frozen=True)
class CleanRun:
    """What one run without corruption leaves for a grid: the states to restore, and the answer's probability."""

    states: Float[Tensor, "layer pos d_model"]
    probability: float


@dataclass(frozen=True)
class CorruptedRun:
    """What a run with corruption leaves: the residual states before each block and after the last, keys and values."""

    residual: Float[Tensor, "layer_and_end sample pos d_model"]
    past: list[PastState]
    probability: float


def restored_layers(kind: Kind, layer: int, window: int, n_layers: int) -> range:
    """The layers whose states are restored at once: [l - w // 2, l + w // 2) for MLPs and attention, as the authors'
    code has it (window 10 covers l - 5 to l + 4; an odd window one layer more above), clipped to the model; the
    residual state is restored at one layer.
    """
    if kind == "resid":
        return range(layer, layer + 1)
    return range(max(0, layer - window // 2), min(n_layers, layer - window // 2 + window))


def answer_probability(
    model: HookedTransformer, residual: Float[Tensor, "row pos d_model"], answer: Int[Tensor, " answer"]
) -> Float[Tensor, " row"]:
    """The answer's probability after the last `len(answer)` positions: its tokens' probabilities multiplied."""
    states = residual[:, -len(answer) :]
    log_probabilities = logits(model, rearrange(states, "row pos d -> (row pos) d")).log_softmax(-1)
    each = rearrange(log_probabilities, "(row pos) vocab -> row pos vocab", pos=len(answer))
    return each.gather(-1, answer.expand(len(states), -1)[..., None])[..., 0].sum(-1).exp()


def clean_run(
    model: HookedTransformer, tokens: Int[Tensor, " pos"], answer: Int[Tensor, " answer"], kind: Kind
) -> CleanRun:
    """Runs the prompt as it is, and keeps the states of `kind`."""
    states: list[Tensor] = []
    names = [state_name(kind, layer) for layer in range(model.cfg.n_layers)]
    residual = run(model, tokens[None], hooks=[(name, _keep(states)) for name in names])
    return CleanRun(torch.cat(states), answer_probability(model, residual, answer).item())


def corrupted_run(
    model: HookedTransformer,
    tokens: Int[Tensor, " pos"],
    answer: Int[Tensor, " answer"],
    subject: range,
    noise: Float[Tensor, "sample token d_model"],
) -> CorruptedRun:
    """Runs the prompt once for each noise sample, which is added to the embeddings of the subject's tokens."""
    samples = len(noise)
    states: list[Tensor] = []

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[:, subject.start : subject.stop] += noise
        return value

    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    hooks: HookList = [(EMBEDDING, corrupt), *((name, _keep(states)) for name in names)]
    residual, past = run_with_past(model, tokens.expand(samples, -1), hooks=hooks)
    probability = answer_probability(model, residual, answer).mean().item()
    return CorruptedRun(torch.stack([*states, residual]), past, probability)


def _keep(states: list[Tensor]) -> Callable[..., None]:
    def keep(value: Tensor, hook: object) -> None:
        states.append(value)

    return keep


def restored_probabilities(
    model: HookedTransformer,
    clean: CleanRun,
    corrupted: CorruptedRun,
    answer: Int[Tensor, " answer"],
    *,
    kind: Kind,
    window: int,
    position: int,
    layers: range,
) -> Float[Tensor, " layer"]:
    """The answer's probability, mean over the samples, with the states at `position` restored around each of `layers`.

    The batch grows to len(layers) * samples rows of the positions from `position` on: choose `layers` to bound memory.
    """
    n_layers, samples = model.cfg.n_layers, corrupted.residual.shape[1]
    windows = [restored_layers(kind, layer, window, n_layers) for layer in layers]
    # A restored residual state is there when the next block starts; a window's first sublayer has to be run.
    entries = [w.stop if kind == "resid" else w.start for w in windows]
    past = {layer: state.upto(position) for layer, state in enumerate(corrupted.past)}
    rows = corrupted.residual[0, :, position:][:0]
    covered = slice(0)

    def restore(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[covered, 0] = clean.states[current, position]
        return value

    names = [state_name(kind, layer) for layer in range(n_layers)] if kind != "resid" else []
    with model.hooks(fwd_hooks=[(name, restore) for name in names]):
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
    return answer_probability(model, rows, answer).unflatten(0, (len(layers), samples)).mean(1)
