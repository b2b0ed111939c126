"""How long a recommendation will take: tokens that pass through the model, times what one takes here."""

from collections.abc import Sequence
from time import perf_counter

import torch

from rome_lens.data.records import EditRecord, subject_range
from rome_lens.edit.methods.rome import RomeConfig
from rome_lens.evaluate.layers.halving import rounds
from rome_lens.models import Model, output_matrix, run

_ROWS, _LENGTH = 8, 32
_SCORED = 14  # prompts and targets of a record
_ABOVE = 2 / 3  # of the layers: on average a candidate is as far from the last one, and as many are read for it


@torch.no_grad()
def seconds_a_token(model: Model) -> float:
    """What a pass through all layers takes for each of 256 tokens, measured once now, after a pass to warm up."""
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
    """About how many seconds tracing, the covariances and the edits take, if searches take all their steps."""
    summing = candidates * len(output_matrix(model, 0)) ** 2 / sum(weight.numel() for weight in model.parameters())
    passed = {"traces": 0.0, "covariances": tokens * (_ABOVE + summing)}
    for length, changed in _lengths(model, traced):
        passed["traces"] += (1 + 2 * samples) * length + samples * changed * model.cfg.n_layers / 2
    prefixes = [0, *(size for size, count in config.context_lengths for _ in range(count))]
    if config.contexts is not None:
        prefixes = [0] * len(config.contexts)
    one_each = sum(
        2 * len(prefixes) * length + sum(prefixes)  # k*, and what a step does not change
        + config.steps * len(prefixes) * changed * 2 * _ABOVE  # forth and back
        + _SCORED * length
        for length, changed in _lengths(model, edited)
    )  # fmt: skip
    edits = sum(layers * new for layers, _, new in rounds(candidates, len(edited)))
    passed["edits"] = edits * one_each / len(edited)
    seconds = seconds_a_token(model)
    return {name: number * seconds for name, number in passed.items()}


def _lengths(model: Model, records: Sequence[EditRecord]) -> list[tuple[int, int]]:
    """The tokens of each prompt, and how many of them a change at the subject's last one reaches."""
    ranges = [subject_range(model, record.fact) for record in records]
    return [(len(text.ids), len(text.ids) - subject.stop + 1) for text, subject in ranges]
