"""How long a recommendation will take: counted passes, times what one takes here."""

from collections.abc import Sequence
from time import perf_counter

import torch

from rome_lens.data.records import EditRecord
from rome_lens.edit.methods.rome import RomeConfig
from rome_lens.evaluate.layers.halving import rounds
from rome_lens.models import Model, count_in_blocks, output_matrix, run
from rome_lens.models.tokens import tokenize

_ROWS, _LENGTH = 8, 32
_FORWARD_AND_BACK = 3  # passes
_SCORED = 14  # prompts and targets of a record


@torch.no_grad()
def seconds_a_token(model: Model) -> float:
    """What a pass through all blocks takes for each of 256 tokens, measured once now, after a pass to warm up."""
    tokens = torch.arange(_ROWS * _LENGTH, device=model.cfg.device).view(_ROWS, _LENGTH) % model.cfg.d_vocab
    run(model, tokens)
    start = perf_counter()
    run(model, tokens).sum().item()  # which waits for a GPU
    return (perf_counter() - start) / tokens.numel()


def forecast_seconds(
    model: Model,
    traced: Sequence[EditRecord],
    edited: Sequence[EditRecord],
    *,
    config: RomeConfig,
    samples: int,
    candidates: int,
    tokens: int,
) -> dict[str, float]:
    """About how many seconds tracing, the covariances and the edits take.

    A restored state costs half of the blocks of a prompt's second half; a covariance two thirds of the blocks, and the
    products k kT; a step of an edit three passes through the blocks above the edited layer (two thirds) for each
    context.
    """
    blocks = count_in_blocks(model)
    lengths = {name: _mean_length(model, some) for name, some in (("traced", traced), ("edited", edited))}
    cells = len(traced) * samples * model.cfg.n_layers
    products = candidates * len(output_matrix(model, 0)) ** 2 / blocks
    count = sum(layers * new for layers, _, new in rounds(candidates, len(edited)))
    contexts = config.contexts or [""] * (1 + sum(many for _, many in config.context_lengths))
    in_context = lengths["edited"] + max((length for length, _ in config.context_lengths), default=0)
    step = _FORWARD_AND_BACK * 2 / 3 * len(contexts) * in_context
    passes = {
        "traces": cells * lengths["traced"] / 4,
        "covariances": tokens * (2 / 3 + products),
        "edits": count * (config.steps * step + _SCORED * lengths["edited"]),
    }
    each = seconds_a_token(model)
    return {name: number * each for name, number in passes.items()}


def _mean_length(model: Model, records: Sequence[EditRecord]) -> float:
    return sum(len(tokenize(model, record.request.text).ids) for record in records) / len(records)
