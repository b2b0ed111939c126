"""What is written over weights is taken out bit for bit: in any order, whatever breaks it off, by whom else they are held."""

import copy
import gc
import pickle
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens import models
from rome_lens.edit import applying, uninterrupted, weights, written
from rome_lens.edit.matrices import output_matrix_of
from rome_lens.edit.uninterrupted import runs
from rome_lens.edit.written import keeping
from rome_lens.models.kinds import HAS_HOOKED
from tests.edit.test_weights import REQUEST, made_on, made_up
from tests.torture import times

KINDS = ["gpt2-bfloat16-hf", "llama-float16-hf", "gpt2-float32-bridge", "llama-gqa-float32-compatible"]
KINDS += ["gpt2-float32-hooked", "llama-bfloat16-hooked", "llama-gqa-float32-layout"] if HAS_HOOKED else []


def bits(model) -> dict[str, torch.Tensor]:
    """A copy of all weights, to be compared as whole numbers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def unequal(model, before: dict[str, torch.Tensor]) -> list[str]:
    def raw(value: torch.Tensor) -> torch.Tensor:
        return value.contiguous().reshape(-1).view(torch.uint8)

    return [name for name, value in model.state_dict().items() if not torch.equal(raw(value), raw(before[name]))]


@pytest.fixture(scope="module")
def kind_of(tiny_folder) -> Callable:
    """Gives a tiny model of one of KINDS, made once."""

    @cache
    def make(kind: str):
        family, dtype, how = kind.rsplit("-", 2)
        folder, dtype = tiny_folder(family), getattr(torch, dtype)
        if how in ("hooked", "layout"):
            model = rl.load_model(folder, device="cpu", dtype=dtype)
            return rl.optimize_layout(model) if how == "layout" else model
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        if how == "hf":
            return hf_model
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = TransformerBridge.boot_transformers(str(folder), hf_model=hf_model, tokenizer=tokenizer, device="cpu")
        if how == "compatible":
            model.enable_compatibility_mode(disable_warnings=True)
        return model

    return make


def edits_for(model) -> list[rl.Edit]:
    """Edits of one layer and of several, one that changes nothing, and one that bfloat16 rounds away."""
    d_mlp, d_model = output_matrix_of(model, 0).values.shape
    made = []
    for seed, (layers, scale) in enumerate([((0,), 1.0), ((1, 2), 1.0), ((0, 1, 2), 0.1), ((1,), 0.0), ((2,), 1e-9)]):
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        made.append(rl.Edit(tuple(rl.Update(i, scale * draw(d_mlp, 1), draw(1, d_model)) for i in layers), (REQUEST,)))
    return made


class Broken(BaseException):
    """As KeyboardInterrupt, from somewhere else."""


# ----------------------------------------------------------------------------------------- exceptions at every line


@contextmanager
def breaking(*lines: int) -> Iterator[list[int]]:
    """Raises Broken at these lines of the files that write weights, counted as they come. Gives the count."""
    count = [0]
    files = {module.__file__ for module in (applying, uninterrupted, weights, written)}

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count[0] += 1
            if count[0] in lines:
                raise Broken
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def apply(model, edit) -> None:
    edit.apply(model)


def revert(model, edit) -> None:
    HANDLES.pop().revert()


def inside(model, edit) -> None:
    with edit.applied(model):
        pass


HANDLES: list[rl.AppliedEdit] = []


def attempt(model, edit, work: Callable, lines: tuple[int, ...]) -> int:
    with breaking(*lines) as count, suppress(Broken):
        work(model, edit)
    return count[0]


@pytest.mark.torture
@pytest.mark.parametrize("work", [apply, revert, inside])
def test_an_exception_at_any_line_leaves_all_layers_alike_and_the_next_call_ends_it(tiny, work):
    """At each line, and again some lines later while the first one is being put right."""
    other, edit, _, _, _ = edits_for(tiny)
    before = bits(tiny)
    edit.apply(tiny)
    both = bits(tiny)
    rl.revert_edits(tiny)
    tried = wrong = 0
    draw = random.Random(0)

    def once(*lines: int) -> int:
        nonlocal tried, wrong
        HANDLES.clear()
        if work is revert:
            HANDLES.append(edit.apply(tiny))
        count = attempt(tiny, edit, work, lines)
        listed = rl.applied_edits(tiny)
        wrong += bool(unequal(tiny, both if listed else before)) or (work is inside and listed != ())
        rl.revert_edits(tiny)
        wrong += bool(unequal(tiny, before)) or rl.applied_edits(tiny) != ()
        tried += 1
        return count

    total = once()
    for line in draw.sample(range(1, total + 1), min(total, times(50, total))):
        once(line)
    for _ in range(times(30, 1500)):
        line = draw.randint(1, total)
        once(line, line + draw.randint(1, 80))
    print(f"{work.__name__}: {tried} interruptions at {total} lines, {wrong} wrong")
    assert wrong == 0


# ------------------------------------------------------------------------------------------------------ interleavings


def interrupting(draw: random.Random, work: Callable[[], None]) -> None:
    """Real signals come at some instants, at most two: one whose handler raises by itself, or SIGINT."""
    left = [2]

    def handle(number, frame):
        if number == signal.SIGALRM and draw.random() < 0.5:
            signal.raise_signal(signal.SIGINT)
        elif left[0] > 0 and runs(step, frame):
            left[0] -= 1
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 1e-3))
            raise Broken

    before = {number: signal.signal(number, handle) for number in (signal.SIGALRM, signal.SIGINT)}
    signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 5e-3))
    with suppress(Broken):
        work()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def too_much(model) -> rl.Edit:
    """It would make entries infinite."""
    d_mlp, d_model = output_matrix_of(model, 1).values.shape
    return rl.Edit((rl.Update(1, torch.full((d_mlp, 1), 1e30), torch.full((1, d_model), 1e30)),), (REQUEST,))


def opened(model, edit) -> Iterator[None]:
    with edit.applied(model):
        yield


def step(model, edits: list, draw: random.Random, handles: list, contexts: list) -> None:
    """One thing that a user may do."""
    edit, what = draw.choice(edits), draw.randrange(8)
    if what <= 1:
        handles.append(edit.apply(model))
    elif what == 2 and handles:
        handles.pop(draw.randrange(len(handles))).revert()
    elif what == 3:
        contexts.append(opened(model, edit))
        next(contexts[-1])
    elif what == 4 and contexts:
        contexts.pop(draw.randrange(len(contexts))).close()
    elif what == 5 and contexts:
        with suppress(ZeroDivisionError, StopIteration):
            contexts.pop(draw.randrange(len(contexts))).throw(ZeroDivisionError())
    elif what == 6:
        with suppress(rl.EditError):
            (edit + too_much(model)).apply(model)
    elif what == 7:
        matrix = output_matrix_of(model, 1)
        with edit.applied(model), draw.choice(edits).applied(model), keeping([matrix]), torch.no_grad():
            matrix.values.mul_(2)


@pytest.mark.torture
def test_however_edits_come_and_go_the_original_is_left(kind_of):
    """Applied, reverted in any order, in blocks that end in any order, in open generators, with exceptions and signals."""
    draw, unlike, alike = random.Random(0), 0, True
    before = {kind: bits(kind_of(kind)) for kind in KINDS}
    edits = {kind: edits_for(kind_of(kind)) for kind in KINDS}
    rounds = times(200, 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rl.EditWarning)  # an edit is applied twice
        for number in range(rounds):
            kind = KINDS[number % len(KINDS)]
            model, handles, contexts = kind_of(kind), [], []
            for _ in range(draw.randint(2, 8)):
                work = partial(step, model, edits[kind], draw, handles, contexts)
                interrupting(draw, work) if draw.random() < 0.4 else work()
            draw.shuffle(handles)
            draw.shuffle(contexts)
            for context in contexts:
                context.close()
            for handle in handles:
                handle.revert()
            rl.revert_edits(model)  # what was applied just before the signal, and whose handle is lost
            alike = alike and rl.applied_edits(model) == ()
            unlike += bool(unequal(model, before[kind]))
    print(f"{rounds} interleavings, {unlike} unequal")
    assert unlike == 0
    assert alike
    assert not written._KEPT
