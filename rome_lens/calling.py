"""What each public call does around its work.

It waits for its turn with the models that it uses, keeps torch's global settings and the models' training mode from
changing what is computed, and leaves the models as it found them, whatever breaks it off.

An exception can come between any two instructions (Ctrl-C), and a fork leaves threads behind in the middle of their
work. So a single assignment decides what counts (`Turn.over`, `Turn.broken`), and what is then still to be done can be
done by whoever comes next: the call itself, a later call, or the child of a fork.
"""

import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from inspect import unwrap
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rome_lens.errors import UnavailableError

T = TypeVar("T")
_DEFAULT = torch.device("cpu")  # torch's own, while nobody has set another
_PAUSE = 0.002  # seconds between two looks at whether a model is free
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "fwd_hooks", "bwd_hooks")
_SET = ("forward", "context_level")  # what running a part of a model, or hooks, set on a module for a while
_ONE = threading.RLock()
_turns: list["weakref.ref[Turn]"] = []  # in the order in which they were asked for

settling: list[Callable[[], None]] = []
"""Called first in every public call, and after one that was broken off: ends what was left unfinished."""


class Turn:
    """A thread's turn with some models: meanwhile other threads that want one of them wait, the first come first.

    A thread may begin turns within its own. What shares a model's weights (a Bridge and the Hugging Face model inside)
    is one model. A turn lasts until it is `over`, its thread ends, or nobody refers to it any longer.

    Attributes:
        over: whether others may go on.
        broken: whether what was written meanwhile is void.
    """

    def __init__(self, models: Iterable[nn.Module], *, is_call: bool = False):
        self.over = self.broken = False
        self._models = {weakref.ref(vars(model).get("original_model", model)) for model in models}
        self._is_call = is_call
        self._thread, self._process = threading.current_thread(), os.getpid()
        self._begun = False
        self._within: Turn | None = None
        self._found: _Found | None = None

    @property
    def counts(self) -> bool:
        """Whether what was written meanwhile counts. Not if this turn is broken, or one that it is within; nor in a
        fork without the thread that was at it.
        """
        is_left = not self.over and self._process != os.getpid() and not self.lasts
        return not self._is_void and not is_left

    @property
    def _is_void(self) -> bool:
        return self.broken or (self._within is not None and self._within._is_void)

    @property
    def lasts(self) -> bool:
        """Whether others have to wait."""
        if self.over or self._is_void:
            return False
        # An exception inside of `Thread.is_alive` would make Python 3.11 believe that the thread has ended.
        return self._thread is threading.current_thread() or self._thread in threading.enumerate()

    def begin(self) -> None:
        """Waits for the models.

        Raises:
            UnavailableError: threads would wait for each other for ever.
        """
        if self._models:
            alone(_ONE, partial(_turns.append, weakref.ref(self)))
            while not alone(_ONE, self._may_begin):
                time.sleep(_PAUSE)

    def keep(self, models: Iterable[nn.Module]) -> list[nn.Module]:
        """Notes how the models are now, for `put_back`, and gives the modules of TransformerLens' models that are in
        training mode. Does nothing if a call around this one has done so.
        """
        noted, around = set(), self._within
        while around is not None:
            noted |= around._models if around._found is not None else set()
            around = around._within
        if self._models <= noted:
            return []
        self._found = _Found(models)
        return self._found.training

    def put_back(self) -> None:
        """Makes the models what they were."""
        if self._found is not None:
            self._found.put_back()

    def forget(self) -> None:
        """Forgets how the models were."""
        self._found = None

    def _may_begin(self) -> bool:
        turns = _lasting()
        waited_for = reached = self._waited_for(turns)
        while more := {each for turn in turns if turn._thread in reached for each in turn._waited_for(turns)} - reached:
            reached = reached | more
        if self._thread in reached:
            raise UnavailableError(
                "Two threads would wait for each other for ever: each has the model that the other one wants. Let "
                "every thread use models in the same order, or have a model to itself (copy.deepcopy(model))."
            )
        if not waited_for:
            self._within = next((turn for turn in reversed(turns) if turn._is_mine()), None)
            self._begun = True
        return self._begun

    def _is_mine(self) -> bool:
        return self._begun and self._thread is threading.current_thread()

    def _waited_for(self, turns: list["Turn"]) -> set[threading.Thread]:
        """The threads that this one waits for: those who have a model, and those who asked for it before. Who has a
        model already waits for no queue, which may wait for him.
        """
        if self._begun:
            return set()
        has_one = any(turn._begun and turn._thread is self._thread for turn in turns)
        before = [] if has_one else turns[: turns.index(self)]
        return {
            turn._thread
            for turn in turns
            if turn._thread is not self._thread and turn._models & self._models and (turn._begun or turn in before)
        }


