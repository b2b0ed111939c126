"""Runs the conformance tests in several environments, and writes the table environment x test x result.

python -m tests.conformance.matrix [--out docs/test_matrix.csv]
"""

import argparse
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pandas as pd

from tests.conformance.environments import FOLDER, NEWEST, ROOT, make

TESTED = ["-e", ".", "hypothesis", "pytest"]
ENVIRONMENTS = {
    "transformer-lens-3.9.0": ["transformer-lens==3.9.0"],
    "transformer-lens-4": ["transformer-lens>=4,<5"],
    "transformer-lens-3.9.0-sae-lens-6": ["transformer-lens==3.9.0", "sae-lens>=6,<7", "circuitsvis"],
    "newest-transformer-lens-3.9": ["transformer-lens>=3.9,<4"],
    "newest-transformer-lens-4": ["transformer-lens>=4,<5"],
}
SHOWN = ("transformer-lens", "sae-lens", "circuitsvis", "transformers", "torch")


def run(name: str, requirements: list[str]) -> pd.DataFrame:
    """The results in one environment: a row for each test function."""
    if name.startswith("newest"):
        python = make(name, [*requirements, *TESTED], pinned=NEWEST)
    else:
        python = make(name, [*requirements, *TESTED])
    report = FOLDER / f"{name}.xml"
    report.unlink(missing_ok=True)
    test(python, "tests/conformance", f"--junitxml={report}")
    shown = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    versions = " ".join(line for line in shown.stdout.splitlines() if line.rsplit("==", 1)[0] in SHOWN)
    return read(report).assign(environment=name, versions=versions)


def test(python: Path, *options: str) -> int:
    """Runs pytest in an environment, where the package's word that something is newer than tested is no error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:rome_lens was not tested"}
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", environment["PYTHONWARNINGS"]]
    return subprocess.run([*command, *options], cwd=ROOT, env=environment, check=False).returncode


def read(report: Path) -> pd.DataFrame:
    """How often each test function passed, failed and was skipped, from pytest's XML."""
    if not report.is_file():
        return pd.DataFrame([{"test": "pytest itself", "passed": 0, "failed": 1, "skipped": 0}])
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].split("[")[0]
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts.setdefault(name, Counter())[result] += 1
    rows = [{"test": name, **{k: count[k] for k in ("passed", "failed", "skipped")}} for name, count in counts.items()]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "test_matrix.csv")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    arguments = parser.parse_args()
    table = pd.concat([run(name, ENVIRONMENTS[name]) for name in arguments.environments], ignore_index=True)
    columns = ["environment", "test", "passed", "failed", "skipped", "versions"]
    table[columns].to_csv(arguments.out, index=False)
    print(table.groupby("environment", sort=False)[["passed", "failed", "skipped"]].sum().to_string())
    if table["failed"].any():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
