"""How often property tests try: a little in `make test`, at full size in `make torture`."""

import os
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("ROME_LENS_TORTURE") == "1"


def times(quick: T, full: T) -> T:
    """`full` in `make torture`, else `quick`."""
    return full if FULL else quick
