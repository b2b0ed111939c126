"""Environments of their own, under .environments, in which the package is installed and tried."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".environments"
NEWEST = ("torch==",)
"""All that is pinned where everything else is to be the newest: torch's builds differ from machine to machine."""
_PINNED = (*NEWEST, "transformers==", "numpy==", "pandas==")


def make(name: str, requirements: Sequence[str], *, pinned: tuple[str, ...] = _PINNED) -> Path:
    """Makes the environment if it is not there, and gives its python.

    What `requirements` leave open is newest, but for the lines of constraints.txt that begin with one of `pinned`.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    kept = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(pinned)]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(kept) + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    newest = ["--upgrade", "--upgrade-strategy", "eager"] if pinned == NEWEST else []  # also where it was made before
    subprocess.run([*install, *newest, *requirements], cwd=ROOT, check=True)
    return python
