"""The errors of this package. Each is also a builtin error, so that old `except` clauses keep working."""


class FormatError(ValueError):
    """A file is damaged, or is not the kind of file it was read as."""


class UnavailableError(OSError):
    """Something has to be installed or downloaded first; the message says what and how."""


class CovarianceError(ValueError):
    """A key covariance does not belong to this model or layer, or cannot be inverted."""


class EditError(RuntimeError):
    """An edit could not be computed, applied or reverted. No weight was changed."""


class EditWarning(UserWarning):
    """An edit may do harm: it is unhealthy, or is applied to other weights than it was computed for."""


class DataWarning(UserWarning):
    """Some records of a data set are broken and were left out; the message says how many, which and why."""
