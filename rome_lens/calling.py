"""Keeps torch's global settings, and the models' training mode, from changing what the package computes."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import isgeneratorfunction, unwrap
from typing import Any

import torch
from torch import nn

_DEFAULT = torch.device("cpu")  # torch's own, while nobody has set another

before_each_call: list[Callable[[], None]] = []
"""Called first in every public call: finishes what an interrupted earlier one had to leave."""


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Inside, torch has its default settings and the models are in evaluation mode; afterwards all is as before.

    That concerns inference mode, autocast, a default dtype other than float32 and a default device other than the CPU
    (the default dtype is shared by all threads). Each module of a model goes back to its own mode.
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


@contextmanager
def undrawn() -> Iterator[None]:
    """Keeps Python's random numbers from those libraries that draw some while they are imported."""
    drawn = random.getstate()
    try:
        yield
    finally:
        random.setstate(drawn)


def undisturbed_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run `undisturbed` with the models among its arguments in evaluation mode.

    A context manager is entered and left `undisturbed`; its body runs with the caller's settings.
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
    """The type of torch's accelerator on this machine, if any."""
    found = torch.accelerator.current_accelerator()
    return [] if found is None else [found.type]


def _prepare() -> None:
    for prepare in before_each_call:
        prepare()


def _models(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    values = (*args, *kwargs.values())
    return [value for value in values if isinstance(value, nn.Module) and hasattr(value, "hook_dict")]


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """All modules once. The model that a TransformerBridge wraps is not among its children."""
    waiting, seen = [model, *filter(None, [vars(model).get("original_model")])], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(module.children())
            yield module
