"""The one room that knows TransformerLens' own names: hook points, weights, BOS, key/value caches.

The rest of the package asks this module for what it needs in the field's words (residual state, MLP output, key), and
gets plain tensors back.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.components import TransformerBlock
from transformer_lens.components.mlps.gated_mlp import GatedMLP
from transformer_lens.utilities.activation_functions import apply_softcap

Kind = Literal["resid", "mlp", "attn", "head"]
Hook = Callable[..., Tensor | None]
HookList = Sequence[tuple[str, Hook]]

EMBEDDING = "hook_embed"


def state_name(kind: Kind, layer: int) -> str:
    """The hook point of the states that tracing restores: the block's output, its MLP's, its attention's, its heads'.

    The first three have shape [batch, pos, d_model]; "mlp" and "attn" are what is added to the residual stream. Heads
    are taken before the output matrix, [batch, pos, head, d_head]: each head's output is a linear function of that.
    """
    names = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out", "head": "attn.hook_z"}
    return f"blocks.{layer}.{names[kind]}"


def input_name(layer: int) -> str:
    """The hook point of the residual stream before a block, [batch, pos, d_model]."""
    return f"blocks.{layer}.hook_resid_pre"


def key_name(layer: int) -> str:
    """The hook point of the MLP's inner activations, [batch, pos, d_mlp]: the keys of paper section 3.1."""
    return f"blocks.{layer}.mlp.hook_post"


def output_matrix_name(layer: int) -> str:
    """The parameter's name of the MLP output matrix that `output_matrix` gives."""
    return f"blocks.{layer}.mlp.W_out"


def check_layer(model: HookedTransformer, layer: int) -> None:
    """Raises ValueError unless `layer` is the number of one of the model's blocks."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer is {layer!r}, expected an int from 0 to {model.cfg.n_layers - 1}.")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer is {layer}, but {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}.")


def architecture_digest(model: HookedTransformer) -> str:
    """SHA-256 of the model's sizes and kind: the same for every fine-tuned, folded or half-precision copy."""
    cfg = model.cfg
    sizes = [cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_vocab]
    kinds = [cfg.original_architecture, cfg.act_fn, cfg.gated_mlp, cfg.parallel_attn_mlp]
    return hashlib.sha256(json.dumps([sizes, kinds]).encode()).hexdigest()


def output_matrix(model: HookedTransformer, layer: int) -> nn.Parameter:
    """The MLP output matrix that ROME rewrites, [d_mlp, d_model]: the parameter itself, not a stacked copy.

    Raises:
        ValueError: no such layer, or the block has no single MLP output matrix (mixture of experts, attention only).
    """
    check_layer(model, layer)
    weight = getattr(getattr(model.blocks[layer], "mlp", None), "W_out", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != (model.cfg.d_mlp, model.cfg.d_model):
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single MLP output matrix [d_mlp, d_model] to edit "
            "(a mixture of experts, an attention-only or a quantized model). Use a dense, unquantized model."
        )
    return weight


@contextmanager
def kept_output_matrix(model: HookedTransformer, layer: int) -> Iterator[Float[Tensor, "d_mlp d_model"]]:
    """Gives a copy of the MLP output matrix, which is written back at the end, whatever the body did or raised."""
    weight = output_matrix(model, layer)
    original = weight.detach().clone()
    try:
        yield original
    finally:
        with torch.no_grad():
            weight.copy_(original)


