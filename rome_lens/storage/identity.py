"""What work depends on, as plain values that can be stored and compared."""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import unwrap
from numbers import Integral, Real
from os import PathLike, fspath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rome_lens.errors import FormatError
from rome_lens.storage.tensors import digest

_MOST_SHOWN = 100


def plain(value: Any, *, _within: tuple[int, ...] = ()) -> Any:
    """A value as JSON: equal for two values that were made alike, different where a setting or a number differs.

    A dataclass or another object becomes its class and its fields (but for those of a dataclass that are not compared:
    `field(compare=False)`), a tensor or an array its digest, a partial its function and arguments. A function becomes
    the place where it is defined and the configurations (frozen dataclasses) that it uses from its closure or module.
    The rest of its code, such as a number in a lambda, is not compared.
    """
    if id(value) in _within:
        return "itself"
    inner = partial(plain, _within=(*_within, id(value)))
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, np.ndarray | np.generic):
        return inner(torch.from_numpy(np.asarray(value))) if value.dtype.kind in "biuf" else inner(value.tolist())
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest(value)}
    if isinstance(value, partial):
        given = dict(enumerate(value.args)) | value.keywords
        return {"function": inner(value.func), **{str(name): inner(each) for name, each in given.items()}}
    if isinstance(value, MethodType):
        return {"function": _name(value), "of": inner(value.__self__)}
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        configs = {name: inner(config) for name, config in _configs(value).items()}
        return {"function": _name(value), **configs} if configs else _name(value)
    if isinstance(value, nn.Module):
        return {"class": _name(type(value)), **{name: inner(each) for name, each in value.state_dict().items()}}
    if isinstance(value, Mapping):
        return {str(name): inner(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [inner(each) for each in value]
    if isinstance(value, Set):
        return sorted((inner(each) for each in value), key=json.dumps)
    if is_dataclass(value):
        names = [each.name for each in fields(value) if each.compare]
    else:
        names = sorted(getattr(value, "__dict__", {}))
    return {"class": _name(type(value)), **{name: inner(getattr(value, name)) for name in names}}


def check_same(place: object, begun: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises FormatError unless each given value is the one that the work in `place` was begun with."""
    before: dict[str, Any] = {}
    now: dict[str, Any] = {}
    for name in given:
        _compare(name, begun.get(name), json.loads(json.dumps(given[name])), before, now)
    if now:
        raise FormatError(
            f"{place} was begun with {before}, but {now} was given. Choose another folder, or give what this one was "
            "begun with (a model with its edits reverted)."
        )


def _compare(name: str, begun: Any, given: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Enters the differences into `before` and `now`, by the dotted name of the innermost value."""
    if isinstance(begun, dict) and isinstance(given, dict):
        for key in {**begun, **given}:
            _compare(f"{name}.{key}", begun.get(key), given.get(key), before, now)
    elif json.dumps(begun) != json.dumps(given):
        before[name], now[name] = _shown(begun), _shown(given)


def _shown(value: Any) -> Any:
    return value if len(text := repr(value)) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _name(thing: Callable[..., Any]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _configs(function: Callable[..., Any]) -> dict[str, Any]:
    """The frozen dataclasses that a function uses from its closure or its module, by name."""
    function = unwrap(function)
    if not isinstance(function, FunctionType):
        return {}
    code = function.__code__
    around = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            around[name] = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    return {
        name: value
        for name, value in sorted(around.items())
        if is_dataclass(value) and not isinstance(value, type) and vars(type(value))["__dataclass_params__"].frozen
    }
