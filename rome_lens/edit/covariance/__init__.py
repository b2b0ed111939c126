"""C, the second moment of the keys: collecting it, storing it, and its diagnostics."""

from rome_lens.edit.covariance.shipped import builtin_covariances as builtin

__all__ = ["builtin"]
