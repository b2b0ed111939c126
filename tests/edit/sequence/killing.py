"""Fills ledgers in forked children and kills them at random moments: `python -m tests.edit.sequence.killing`.

One interpreter loads the model once; every attempt is a fork of it. Needs a model's folder, a folder to work in, and
how many times to kill. A child that finishes before it is killed has filled one ledger; the next begins another one.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import rome_lens as rl
from tests.edit.sequence.test_ledger import REQUESTS, ledger_of


def main() -> None:
    folder, work, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    model = rl.load_model(folder, device="cpu")
    warnings.simplefilter("ignore", rl.errors.EditWarning)

    def run(out: Path) -> None:
        ledger = ledger_of(model, out)
        for start in range(0, 12, 4):
            ledger.add(REQUESTS[start : start + 4], progress=False)
        for request in REQUESTS[:12:3]:
            if request in ledger.facts:
                ledger.withdraw(request)

    start = time.monotonic()
    run(work / "unbroken")
    seconds = time.monotonic() - start
    moments, killed, ledgers = random.Random(0), 0, 0
    while killed < kills:
        child = os.fork()
        if not child:
            run(work / f"broken{ledgers}")
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        ledgers += os.WIFEXITED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    run(work / f"broken{ledgers}")
    (work / "kills.json").write_text(json.dumps(killed))


if __name__ == "__main__":
    main()
