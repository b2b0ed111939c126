"""Runs an evaluation in forked children and kills them at random moments: `python -m tests.evaluate.killing`.

One interpreter loads the model once; every attempt is a fork of it. Needs a model's folder, a folder to work in, and
how many times to kill. A child that finishes before it is killed has made one table; the next begins another one.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import rome_lens as rl
from tests.evaluate.test_scoring import METHODS
from tests.evaluate.test_sequence import RECORDS

COUNT = 12


def main() -> None:
    folder, work, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    model = rl.load_model(folder, device="cpu")
    records = [replace(RECORDS[i % len(RECORDS)], case_id=i) for i in range(COUNT)]

    def run(out: Path) -> None:
        rl.score_edits(model, records, METHODS, out=out, progress=False)

    start = time.monotonic()
    run(work / "unbroken")
    seconds = time.monotonic() - start
    moments, killed, tables = random.Random(0), 0, 0
    while killed < kills:
        child = os.fork()
        if not child:
            run(work / f"broken{tables}")
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        tables += os.WIFEXITED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    run(work / f"broken{tables}")
    (work / "kills.json").write_text(json.dumps(killed))


if __name__ == "__main__":
    main()
