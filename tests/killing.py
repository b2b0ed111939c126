"""Runs of all that goes on from a folder, killed at random moments: `python -m tests.killing MODEL WORK KILLS`."""

import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import rome_lens as rl
from tests.edit.covariance.test_collect import TEXTS
from tests.edit.methods import test_memory
from tests.edit.methods.test_batch import REQUESTS, targets_of
from tests.edit.methods.test_mend import train
from tests.edit.sequence import test_ledger
from tests.evaluate.test_scoring import METHODS
from tests.evaluate.test_sequence import OPTIONS, RECORDS, edit
from tests.locate.test_many_facts import FACTS
from tests.locate.test_many_facts import OPTIONS as TRACED

Run = Callable[[Any, Path], pd.DataFrame]
TWELVE_RECORDS = [replace(RECORDS[i % len(RECORDS)], case_id=i) for i in range(12)]
TWELVE_FACTS = [rl.Fact(fact.prompt, fact.subject + " Rome" * n) for n in range(4) for fact in FACTS]


def traced(model: Any, out: Path) -> pd.DataFrame:
    return pd.concat(trace.to_frame() for trace in rl.trace_facts(model, TWELVE_FACTS, out=out, **TRACED).traces)


def scored(model: Any, out: Path) -> pd.DataFrame:
    return rl.score_edits(model, TWELVE_RECORDS, METHODS, out=out, progress=False)


def edited(model: Any, out: Path) -> pd.DataFrame:
    made = rl.edit_sequence(model, RECORDS * 2, out=out, method=edit, **OPTIONS)
    update = made.edit.updates[0]
    return pd.concat([made.edits, made.checkpoints, _matrix(update.left @ update.right)])


def collected(model: Any, out: Path) -> pd.DataFrame:
    options: dict[str, Any] = {"tokens": 2000, "sequence_length": 32, "tokens_per_batch": 32}
    return _matrix(
        rl.collect_covariance(model, [1], texts=TEXTS * 9, out=out, progress=False, **options)[1].second_moment
    )


def searched(model: Any, out: Path) -> pd.DataFrame:
    return _matrix(torch.stack([value.vector for value in targets_of(model, REQUESTS, out=out).values]))


def trained(model: Any, out: Path) -> pd.DataFrame:
    state = train(model, steps=12, out=out).network.state_dict()
    return _matrix(torch.cat([value.flatten() for value in state.values()])[None])


def kept(model: Any, out: Path) -> pd.DataFrame:
    ledger = test_ledger.ledger_of(model, out)
    for start in range(0, 12, 4):
        ledger.add(test_ledger.REQUESTS[start : start + 4], progress=False)
    for request in test_ledger.REQUESTS[:12:3]:
        if request in ledger.facts:
            ledger.withdraw(request)
    return _matrix(test_ledger.change(ledger))


def remembered(model: Any, out: Path) -> pd.DataFrame:
    memory = test_memory.memory_of(model, None, out=out)
    for start in range(0, 12, 4):
        memory.add(test_ledger.REQUESTS[start : start + 4], progress=False)
    for request in test_ledger.REQUESTS[:12:3]:
        if request in memory.facts:
            memory.withdraw(request)
    return _matrix(torch.cat(memory.keys_and_residuals(), dim=1))


def _matrix(values: torch.Tensor) -> pd.DataFrame:
    return pd.DataFrame(values.detach().numpy())


RUNS: dict[str, Run] = {
    "trace_facts": traced,
    "score_edits": scored,
    "edit_sequence": edited,
    "collect_covariance": collected,
    "memit_targets": searched,
    "train_mend": trained,
    "EditLedger": kept,
    "FactMemory": remembered,
}
ROUNDED = ("EditLedger",)
"""What depends on the order of its facts by rounding: a kill may leave part of a batch, and the rest is added later."""


def kill_at_random_moments(run: Callable[[Path], pd.DataFrame], work: Path, kills: int, *, exact: bool = True) -> int:
    """Runs once unbroken; then in forks of this process, of which `kills` are killed with SIGKILL.

    A fork goes on in the folder of the one before it. One that ends before it is killed has made a whole of it, and the
    next begins another folder. The last one is ended in this process. Each folder must then give what the unbroken run
    gave.

    Returns:
        How many were killed.
    """
    start = time.monotonic()
    unbroken = run(work / "unbroken")
    seconds = time.monotonic() - start
    moments, killed, ended = random.Random(0), 0, 0
    while killed < kills:
        child = os.fork()
        if not child:
            run(work / f"broken{ended}")
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        ended += os.WIFEXITED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    for number in range(ended + 1):
        folder = work / f"broken{number}"
        pd.testing.assert_frame_equal(run(folder), unbroken, check_exact=exact, rtol=1e-5)
        assert not list(folder.glob(".*.tmp"))
    return killed


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", rl.errors.EditWarning)
    model, work = rl.load_model(Path(sys.argv[1]), device="cpu"), Path(sys.argv[2])
    killed = {
        name: kill_at_random_moments(partial(run, model), work / name, int(sys.argv[3]), exact=name not in ROUNDED)
        for name, run in RUNS.items()
    }
    print(json.dumps(killed))


if __name__ == "__main__":
    main()
