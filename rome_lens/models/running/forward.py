"""Running all or part of a model.

For a model on several devices, arguments and results are on the one that reads tokens, `cfg.device`. Only hooks see the
device of their block.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.activation_functions import apply_softcap

from rome_lens.errors import NotFiniteError
from rome_lens.models.hook_points import EMBEDDING, Hook, HookList, hooked, key_name
from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.mlp.contribution import norms_after_mlp
from rome_lens.models.running import bridge
from rome_lens.models.running.kv_cache import GrowingPast, PastState, RecordingCache, SkippedQueries


def pad(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """Token rows in one tensor, right-padded with 0, and the mask that is 1 where a token is."""
    tokens, mask = torch.zeros(2, len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return tokens, mask


def run(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Int[Tensor, "batch pos"] | None = None,
    stop_at_layer: int | None = None,
    hooks: HookList = (),
) -> Float[Tensor, "batch pos d_model"]:
    """Runs token rows, right-padded where `mask` is 0, and returns the residual stream before the final norm.

    With `stop_at_layer`, returns the residual stream before that block, and later blocks do not run.
    """
    mask = torch.ones_like(tokens) if mask is None else mask
    stop = model.cfg.n_layers if stop_at_layer is None else stop_at_layer
    if is_bridge(model):
        residual = bridge.run_tokens(model, tokens, stop, mask=mask, hooks=hooks)
    else:
        with hooked(model, hooks):
            residual = model(tokens, attention_mask=mask, stop_at_layer=stop, return_type=None)
    return residual.to(tokens.device)


def run_and_read(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    names: Sequence[str],
    *,
    mask: Int[Tensor, "batch pos"] | None = None,
    stop_at_layer: int | None = None,
    hooks: HookList = (),
) -> dict[str, Tensor]:
    """Like `run`, but returns the values at the hook points `names`, after `hooks`.

    Raises:
        ValueError: the model does not expose such a state.
    """
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        return lambda value, hook: values.update({name: value.to(tokens.device)})

    reading = [(name, keep(name)) for name in names]
    run(model, tokens, mask=mask, stop_at_layer=stop_at_layer, hooks=[*hooks, *reading])
    check_exposed(model, [name for name in names if name not in values])
    return values


@torch.no_grad()
def embed(model: Model, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """The embeddings of tokens at their hook point (BLOOM norms them, Granite scales them), before positions are added.

    Any number of tokens: a Bridge reads each as a row of its own.
    """
    if not is_bridge(model):
        return model.embed(tokens[None])[0]
    return run_and_read(model, tokens[:, None], [EMBEDDING], stop_at_layer=0)[EMBEDDING][:, 0]


def check_exposed(model: Model, missing: Sequence[str]) -> None:
    """Raises ValueError if a run did not pass some hook points."""
    if missing:
        raise ValueError(
            f"TransformerLens does not show {', '.join(missing)} of {model.cfg.model_name}, a {type(model).__name__}. "
            "Choose another kind of state, or a model of another family."
        )


def run_with_past(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Int[Tensor, "batch pos"] | None = None,
    hooks: HookList = (),
) -> tuple[Float[Tensor, "batch pos d_model"], list[PastState]]:
    """Like `run`, but returns each layer's keys and values as well."""
    mask = torch.ones_like(tokens) if mask is None else mask
    if is_bridge(model):
        residual, pasts = bridge.run_keeping_past(model, tokens, mask=mask, hooks=hooks)
        return residual.to(tokens.device), pasts
    cache = RecordingCache(model, tokens.shape[0])
    with hooked(model, hooks):
        residual = model(
            tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers, past_kv_cache=cache, return_type=None
        )
    return residual.to(tokens.device), [entry.state for entry in cache.entries]  # type: ignore[misc]


def reader(model: Model, rows: int) -> Callable[[Int[Tensor, "batch new"]], Float[Tensor, "batch new d_model"]]:
    """A function that reads rows of tokens piece by piece, with keys and values kept between calls.

    Each call returns the residual stream before the final norm for the piece it gets.
    """
    if is_bridge(model):
        return bridge.reader(model)
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)
    end = model.cfg.n_layers
    return lambda new: model(
        new, attention_mask=torch.ones_like(new), past_kv_cache=cache, stop_at_layer=end, return_type=None
    )


def run_blocks(
    model: Model,
    residual: Float[Tensor, "batch pos d_model"],
    start: int,
    stop: int,
    *,
    past: Mapping[int, PastState] | None = None,
    mask: Int[Tensor, "batch past_and_pos"] | None = None,
    hooks: HookList = (),
) -> Float[Tensor, "batch pos d_model"]:
    """Runs blocks `start` to `stop` (exclusive) on residual states whose earlier positions, if any, are in `past`.

    `mask` is 0 where `past` is left-padded or `residual` is right-padded. Differentiable.
    """
    with hooked(model, hooks):
        if is_bridge(model):
            return bridge.run_part(model, residual, start, stop, past=past, mask=mask).to(residual.device)
        for layer in range(start, stop):
            residual = run_block(model, residual, layer, past=None if past is None else past[layer], mask=mask)
    return residual


