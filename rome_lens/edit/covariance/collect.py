"""Collecting key covariances: text in, sums of k kT out, several layers in one pass."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.edit.covariance.convergence import until_settled
from rome_lens.edit.covariance.corpora import Texts
from rome_lens.edit.covariance.diagnostics import halves_difference, median_cosine
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.sums import FACTS, KIND, PartialSums, add_pieces, add_shards
from rome_lens.engine import EngineName, ModelSource, loaded, open_workers
from rome_lens.errors import EditWarning, warn
from rome_lens.models import model_identity, output_matrix
from rome_lens.models.identity import probe_keys
from rome_lens.models.tokens import token_pieces
from rome_lens.storage import open_checkpoint

_TOKENS_PER_WIDTH = 4  # in a worker's shard: computing its products takes far longer than sending their sums


@checked
@torch.no_grad()
def collect_covariance(
    model: ModelSource,
    layers: Sequence[int],
    *,
    texts: str | Iterable[str],
    tokens: int = 100_000,
    tolerance: float | None = None,
    corpus: str = "",
    sequence_length: int = 256,
    tokens_per_batch: int = 4096,
    out: str | os.PathLike[str] | None = None,
    engine: EngineName = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    progress: bool = True,
) -> dict[int, KeyCovariance]:
    """Streams text through the model and averages k kT of its MLPs' inner activations, for several layers in one pass.

    The texts' tokens are strung together and cut into pieces; blocks after the last wanted one are not run. Products
    are taken in float32, sums in float64. A model that reads BOS first gets one before each piece, and its key, which
    is like no other token's, is left out of the mean. Every other piece goes to one half of the sums, so that
    `KeyCovariance.report` can tell how far two halves of the text agree.

    Args:
        model: is run, not changed; or what `load_model` takes.
        layers: the blocks.
        texts: one text or several (see `texts_from_file`, `texts_from_dataset` and `texts_from_model`); no more is
            read than is needed.
        tokens: how many keys to average; with a tolerance, at most.
        tolerance: Stop as soon as both halves of the text give nearly the same directions C^-1 k: 1 - cosine, the
            median over some keys, is at most this in every layer (0.01, say). They are compared after 2, 4, 8, ...
            d_mlp tokens. The whole is then about a quarter as far from what endless text of that kind would give
            (`CovarianceReport.expected_error`). None: all tokens are read.
        corpus: a name for the texts, kept with the result; `Texts` have one of their own.
        sequence_length: tokens in a piece.
        tokens_per_batch: bounds memory.
        out: a folder for this collection alone; made if it is missing. The sums so far are kept in it, about once a
            minute, and a call with the same arguments reads on from there, with the result of an unbroken run. It takes
            16 d_mlp^2 bytes for each layer (twice that while it is written) and stays when all is done; delete it once
            the result is saved.
        engine: "local", or "ray": shards of the text are spread over the workers of a Ray cluster (docs/cluster.md). It
            may be another one when a run goes on.
        workers: of "ray": how many, each with a model of its own. One that dies is replaced and its shard done again.
        gpus_per_worker: of "ray": that each reserves.
        progress: shows a bar, with the time that remains as soon as the first batch is done.

    Returns:
        A KeyCovariance for each layer. An EditWarning says if the tolerance was not reached.

    Raises:
        ValueError: no such layer, the texts hold fewer tokens than were asked for (without a tolerance), or a tolerance
            with "ray"; and as `open_workers`.
        CovarianceError: a key is not finite.
        FormatError: the folder was begun with another model or other weights, arguments or texts, or holds other files
            or a damaged one.
        UnavailableError: Ray is not installed; another run has the folder open; its disk is full or may not be written
            to.
    """
    source, model = model, loaded(model)
    layers = list(dict.fromkeys(layers))
    if not layers:
        raise ValueError("layers is empty, expected the numbers of one or more blocks, such as [4].")
    for layer in layers:
        output_matrix(model, layer)
    check_whole(tokens_per_batch=tokens_per_batch)
    length = min(sequence_length, model.cfg.n_ctx - 1)
    if tokens < 1 or length < 1:
        raise ValueError(f"tokens is {tokens} and sequence_length {sequence_length}, expected numbers from 1 on.")
    if tolerance is not None and (engine != "local" or not 0 < tolerance < 1):
        raise ValueError(
            f"tolerance is {tolerance} with the engine {engine!r}, expected a number between 0 and 1 with 'local', "
            "where it is known after each batch whether to stop."
        )
    asked = {
        "layers": layers,
        "tokens": tokens,
        "sequence_length": length,
        "tokens_per_batch": tokens_per_batch,
    }
    probe = torch.stack([probe_keys(model, layer) for layer in layers])
    width = probe.shape[-1]
    pieces = token_pieces(model, [texts] if isinstance(texts, str) else texts, length, tokens)
    partial = PartialSums.empty(len(layers), width)
    batch = max(1, tokens_per_batch // length)
    identity = model_identity(model) | asked if out is not None else {}
    what = f"covariance, layers {layers} in one pass"
    with (
        open_checkpoint(out, kind=KIND, identity=identity, facts=FACTS, size=partial.sums.nbytes) as kept,
        open_workers(
            model if engine == "local" else source, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker
        ) as spread,
    ):
        partial.resume(kept, pieces)
        if engine == "local":
            steps = add_pieces(model, layers, pieces, partial, batch=batch)
            if tolerance is not None:
                steps = until_settled(steps, partial, probe, tolerance=tolerance, step=batch * length)
        else:
            share = ceil((tokens - sum(partial.tokens)) / workers)
            shard = max(1, min(share, _TOKENS_PER_WIDTH * width) // length)
            steps = add_shards(spread, layers, pieces, partial, batch=batch, shard=shard, workers=workers)
        bar = tqdm(total=tokens, initial=sum(partial.tokens), desc=what, unit="token", disable=not progress)
        with bar:
            for _ in steps:
                bar.update(sum(partial.tokens) - bar.n)
                if kept.is_due or sum(partial.tokens) == tokens:
                    partial.save(kept)
        if tolerance is not None:
            partial.save(kept)
    done = sum(partial.tokens)
    if done < tokens and tolerance is None:
        raise ValueError(f"The texts hold {done} tokens, but {tokens} were asked for. Give more text or ask for fewer.")
    facts = {
        "model": str(model.cfg.model_name),
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "corpus": texts.corpus if isinstance(texts, Texts) and not corpus else corpus,
    }
    found = {
        layer: _covariance(layer, sums, partial.tokens, keys, facts)
        for layer, sums, keys in zip(layers, partial.sums, probe, strict=True)
    }
    if tolerance is not None:
        _warn_if_unsettled(found, tolerance)
    return found


def _covariance(layer: int, sums: Tensor, tokens: list[int], probe: Tensor, facts: Mapping[str, Any]) -> KeyCovariance:
    """The mean of both halves, and how far they agree."""
    mean = (sums.sum(0) / sum(tokens)).float()
    covariance = KeyCovariance(mean, layer, sum(tokens), probe=probe, **facts)
    if not all(tokens):
        return covariance
    first, second = sums[0] / tokens[0], sums[1] / tokens[1]
    return replace(
        covariance,
        half_difference=halves_difference(first, second),
        half_cosine=median_cosine(first, second, probe),
    )


def _warn_if_unsettled(found: Mapping[int, KeyCovariance], tolerance: float) -> None:
    cosines = {layer: covariance.half_cosine for layer, covariance in found.items()}
    if loose := {layer: each for layer, each in cosines.items() if each is None or 1 - each > tolerance}:
        tokens = next(iter(found.values())).tokens
        warn(
            f"After {tokens} tokens, the directions of two halves have the cosines {loose} by layer (None: a half "
            f"is singular), expected at least {1 - tolerance:g}. Give more text, or a larger tolerance.",
            EditWarning,
        )
