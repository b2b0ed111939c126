"""Metrics and corruptions of the user's own: their names, and how a stored trace records them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from rome_lens.checking import checked
from rome_lens.storage import plain


@checked
@dataclass(frozen=True)
class Recorded:
    """Stands for a metric or corruption of the user's own in a trace that was read from a file.

    Attributes:
        name: of the function, or of the object's class.
        settings: its attributes, as JSON values.
    """

    name: str
    settings: Any

    def __call__(self, *arguments: object) -> NoReturn:
        """Raises ValueError: the file holds its name, not its code."""
        raise ValueError(
            f"{self.name} was read from a file, which holds only its name. Give the metric or corruption itself, for "
            "example with dataclasses.replace(trace.config, metric=...)."
        )


def name_of(thing: object) -> str:
    """The name of a metric or corruption: a function's own, or that of an object's class."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, partial):
        return name_of(thing.func)
    return thing.name if isinstance(thing, Recorded) else getattr(thing, "__name__", type(thing).__name__)


def to_record(thing: object) -> dict[str, Any]:
    """A metric or corruption as JSON values."""
    settings = thing.settings if isinstance(thing, Recorded) else plain(thing)
    return {"name": name_of(thing), "settings": settings}


def check_takes(what: str, thing: Callable[..., Any], *arguments: str) -> None:
    """Raises ValueError if a metric or corruption of the user's own does not take these positional arguments."""
    expected = f"expected a function of ({', '.join(arguments)}), or an object with such a method"
    if isinstance(thing, type):
        raise ValueError(f"{what} is {thing!r}, {expected}: make an instance of the class.")
    try:
        signature = inspect.signature(thing)
    except ValueError:  # written in C, without one
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{what} is {thing!r}, which takes {signature}, {expected} ({error}).") from None


def check_comparable(what: str, thing: object) -> None:
    """Raises ValueError for a lambda or an inner function: the variables that it closes over cannot be compared."""
    function = thing.func if isinstance(thing, partial) else thing
    if any(sign in getattr(function, "__qualname__", "") for sign in ("<lambda>", "<locals>")):
        raise ValueError(
            f"{what} is {name_of(thing)}, a lambda or inner function, which `out` cannot tell from others of the "
            "same name. Define a function at the top of a module, or a frozen dataclass; or give no `out`."
        )
