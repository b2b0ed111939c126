"""Short work that Ctrl-C does not break off."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def uninterrupted(work: Callable[[], None]) -> None:
    """Does the work. A SIGINT that comes meanwhile goes to its handler right after it.

    Where Python is not asked about SIGINT (in other threads, or where the process ignores it), this only does the work.
    """
    before: Any = signal.getsignal(signal.SIGINT)
    while isinstance(before, _Later):  # left behind by an exception that came between two lines below
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


class _Later:
    """Notes a signal while `uninterrupted` runs; should it be left behind, it gives way to the true handler."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]):
        self.handler = handler
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        caller = frame
        while caller is not None and caller.f_code is not uninterrupted.__code__:
            caller = caller.f_back
        if caller is not None:
            self.came = True
        else:
            signal.signal(number, self.handler)
            self.handler(number, frame)
