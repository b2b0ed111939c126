"""What every public function, constructor and method does first: it compares its arguments with their annotations.

Then it runs `undisturbed` by the caller's settings of torch and the model.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from reprlib import repr as shortened
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from beartype import BeartypeConf
from beartype.door import is_bearable
from torch import Tensor, nn

from rome_lens.calling import undisturbed_call

_CONF = BeartypeConf(is_pep484_tower=True, is_random=False)  # an int is a float; Python's `random` is the caller's
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
_MOST_SEED = 2**32 - 1  # of NumPy's RandomState
T = TypeVar("T", bound=Callable[..., Any])


def checked(thing: T) -> T:
    """Refuses arguments that do not fit their annotations before anything is done (`_check`), then runs `undisturbed`.

    The outermost decorator of a function; or of a class, whose constructor and public methods are then checked. Class
    methods and static methods check their arguments by themselves, and run `undisturbed` as well.
    """
    if not isinstance(thing, type):
        return _checks_arguments(thing)
    for name, method in list(vars(thing).items()):
        if isinstance(method, FunctionType) and (name == "__init__" or not name.startswith("_")):
            setattr(thing, name, _checks_arguments(method))
        elif isinstance(method, classmethod | staticmethod) and not name.startswith("_"):
            setattr(thing, name, type(method)(undisturbed_call(method.__func__)))
    return thing


def check_whole(*, least: int = 1, **numbers: int | None) -> None:
    """Raises ValueError unless each of the numbers is None or a whole number of at least `least`."""
    for name, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{name} is {number!r}, expected a whole number of at least {least}.")


def check_seed(seed: int | None) -> None:
    """Raises ValueError unless `seed` is None or a seed that every random generator takes."""
    if seed is not None and not 0 <= seed <= _MOST_SEED:
        raise ValueError(f"seed is {seed}, expected a whole number from 0 to {_MOST_SEED}.")


def _checks_arguments(function: T) -> T:
    @cache
    def signature() -> inspect.Signature:
        return inspect.signature(function)

    called = undisturbed_call(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature().bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}: {error}. Its arguments are {signature()}.") from None
        for name, value in given.items():
            parameter = signature().parameters[name]
            known = not isinstance(parameter.annotation, str) and parameter.annotation is not parameter.empty
            if known and parameter.kind is not parameter.VAR_KEYWORD:
                _check(name, value, parameter.annotation)
        return called(*args, **kwargs)

    call.is_checked = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _check(name: str, value: object, hint: Any) -> None:
    """Raises TypeError (for a Literal: ValueError) unless the value fits its annotation.

    beartype checks one item of a list, tuple or dict; here it gets each item in turn.
    """
    for shown in (value, *(_items(value) if _has_any_length(hint) else ())):
        if not _fits(shown, hint) or (_takes_numbers(hint) and _has_bool(shown)):
            error = ValueError if "Literal" in str(hint) and isinstance(value, str | list | tuple) else TypeError
            raise error(f"{name} is {_received(value)}, expected {_expected(hint)}.{_way_in(name, value, hint)}")


def _way_in(name: str, value: object, hint: Any) -> str:
    """How to get a model that fits out of what wraps it, to follow an error; "" if there is none."""
    if not isinstance(value, nn.Module):
        return ""
    classes = {kind for module in value.modules() for kind in type(module).__mro__}
    if any(kind.__module__.partition(".")[0] == "peft" for kind in classes):
        return f" It has adapters (PEFT): pass what {name}.merge_and_unload() gives, or load that with load_model."
    if any(kind.__name__.startswith("FullySharded") for kind in classes):
        return " Its weights are in shards: save the whole model with save_pretrained, and load the folder."
    inside = [(f"{name}.{path}".rstrip("."), module) for path, module in value.named_modules()]
    if fitting := [path for path, module in inside if module is not value and _fits(module, hint)]:
        return f" It wraps one: pass {fitting[0]}."
    ours = any(getattr(leaf, "__name__", "") == "HookedTransformer" for leaf in _leaves(hint))
    if ours and (foreign := [path for path, module in inside if hasattr(module, "name_or_path")]):
        return f" Load it: load_model({foreign[0]}, tokenizer=...)."
    return ""


def _fits(value: object, hint: Any) -> bool:
    try:
        return bool(is_bearable(value, hint, conf=_CONF))
    except TypeError:  # beartype asks for the length of a tensor, and one of no dimensions has none
        return False


@cache
def _takes_numbers(hint: Any) -> bool:
    """Whether an annotation is of numbers and of no truth values, which beartype takes for whole numbers."""
    leaves = set(_leaves(hint))
    return bool(leaves & {int, float}) and not leaves & {bool, object, Any}


def _leaves(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (None, Literal, Callable):
        yield hint
    else:
        for inner in get_args(hint):
            yield from _leaves(inner)


def _has_bool(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_bool, value))
    if isinstance(value, dict):
        return any(_has_bool(each) for pair in value.items() for each in pair)
    return isinstance(value, bool)


def _items(value: object) -> Iterator[object]:
    """For each item of a list, tuple or dict with several, a container of the same type with that item alone."""
    if isinstance(value, list | tuple) and len(value) > 1:
        yield from ([item] if isinstance(value, list) else (item,) for item in value)
    elif isinstance(value, dict) and len(value) > 1:
        yield from ({key: item} for key, item in value.items())


@cache
def _has_any_length(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(map(_has_any_length, get_args(hint)))
    one_type = get_origin(hint) is tuple and get_args(hint)[-1:] == (...,)
    return one_type or get_origin(hint) in (Sequence, Iterable, Mapping, list, dict)


def _received(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} in {value.dtype}"
    return shortened(value) if type(value).__module__ == "builtins" else f"a {type(value).__name__}, {shortened(value)}"


def _expected(hint: Any) -> str:
    """An annotation in words."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_expected, parts))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if _has_any_length(hint):
        what = "a dict" if get_origin(hint) in (Mapping, dict) else "a list"
        return f"{what} of {' and '.join(_expected(part) for part in parts if part is not ...)}"
    return _NAMES.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint))