@torch.no_grad()
def extend_past(
    model: Model,
    residual: Float[Tensor, "batch pos d_model"],
    past: Mapping[int, PastState],
    mask: Int[Tensor, "batch past_and_pos"],
) -> dict[int, PastState]:
    """The past with further positions: keys and values of the blocks in it, which are those from one to the last.

    `residual` is the stream before the first of these blocks. `mask` is as in `run_blocks`.
    """
    if not past:
        return {}
    if is_bridge(model):
        return bridge.extend_past(model, residual, past, mask)
    growing = {layer: GrowingPast(state.past_keys, state.past_values) for layer, state in past.items()}
    run_blocks(model, residual, min(past), model.cfg.n_layers, past=growing, mask=mask)
    return {layer: state.grown[0] for layer, state in growing.items()}


def run_block(
    model: Model,
    residual: Float[Tensor, "batch pos d_model"],
    layer: int,
    *,
    past: PastState | None = None,
    mask: Int[Tensor, "batch past_and_pos"] | None = None,
    last: int | None = None,
) -> Float[Tensor, "batch last d_model"]:
    """Runs one block like `run_blocks`, and returns its `last` positions (None: all).

    A block of the usual kind norms the input of attention once instead of three times, and computes nothing but keys
    and values at the other positions.
    """
    width = residual.shape[1]
    last = width if last is None else last
    pasts = None if past is None else {layer: past}
    if is_bridge(model):
        return run_blocks(model, residual, layer, layer + 1, past=pasts, mask=mask)[:, -last:]
    block = model.blocks[layer]
    if not _is_usual(block):
        cache: Any = pasts
        whole = model(
            residual,
            start_at_layer=layer,
            stop_at_layer=layer + 1,
            past_kv_cache=cache,
            attention_mask=mask,
            return_type=None,
        )
        return whole[:, -last:].to(residual.device)
    residual = block.hook_resid_pre(residual)
    normed, before = block.ln1(residual), residual[:, -last:]
    attention = block.attn(
        query_input=normed[:, -last:],
        key_input=normed,
        value_input=normed,
        past_kv_cache_entry=past if last == width else SkippedQueries(past, width - last),
        attention_mask=mask,
    )
    attention = block.hook_attn_out(attention)
    if block.cfg.parallel_attn_mlp:
        return block.hook_resid_post(before + attention + block.apply_mlp(block.ln2(before)))
    middle = block.hook_resid_mid(before + attention)
    return block.hook_resid_post(middle + block.apply_mlp(block.ln2(middle)))


def _is_usual(block: Any) -> bool:
    """Whether it has one norm before attention, one before the MLP, none after, and one input for all heads."""
    from transformer_lens.components import TransformerBlock

    cfg = block.cfg
    split = cfg.use_attn_in or cfg.use_split_qkv_input or cfg.use_hook_mlp_in or cfg.n_devices > 1
    kind = isinstance(block, TransformerBlock) and not cfg.attn_only and not norms_after_mlp(block)
    return kind and not split and cfg.positional_embedding_type != "shortformer"


def check_finite(model: Model, scores: Float[Tensor, "n d_vocab"], rows: Sequence[Sequence[int]]) -> None:
    """Raises NotFiniteError if logits are NaN or infinite; `rows` are the token rows that they come from.

    A logit may be minus infinity, for a token that the model rules out.
    """
    bad = ~scores.amax(-1).isfinite()
    if bad.any():
        row = int(bad.nonzero()[0])
        text = model.tokenizer.decode(list(rows[row])) if model.tokenizer else list(rows[row])
        raise NotFiniteError(
            f"The logits of {model.cfg.model_name} are NaN or infinite in row {row} of {len(scores)} ({text!r:.80}). "
            "Check the model's weights and its edits, or load the model in float32."
        )


def logits(model: Model, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """The logits, in float32, of residual states after the last block: pass only the positions that are needed."""
    if is_bridge(model):
        return bridge.final_logits(model, residual).float().to(residual.device)
    states = residual[None].to(model.unembed.W_U.device)
    if model.cfg.normalization_type is not None:
        states = model.ln_final(states)
    return apply_softcap(model.unembed(states), model.cfg.output_logits_soft_cap)[0].float().to(residual.device)


def mlp_keys(
    model: Model, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos d_mlp"]]:
    """The MLP's inner activations at every position, for each layer, in the model's dtype."""
    device = model.cfg.device
    names = {layer: key_name(layer) for layer in layers}
    read = run_and_read(
        model, tokens.to(device), list(names.values()), mask=mask.to(device), stop_at_layer=max(layers) + 1
    )
    return {layer: read[name] for layer, name in names.items()}
