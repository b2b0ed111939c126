"""The restoration grid: what the model predicts when one state of a corrupted run is put back to its clean value.

The idea: a cell of the grid is a forward pass, but most of that pass is the corrupted run over again. A restored state
changes nothing at earlier positions or in earlier layers. So a cell runs only its own position and the later ones,
reads the keys and values of earlier positions from the corrupted run, and starts after its first restored layer, where
only its own position differs. All cells of a position run as one batch, which grows from block to block as cells join.
For a model of six blocks, with a window of layers 1 to 3 restored at position p:

    block        0   1   2   3   4   5
    before p     k   k   k   k   k   k      k  keys and values of the corrupted run, read
    p            c   f   r   r   o   .      c  states of the corrupted run, read
    after p      c   c   o   o   o   .      f  restored, for all positions in one pass (`first_restored`)
    at the end   c   c   o   o   o   o      r  run and restored
                                            o  run
                                            .  not run: the answer does not depend on it

Near the model's first layers several windows begin at layer 0. They share the rows of the longest of them, and each
takes a copy of these rows at the layer where it ends. "At the end" are the positions that predict the answer's tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from rome_lens.locate.metrics import Measure
from rome_lens.locate.runs import CorruptedRun, Sublayer, answer_logits
from rome_lens.models import Kind, Model, hooked, run_block, state_name

_LOGIT_ROWS = 64  # computed at once: a row of logits is as long as the vocabulary


def restored_layers(kind: Kind, layer: int, window: int, n_layers: int) -> range:
    """The layers whose states are restored together.

    For MLPs and attention these are [l - w // 2, l + w // 2), clipped to the model, as in the authors' code: a window
    of 10 covers l - 5 to l + 4, and an odd one has its extra layer above. Residual states and heads: one layer.
    """
    if kind in ("resid", "head"):
        return range(layer, layer + 1)
    return range(max(0, layer - window // 2), min(n_layers, layer - window // 2 + window))


@dataclass
class _Batch:
    """What the current block runs on, for the hooks. A cell has the rows cell * samples to (cell + 1) * samples."""

    layer: int
    positions: range  # of the block's output
    restored: range  # positions whose states are restored
    cells: list[int]  # cells whose states are restored in this layer
    severed: Sequence[int]  # positions where severed sublayers keep their corrupted output


def _hooks(
    clean: Float[Tensor, "layer pos *state"], corrupted: CorruptedRun, kind: Kind, head: int | None, batch: _Batch
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that restore and sever states. They read `batch` when they are called, so it may change between blocks."""
    n_layers, samples = len(clean), corrupted.residual.shape[1]

    def restore(value: Tensor, hook: object) -> Tensor:
        start = batch.positions.start
        here = range(max(batch.restored.start, start), min(batch.restored.stop, batch.positions.stop))
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
            held = [p for p in batch.severed if p in batch.positions]
            value = value.clone()
            original = corrupted.sublayers[kind][batch.layer][:, held]
            here = [p - batch.positions.start for p in held]
            value[:, here] = original.repeat(len(value) // samples, 1, 1).to(value.device)
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
    """The corrupted run's residual states after each block, each position as if only that block's state were restored.

    One pass serves all positions: a change at one position reaches no other before the next block's attention.
    """
    samples, length = corrupted.residual.shape[1:3]
    if kind == "resid":
        return repeat(clean, "layer pos d -> layer sample pos d", sample=samples)
    everywhere = range(length)
    batch = _Batch(0, everywhere, everywhere, [0], everywhere if severed_positions is None else severed_positions)
    after = []
    with hooked(model, _hooks(clean, corrupted, kind, head, batch)):
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

    `entering` comes from `first_restored`. The sublayers in `corrupted.sublayers` keep their corrupted outputs at
    `severed_positions` (None: at the restored position). The batch grows to len(layers) * samples rows of the positions
    from `position` to the last: choose `layers` to bound memory.
    """
    n_layers, (samples, length) = len(clean), corrupted.residual.shape[1:3]
    answer = corrupted.logits.shape[1]
    windows = [restored_layers(kind, layer, window, n_layers) for layer in layers]
    longest = {w.start: w for w in windows}  # ascending layers: the last window with a start is the longest
    held = [position] if severed_positions is None else severed_positions
    batch = _Batch(0, range(position, length), range(position, position + 1), [], held)
    joined: list[range] = []  # windows, in the order of their rows
    rows = corrupted.residual[0, :0, position:]
    with hooked(model, _hooks(clean, corrupted, kind, head, batch)):
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
                batch.positions = range(length - last, length)
                batch.cells = [cell for cell, w in enumerate(joined) if batch.layer in w]
                rows = run_block(model, rows, batch.layer, past=corrupted.past[batch.layer].upto(position), last=last)
    found = [
        torch.stack([measure(logits) for measure in measures])
        for logits in (answer_logits(model, some, answer) for some in rows.split(_LOGIT_ROWS))
    ]
    means = torch.cat(found, dim=1).unflatten(1, (len(joined), samples)).mean(2)
    return means[:, [joined.index(w) for w in windows]]
