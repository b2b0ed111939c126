"""The restoration grid: what the model says when one state of a corrupted run is put back to its clean value.

The idea: a cell of the grid needs a forward pass, but hardly any of it is its own. A restored state changes nothing at
earlier positions and in earlier layers, so a cell runs only the positions from its own on, reads the keys and values of
those before from the corrupted run, and starts after its first restored layer, in which only its own position changes.
All cells of a position are one batch, which grows from block to block as cells join it. So for a window of layers 1 to
3, restored at position p of six blocks:

    block        0   1   2   3   4   5
    before p     k   k   k   k   k   k      k  keys and values of the corrupted run, read
    p            c   f   r   r   o   .      c  states of the corrupted run, read
    after p      c   c   o   o   o   .      f  restored for all positions in one pass (`first_restored`)
    at the end   c   c   o   o   o   o      r  run and restored
                                            o  run
                                            .  not run: the answer does not depend on it

A window that begins where a longer one begins (at the model's first layers) follows it to its end, and is split off
there. The end is the positions that predict the answer's tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from rome_lens.locate.metrics import Measure
from rome_lens.locate.runs import CorruptedRun, Sublayer, answer_logits
from rome_lens.models import Kind, Model, run_block, state_name

_ROWS_AT_ONCE = 64  # of logits


def restored_layers(kind: Kind, layer: int, window: int, n_layers: int) -> range:
    """The layers whose states are restored at once: [l - w // 2, l + w // 2) for MLPs and attention, as the authors'
    code has it (window 10 covers l - 5 to l + 4; an odd window one layer more above), clipped to the model; residual
    states and heads are restored at one layer.
    """
    if kind in ("resid", "head"):
        return range(layer, layer + 1)
    return range(max(0, layer - window // 2), min(n_layers, layer - window // 2 + window))


@dataclass
class _Batch:
    """What a block is running on, for the hooks: rows cell * samples to (cell + 1) * samples are one cell's."""

    layer: int
    restored: range  # positions to restore
    cells: list[int]  # to restore
    severed: Sequence[int]  # positions where severed sublayers are held


def _hooks(
    clean: Float[Tensor, "layer pos *state"], corrupted: CorruptedRun, kind: Kind, head: int | None, batch: _Batch
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that restore and sever states as `batch` says when they are called.

    They see the last positions of the prompt: all that go into a block, or only those that are asked of it.
    """
    n_layers, (samples, length) = len(clean), corrupted.residual.shape[1:3]

    def restore(value: Tensor, hook: object) -> Tensor:
        start = length - value.shape[1]
        here = range(max(batch.restored.start, start), batch.restored.stop)
        if not here or not batch.cells:
            return value
        value = value.clone()
        states = clean[batch.layer, here.start : here.stop]
        for cell in batch.cells:
            rows = value[cell * samples : (cell + 1) * samples, here.start - start : here.stop - start]
            if head is None:
                rows[:] = states
            else:
                rows[:, :, head] = states[:, head]
        return value

    def sever(kind: Sublayer) -> Callable[..., Tensor]:
        def hold(value: Tensor, hook: object) -> Tensor:
            start = length - value.shape[1]
            held = [p for p in batch.severed if start <= p < length]
            value = value.clone()
            kept = corrupted.sublayers[kind][batch.layer][:, held]
            there = [p - start for p in held]
            value[:, there] = kept.repeat(len(value) // samples, 1, 1).to(value.device)
            return value

        return hold

    named: dict[Kind, Callable[..., Tensor]] = {severed: sever(severed) for severed in corrupted.sublayers}
    if kind != "resid":
        named[kind] = restore
    return [(state_name(name, layer), hook) for name, hook in named.items() for layer in range(n_layers)]


def first_restored(
    model: Model,
    clean: Float[Tensor, "layer pos *state"],
    corrupted: CorruptedRun,
    *,
    kind: Kind,
    head: int | None = None,
    severed_positions: Sequence[int] | None = None,
) -> Float[Tensor, "layer sample pos d_model"]:
    """The corrupted run's states after each block, at each position as if this block's state were restored there.

    All positions are restored in one pass: what one of them changes in a block, no other sees before the next block.
    """
    samples, length = corrupted.residual.shape[1:3]
    if kind == "resid":
        return repeat(clean, "layer pos d -> layer sample pos d", sample=samples)
    everywhere = range(length)
    batch = _Batch(0, everywhere, [0], everywhere if severed_positions is None else severed_positions)
    after = []
    with model.hooks(fwd_hooks=_hooks(clean, corrupted, kind, head, batch)):
        for batch.layer in range(len(clean)):
            after.append(run_block(model, corrupted.residual[batch.layer], batch.layer))
    return torch.stack(after)


def restored_values(
    model: Model,
    clean: Float[Tensor, "layer pos *state"],
    corrupted: CorruptedRun,
    entering: Float[Tensor, "layer sample pos d_model"],
    measures: Sequence[Measure],
    *,
    kind: Kind,
    window: int,
    position: int,
    layers: Sequence[int],
    head: int | None = None,
    severed_positions: Sequence[int] | None = None,
) -> Float[Tensor, "metric column"]:
    """The metrics, mean over the samples, with the states at `position` restored around each of `layers` (ascending).

    `entering` is what `first_restored` gives. Outputs of the sublayers in `corrupted.sublayers` are held at their
    corrupted values at `severed_positions` (the restored position itself if None). The batch grows to len(layers) *
    samples rows of the positions from `position` on: choose `layers` to bound memory.
    """
    n_layers, (samples, length) = len(clean), corrupted.residual.shape[1:3]
    answer = corrupted.logits.shape[1]
    windows = [restored_layers(kind, layer, window, n_layers) for layer in layers]
    longest = {w.start: w for w in windows}
    held = [position] if severed_positions is None else severed_positions
    batch = _Batch(0, range(position, position + 1), [], held)
    joined: list[range] = []  # windows, in the order of their rows
    rows = corrupted.residual[0, :0, position:]
    with model.hooks(fwd_hooks=_hooks(clean, corrupted, kind, head, batch)):
        for batch.layer in range(min(longest) + 1, n_layers + 1):
            if (begun := longest.get(batch.layer - 1)) is not None:
                state = corrupted.residual[batch.layer, :, position:].clone()
                state[:, 0] = entering[batch.layer - 1, :, position]
                rows, joined = torch.cat([rows, state[:, -rows.shape[1] :]]), [*joined, begun]
            for ended in [w for w in windows if w.stop == batch.layer and w != longest[w.start]]:
                same = joined.index(longest[ended.start]) * samples
                rows, joined = torch.cat([rows, rows[same : same + samples]]), [*joined, ended]
            if batch.layer < n_layers:
                last = length - position if batch.layer < n_layers - 1 else answer
                batch.cells = [cell for cell, w in enumerate(joined) if batch.layer in w]
                rows = run_block(model, rows, batch.layer, past=corrupted.past[batch.layer].upto(position), last=last)
    found = [
        torch.stack([measure(logits) for measure in measures])
        for logits in (answer_logits(model, some, answer) for some in rows.split(_ROWS_AT_ONCE))
    ]
    means = torch.cat(found, dim=1).unflatten(1, (len(joined), samples)).mean(2)
    return means[:, [joined.index(w) for w in windows]]
