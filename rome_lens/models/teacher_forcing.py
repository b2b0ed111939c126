"""Teacher forcing: how well a model predicts a target, each of its tokens after the true ones before it.

    tokens       BOS   The   Eiffel   Tower   is   in | New   York      the target starts at position 6
    read         BOS   The   Eiffel   Tower   is   in   New
    predicted                                      New  York

`score_targets` is for evaluation: rows that begin alike are run once, without gradients. `run_until` and `ForcedBatch`
are for training: the blocks that do not change are run once, the others as often as needed, with gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.models.hook_points import HookList
from rome_lens.models.kinds import Model
from rome_lens.models.running.forward import check_finite, logits, pad, run, run_blocks
from rome_lens.models.running.prefix_tree import run_tree
from rome_lens.models.tokens import batches

TargetRow: TypeAlias = tuple[tuple[int, ...], int]
"""The tokens of a prompt and its target, and the position at which the target starts."""


def target_log_probabilities(
    scores: Float[Tensor, "token d_vocab"], targets: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """The log-probability of each target token, in nats, from the logits that predict it. Differentiable."""
    return scores.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


Score: TypeAlias = Callable[[Float[Tensor, "token d_vocab"], Int[Tensor, " token"]], Tensor]
"""A value for each target token, from the logits that predict it and the token itself."""


def score_targets(
    model: Model, rows: Sequence[TargetRow], score: Score, *, tokens_per_batch: int = 4096
) -> Iterator[tuple[int, Tensor]]:
    """Yields (number of a row, `score` of each of its target tokens, on the CPU), as batches are run.

    What rows begin with alike is computed once, and only positions that predict a target are unembedded.
    """
    by_input: dict[tuple[int, ...], list[int]] = {}
    for number, (ids, _) in enumerate(rows):
        by_input.setdefault(ids[:-1], []).append(number)
    for batch in batches(sorted(by_input, key=len), tokens_per_batch):
        numbers = [number for ids in batch for number in by_input[ids]]
        yield from zip(numbers, _score_batch(model, batch, [rows[number] for number in numbers], score), strict=True)


@torch.no_grad()  # not of the generator: what decorates a generator may end before its body runs
def _score_batch(
    model: Model, inputs: Sequence[tuple[int, ...]], rows: Sequence[TargetRow], score: Score
) -> tuple[Tensor, ...]:
    states = dict(zip(inputs, run_tree(model, inputs), strict=True))
    needed = torch.cat([states[ids[:-1]][start - 1 :] for ids, start in rows])
    targets = torch.tensor([token for ids, start in rows for token in ids[start:]], device=needed.device)
    scores = logits(model, needed)
    check_finite(model, scores, [ids for ids, start in rows for _ in ids[start:]])
    return score(scores, targets).cpu().split([len(ids) - start for ids, start in rows])


@dataclass(frozen=True, eq=False)
class ForcedBatch:
    """Rows of a prompt and its target without the last token, run up to a block.

    Attributes:
        first_layer: number of the next block to run.
        residual: states before that block, right-padded.
        mask: 0 at padding, else 1.
        rows, positions: where a target token is predicted.
        targets: the token that is to be predicted there.
        lengths: number of target tokens in each row.
    """

    first_layer: int
    residual: Float[Tensor, "row pos d_model"]
    mask: Int[Tensor, "row pos"]
    rows: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    targets: Int[Tensor, " token"]
    lengths: tuple[int, ...]

    def run(self, model: Model, *, hooks: HookList = ()) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the last block. Differentiable."""
        return run_blocks(model, self.residual, self.first_layer, model.cfg.n_layers, mask=self.mask, hooks=hooks)

    def losses(self, model: Model, final: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " row"]:
        """Mean negative log-probability of each row's target tokens, from what `run` returned. Differentiable."""
        found = target_log_probabilities(logits(model, final[self.rows, self.positions]), self.targets)
        return -torch.stack([target.mean() for target in found.split(self.lengths)])

    def part(self, start: int, stop: int) -> "ForcedBatch":
        """Rows `start` to `stop` (exclusive)."""
        chosen = (self.rows >= start) & (self.rows < stop)
        width = int(self.mask[start:stop].sum(1).max())
        return ForcedBatch(
            self.first_layer,
            self.residual[start:stop, :width],
            self.mask[start:stop, :width],
            self.rows[chosen] - start,
            self.positions[chosen],
            self.targets[chosen],
            self.lengths[start:stop],
        )


@torch.no_grad()
def run_until(model: Model, rows: Sequence[TargetRow], first_layer: int) -> ForcedBatch:
    """Runs the blocks before `first_layer` once."""
    tokens, mask = (each.to(model.cfg.device) for each in pad([ids[:-1] for ids, _ in rows]))
    places = [
        (row, position - 1, ids[position])
        for row, (ids, start) in enumerate(rows)
        for position in range(start, len(ids))
    ]
    numbers, positions, targets = torch.tensor(places, device=tokens.device).unbind(-1)
    residual = run(model, tokens, mask=mask, stop_at_layer=first_layer)
    lengths = tuple(len(ids) - start for ids, start in rows)
    return ForcedBatch(first_layer, residual, mask, numbers, positions, targets, lengths)


def joined(parts: Sequence[ForcedBatch]) -> ForcedBatch:
    """The rows of several batches that were run up to the same block, in one batch."""
    width = max(part.mask.shape[1] for part in parts)

    def padded(values: Tensor) -> Tensor:
        missing = values.new_zeros(len(values), width - values.shape[1], *values.shape[2:])
        return torch.cat([values, missing], dim=1)

    before = [sum(len(part.mask) for part in parts[:i]) for i in range(len(parts))]
    return ForcedBatch(
        parts[0].first_layer,
        torch.cat([padded(part.residual) for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
        torch.cat([part.rows + start for part, start in zip(parts, before, strict=True)]),
        torch.cat([part.positions for part in parts]),
        torch.cat([part.targets for part in parts]),
        tuple(length for part in parts for length in part.lengths),
    )
