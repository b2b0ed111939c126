"""Intervals against cases whose answer is known."""

import warnings

import numpy as np
import pytest

from rome_lens.intervals import bootstrap_interval, proportion_interval


@pytest.fixture
def sample() -> np.ndarray:
    return np.random.default_rng(0).normal([1.0, -2.0], [1.0, 3.0], size=(800, 2))


def test_constant_data_have_an_interval_of_no_width():
    low, high = bootstrap_interval(np.full((20, 3), 0.25))
    np.testing.assert_allclose(low, 0.25, rtol=1e-12)
    np.testing.assert_allclose(high, 0.25, rtol=1e-12)


def test_a_large_sample_gives_the_normal_theory_interval(sample):
    low, high = bootstrap_interval(sample, resamples=4000)
    error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
    np.testing.assert_allclose(low, sample.mean(axis=0) - 1.96 * error, atol=0.15 * error.max())
    np.testing.assert_allclose(high, sample.mean(axis=0) + 1.96 * error, atol=0.15 * error.max())


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.99])
def test_the_confidence_sets_the_width(sample, confidence):
    from statistics import NormalDist

    low, high = bootstrap_interval(sample, confidence=confidence, resamples=4000)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    expected = 2 * z * sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
    np.testing.assert_allclose(high - low, expected, rtol=0.12)


def test_a_unit_without_a_value_is_left_out_of_its_column_only():
    values = np.array([[1.0, 2.0], [1.0, np.nan], [1.0, 2.0], [np.nan, 2.0]] * 5)
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose([low, high], [[1.0, 2.0], [1.0, 2.0]], rtol=1e-12)


def test_missing_values_widen_the_interval_as_fewer_units_would(sample):
    values = np.where(np.arange(800)[:, None] < 200, sample, np.nan)
    low, high = bootstrap_interval(values, resamples=4000)
    alone_low, alone_high = bootstrap_interval(sample[:200], resamples=4000)
    np.testing.assert_allclose(high - low, alone_high - alone_low, rtol=0.1)
    np.testing.assert_allclose((high + low) / 2, sample[:200].mean(axis=0), atol=0.1)


def test_resamples_that_miss_every_value_of_a_column_do_not_make_it_nan():
    low, high = bootstrap_interval(np.array([[1.0], [np.nan], [np.nan]]))
    assert (low, high) == (1.0, 1.0)


def test_the_interval_is_of_the_statistic_not_of_the_means(sample):
    def difference(means: np.ndarray) -> np.ndarray:
        return means[:, :1] - means[:, 1:]

    low, high = bootstrap_interval(sample, difference, resamples=4000)
    expected_low, expected_high = bootstrap_interval(sample[:, :1] - sample[:, 1:], resamples=4000)
    assert low.shape == (1,)
    np.testing.assert_allclose([low, high], [expected_low, expected_high], rtol=1e-9)


def test_rows_are_resampled_whole_so_that_paired_columns_stay_paired():
    column = np.random.default_rng(1).normal(size=(50, 1))
    low, high = bootstrap_interval(np.hstack([column, column]), lambda means: means[:, :1] - means[:, 1:])
    np.testing.assert_allclose([low, high], 0, atol=1e-12)


def test_the_seed_decides_the_interval(sample):
    first, again, other = (bootstrap_interval(sample, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_numpys_global_random_state_is_left_alone(sample):
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    bootstrap_interval(sample)
    assert np.random.rand() == expected


def test_a_column_without_any_value_has_an_undefined_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = bootstrap_interval(np.array([[1.0, np.nan], [2.0, np.nan]]))
    assert np.isnan([low[1], high[1]]).all()
    assert np.isfinite([low[0], high[0]]).all()


# Jeffreys' 95 % interval, quantiles of Beta(x + 1/2, n - x + 1/2), as scipy.stats.beta.ppf gives them.
JEFFREYS = {
    (0, 10): (0.0, 0.21719),
    (3, 10): (0.09269, 0.60582),
    (30, 30): (0.92032, 1.0),
    (24, 30): (0.63339, 0.91193),
}


@pytest.mark.parametrize(("successes", "n"), JEFFREYS)
def test_the_interval_of_a_proportion_is_jeffreys(successes, n):
    values = (np.arange(n) < successes).astype(float)[:, None]
    low, high = proportion_interval(values, resamples=50_000)
    np.testing.assert_allclose([low[0], high[0]], JEFFREYS[successes, n], atol=0.004)


@pytest.mark.parametrize("prompts", [1, 2, 10])
@pytest.mark.parametrize("share", [0.77, 0.95, 0.99])
def test_the_interval_of_mean_shares_covers_the_truth(prompts, share):
    """30 records of some prompts each that succeed together (intraclass correlation 0.5): it covers 95 in 100 times,
    where the bootstrap, which often sees no failure, covers fewer than 70.
    """
    random = np.random.default_rng(prompts)
    chances = random.beta(share, 1 - share, size=(30, 300)) if prompts > 1 else np.full((30, 300), share)
    values = random.binomial(prompts, chances) / prompts
    low, high = proportion_interval(values, resamples=1000)
    covered = ((low <= share) & (share <= high)).mean()
    assert 0.9 <= covered <= 0.995
    if share == 0.99:
        low, high = bootstrap_interval(values, resamples=1000)
        assert ((low <= share) & (share <= high)).mean() < 0.7


def test_shares_far_from_the_ends_have_the_bootstraps_interval():
    values = np.random.default_rng(0).binomial(10, 0.7, size=(200, 1)) / 10
    one, other = (interval(values, resamples=4000) for interval in (proportion_interval, bootstrap_interval))
    np.testing.assert_allclose(one, other, atol=0.006)


def test_a_proportion_without_any_value_has_an_undefined_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = proportion_interval(np.array([[1.0, np.nan], [0.0, np.nan]]))
    assert np.isnan([low[1], high[1]]).all()
    assert 0 < low[0] < 0.5 < high[0] < 1
