"""Fills ledgers that are killed: `python -m tests.edit.sequence.killing MODEL WORK KILLS`."""

import sys
import warnings
from pathlib import Path

import rome_lens as rl
from tests.edit.sequence.test_ledger import REQUESTS, ledger_of
from tests.killing import kill_at_random_moments


def main() -> None:
    model = rl.load_model(Path(sys.argv[1]), device="cpu")
    warnings.simplefilter("ignore", rl.errors.EditWarning)

    def run(out: Path) -> None:
        ledger = ledger_of(model, out)
        for start in range(0, 12, 4):
            ledger.add(REQUESTS[start : start + 4], progress=False)
        for request in REQUESTS[:12:3]:
            if request in ledger.facts:
                ledger.withdraw(request)

    kill_at_random_moments(run, Path(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
