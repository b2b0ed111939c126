"""How well a model says given texts after prompts, by teacher forcing, from some block on; with gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.data.records import Continuation
from rome_lens.models import HookList, Model, logits, pad, run, run_blocks
from rome_lens.models.tokens import tokenize_continuation


@dataclass(frozen=True, eq=False)
class ForcedBatch:
    """Prompts with the tokens that are to follow, all but the last: a row each, run up to a block.

    Attributes:
        first_layer: the block that comes next.
        residual: before that block, right-padded.
        mask: 0 where it is padded.
        rows: of each token that is to follow ...
        positions: ... where it is predicted
        targets: and which it is.
        lengths: how many tokens are to follow in each row.
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
        """The mean negative log-probability of each row's tokens, for what `run` gave. Differentiable."""
        each = self.token_losses(model, final).split(self.lengths)
        return torch.stack([target.mean() for target in each])

    def token_losses(self, model: Model, final: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " token"]:
        """The negative log-probability of each token that is to follow, row by row. Differentiable."""
        log_probs = logits(model, final[self.rows, self.positions]).log_softmax(-1)
        return -log_probs.gather(-1, self.targets[:, None])[:, 0]

    def part(self, start: int, stop: int) -> "ForcedBatch":
        """The rows from `start` up to `stop`."""
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
def run_until(model: Model, continuations: Sequence[Continuation], first_layer: int) -> ForcedBatch:
    """Runs what comes before a block, once.

    Raises:
        ValueError: a continuation has no tokens, or is longer than the model's context with its prompt.
    """
    encoded = [tokenize_continuation(model, asked.prompt, asked.text, space=asked.space) for asked in continuations]
    tokens, mask = (each.to(model.cfg.device) for each in pad([text.ids[:-1] for text, _ in encoded]))
    places = [
        (row, position - 1, text.ids[position])
        for row, (text, start) in enumerate(encoded)
        for position in range(start, len(text.ids))
    ]
    rows, positions, targets = torch.tensor(places, device=tokens.device).unbind(-1)
    lengths = tuple(len(text.ids) - start for text, start in encoded)
    residual = run(model, tokens, mask=mask, stop_at_layer=first_layer)
    return ForcedBatch(first_layer, residual, mask, rows, positions, targets, lengths)


def joined(batches: Sequence[ForcedBatch]) -> ForcedBatch:
    """The rows of several batches, which come before the same block, one after the other."""
    width = max(batch.mask.shape[1] for batch in batches)

    def padded(values: Tensor) -> Tensor:
        missing = values.new_zeros(len(values), width - values.shape[1], *values.shape[2:])
        return torch.cat([values, missing], dim=1)

    before = [sum(len(batch.mask) for batch in batches[:i]) for i in range(len(batches))]
    return ForcedBatch(
        batches[0].first_layer,
        torch.cat([padded(batch.residual) for batch in batches]),
        torch.cat([padded(batch.mask) for batch in batches]),
        torch.cat([batch.rows + start for batch, start in zip(batches, before, strict=True)]),
        torch.cat([batch.positions for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        tuple(length for batch in batches for length in batch.lengths),
    )
