"""Environments of their own, under .environments, in which the package is installed and tried."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".environments"
_PINNED = ("torch==", "transformers==", "numpy==", "pandas==")


def make(name: str, requirements: Sequence[str]) -> Path:
    """Makes the environment if it is not there, and gives its python. What `requirements` leave open is newest."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(_PINNED)]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pinned) + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    subprocess.run([*install, *requirements], check=True)
    return python
