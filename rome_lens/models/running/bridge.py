"""Running all or part of a TransformerBridge, which is Hugging Face's model with hook points in it.

Hugging Face's code always runs all blocks, and prepares what each block gets (masks, rotations) in its own way. So a
part of the model is run as a forward pass in which earlier blocks are skipped, the residual stream is replaced where
the part begins, and an exception leaves the pass where the part ends. It costs what the part costs.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from rome_lens.models.hook_points import HookList, hooked
from rome_lens.models.kinds import Model
from rome_lens.models.running.kv_cache import PastState


class _Arrived(Exception):
    """The forward pass has reached the place where it is to be left."""

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
    """The residual stream before block `stop`; before the final norm, if `stop` is the number of blocks.

    Blocks from `start` to `stop` append their keys and values to the cache.
    """

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _Arrived(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        stack.callback(_let_go_of_patterns, model)
        stack.callback(_place(model, stop).register_forward_pre_hook(leave, with_kwargs=True).remove)
        if hooks:  # even an empty list takes time to add
            stack.enter_context(hooked(model, hooks))
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
    raise RuntimeError(f"A forward pass of {model.cfg.model_name} does not reach its layer {stop}.")


def run_part(
    model: Model,
    residual: Float[Tensor, "batch pos d_model"],
    start: int,
    stop: int,
    *,
    past: Mapping[int, PastState] | None = None,
    mask: Int[Tensor, "batch past_and_pos"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Runs blocks `start` to `stop` (exclusive) on residual states whose earlier positions are in `past`."""
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
    """Runs all blocks like `run_tokens`, and returns each layer's keys and values as well."""
    cache = DynamicCache()
    residual = run_tokens(model, tokens, model.cfg.n_layers, mask=mask, hooks=hooks, cache=cache)
    return residual, [_kept(cache, layer) for layer in range(model.cfg.n_layers)]


def extend_past(
    model: Model,
    residual: Float[Tensor, "batch pos d_model"],
    past: Mapping[int, PastState],
    mask: Int[Tensor, "batch past_and_pos"],
) -> dict[int, PastState]:
    """The keys and values of the blocks in `past`, from one block to the last, for residual states that go on there."""
    layers = range(min(past), model.cfg.n_layers)
    cache = _filled(past, layers, len(residual))
    with _entering(model, residual, layers.start):
        run_tokens(model, _no_tokens(residual), layers.stop, mask=mask, cache=cache, start=layers.start)
    return {layer: _kept(cache, layer) for layer in layers}


def reader(model: Model) -> Callable[[Int[Tensor, "batch new"]], Float[Tensor, "batch new d_model"]]:
    """A function that reads rows of tokens piece by piece, as `run_tokens` does at once."""
    cache = DynamicCache()

    def read(new: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new d_model"]:
        mask = new.new_ones(len(new), cache.get_seq_length() + new.shape[1])
        return run_tokens(model, new, model.cfg.n_layers, mask=mask, cache=cache)

    return read


@contextmanager
def finding_the_cache(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """Inside, `pass_the_cache` holds for these blocks."""
    with ExitStack() as stack:
        for handle in pass_the_cache(model, layers):
            stack.callback(handle.remove)
        yield


def pass_the_cache(model: Model, layers: Sequence[int]) -> list[RemovableHandle]:
    """From now on the attention of these blocks gets the cache under the name that it expects.

    TransformerLens' own attention (up to 4.3 at least) expects `past_key_values`, but transformers 5.24 passes `cache`:
    it would neither read nor store keys and values. Hugging Face's attention warns when it gets both names.
    """
    if _cache_name(type(model.original_model)) != "cache":
        return []
    attentions = [getattr(model.blocks[layer], "attn", None) for layer in layers]
    renamed = [(model.original_model, _for_hugging_face), *((each, _for_transformer_lens) for each in attentions)]
    renamed += [(getattr(each, "original_component", None), _for_hugging_face) for each in attentions]
    return [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in renamed if module is not None]


def _for_hugging_face(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {"cache" if name == "past_key_values" else name: value for name, value in kwargs.items()}


def _for_transformer_lens(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {"past_key_values": kwargs["cache"], **kwargs} if "cache" in kwargs else kwargs


def _cache_name(kind: type[nn.Module]) -> str:
    """The name of the cache in the forward of a Hugging Face class: `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def _check_filled(cache: DynamicCache, layers: Sequence[int], length: int) -> None:
    """Raises RuntimeError unless the cache has keys and values of `length` positions for each of the layers."""
    lengths = [kept.get_seq_length() for kept in cache.layers]
    for layer in layers:
        if (found := lengths[layer] if layer < len(lengths) else 0) != length:
            raise RuntimeError(
                f"The attention of block {layer} kept the keys and values of {found} positions of {length}: "
                f"transformer-lens {version('transformer-lens')} and transformers {version('transformers')} do not "
                "agree on them for this model. Install versions that rome_lens was tested with (docs/models.md)."
            )


def final_logits(model: Model, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """The logits of residual states after the last block."""
    states = residual[:, None]
    with _entering(model, states, model.cfg.n_layers):
        return model(_no_tokens(states), use_cache=False, return_type="logits")[:, 0]


def _let_go_of_patterns(model: Model) -> None:
    """TransformerLens keeps those of the last pass, reads them never, and with their graph no model can be copied."""
    for block in model.blocks:
        attention: Any = getattr(block, "attn", None)
        if getattr(attention, "_pattern", None) is not None:
            attention._pattern = None


def _place(model: Model, layer: int) -> nn.Module:
    """The module that reads the residual stream before a block; after the last one, usually the final norm.

    OPT 350M and GPT-1 have no final norm.
    """
    if layer < model.cfg.n_layers:
        return model.blocks[layer]
    return next(getattr(model, name) for name in ("ln_final", "project_out", "unembed") if hasattr(model, name))


def _no_tokens(residual: Float[Tensor, "batch pos d_model"]) -> Int[Tensor, "batch pos"]:
    """Placeholder tokens, for a pass whose residual stream is replaced."""
    return torch.zeros(residual.shape[:2], dtype=torch.long, device=residual.device)


def _filled(past: Mapping[int, PastState], layers: Sequence[int], rows: int) -> DynamicCache:
    """The cache as Hugging Face's attention reads it: in each row, [head, pos, d_head]."""

    def arranged(values: Tensor) -> Tensor:
        blocks = values.expand(rows // len(values), *values.shape)
        return blocks.flatten(0, 1).transpose(1, 2)

    cache = DynamicCache()
    if layers[0] > 0:  # Hugging Face reads the number of earlier positions from the first layer's entry
        first = past[layers[0]].past_keys[:1].transpose(1, 2)
        cache.update(first, first, 0)
    for layer in layers:
        cache.update(arranged(past[layer].past_keys), arranged(past[layer].past_values), layer)
    return cache


def _kept(cache: DynamicCache, layer: int) -> PastState:
    """What `_filled` puts into a cache, and what a run has appended there."""
    return PastState(cache.layers[layer].keys.transpose(1, 2), cache.layers[layer].values.transpose(1, 2))


@contextmanager
def _entering(model: Model, residual: Float[Tensor, "batch pos d_model"], start: int) -> Iterator[None]:
    """Inside, forward passes begin at block `start` (or the final norm) with this residual stream."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return ((residual, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": residual})

    skipped: list[nn.Module] = list(model.blocks)[:start]
    handle = _place(model, start).register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for block in skipped:
            block.__dict__["forward"] = lambda *args, **kwargs: residual  # only its shape matters
        yield
    finally:
        handle.remove()
        for block in skipped:
            block.__dict__.pop("forward", None)
