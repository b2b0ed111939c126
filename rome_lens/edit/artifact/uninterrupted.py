"""Short work that Ctrl-C does not interrupt."""

import inspect
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def uninterrupted(work: Callable[[], None]) -> None:
    """Does the work; a SIGINT that arrives meanwhile is passed to its handler right afterwards.

    In threads other than the main one, and where SIGINT is ignored, this only does the work.
    """
    before: Any = signal.getsignal(signal.SIGINT)
    while isinstance(before, _Later):  # left behind by an exception between two lines below
        before = before.handler
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        work()
        return
    later = _Later(before)
    try:
        signal.signal(signal.SIGINT, later)
        work()
    finally:
        signal.signal(signal.SIGINT, before)
        if later.came:
            before(signal.SIGINT, sys._getframe())


def runs(function: Callable[..., Any], frame: FrameType | None) -> bool:
    """Whether this frame, or one of its callers, runs the function."""
    code = inspect.unwrap(function).__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


class _Later:
    """Notes a signal while `uninterrupted` runs; if it was left behind, it puts the true handler back and calls it."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]):
        self.handler = handler
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if runs(uninterrupted, frame):
            self.came = True
        else:
            signal.signal(number, self.handler)
            self.handler(number, frame)
