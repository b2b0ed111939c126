"""Intervals for means over independent units (facts, records): of real numbers, and of numbers from 0 to 1."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap_interval(
    values: Float[np.ndarray, "n column"],
    statistic: Statistic = lambda means: means,
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
    weights = np.zeros((resamples, len(values)))
    np.add.at(weights, (np.arange(resamples)[:, None], rows), 1.0)
    return _middle(statistic(_means(values, weights)), confidence)


def proportion_interval(
    values: Float[np.ndarray, "n column"],
    statistic: Statistic = lambda means: means,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " result"], Float[np.ndarray, " result"]]:
    """An interval for means of numbers from 0 to 1, which has a width where all are 0 or all are 1.

    The bootstrap resamples what was seen: of 10 successes in 10 it makes the interval [1, 1]. Here rows have random
    weights (the Bayesian bootstrap, Rubin 1981), and so have a row of 0s and one of 1s, each with half a row's share.
    Where values are 0 or 1 this is Jeffreys' interval, the quantiles of Beta(successes + 1/2, failures + 1/2), up to
    the number of resamples; like it, it is widened to hold the mean itself (Brown, Cai, DasGupta 2001). A row may be
    the share of a few prompts: prompts of one row are not taken as independent.

    The arguments and what comes back are those of `bootstrap_interval`.
    """
    random = np.random.default_rng(seed)
    weights = np.hstack([random.standard_exponential((resamples, len(values))), random.gamma(0.5, size=(resamples, 2))])
    ends = np.repeat([[0.0], [1.0]], values.shape[1], axis=1)
    low, high = _middle(statistic(_means(np.vstack([values, ends]), weights)), confidence)
    found = statistic(_means(values, np.ones((1, len(values)))))[0]
    return np.minimum(low, found), np.maximum(high, found)


def _means(
    values: Float[np.ndarray, "n column"], weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample column"]:
    """Weighted means of the columns, of the rows that have a value; NaN where none has."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(present, values, 0.0)) / (weights @ present)


def _middle(
    results: Float[np.ndarray, "resample result"], confidence: float
) -> tuple[Float[np.ndarray, " result"], Float[np.ndarray, " result"]]:
    """The ends of the middle part of each column."""
    beyond = (1 - confidence) / 2
    return np.nanquantile(results, beyond, axis=0), np.nanquantile(results, 1 - beyond, axis=0)