def mlp_output(model: HookedTransformer, layer: int, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_model"]:
    """What the MLP of `layer` answers to a key, in float32: key @ W_out + b_out."""
    bias = model.blocks[layer].mlp.b_out.detach().float()
    return key.float() @ output_matrix(model, layer).detach().float() + bias


def mlp_contribution(
    model: HookedTransformer, layer: int, output: Float[Tensor, "*n d_model"]
) -> Float[Tensor, "*n d_model"]:
    """What the block adds to the residual stream for an MLP output: the output itself, or normed (Gemma 2, OLMo 2)."""
    states = output[(None,) * max(0, 3 - output.ndim)]  # norms take [batch, pos, d_model]
    for post_norm in _norms_after_mlp(model.blocks[layer]):
        states = post_norm(states)
    return states.reshape(output.shape)


def contribution_change(
    model: HookedTransformer,
    layer: int,
    output: Float[Tensor, "*n d_model"],
    change: Float[Tensor, "*n d_model"],
) -> Float[Tensor, "*n d_model"]:
    """How much more the block adds to the residual stream if its MLP puts out `output + change`, not `output`."""
    before = mlp_contribution(model, layer, output)
    return mlp_contribution(model, layer, output + change) - before


def norms_mlp_output(model: HookedTransformer, layer: int) -> bool:
    """Whether the block norms what its MLP puts out, so that a change of it is not simply added."""
    return bool(_norms_after_mlp(model.blocks[layer]))


def adds_mlp_output(model: HookedTransformer, layer: int) -> bool:
    """Whether the block adds its MLP's output to the residual stream as it is, not normed."""
    return not _norms_after_mlp(model.blocks[layer])


def _norms_after_mlp(block: Any) -> list[nn.Module]:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    norms = [block.ln2_post] if block.cfg.use_normalization_before_and_after else []
    return norms + ([block.ln2] if block.cfg.original_architecture in POST_NORM_ARCHITECTURES else [])


def embeddings(model: HookedTransformer) -> Float[Tensor, "d_vocab d_model"]:
    """The token embedding matrix."""
    return model.embed.W_E.detach()


def embed(model: HookedTransformer, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """What the embedding layer makes of tokens, before any positional embedding is added."""
    return model.embed(tokens[None])[0]


def bos_token(model: HookedTransformer) -> list[int]:
    """The ids that the model's own tokenisation puts before a text: one BOS id, or none (`cfg.default_prepend_bos`)."""
    return [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []


@contextmanager
def frozen(model: HookedTransformer) -> Iterator[None]:
    """No parameter asks for a gradient inside; afterwards each asks as it did before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@dataclass(frozen=True)
class PastState:
    """Keys and values of earlier positions at one layer, as HookedTransformer caches them.

    A run may have a multiple of these rows: the rows are then repeated as one block after the other.
    """

    past_keys: Float[Tensor, "batch past kv_heads d_head"]
    past_values: Float[Tensor, "batch past kv_heads d_head"]

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Past and new along the positions; nothing is kept (the interface of TransformerLens' cache entry)."""
        return self._joined(self.past_keys, new_keys), self._joined(self.past_values, new_values)

    def upto(self, position: int) -> "PastState":
        """The positions before `position`."""
        return PastState(self.past_keys[:, :position], self.past_values[:, :position])

    @staticmethod
    def _joined(past: Tensor, new: Tensor) -> Tensor:
        if not past.shape[1]:
            return new
        blocks = new.unflatten(0, (-1, len(past)))
        return torch.cat([past.expand(len(blocks), *past.shape), blocks], dim=2).flatten(0, 1)


@dataclass
class _Recorder:
    """Stands in for an empty cache entry and keeps what a run appends."""

    past_keys: Tensor
    past_values: Tensor
    state: PastState | None = None

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        self.state = PastState(new_keys, new_values)
        return new_keys, new_values


class _RecordingCache:
    """What HookedTransformer.forward asks of a key/value cache, for a run that starts at the first position."""

    def __init__(self, model: HookedTransformer, batch: int):
        cfg = model.cfg
        heads = cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads
        empty = torch.empty(batch, 0, heads, cfg.d_head, dtype=cfg.dtype)
        self.entries = [_Recorder(empty, empty) for _ in range(cfg.n_layers)]

    def __getitem__(self, layer: int) -> _Recorder:
        return self.entries[layer]

    def append_attention_mask(self, mask: Tensor) -> Tensor:
        return mask


def run(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Int[Tensor, "batch pos"] | None = None,
    stop_at_layer: int | None = None,
    hooks: HookList = (),
) -> Float[Tensor, "batch pos d_model"]:
    """Runs tokens as they are, right-padded where `mask` is 0, and gives the residual stream before the final norm.

    `stop_at_layer` (exclusive) leaves out later blocks.
    """
    mask = torch.ones_like(tokens) if mask is None else mask
    stop = model.cfg.n_layers if stop_at_layer is None else stop_at_layer
    with model.hooks(fwd_hooks=list(hooks)):
        return model(tokens, attention_mask=mask, stop_at_layer=stop, return_type=None)


def run_and_read(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    names: Sequence[str],
    *,
    mask: Int[Tensor, "batch pos"] | None = None,
    stop_at_layer: int | None = None,
    hooks: HookList = (),
) -> dict[str, Tensor]:
    """Like `run`, but gives what passes the hook points `names`, as `hooks` leave it."""
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        return lambda value, hook: values.update({name: value})

    reading = [(name, keep(name)) for name in names]
    run(model, tokens, mask=mask, stop_at_layer=stop_at_layer, hooks=[*hooks, *reading])
    return values


def run_with_past(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Int[Tensor, "batch pos"] | None = None,
    hooks: HookList = (),
) -> tuple[Float[Tensor, "batch pos d_model"], list[PastState]]:
    """Like `run`, and gives each layer's keys and values as well."""
    cache = _RecordingCache(model, tokens.shape[0])
    mask = torch.ones_like(tokens) if mask is None else mask
    with model.hooks(fwd_hooks=list(hooks)):
        residual = model(
            tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers, past_kv_cache=cache, return_type=None
        )
    return residual, [entry.state for entry in cache.entries]  # type: ignore[misc]


def run_blocks(
    model: HookedTransformer,
    residual: Float[Tensor, "batch pos d_model"],
    start: int,
    stop: int,
    *,
    past: Mapping[int, PastState] | None = None,
    mask: Int[Tensor, "batch past_and_pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Runs blocks `start` to `stop` (exclusive) on residual states whose earlier positions, if any, are in `past`.

    `mask` is 0 where `past` is left-padded or `residual` is right-padded. Differentiable.
    """
    cache: Any = past
    return model(
        residual, start_at_layer=start, stop_at_layer=stop, past_kv_cache=cache, attention_mask=mask, return_type=None
    )


@dataclass(frozen=True)
class _Continued:
    """Stands in for a cache entry in a block whose first new positions ask nothing."""

    past: PastState
    unasked: int

    @property
    def past_keys(self) -> Tensor:
        """Attention reads off these only how many positions come before the first query."""
        return torch.empty(1, self.past.past_keys.shape[1] + self.unasked, device="meta")

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        return self.past.append(new_keys, new_values)


def run_block(
    model: HookedTransformer,
    residual: Float[Tensor, "batch pos d_model"],
    layer: int,
    *,
    past: PastState,
    last: int | None = None,
) -> Float[Tensor, "batch last d_model"]:
    """Runs one block as `run_blocks` does, and gives its `last` positions (None: all).

    A block of the usual kind computes only keys and values of the other positions, and norms attention's input once.
    """
    block = model.blocks[layer]
    last = residual.shape[1] if last is None else last
    if not _is_usual(block):
        return run_blocks(model, residual, layer, layer + 1, past={layer: past})[:, -last:]
    residual = block.hook_resid_pre(residual)
    normed, asked = block.ln1(residual), residual[:, -last:]
    attention = block.attn(
        query_input=normed[:, -last:],
        key_input=normed,
        value_input=normed,
        past_kv_cache_entry=_Continued(past, residual.shape[1] - last),
    )
    attention = block.hook_attn_out(attention)
    if block.cfg.parallel_attn_mlp:
        return block.hook_resid_post(asked + attention + block.apply_mlp(block.ln2(asked)))
    middle = block.hook_resid_mid(asked + attention)
    return block.hook_resid_post(middle + block.apply_mlp(block.ln2(middle)))


def _is_usual(block: Any) -> bool:
    """One norm before attention, one before the MLP, none after, no input of its own for each head, on one device."""
    cfg = block.cfg
    split = cfg.use_attn_in or cfg.use_split_qkv_input or cfg.use_hook_mlp_in or cfg.n_devices > 1
    kind = isinstance(block, TransformerBlock) and not cfg.attn_only and not _norms_after_mlp(block)
    return kind and not split and cfg.positional_embedding_type != "shortformer"


def logits(model: HookedTransformer, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """The logits, in float32, of residual states after the last block: only for the positions that are needed."""
    states = residual[None]
    if model.cfg.normalization_type is not None:
        states = model.ln_final(states)
    return apply_softcap(model.unembed(states), model.cfg.output_logits_soft_cap)[0].float()


def sample_tokens(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    new_tokens: int,
    seed: int,
    top_k: int | None = None,
) -> Int[Tensor, "batch pos_and_new"]:
    """Equally long token rows, each with a sampled continuation. Torch's random state is put back."""
    device = tokens.device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        return model.generate(
            tokens, max_new_tokens=new_tokens, top_k=top_k, stop_at_eos=False, verbose=False, return_type="tokens"
        )


def sample_text(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    new_tokens: int,
    seed: int,
    top_k: int | None = None,
) -> list[str]:
    """What `sample_tokens` appends, as texts without special tokens."""
    sampled = sample_tokens(model, tokens, new_tokens=new_tokens, seed=seed, top_k=top_k)
    return model.tokenizer.batch_decode(sampled[:, tokens.shape[1] :], skip_special_tokens=True)


def optimize_layout(model: HookedTransformer) -> HookedTransformer:
    """Stores the weights in the order in which HookedTransformer reads them, and gives the same model back.

    HookedTransformer copies W_in, W_gate, W_out (gated MLPs), W_U and the attention matrices into another memory order
    at every call; stored in that order to begin with, the copies become views. Values, shapes, parameters and
    `state_dict` stay as they are; only strides change. A model that does not copy (TransformerBridge) is left alone.
    """
    if not isinstance(model, HookedTransformer):
        return model
    _store(model.unembed.W_U, (1, 0))
    for block in model.blocks:
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            _store(dict(block.attn.named_parameters(recurse=False)).get(name), (0, 2, 1))
        _store(block.attn.W_O, (2, 0, 1))
        if isinstance(getattr(block, "mlp", None), GatedMLP):
            for weight in (block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out):
                _store(weight, (1, 0))
    return model


def _store(weight: Tensor | None, order: tuple[int, ...]) -> None:
    """Makes `weight.permute(order)` contiguous. A quantized weight has another number of axes and is left alone."""
    if weight is not None and weight.ndim == len(order) and weight.is_floating_point():
        back = tuple(order.index(axis) for axis in range(len(order)))
        weight.data = weight.data.permute(order).contiguous().permute(back)
