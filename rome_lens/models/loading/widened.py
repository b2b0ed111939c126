"""Running a model in half precision as if it were in float32, a block at a time.

In half precision the roundings of a right conversion are as large as the faults of a wrong one. In float32 the two are
far apart; and only the block that runs holds float32 copies of its weights.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rome_lens.calling import modules_of

HALF = (torch.float16, torch.bfloat16)


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
        for unit in _units(model):
            stack.enter_context(_widened_as_it_runs(unit))
        yield


def _units(model: nn.Module) -> list[nn.Module]:
    """The blocks; and outside of them, the modules that have weights of their own, and a Bridge's around these."""
    blocks = [block for module in modules_of(model) if isinstance(module, nn.ModuleList) for block in module]
    inside = {inner for block in blocks for inner in block.modules() if inner is not block}
    outside = [m for m in modules_of(model) if m not in inside and (m._parameters or hasattr(m, "original_component"))]
    return list(dict.fromkeys([block for block in blocks if block not in inside] + outside))


@contextmanager
def _widened_as_it_runs(unit: nn.Module) -> Iterator[None]:
    swapped: list[tuple[Tensor, Tensor]] = []

    def widen(module: nn.Module, args: Any) -> None:
        for weight in (*module.parameters(), *module.buffers()):  # TransformerLens 4 has biases that are buffers
            if weight.dtype in HALF:
                swapped.append((weight, weight.data))
                weight.data = weight.data.float()

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
