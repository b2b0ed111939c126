"""The version of the package, and the newest versions of its libraries that the tests have run with."""

import re
from importlib.metadata import version

from rome_lens.errors import VersionWarning, warn

__version__ = "0.1.0"
NEWEST = {
    "transformer-lens": "4.3",
    "transformers": "5.24",
    "torch": "2.13",
    "beartype": "0.23",
    "jaxtyping": "0.3",
    "safetensors": "0.8",
    "einops": "0.8",
    "numpy": "2",
    "pandas": "3",
    "plotly": "7",
}
"""Major releases; minor ones where a library changes in those. A newer one than these is worth a warning."""


def warn_of_newer() -> None:
    """Warns once, naming the libraries that are newer than the versions that the tests have run with."""
    newer = [f"{name} {version(name)} (tested up to {most})" for name, most in NEWEST.items() if _is_newer(name, most)]
    if newer:
        warn(
            f"rome_lens was not tested with {', '.join(newer)}. It may work, or fail, or give other numbers: install "
            "the versions in brackets, or compare with them.",
            VersionWarning,
        )


def _is_newer(name: str, most: str) -> bool:
    tested = _numbers(most)
    return _numbers(version(name))[: len(tested)] > tested


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


warn_of_newer()
