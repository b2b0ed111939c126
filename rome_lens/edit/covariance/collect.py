"""Collecting key covariances from text, for several layers in one pass."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.edit.covariance.corpora import Texts
from rome_lens.edit.covariance.diagnostics import halves_difference, median_cosine
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.sums import FACTS, KIND, PartialSums, add_pieces, add_shards
from rome_lens.engine import EngineName, ModelSource, loaded, open_workers
from rome_lens.models import fingerprint_keys, model_identity, output_matrix
from rome_lens.models.tokens import token_pieces
from rome_lens.storage import open_checkpoint

_TOKENS_PER_WIDTH = 4  # in a worker's shard: summing it takes far longer than sending the sums


@checked
@torch.no_grad()
def collect_covariance(
    model: ModelSource,
    layers: Sequence[int],
    *,
    texts: str | Iterable[str],
    tokens: int = 100_000,
    corpus: str = "",
    sequence_length: int = 256,
    tokens_per_batch: int = 4096,
    out: str | os.PathLike[str] | None = None,
    engine: EngineName = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    progress: bool = True,
) -> dict[int, KeyCovariance]:
    """Runs the model on text and averages k k^T over the tokens, k being the MLP's inner activations (appendix E.1).

    All layers are read in one pass; blocks after the last of them are not run. The texts' tokens are concatenated and
    cut into pieces. Matrix products are in float32, sums in float64, on the model's device if half of its free memory
    holds them. If the model's own tokenisation begins with BOS, each piece gets one; its key, which is unlike all
    others, is left out of the mean. Even and odd pieces are summed separately, so that `KeyCovariance.report` can
    compare two halves of the text.

    Args:
        model: Model to run, left unchanged; or what `load_model` takes.
        layers: Numbers of the blocks.
        texts: One text or several (see `texts_from_file`, `texts_from_dataset` and `texts_from_model`); only as much as
            needed is read.
        tokens: Number of keys to average.
        corpus: Name of the texts, stored with the result; `Texts` bring their own.
        sequence_length: Tokens in a piece.
        out: Folder for the sums, saved about once a minute: 16 d_mlp^2 bytes for each layer, twice that while saving.
        engine: "local", or "ray" to distribute shards of the text over a Ray cluster (docs/cluster.md). A run may be
            continued with the other one.

    Returns:
        A KeyCovariance for each layer.

    Raises:
        ValueError: no such layer, or the texts hold fewer tokens than `tokens`; and as `open_workers`.
        CovarianceError: a key is not finite.
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
        raise ValueError(f"tokens is {tokens} and sequence_length {sequence_length}, expected at least 1.")
    settings = {
        "layers": layers,
        "tokens": tokens,
        "sequence_length": length,
        "tokens_per_batch": tokens_per_batch,
    }
    fingerprints = torch.stack([fingerprint_keys(model, layer) for layer in layers])
    width = fingerprints.shape[-1]
    pieces = token_pieces(model, [texts] if isinstance(texts, str) else texts, length, tokens)
    partial = PartialSums.empty(model, len(layers), width)
    batch = max(1, tokens_per_batch // length)
    identity = model_identity(model) | settings if out is not None else {}
    with (
        open_checkpoint(out, kind=KIND, identity=identity, facts=FACTS, size=partial.sums.nbytes) as kept,
        open_workers(
            model if engine == "local" else source, engine=engine, workers=workers, gpus_per_worker=gpus_per_worker
        ) as on_workers,
    ):
        partial.resume(kept, pieces)
        if engine == "local":
            steps = add_pieces(model, layers, pieces, partial, batch=batch)
        else:
            share = ceil((tokens - sum(partial.tokens)) / workers)
            shard = max(1, min(share, _TOKENS_PER_WIDTH * width) // length)
            steps = add_shards(on_workers, layers, pieces, partial, batch=batch, shard=shard, workers=workers)
        what = f"covariance, layers {layers} in one pass"
        with tqdm(total=tokens, initial=sum(partial.tokens), desc=what, unit="token", disable=not progress) as bar:
            for _ in steps:
                bar.update(sum(partial.tokens) - bar.n)
                if kept.is_due or sum(partial.tokens) == tokens:
                    partial.save(kept)
    done = sum(partial.tokens)
    if done < tokens:
        raise ValueError(f"The texts hold {done} tokens, but {tokens} were asked for. Give more text or ask for fewer.")
    facts = {
        "model": str(model.cfg.model_name),
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "corpus": texts.corpus if isinstance(texts, Texts) and not corpus else corpus,
    }
    return {
        layer: _covariance(layer, sums, partial.tokens, fingerprint, facts)
        for layer, sums, fingerprint in zip(layers, partial.sums, fingerprints, strict=True)
    }


def _covariance(
    layer: int, sums: Tensor, tokens: list[int], fingerprint: Tensor, facts: Mapping[str, Any]
) -> KeyCovariance:
    """The mean over both halves, with their agreement."""
    mean = (sums.sum(0) / sum(tokens)).float().cpu()
    covariance = KeyCovariance(mean, layer, sum(tokens), fingerprint=fingerprint, **facts)
    if not all(tokens):
        return covariance
    first, second = sums[0] / tokens[0], sums[1] / tokens[1]
    return replace(
        covariance,
        half_difference=halves_difference(first, second),
        half_cosine=median_cosine(first, second, fingerprint),
    )
