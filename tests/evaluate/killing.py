"""Runs evaluations that are killed: `python -m tests.evaluate.killing MODEL WORK KILLS`."""

import sys
from dataclasses import replace
from pathlib import Path

import rome_lens as rl
from tests.evaluate.test_scoring import METHODS
from tests.evaluate.test_sequence import RECORDS
from tests.killing import kill_at_random_moments

COUNT = 12


def main() -> None:
    model = rl.load_model(Path(sys.argv[1]), device="cpu")
    records = [replace(RECORDS[i % len(RECORDS)], case_id=i) for i in range(COUNT)]

    def run(out: Path) -> None:
        rl.score_edits(model, records, METHODS, out=out, progress=False)

    kill_at_random_moments(run, Path(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
