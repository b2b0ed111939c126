"""The errors of this package. Each is also a builtin error, so that old `except` clauses keep working.

Besides, an argument of another type than is annotated is a TypeError, one that makes no sense a ValueError, and a file
that is missing or in the way a FileNotFoundError, FileExistsError or NotADirectoryError.
"""

import sys
import warnings
from types import FrameType

__all__ = [
    "CovarianceError",
    "DataWarning",
    "EditError",
    "EditWarning",
    "FormatError",
    "NotFiniteError",
    "UnavailableError",
    "VersionWarning",
]

_BETWEEN = {"rome_lens", "beartype", "contextlib", "importlib", "jaxtyping", "torch"}


class FormatError(ValueError):
    """A file is damaged, or is not the kind of file it was read as."""


class UnavailableError(OSError):
    """Something cannot be had now: a package, a download, room on a disk, a folder that another run has open.

    The message says what to do.
    """


class CovarianceError(ValueError):
    """A key covariance does not belong to this model or layer, or cannot be inverted."""


class EditError(RuntimeError):
    """An edit could not be computed, applied or reverted. No weight was changed."""


class NotFiniteError(ValueError):
    """A model's output is NaN or infinite, so that there is nothing to read off it."""


class EditWarning(UserWarning):
    """An edit may do harm: it is unhealthy, or is applied to other weights than it was computed for."""


class DataWarning(UserWarning):
    """Records of a data set are broken and were left out, or ask for what is true already; the message says which."""


class VersionWarning(UserWarning):
    """A library is newer than the newest version that this package was tested with; the message names each."""


def warn(message: str, category: type[Warning]) -> None:
    """Warns at the line outside this package from which it was called, however many decorators lie between."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _package(frame) in _BETWEEN:
        frame = frame.f_back
        level += _package(frame) != "importlib"  # Python does not count these either
    warnings.warn(message, category, stacklevel=level)


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
