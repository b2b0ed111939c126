"""How long a recommendation will take: counted operations, times what one takes here."""

from collections.abc import Sequence
from time import perf_counter

import torch

from rome_lens.data.records import EditRecord, Fact, subject_range
from rome_lens.edit.methods.rome import RomeConfig
from rome_lens.evaluate.cost import (
    Prompt,
    block_operations,
    covariance_operations,
    in_contexts,
    search_operations,
    trace_operations,
)
from rome_lens.evaluate.layers.halving import rounds
from rome_lens.models import Model, run
from rome_lens.models.loading.shape import shape_of
from rome_lens.models.tokens import tokenize_continuation

_ROWS, _LENGTH = 8, 32
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

    The candidates are taken to be spread over the lower two thirds of the model, and searches to take all their steps.
    """
    shape = shape_of(model)
    whole = shape.n_layers * block_operations(shape, _LENGTH, _LENGTH) / _LENGTH
    lowest = shape.n_layers // 3
    operations = {"traces": 0.0, "covariances": covariance_operations(shape, [2 * lowest] * candidates, tokens)}
    for record in traced:
        prompt = _prompt(model, record.fact)
        last = [prompt.subject.stop - 1]
        operations["traces"] += trace_operations(shape, prompt, kind="mlp", samples=samples, positions=last)
    each = 0.0
    for record in edited:
        request = record.request
        text, _ = tokenize_continuation(model, request.text, request.target, space=request.space)
        prompt = _prompt(model, record.fact)
        contexts = in_contexts(prompt, len(text.ids) - prompt.length, config)
        each += search_operations(shape, contexts, lowest, steps=config.steps) + _SCORED * prompt.length * whole
    count = sum(layers * new for layers, _, new in rounds(candidates, len(edited)))
    operations["edits"] = count * each / len(edited)
    speed = whole / seconds_a_token(model)
    return {name: number / speed for name, number in operations.items()}


def _prompt(model: Model, fact: Fact) -> Prompt:
    text, subject = subject_range(model, fact)
    return Prompt(len(text.ids), range(subject.start, subject.stop))
