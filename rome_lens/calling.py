"""What the caller has set for the whole of torch, or for a model, does not change what the package computes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import isgeneratorfunction, unwrap
from typing import Any

import torch
from torch import nn

_DEFAULT = torch.device("cpu")  # torch's own, while nobody has set another

before_each_call: list[Callable[[], None]] = []
"""What is done first in every public call: ending what an earlier one, broken off, had to leave."""


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Inside, torch computes as it does when nobody has set anything, and the models are in evaluation mode.

    Set aside are inference mode, autocast, another default dtype than float32 and another default device than the CPU
    (the default dtype is one for all threads). Afterwards all is as before, and each module of a model in the mode in
    which it was.
    """
    training = [module for model in models for module in modules_of(model) if module.training]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for kind in {_DEFAULT.type, *_accelerators()}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != _DEFAULT:
            stack.enter_context(_DEFAULT)
        for module in training:
            stack.callback(setattr, module, "training", True)
            module.training = False
        yield


def undisturbed_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, `undisturbed`: its arguments that are models with hook points are in evaluation mode.

    Of a context manager, entering and leaving are; the body runs as the caller has set things.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _prepare()
        with undisturbed(*_models(args, kwargs)):
            return function(*args, **kwargs)

    @wraps(function)
    @contextmanager
    def enter(*args: Any, **kwargs: Any) -> Iterator[Any]:
        _prepare()
        models = _models(args, kwargs)
        with undisturbed(*models):
            entered = function(*args, **kwargs)
            value = entered.__enter__()
        try:
            yield value
        except BaseException as error:
            with undisturbed(*models):
                if not entered.__exit__(type(error), error, error.__traceback__):
                    raise
        else:
            with undisturbed(*models):
                entered.__exit__(None, None, None)

    from_generator = isgeneratorfunction(unwrap(function)) and not isgeneratorfunction(function)
    return enter if from_generator else call


def _accelerators() -> list[str]:
    """The kind of accelerator that torch has here, if any."""
    found = torch.accelerator.current_accelerator()
    return [] if found is None else [found.type]


def _prepare() -> None:
    for prepare in before_each_call:
        prepare()


def _models(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    values = (*args, *kwargs.values())
    return [value for value in values if isinstance(value, nn.Module) and hasattr(value, "hook_dict")]


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """All modules once. A TransformerBridge does not count the model that it wraps among its own."""
    waiting, seen = [model, *filter(None, [vars(model).get("original_model")])], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(module.children())
            yield module
