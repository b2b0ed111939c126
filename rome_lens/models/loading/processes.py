"""A guard: no library starts a process, such as an installer, while a model is loaded."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from rome_lens.errors import UnavailableError

_STARTING = frozenset(
    {"subprocess.Popen", "pty.spawn", "_winapi.CreateProcess"}
    | {f"os.{call}" for call in ("system", "exec", "fork", "forkpty", "posix_spawn", "spawn", "startfile")}
)
"""Python's audit events (PEP 578) that come before a process starts."""

_refused: ContextVar[bool] = ContextVar("_refused", default=False)


@contextmanager
def no_processes() -> Iterator[None]:
    """Inside, this thread starts no process: whatever tries gets an UnavailableError. Other threads are free."""
    _listen()
    before = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(before)


@cache
def _listen() -> None:
    sys.addaudithook(_refuse)  # for the life of this process: Python has no way to take one out


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in _STARTING and _refused.get():
        raise UnavailableError(
            f"A library tried to start a process while a model was loaded ({event}: {str(args[:2])[:200]}), which is "
            "not done. If it needs a package, install that yourself."
        )
