"""What every public function, constructor and method does first: it compares its arguments with their annotations.

Then it has its turn with the models, undisturbed by the caller's settings and by other threads (`calling`).
"""

import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from reprlib import repr as shortened
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, SupportsFloat, TypeVar, Union, get_args, get_origin

from beartype import BeartypeConf
from beartype.door import is_bearable
from torch import Tensor

from rome_lens.calling import undisturbed_call

_CONF = BeartypeConf(is_pep484_tower=True, is_random=False)  # an int is a float; Python's `random` is the caller's
_NAMES: dict[object, str] = {
    **{str: "a string", int: "a whole number", float: "a number", SupportsFloat: "a number"},
    **{bool: "True or False", NoneType: "None"},
}
_MOST_SEED = 2**32 - 1  # of NumPy's RandomState
_SHOWN = 8  # arguments that an error lists
T = TypeVar("T", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

remedies: dict[type, Callable[[object], str]] = {}
"""For a class, what to write, in Python, for a value given where one of its objects is expected; or ""."""


def checked(thing: T) -> T:
    """Refuses arguments that do not fit their annotations before anything is done, then is an `undisturbed_call`.

    The outermost decorator of a function; or of a class, whose constructor and public methods are then checked. Class
    methods and static methods check their arguments by themselves, and run `undisturbed` as well. A number has to be
    finite as well, but for those of classes that hold what was measured, which are `checked_result`.
    """
    return _checked_class(thing, finite=True) if isinstance(thing, type) else _checks_arguments(thing)


def checked_result(thing: C) -> C:
    """`checked` for a class of results, whose numbers may be NaN or infinite where that is what was found."""
    return _checked_class(thing, finite=False)


def _checked_class(thing: Any, *, finite: bool) -> Any:
    for name, method in list(vars(thing).items()):
        if isinstance(method, FunctionType) and (name == "__init__" or not name.startswith("_")):
            setattr(thing, name, _checks_arguments(method, finite=finite))
        elif isinstance(method, classmethod | staticmethod) and not name.startswith("_"):
            setattr(thing, name, type(method)(undisturbed_call(method.__func__)))
    return thing


def check_whole(*, least: int = 1, **numbers: int | None) -> None:
    """Raises ValueError unless each of the numbers is None or a whole number of at least `least`."""
    for name, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{name} is {number!r}, expected a whole number of at least {least}.")


def check_positive(config: object, *names: str) -> None:
    """Raises ValueError unless these fields of the config are None or above 0, and finite."""
    for name in names:
        if (value := getattr(config, name)) is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, expected a number above 0, and finite.")


def check_least(config: object, **least: int | float) -> None:
    """Raises ValueError unless these fields of the config are None or at least this large."""
    for name, smallest in least.items():
        if (value := getattr(config, name)) is not None and not value >= smallest:
            raise ValueError(f"{name} is {value}, expected at least {smallest}.")


def check_returned(what: str, value: Any, hint: Any, *, least: float = -math.inf, most: float = math.inf) -> Any:
    """What a function of the user's own returned, if it is what was expected of it: the one check of all of them.

    Args:
        what: Names the function: "The judge mine".
        value: What it returned.
        hint: The type that it was to be of. A number, or each number of a mapping, has to be finite.
        least: The least that a number may be.
        most: The most.

    Raises:
        TypeError: It is of another type.
        ValueError: A number is NaN, infinite, or out of range.
    """
    if not _fits(value, hint):
        raise TypeError(f"{what} returned {_received(value)}, expected {_expected(hint)}.")
    for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
        if isinstance(number, SupportsFloat) and not (least <= float(number) <= most and math.isfinite(number)):
            where = f" for {name!r}" if name else ""
            bounds = f" from {least:g} to {most:g}" if math.isfinite(least) else ""
            raise ValueError(f"{what} returned {number!r}{where}, expected a finite number{bounds}.")
    return value


def check_tensor(what: str, value: object, *sizes: int | str) -> Tensor:
    """`check_returned` for a tensor of finite floating-point numbers, of these sizes; a text stands for any size.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == len(sizes) and value.numel():
        alike = all(size in (found, str(size)) for found, size in zip(value.shape, sizes, strict=True))
        if alike and value.isfinite().all():
            return value
    received = _received(value) + (
        " with NaN or infinity" if isinstance(value, Tensor) and not value.isfinite().all() else ""
    )
    shape = f"[{', '.join(map(str, sizes))}]"
    raise ValueError(f"{what} returned {received}, expected a tensor {shape} of finite floating-point numbers.")


def check_seed(seed: int | None) -> None:
    """Raises ValueError unless `seed` is None or a seed that every random generator takes."""
    if seed is not None and not 0 <= seed <= _MOST_SEED:
        raise ValueError(f"seed is {seed}, expected a whole number from 0 to {_MOST_SEED}.")


def _checks_arguments(function: T, *, finite: bool = True) -> T:
    @cache
    def signature() -> inspect.Signature:
        return inspect.signature(function)

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            given = signature().bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(_uncallable(function, signature(), kwargs, error)) from None
        for name, value in given.items():
            parameter = signature().parameters[name]
            known = not isinstance(parameter.annotation, str) and parameter.annotation is not parameter.empty
            if known and parameter.kind is not parameter.VAR_KEYWORD:
                _check(name, value, parameter.annotation)
                wrong = _first(_is_not_finite, value) if finite and _takes_numbers(parameter.annotation) else None
                if wrong is not None:
                    raise ValueError(f"{name} is {wrong}, expected a finite number.")
                is_path = any(get_origin(part) is os.PathLike for part in _parts(parameter.annotation))
                odd = None if is_path else _first(_is_lone, value)
                if odd is not None:
                    raise ValueError(
                        f"{name} is {shortened(odd)}, which holds half a surrogate pair: no character, and nothing a "
                        "tokenizer or a file in UTF-8 can hold. Decode the text anew, or drop it with "
                        "text.encode('utf-8', 'ignore').decode()."
                    )

    call = undisturbed_call(function, check)
    call.is_checked = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _uncallable(
    function: Callable[..., Any], signature: inspect.Signature, kwargs: Mapping[str, Any], error: TypeError
) -> str:
    """Why a call does not fit a signature: the wrong keyword and the nearest of the right ones, and a short list."""
    name = function.__qualname__.removesuffix(".__init__")
    takes = [each for each in signature.parameters if each != "self"]
    unknown = [key for key in kwargs if key not in signature.parameters]
    if not unknown:
        said = f"{name}: {error}."
    else:
        near = [each for each in takes if unknown[0] in each.split("_")] or get_close_matches(unknown[0], takes, 1, 0.5)
        said = f"{name} has no argument {unknown[0]!r}."
        if config := next((each for each in _configs_of(signature) if unknown[0] in _field_names(each)), None):
            said += f" It is one of the config: config={config.__name__}({unknown[0]}=...)."
        elif near:
            said += f" Did you mean {near[0]!r}?"
    needed = [each for each in takes if signature.parameters[each].default is inspect.Parameter.empty]
    listed = sorted(takes, key=lambda each: each not in needed)
    more = ", ..." if len(listed) > _SHOWN else ""
    return f"{said} Its arguments are {', '.join(listed[:_SHOWN])}{more}."


def _configs_of(signature: inspect.Signature) -> list[type]:
    """The classes that an argument `config` may be of."""
    hint = signature.parameters["config"].annotation if "config" in signature.parameters else None
    return [leaf for leaf in _leaves(hint) if isinstance(leaf, type) and is_dataclass(leaf)]


def _field_names(thing: Any) -> list[str]:
    return [each.name for each in fields(thing)]


def _first(is_wrong: Callable[[object], bool], value: object) -> object | None:
    """The value, or the first item of a list, tuple or dict, however deep, that is wrong; None: all is well."""
    if isinstance(value, list | tuple | dict):
        each = value.values() if isinstance(value, dict) else value
        return next((wrong for wrong in (_first(is_wrong, item) for item in each) if wrong is not None), None)
    return value if is_wrong(value) else None


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_lone(value: object) -> bool:
    """Whether it is a text with half a surrogate pair."""
    return isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _check(name: str, value: object, hint: Any) -> None:
    """Raises TypeError (for a Literal: ValueError) unless the value fits its annotation.

    beartype checks one item of a list, tuple or dict; here it gets each item in turn.
    """
    for shown in (value, *(_items(value) if _has_any_length(hint) else ())):
        if not _fits(shown, hint) or (_takes_numbers(hint) and _has_bool(shown)):
            error = ValueError if "Literal" in str(hint) and isinstance(value, str | list | tuple) else TypeError
            lines = dict.fromkeys(remedies[leaf](value) for leaf in _leaves(hint) if leaf in remedies)
            instead = f" Write {' or '.join(filter(None, lines))}." if any(lines) else ""
            raise error(f"{name} is {_received(value)}, expected {_expected(hint)}.{instead}")


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
