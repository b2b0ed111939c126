"""Threads and forks: what runs or edits a model has it alone, and draws from generators of its own."""

import copy
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.models import find_output_matrix
from tests.edit.artifact.test_edit import made_up
from tests.edit.artifact.test_written import bits, unequal
from tests.torture import times

FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower", "Paris")
REQUEST = rl.EditRequest("{} is in", "Rome", target="Paris")
NOISE = rl.GaussianNoise(std=0.35)
CONFIG = rl.RomeConfig(layer=1, contexts=["{}"], steps=2)

pytestmark = [
    pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning"),
    pytest.mark.filterwarnings("ignore:.*does not predict"),
    pytest.mark.filterwarnings("ignore:.*fork"),
]


def traced(model: Any) -> torch.Tensor:
    return rl.causal_trace(model, FACT, samples=2, corruption=NOISE, progress=False).restored


def edited(model: Any) -> torch.Tensor:
    plain = rl.KeyCovariance.from_matrix(torch.eye(model.cfg.d_mlp), layer=1, tokens=100_000)
    options = {"covariance": plain, "config": CONFIG, "on_unhealthy": "ignore", "progress": False}
    return rl.rome(model, REQUEST, **options).updates[0].right


def sampled(model: Any) -> torch.Tensor:
    return torch.tensor([len(each) for each in rl.edit.sample_contexts(model, ((4, 3),), seed=3)])


def under_an_edit(model: Any) -> torch.Tensor:
    with made_up(model).applied(model):
        return rl.causal_trace(model, FACT, samples=1, corruption=NOISE, progress=False).restored


def in_weights(model: Any) -> torch.Tensor:
    with made_up(model, seed=1).apply(model):
        return find_output_matrix(model, 1).values.clone()


CALLS: list[Callable[[Any], torch.Tensor]] = [traced, edited, sampled, under_an_edit, in_weights]


def together(work: Callable[[int], None], count: int = 4) -> None:
    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()


@pytest.mark.torture
@pytest.mark.parametrize("models", ["one", "one each"])
def test_threads_get_what_one_alone_gets(tiny, models):
    """Traces, edits and samples are those of one thread; torch's own numbers are left alone."""
    own = [tiny] * 4 if models == "one" else [copy.deepcopy(tiny) for _ in range(4)]
    expected = [call(tiny) for call in CALLS]
    before, numbers, wrong, done = bits(tiny), torch.random.get_rng_state(), [], []

    def work(number: int) -> None:
        draw = random.Random(number)
        for _ in range(times(4, 250)):
            which = draw.randrange(len(CALLS))
            if not torch.equal(CALLS[which](own[number]), expected[which]):
                wrong.append(CALLS[which].__name__)
            done.append(which)

    together(work)
    print(f"{models}: {len(done)} calls from four threads, {len(wrong)} wrong")
    assert wrong == []
    assert len(done) == 4 * times(4, 250)
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert all(unequal(model, before) == [] for model in own)


def test_who_draws_from_torch_meanwhile_changes_no_sample(tiny):
    expected, stop = rl.edit.sample_contexts(tiny, ((4, 3),), seed=3), threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        found = [rl.edit.sample_contexts(tiny, ((4, 3),), seed=3) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert found == [expected] * 5


def test_another_thread_waits_until_a_block_ends(tiny):
    plain, found = traced(tiny), []
    thread = threading.Thread(target=lambda: found.append(traced(tiny)), daemon=True)
    with made_up(tiny).applied(tiny):
        thread.start()
        thread.join(0.3)
        assert found == []
    thread.join(60)
    assert torch.equal(found[0], plain)


def test_a_with_that_fails_keeps_nobody_waiting(tiny):
    """Though its error, and all that this refers to, is kept."""
    too_much = made_up(tiny, scale=float("1e38"))
    with pytest.raises(rl.errors.EditError, match="infinite") as kept, (too_much + too_much).apply(tiny):
        pass
    found = []
    thread = threading.Thread(target=lambda: found.append(traced(tiny)), daemon=True)
    thread.start()
    thread.join(60)
    assert len(found) == 1
    assert kept.value is not None


def test_threads_that_would_wait_for_each_other_are_told(tiny):
    one, other = tiny, copy.deepcopy(tiny)
    both, errors = threading.Barrier(2), []

    def work(number: int) -> None:
        first, second = (one, other) if number else (other, one)
        try:
            with made_up(first).applied(first):
                both.wait(60)
                traced(second)
        except rl.errors.UnavailableError as error:
            errors.append(str(error))

    before = bits(tiny)
    together(work, 2)
    assert len(errors) == 1
    assert "would wait for each other" in errors[0]
    assert unequal(one, before) == unequal(other, before) == []


def in_a_fork(work: Callable[[], bool]) -> bool:
    """What the work says in a fork of this process, which is killed after a minute."""
    child = os.fork()
    if not child:
        good = False
        try:
            good = work()
        finally:
            os._exit(0 if good else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.torture
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on Windows")
@pytest.mark.parametrize("work", [edited, traced, under_an_edit, in_weights])
def test_a_child_has_the_model_without_what_other_threads_were_at(tiny, work):
    """It neither waits for threads that it does not have, nor keeps their edits, hooks and flags."""
    before, expected, stop = bits(tiny), traced(tiny), threading.Event()
    flags = [parameter.requires_grad for parameter in tiny.parameters()]

    def go_on() -> None:
        while not stop.is_set():
            work(tiny)

    def is_settled() -> bool:
        edits = rl.edit.applied_edits(tiny)  # the first call in the child puts all back
        alike = unequal(tiny, before) == [] and [p.requires_grad for p in tiny.parameters()] == flags
        hooks = any(module._forward_hooks for module in tiny.modules())
        return edits == () and alike and not hooks and torch.equal(traced(tiny), expected)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        draw = random.Random(0)
        good = 0
        for _ in range(times(2, 100)):
            time.sleep(draw.uniform(0, 0.02))
            good += in_a_fork(is_settled)
    finally:
        stop.set()
        thread.join()
    print(f"{work.__name__}: {times(2, 100)} forks, {times(2, 100) - good} wrong")
    assert good == times(2, 100)


# ------------------------------------------------------------------------------------------------ parameters replaced


def assigned_edited(model: Any) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def assigned_alike(model: Any) -> None:
    model.load_state_dict(model.state_dict(), assign=True)


def data_replaced(model: Any) -> None:
    parameter = find_output_matrix(model, 1).parameter
    parameter.data = parameter.data.clone()


def module_replaced(model: Any) -> None:
    model.blocks[1].mlp = copy.deepcopy(model.blocks[1].mlp)


def by_hand(model: Any) -> None:
    with torch.no_grad():
        find_output_matrix(model, 1).parameter.mul_(2)


@pytest.mark.parametrize("replace", [assigned_edited, assigned_alike, data_replaced, module_replaced, by_hand])
def test_a_block_takes_its_edit_out_of_the_parameter_that_is_there_at_its_end(tiny, replace):
    model = copy.deepcopy(tiny)
    before = bits(model)
    with made_up(model).applied(model):
        replace(model)
    assert unequal(model, before) == []
    assert rl.edit.applied_edits(model) == ()


def test_a_block_in_which_the_dtype_changes_leaves_the_original_in_that_dtype(tiny):
    model = copy.deepcopy(tiny)
    expected = {name: value.to(torch.bfloat16) for name, value in bits(model).items() if value.is_floating_point()}
    with made_up(model).applied(model):
        model.to(torch.bfloat16)
    assert unequal(model, {**bits(model), **expected}) == []
