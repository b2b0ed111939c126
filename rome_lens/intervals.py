"""Bootstrap intervals, for tracing effects and for scores."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def bootstrap_interval(
    values: Float[np.ndarray, "n column"],
    statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " result"], Float[np.ndarray, " result"]]:
    """The percentile bootstrap interval of a statistic of column means; whole rows are resampled.

    Args:
        values: A row for each independent unit (a fact, a record); NaN where a unit has no value.
        statistic: Maps means [resample, column] to [resample, result]; by default the means themselves.
        confidence: Of the interval.
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        The lower and upper ends.
    """
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    present = ~np.isnan(values)
    weights = np.zeros((resamples, len(values)))
    np.add.at(weights, (np.arange(resamples)[:, None], rows), 1.0)
    with np.errstate(invalid="ignore"):
        means = (weights @ np.where(present, values, 0.0)) / (weights @ present)
    results = statistic(means)
    beyond = (1 - confidence) / 2
    return np.nanquantile(results, beyond, axis=0), np.nanquantile(results, 1 - beyond, axis=0)
