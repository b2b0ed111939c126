"""Running a model in half precision as if it were in float32, a block at a time.

In half precision the roundings of a right conversion are as large as the faults of a wrong one. In float32 the two are
far apart; and only the block that runs holds float32 copies of its weights. Of a large table of embeddings these are
the rows that are looked up, and of a large unembedding a part of the vocabulary at a time.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rome_lens.calling import modules_of

HALF = (torch.float16, torch.bfloat16)

_LARGE = 1 << 24  # numbers of a matrix that is not copied as a whole
_ROWS = 1 << 14  # of a vocabulary, at a time


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes in float32 with the weights that it has; afterwards all of it is as it was."""
    with ExitStack() as stack:
        for cfg in {id(module.cfg): module.cfg for module in modules_of(model) if hasattr(module, "cfg")}.values():
            if getattr(cfg, "dtype", None) in HALF:
                stack.callback(setattr, cfg, "dtype", cfg.dtype)
                cfg.dtype = torch.float32
        for module in modules_of(model):
            if hasattr(module, "rotary_sin") and module.rotary_sin.dtype in HALF:
                stack.enter_context(_rotating_in_float32(module))
        units = _units(model)
        in_parts = [unit for unit in units if _is_large_unembedding(unit)]
        for unit in in_parts:
            stack.enter_context(_unembedding_in_parts(unit))
        apart = {id(_vocabulary(unit)) for unit in in_parts}
        for unit in units:
            stack.enter_context(_widened_as_it_runs(unit, apart))
        yield


def _units(model: nn.Module) -> list[nn.Module]:
    """The blocks; and outside of them, the modules that have weights of their own, and a Bridge's around these."""
    blocks = [block for module in modules_of(model) if isinstance(module, nn.ModuleList) for block in module]
    inside = {inner for block in blocks for inner in block.modules() if inner is not block}
    outside = [m for m in modules_of(model) if m not in inside and (m._parameters or hasattr(m, "original_component"))]
    return list(dict.fromkeys([block for block in blocks if block not in inside] + outside))


def _vocabulary(unit: Any) -> nn.Parameter | None:
    """The matrix of an unembedding: W_U, or a linear layer's `weight`. None: it is another module."""
    return unit._parameters.get("weight" if type(unit) is nn.Linear else "W_U")


def _is_large_unembedding(unit: nn.Module) -> bool:
    matrix = _vocabulary(unit)
    return matrix is not None and matrix.dtype in HALF and matrix.numel() >= _LARGE


@contextmanager
def _unembedding_in_parts(unit: Any) -> Iterator[None]:
    matrix: Any = _vocabulary(unit)
    hooked = type(unit) is not nn.Linear

    def forward(states: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        rows, bias = (matrix.T, unit.b_U) if hooked else (matrix, unit.bias)
        logits = torch.cat([nn.functional.linear(states, part.float()) for part in rows.split(_ROWS)], dim=-1)
        return logits if bias is None else logits + bias

    unit.__dict__["forward"] = forward
    try:
        yield
    finally:
        del unit.__dict__["forward"]


@contextmanager
def _widened_as_it_runs(unit: nn.Module, apart: set[int]) -> Iterator[None]:
    """Inside, the unit's weights are float32 while it runs, but for those of `apart`."""
    swapped: list[tuple[Tensor, Tensor]] = []

    def widen(module: nn.Module, args: Any) -> Any:
        ids = args[0] if len(args) == 1 and isinstance(args[0], Tensor) and not args[0].is_floating_point() else None
        for weight in (*module.parameters(), *module.buffers()):  # TransformerLens 4 has biases that are buffers
            if weight.dtype not in HALF:
                continue
            data = weight.data
            if ids is not None and data.ndim == 2 and data.numel() >= _LARGE:  # of a table the rows that are looked up
                chosen, ids = ids.unique(return_inverse=True)
                args, data = (ids,), data[chosen]
            elif id(weight) in apart:
                continue
            swapped.append((weight, weight.data))
            weight.data = data.float()
        return args

    def narrow(*_: Any) -> None:
        while swapped:
            weight, data = swapped.pop()
            weight.data = data

    handles = [unit.register_forward_pre_hook(widen), unit.register_forward_hook(narrow)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        narrow()


@contextmanager
def _rotating_in_float32(attention: Any) -> Iterator[None]:
    """HookedTransformer keeps the rotation's sines and cosines in the model's dtype: inside, they are made anew."""
    before = attention.rotary_sin, attention.rotary_cos
    attention._extend_rotary_embeddings(len(attention.rotary_sin))
    try:
        yield
    finally:
        attention.rotary_sin, attention.rotary_cos = before