class _Found:
    """What a call may change about models for a while, as it was before."""

    def __init__(self, models: Iterable[nn.Module]):
        self._modules: list[nn.Module] = []
        self._required: list[tuple[Tensor, bool]] = []
        self._hooks: dict[tuple[nn.Module, str], list[Any]] = {}
        self._set: dict[tuple[nn.Module, str], Any] = {}
        for module in {module: None for model in models for module in modules_of(model)}:
            self._modules.append(module)
            own = vars(module)
            for name in _HOOKS:
                if own.get(name):
                    self._hooks[module, name] = list(own[name])
            for name in _SET:
                if name in own:
                    self._set[module, name] = own[name]
            for parameter in own["_parameters"].values():
                if parameter is not None:
                    self._required.append((parameter, parameter.requires_grad))
        self._in_training = {module for module in self._modules if module.training}
        ours = (model for model in models if self._in_training and hasattr(model, "hook_dict"))
        self.training = [module for model in ours for module in modules_of(model) if module.training]

    def put_back(self) -> None:
        for module in self._modules:
            if module.training != (module in self._in_training):
                module.training = not module.training
            own = vars(module)
            for name in _HOOKS:
                for added in [each for each in own.get(name, ()) if each not in self._hooks.get((module, name), ())]:
                    own[name].pop(added) if isinstance(own[name], dict) else own[name].remove(added)
            for name in _SET:
                if (module, name) in self._set:
                    own[name] = self._set[module, name]
                else:
                    own.pop(name, None)
        for parameter, required in self._required:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)


def alone(lock: Any, work: Callable[[], T]) -> T:
    """Does the work with an RLock, not within itself; an exception at any line leaves the lock free."""
    try:
        try:
            lock.acquire()
            return work()
        finally:
            _free(lock)
    finally:
        _free(lock)  # the line above was interrupted


def _free(lock: Any) -> None:
    while lock._is_owned():
        lock.release()


def free_in_forks(lock: Any) -> None:
    """A forked child has not the threads that might hold the lock."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=lambda: None if lock._is_owned() else lock._at_fork_reinit())


def lasting() -> list[Turn]:
    """The turns that last, in the order in which they were asked for."""
    return alone(_ONE, _lasting)


def _lasting() -> list[Turn]:
    known = [turn for turn in (reference() for reference in _turns) if turn is not None and not turn.over]
    found = [turn for turn in known if turn.lasts]
    for turn in known:
        if turn not in found:  # this is a fork, and the call was at work in another thread
            turn.put_back()
    _turns[:] = map(weakref.ref, found)
    return found


def turn_of_call() -> Turn | None:
    """The innermost turn of this thread, if a public call runs."""
    mine = [turn for turn in lasting() if turn._is_mine()]
    return mine[-1] if mine and mine[-1]._is_call else None


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
    code = unwrap(function).__code__
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


@contextmanager
def undrawn() -> Iterator[None]:
    """Keeps Python's random numbers from those libraries that draw some while they are imported."""
    drawn = random.getstate()
    try:
        yield
    finally:
        random.setstate(drawn)


def undisturbed_call(
    function: Callable[..., Any], check: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None
) -> Callable[..., Any]:
    """The function, run with torch's default settings and with the models that it uses in evaluation mode.

    `check` gets the arguments first, and may raise. While the function runs, calls in other threads that use one of its
    models wait. If it raises, also by Ctrl-C at any instruction, the models are as they were: their weights,
    `requires_grad`, hooks and modes.

    The settings are inference mode, autocast, a default dtype other than float32 and a default device other than the
    CPU (the default dtype is shared by all threads). Each module of a model goes back to its own mode.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if check is not None:
            check(args, kwargs)
        models = _models(args, kwargs)
        turn = Turn(models, is_call=True)
        try:
            try:
                turn.begin()
                _settle()
                with _undisturbed(turn.keep(models)):
                    return function(*args, **kwargs)
            except BaseException:
                turn.broken = True
                uninterrupted(partial(_put_back, turn))
                raise
        finally:
            turn.over = True
            turn.forget()

    return call


@contextmanager
def _undisturbed(training: Iterable[nn.Module]) -> Iterator[None]:
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


def _accelerators() -> list[str]:
    """The type of torch's accelerator on this machine, if any."""
    found = torch.accelerator.current_accelerator()
    return [] if found is None else [found.type]


def _settle() -> None:
    for settle in settling:
        settle()


def _put_back(turn: Turn) -> None:
    turn.put_back()
    _settle()


def _models(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    """The models among the arguments, and in the objects of this package among them."""
    found = []
    for value in (*args, *kwargs.values()):
        ours = type(value).__module__.startswith("rome_lens.")
        inside = getattr(value, "__dict__", {}).values() if ours else ()
        found += [each for each in (value, *inside) if isinstance(each, nn.Module)]
    return found


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """All modules once. The model that a TransformerBridge wraps is not among its children."""
    waiting, seen = [model, vars(model).get("original_model")], set()
    while waiting:
        module = waiting.pop()
        if module is not None and module not in seen:
            seen.add(module)
            waiting.extend(module._modules.values())
            yield module


free_in_forks(_ONE)
