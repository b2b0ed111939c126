"""Whatever breaks a call off, the model is as it was: weights, `requires_grad`, modes, hooks. Nobody waits for it."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import rome_lens as rl
from rome_lens import calling
from tests.edit.artifact.test_edit import made_up
from tests.public import PUBLIC
from tests.public_cases import CASES, World
from tests.torture import times

VERBS = ["alphaedit", "anyedit", "causal_trace", "collect_covariance", "compare_models", "detect_edits"]
VERBS += ["edit_sequence", "emmet", "finetune", "kn", "mend", "memit", "near_subjects"]
VERBS += ["restore_states", "rome", "sample_contexts", "score_edits", "trace_heads", "trace_kinds", "train_mend"]
VERBS += ["ultraedit"]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "fwd_hooks", "bwd_hooks")

pytestmark = [
    pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    """In a folder of its own, where some calls write."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield World(folder)


def applied(world: World) -> None:
    with world.edit.applied(world.model):
        pass


def apply_and_leave(world: World) -> None:
    with world.edit.apply(world.model):
        pass


def revert(world: World) -> None:
    """A handle's own method, or all at once."""
    handle = world.edit.apply(world.model)
    try:
        handle.revert()
    finally:
        rl.edit.revert_edits(world.model)


def apply(world: World) -> None:
    world.edit.apply(world.model)


def verb(name: str) -> Callable[[World], Any]:
    return lambda world: PUBLIC[name](**CASES[name](world))


WRITING = {"applied": applied, "apply in with": apply_and_leave, "apply": apply, "revert": revert}
WORKS: dict[str, Callable[[World], Any]] = {name: verb(name) for name in times(["rome", "finetune"], VERBS)} | WRITING


def state(model: nn.Module) -> Any:
    """All that a call may leave changed, read without a call of the package."""
    modules = list(calling.modules_of(model))
    about = [
        [len(getattr(m, name)) if name != "training" else m.training for name in HOOKS if hasattr(m, name)]
        for m in modules
    ]
    set_on = [sorted(set(vars(m)) & {"forward"}) for m in modules]
    flags = [p.requires_grad for p in model.parameters()]
    return about, set_on, flags, getattr(model, "context_level", 0), torch.get_default_dtype()


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def is_as(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def broken_at(seconds: float, work: Callable[[], object], number: int) -> bool:
    """Whether a signal after so many seconds broke the work off: SIGINT, or another one whose handler raises."""

    def handle(_: int, frame: Any) -> None:
        if not inside[0]:
            return
        if number == signal.SIGINT:
            signal.raise_signal(signal.SIGINT)
        else:
            raise TimeoutError

    inside = [True]
    before = signal.signal(signal.SIGALRM, handle), signal.signal(signal.SIGINT, signal.default_int_handler)
    came = False
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, seconds))
        work()
        inside[0] = False
    except BaseException:  # the tests' type checker makes others of it
        came = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGINT, before[1])
    return came


def held() -> bool:
    """Whether another thread would wait for a model."""
    return any(turn._models for turn in calling.lasting())


def test_a_with_that_is_not_even_entered_leaves_no_edit(tiny, monkeypatch):
    """Ctrl-C between `apply` and `__enter__`; without a `with`, the edit stays."""

    def interrupted(self: rl.edit.AppliedEdit) -> None:
        raise KeyboardInterrupt

    edit, before = made_up(tiny), bits(tiny)
    monkeypatch.setattr(rl.edit.AppliedEdit, "__enter__", interrupted)
    try:
        with edit.apply(tiny):
            pass
    except KeyboardInterrupt:
        pass
    assert is_as(tiny, before)
    assert not held()
    edit.apply(tiny)
    assert rl.edit.revert_edits(tiny) == (edit,)
    assert is_as(tiny, before)


@pytest.mark.torture
@pytest.mark.parametrize("name", WORKS)
def test_a_call_that_is_broken_off_at_any_instant_leaves_the_model_as_it_was(world, name):
    model, work, draw = world.model, WORKS[name], random.Random(0)
    work(world)  # what the case needs is made once
    rl.edit.revert_edits(model)
    start = time.perf_counter()
    work(world)
    whole = time.perf_counter() - start
    rl.edit.revert_edits(model)
    found, before = state(model), bits(model)
    tried = broken = edited = changed = waiting = 0
    while tried < (times(12, 2000) if name in WRITING else times(3, 120)):
        number = draw.choice([signal.SIGINT, signal.SIGTERM])
        came = broken_at(draw.uniform(0, whole), partial(work, world), number)
        broken += came
        tried += 1
        changed += state(model) != found
        if name in ("apply", "revert"):  # the signal may have come just after the one, or before the other
            edited += not is_as(model, before) and rl.edit.applied_edits(model) != (world.edit,)
        else:
            edited += not is_as(model, before)
        waiting += held()
        rl.edit.revert_edits(model)
        edited += not is_as(model, before)
    print(f"{name}: {tried} calls, {broken} broken off, {edited} left edited, {changed} otherwise, {waiting} held")
    assert (edited, changed, waiting) == (0, 0, 0)
