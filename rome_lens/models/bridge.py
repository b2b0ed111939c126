"""Running all or part of a TransformerBridge, which is Hugging Face's model with hook points put into it.

Hugging Face's code goes through all blocks and knows nothing of a start or an end, and what it hands to each block
(masks, rotations) is its own affair. So a part of the model is run as a pass over the whole of it, in which the blocks
before the part are passed over, the residual stream is replaced where the part begins, and the pass is left where it
ends. That costs what the part costs.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from rome_lens.models.hook_points import HookList
from rome_lens.models.kinds import Model
from rome_lens.models.kv_cache import PastState


class _Arrived(Exception):
    """The pass has come to where it is to be left."""

    def __init__(self, residual: Tensor):
        self.residual = residual


def run_tokens(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    stop: int,
    *,
    mask: Int[Tensor, "batch past_and_pos"],
    hooks: HookList = (),
    cache: DynamicCache | None = None,
    start: int = 0,
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream before block `stop`; or before the final norm, if there is no such block.

    The blocks from `start` on add their keys and values to the cache.
    """

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _Arrived(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        stack.callback(_let_go_of_patterns, model)
        stack.callback(_place(model, stop).register_forward_pre_hook(leave, with_kwargs=True).remove)
        if hooks:  # adding none takes time too
            stack.enter_context(model.hooks(fwd_hooks=list(hooks)))
        given: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            stack.enter_context(finding_the_cache(model, range(start, stop)))
            given = {"use_cache": True, _cache_name(type(model.original_model)): cache}
        try:
            model(tokens, attention_mask=mask, **given)
        except _Arrived as arrived:
            if cache is not None:
                _check_filled(cache, range(start, stop), mask.shape[1])
            return arrived.residual
    raise RuntimeError(f"A pass through {model.cfg.model_name} does not come to its layer {stop}.")


def run_part(
    model: Model,
    residual: Float[Tensor, "batch pos d_model"],
    start: int,
    stop: int,
    *,
    past: Mapping[int, PastState] | None = None,
    mask: Int[Tensor, "batch past_and_pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Blocks `start` to `stop` (exclusive) on residual states whose earlier positions are in `past`."""
    if start == stop:
        return residual
    earlier = next(iter(past.values())).past_keys.shape[1] if past else 0
    tokens = _no_tokens(residual)
    mask = tokens.new_ones(len(tokens), earlier + tokens.shape[1]) if mask is None else mask
    cache = _filled(past, range(start, stop), len(tokens)) if past and earlier else None
    with _entering(model, residual, start):
        return run_tokens(model, tokens, stop, mask=mask, cache=cache, start=start)


def run_keeping_past(
    model: Model, tokens: Int[Tensor, "batch pos"], *, mask: Int[Tensor, "batch pos"], hooks: HookList
) -> tuple[Float[Tensor, "batch pos d_model"], list[PastState]]:
    """Like `run_tokens` through all blocks, and gives each layer's keys and values as well."""
    cache = DynamicCache()
    residual = run_tokens(model, tokens, model.cfg.n_layers, mask=mask, hooks=hooks, cache=cache)
    return residual, [PastState(kept.keys.transpose(1, 2), kept.values.transpose(1, 2)) for kept in cache.layers]


def reader(model: Model) -> Callable[[Int[Tensor, "batch new"]], Float[Tensor, "batch new d_model"]]:
    """Reads rows of tokens piece by piece, as `run_tokens` reads them through all blocks at once."""
    cache = DynamicCache()

    def read(new: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new d_model"]:
        mask = new.new_ones(len(new), cache.get_seq_length() + new.shape[1])
        return run_tokens(model, new, model.cfg.n_layers, mask=mask, cache=cache)

    return read


@contextmanager
def finding_the_cache(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """Inside, the attention of these blocks finds the cache of a pass under the name by which it looks for it.

    TransformerLens' own attention (up to 4.3 at least) asks for `past_key_values`, where transformers 5.24 hands down
    `cache`: it would neither read the past nor keep anything. Hugging Face's attention warns of a second name.
    """

    def at_the_door(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"cache" if name == "past_key_values" else name: value for name, value in kwargs.items()}

    def for_transformer_lens(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"past_key_values": kwargs["cache"], **kwargs} if "cache" in kwargs else kwargs

    with ExitStack() as stack:
        if _cache_name(type(model.original_model)) == "cache":
            attentions = [getattr(model.blocks[layer], "attn", None) for layer in layers]
            hooked = [(model.original_model, at_the_door), *((each, for_transformer_lens) for each in attentions)]
            hooked += [(getattr(each, "original_component", None), at_the_door) for each in attentions]
            for module, hook in hooked:
                if module is not None:
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _cache_name(kind: type[nn.Module]) -> str:
    """What the forward of a class of Hugging Face's calls its cache: `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def _check_filled(cache: DynamicCache, layers: Sequence[int], length: int) -> None:
    """Raises RuntimeError unless the cache has keys and values of so many positions for each of the layers."""
    lengths = [kept.get_seq_length() for kept in cache.layers]
    for layer in layers:
        if (found := lengths[layer] if layer < len(lengths) else 0) != length:
            raise RuntimeError(
                f"The attention of block {layer} kept the keys and values of {found} positions of {length}: "
                f"transformer-lens {version('transformer-lens')} and transformers {version('transformers')} do not "
                "agree on them for this model. Install versions that rome_lens was tested with (docs/models.md)."
            )


def final_logits(model: Model, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """What the model makes of the residual stream after its last block."""
    states = residual[:, None]
    with _entering(model, states, model.cfg.n_layers):
        return model(_no_tokens(states), use_cache=False, return_type="logits")[:, 0]


def _let_go_of_patterns(model: Model) -> None:
    """TransformerLens keeps those of the last pass, reads them never, and with their graph no model can be copied."""
    for block in model.blocks:
        if getattr(attention := getattr(block, "attn", None), "_pattern", None) is not None:
            attention._pattern = None


def _place(model: Model, layer: int) -> nn.Module:
    """What the residual stream before a block, or after the last one, goes into.

    That is the final norm; OPT 350M and GPT-1 have none.
    """
    if layer < model.cfg.n_layers:
        return model.blocks[layer]
    return next(getattr(model, name) for name in ("ln_final", "project_out", "unembed") if hasattr(model, name))


def _no_tokens(residual: Float[Tensor, "batch pos d_model"]) -> Int[Tensor, "batch pos"]:
    """Tokens for a pass that does not get as far as to use them."""
    return torch.zeros(residual.shape[:2], dtype=torch.long, device=residual.device)


def _filled(past: Mapping[int, PastState], layers: Sequence[int], rows: int) -> DynamicCache:
    """Keys and values as Hugging Face's attention reads them: in each row, [head, pos, d_head]."""

    def arranged(values: Tensor) -> Tensor:
        blocks = values.expand(rows // len(values), *values.shape)
        return blocks.flatten(0, 1).transpose(1, 2)

    cache = DynamicCache()
    if layers[0] > 0:  # the first layer's entry is where the length of the past is read
        first = past[layers[0]].past_keys[:1].transpose(1, 2)
        cache.update(first, first, 0)
    for layer in layers:
        cache.update(arranged(past[layer].past_keys), arranged(past[layer].past_values), layer)
    return cache


@contextmanager
def _entering(model: Model, residual: Float[Tensor, "batch pos d_model"], start: int) -> Iterator[None]:
    """Passes come to block `start` (or the final norm) with this residual stream, and run no block before it."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return ((residual, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": residual})

    passed: list[nn.Module] = list(model.blocks)[:start]
    handle = _place(model, start).register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for block in passed:
            block.__dict__["forward"] = lambda *args, **kwargs: residual  # its shape is right, its values are not read
        yield
    finally:
        handle.remove()
        for block in passed:
            block.__dict__.pop("forward", None)
