"""What is written over weights is taken out bit for bit: in any order, and whatever breaks it off."""

import copy
import gc
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
from rome_lens import calling
from rome_lens.calling import runs
from rome_lens.edit.artifact import applied, written
from rome_lens.edit.artifact import edit as weights
from rome_lens.edit.artifact.written import keeping
from rome_lens.models import find_output_matrix
from rome_lens.models.kinds import HAS_HOOKED
from tests.edit.artifact.test_edit import REQUEST, made_on, made_up
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
            return rl.models.optimize_layout(model) if how == "layout" else model
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
    d_mlp, d_model = find_output_matrix(model, 0).values.shape
    made = []
    for seed, (layers, scale) in enumerate([((0,), 1.0), ((1, 2), 1.0), ((0, 1, 2), 0.1), ((1,), 0.0), ((2,), 1e-9)]):
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        made.append(
            rl.Edit(tuple(rl.edit.Update(i, scale * draw(d_mlp, 1), draw(1, d_model)) for i in layers), (REQUEST,))
        )
    return made


@pytest.fixture
def forgetting(monkeypatch) -> Iterator[None]:
    """Exceptions that come inside of `__del__` are dropped; pytest would keep them, and with them what was to go."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda _: None)
        yield
        gc.collect()


class Broken(BaseException):
    """As KeyboardInterrupt, from somewhere else."""


# ----------------------------------------------------------------------------------------- exceptions at every line


@contextmanager
def breaking(*lines: int) -> Iterator[list[int]]:
    """Raises Broken at these lines of the files that write weights, counted as they come. Gives the count."""
    count = [0]
    files = {module.__file__ for module in (applied, calling, weights, written)}

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count[0] += 1
            if count[0] in lines:
                raise Broken
        return trace

    def again(frame, event, arg):
        """What raises in a trace function ends the tracing: it goes on at the next call or return."""
        if sys.gettrace() is None:
            sys.settrace(trace)
            while frame is not None:
                frame.f_trace = trace if frame.f_code.co_filename in files else None
                frame = frame.f_back

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(again)
    try:
        yield count
    finally:
        sys.setprofile(before[1])
        sys.settrace(before[0])


def apply(model, edit) -> None:
    edit.apply(model)


def revert(model, edit) -> None:
    HANDLES.pop().revert()


def inside(model, edit) -> None:
    with edit.applied(model):
        pass


HANDLES: list[rl.edit.AppliedEdit] = []


def attempt(model, edit, work: Callable, lines: tuple[int, ...]) -> int:
    with breaking(*lines) as count:
        with suppress(Broken):
            work(model, edit)
        return count[0]


@pytest.mark.torture
@pytest.mark.usefixtures("forgetting")
@pytest.mark.parametrize("work", [apply, revert, inside])
def test_an_exception_at_any_line_leaves_all_layers_alike_and_the_next_call_ends_it(tiny, work):
    """At each line, and again some lines later while the first one is being put right."""
    edit = edits_for(tiny)[1]
    before = bits(tiny)
    edit.apply(tiny)
    both = bits(tiny)
    rl.edit.revert_edits(tiny)
    tried = wrong = 0
    draw = random.Random(0)

    def once(*lines: int) -> int:
        nonlocal tried, wrong
        HANDLES.clear()
        if work is revert:
            HANDLES.append(edit.apply(tiny))
        count = attempt(tiny, edit, work, lines)
        listed = rl.edit.applied_edits(tiny)
        wrong += bool(unequal(tiny, both if listed else before)) or (work is inside and listed != ())
        rl.edit.revert_edits(tiny)
        wrong += bool(unequal(tiny, before)) or rl.edit.applied_edits(tiny) != ()
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
    d_mlp, d_model = find_output_matrix(model, 1).values.shape
    return rl.Edit((rl.edit.Update(1, torch.full((d_mlp, 1), 1e30), torch.full((1, d_model), 1e30)),), (REQUEST,))


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
        with suppress(rl.errors.EditError):
            (edit + too_much(model)).apply(model)
    elif what == 7:
        matrix = find_output_matrix(model, 1)
        with edit.applied(model), draw.choice(edits).applied(model), keeping([matrix]), torch.no_grad():
            matrix.values.mul_(2)


@pytest.mark.torture
@pytest.mark.usefixtures("forgetting")
def test_however_edits_come_and_go_the_original_is_left(kind_of):
    """Reverted in any order, in blocks and open generators that end in any order, with exceptions and signals."""
    draw, unlike, alike = random.Random(0), 0, True
    before = {kind: bits(kind_of(kind)) for kind in KINDS}
    edits = {kind: edits_for(kind_of(kind)) for kind in KINDS}
    rounds = times(200, 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rl.errors.EditWarning)  # an edit is applied twice
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
            rl.edit.revert_edits(model)  # what was applied just before the signal, and whose handle is lost
            alike = alike and rl.edit.applied_edits(model) == ()
            found = unequal(model, before[kind])
            unlike += bool(found)
            if found:
                model.load_state_dict(before[kind])  # each is counted once
    print(f"{rounds} interleavings, {unlike} unequal")
    assert unlike == 0
    assert alike
    assert not written._KEPT


# ---------------------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("scale", [0.0, 1e-12])
def test_an_edit_that_changes_nothing_is_listed_and_reverted_in_any_order(tiny, scale):
    before, nothing, something = bits(tiny), made_up(tiny, scale=scale), made_up(tiny, seed=1)
    handles = [edit.apply(tiny) for edit in (nothing, something)]
    assert rl.edit.applied_edits(tiny) == (nothing, something)
    for handle in handles:
        handle.revert()
    assert unequal(tiny, before) == []


def test_what_was_written_by_hand_since_is_not_lost(tiny):
    """Reverting is refused; a later edit is taken out of it alone; put back by hand, the edit is out."""
    before, weight = bits(tiny), find_output_matrix(tiny, 1).values
    handle = made_up(tiny).apply(tiny)
    edited = weight.clone()
    weight.mul_(2)
    by_hand = weight.clone()
    for _ in range(2):
        with pytest.raises(rl.errors.EditError, match="has been changed since this edit was applied, not by an edit"):
            handle.revert()
        with pytest.raises(rl.errors.EditError, match="has been changed since"):
            rl.edit.revert_edits(tiny)
        assert torch.equal(weight, by_hand)
        made_up(tiny, seed=1).apply(tiny).revert()
        assert torch.equal(weight, by_hand)
    assert not torch.equal(weight, edited)
    tiny.load_state_dict(before)
    assert rl.edit.applied_edits(tiny) == ()
    handle.revert()
    assert unequal(tiny, before) == []


def test_what_is_applied_already_is_said_and_other_applied_edits_are_no_reason_to_warn(tiny):
    first, second = made_on(tiny), made_up(tiny, seed=1)
    second = rl.Edit(
        tuple(rl.edit.Update(u.layer, u.left, u.right, first.updates[0].made_for) for u in second.updates), ()
    )
    handles = [first.apply(tiny), second.apply(tiny)]
    with pytest.warns(rl.errors.EditWarning, match="already applied to this model"):
        handles.append(first.apply(tiny))
    with pytest.raises(rl.errors.EditError, match="already applied"):
        first.apply(tiny, strict=True)
    for handle in handles:
        handle.revert()


def test_minus_takes_away_and_sum_adds(tiny):
    before, a, b = bits(tiny), made_up(tiny), made_up(tiny, seed=1)
    minus = -a
    with a.applied(tiny), minus.applied(tiny):
        torch.testing.assert_close(tiny.state_dict(), before, atol=1e-5, rtol=1e-5)
    assert (minus.method, (-minus).method, minus.requests, (a - b).method) == (
        "-rome",
        "rome",
        a.requests,
        "rome+-rome",
    )
    assert sum([a]) is a
    with sum([a, b, -a, -b]).applied(tiny):
        torch.testing.assert_close(tiny.state_dict(), before, atol=1e-5, rtol=1e-5)
    for wrong in (lambda: 1 + a, lambda: a - 1):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong()


def test_a_model_and_what_is_inside_it_share_edits_and_a_copy_has_none(kind_of):
    bridge, edit = kind_of("gpt2-float32-bridge"), made_up(kind_of("gpt2-float32-bridge"))
    handle = edit.apply(bridge)
    try:
        assert rl.edit.applied_edits(bridge.original_model) == (edit,)
        assert rl.edit.applied_edits(copy.deepcopy(bridge.original_model)) == ()
    finally:
        handle.revert()


def test_threads_take_turns(tiny):
    before = bits(tiny)

    def work(edit: rl.Edit) -> None:
        for _ in range(10):
            edit.apply(tiny).revert()

    edits = [made_up(tiny, seed=seed) for seed in range(4)]
    threads = [threading.Thread(target=work, args=[edit]) for edit in edits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unequal(tiny, before) == []
    assert rl.edit.applied_edits(tiny) == ()


def test_ctrl_c_waits_for_a_copy_and_then_goes_to_the_handler_that_was_there(request):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        calling.uninterrupted(work)
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_edits_work_under_inference_mode_and_autocast_as_without(tiny):
    before, edit = bits(tiny), made_up(tiny)
    with edit.applied(tiny):
        edited = bits(tiny)
    with torch.inference_mode():
        handle = edit.apply(tiny)
    assert unequal(tiny, edited) == []
    with torch.autocast("cpu"):
        handle.revert()
        with edit.applied(tiny):
            assert unequal(tiny, edited) == []
    assert unequal(tiny, before) == []


def test_matrices_that_are_kept_are_put_back_and_edits_made_meanwhile_are_gone(tiny):
    before = bits(tiny)
    with pytest.raises(RuntimeError, match="inside"), keeping([find_output_matrix(tiny, 1)]):
        made_up(tiny).apply(tiny)
        find_output_matrix(tiny, 1).values.fill_(float("nan"))
        raise RuntimeError("inside")
    assert unequal(tiny, before) == []
    assert rl.edit.applied_edits(tiny) == ()


def test_what_is_written_over_a_model_goes_with_the_model(tiny):
    copied = copy.deepcopy(tiny)
    made_up(tiny).apply(copied)
    del copied
    gc.collect()
    assert not written._KEPT


def test_every_public_call_first_ends_what_was_broken_off(tiny):
    before = bits(tiny)
    handle = made_up(tiny).apply(tiny)
    handle._writing.in_force = False  # what `revert` leaves that an exception ends right after this
    assert unequal(tiny, before)
    rl.edit.sample_contexts(tiny, ((2, 1),))
    assert unequal(tiny, before) == []


@pytest.mark.parametrize("order", ["as made", "in reverse"])
def test_the_work_of_an_edit_grows_no_faster_than_the_edits_before_it(tiny, monkeypatch, order):
    """A sequence of thousands applies each on top of all others."""
    edits, added = [], []
    for seed in range(8):
        made = made_up(tiny, seed=seed)
        factors = {update.layer: (update.left, update.right) for update in made.updates}
        edits.append(rl.Edit.of(tiny, [REQUEST], factors, method="rome", config={}, on_unhealthy="ignore"))
        edits[-1].apply(tiny)
    rl.edit.revert_edits(tiny)
    whole = rl.edit.Update.added_to
    monkeypatch.setattr(rl.edit.Update, "added_to", lambda self, values: added.append(1) or whole(self, values))
    counts = []
    for edit in edits if order == "as made" else edits[::-1]:
        added.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            edit.apply(tiny)
        counts.append(len(added))
    rl.edit.revert_edits(tiny)
    assert counts == ([1] * 8 if order == "as made" else [*range(1, 8), 1])  # the last is made for the original
