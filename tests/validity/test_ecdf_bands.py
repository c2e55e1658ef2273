"""Simultaneous bands: published values of gamma, exact coverage, calibration and power of the check of uniform ranks.

Planted bugs, each shown to be caught below: ranks that favour the middle; ranks shifted by one; ranks that never reach
the last value; a NaN among the ranks.
"""

import math

import numpy as np
import pytest
import scipy.stats

from probinf.validity import _ecdf_bands
from probinf.validity._ecdf_bands import ecdf_bands, uniformity

GAMMAS = [
    (100, 100, 0.05, 4.11e-3),
    (256, 20, 0.05, 6.55e-3),
    (256, 256, 0.05, 2.40e-3),
    (256, 256, 1e-4, 3.18e-6),
    (1000, 100, 1e-4, 3.42e-6),
]


@pytest.mark.parametrize(("num_samples", "num_points", "alpha", "gamma"), GAMMAS)
def test_known_gammas(num_samples, num_points, alpha, gamma):
    bands = ecdf_bands(num_samples, num_points, alpha)
    np.testing.assert_allclose(bands.gamma, gamma, rtol=2e-3)
    lower, upper, again = bands
    assert again == bands.gamma
    assert lower.shape == upper.shape == (num_points,)
    assert lower[-1] == upper[-1] == num_samples
    np.testing.assert_array_equal(upper[:-1], num_samples - lower[:-1][::-1])  # the band is symmetric


def by_binomials(num_samples, lower, upper):
    """The recursion as the paper has it: R_(k+1) - R_k is Bin(N - R_k, 1 / (K - k))."""
    num_points = len(lower)
    mass = np.zeros(num_samples + 1)
    mass[0] = 1
    counts = np.arange(num_samples + 1)
    for k in range(num_points):
        chance = 1 / (num_points - k)
        steps = scipy.stats.binom.pmf(counts[None] - counts[:, None], num_samples - counts[:, None], chance)
        mass = (mass @ steps) * ((counts >= lower[k]) & (counts <= upper[k]))
    return mass.sum()


@pytest.mark.parametrize(("num_samples", "num_points", "alpha"), [(7, 3, 0.2), (40, 12, 0.05), (60, 25, 1e-6)])
def test_coverage_is_exact(num_samples, num_points, alpha):
    bands = ecdf_bands(num_samples, num_points, alpha)
    covered = by_binomials(num_samples, bands.lower, bands.upper)
    assert covered >= 1 - alpha
    widths = np.full(num_points, 1 / num_points)
    found = _ecdf_bands._coverage(num_samples, bands, _ecdf_bands._increments(num_samples, widths))
    np.testing.assert_allclose(1 - found, 1 - covered, rtol=1e-6, atol=1e-14)
    # The next larger gamma would not do: the band is the narrowest of its kind.
    gamma = bands.gamma * 1.001
    grid = np.arange(1, num_points + 1) / num_points
    lower = scipy.stats.binom.ppf(gamma / 2, num_samples, grid)
    upper = num_samples - scipy.stats.binom.ppf(gamma / 2, num_samples, 1 - grid)
    if not (np.array_equal(lower, bands.lower) and np.array_equal(upper, bands.upper)):
        assert by_binomials(num_samples, lower, upper) < 1 - alpha


@pytest.mark.parametrize(("num_ranks", "num_points"), [(20, None), (1000, 37)])
def test_false_alarms_at_a_moderate_rate(num_ranks, num_points):
    # 4000 checks at .05: the share lies within 6 standard errors (.02) above, and is not far below.
    rng = np.random.default_rng(0)
    failed = np.mean(
        [
            not uniformity(
                rng.integers(0, num_ranks, 200), num_ranks, false_alarm_rate=0.05, num_points=num_points
            ).passed
            for _ in range(4000)
        ]
    )
    assert 0.02 < failed < 0.05 + 6 * math.sqrt(0.05 * 0.95 / 4000)


def uniform_ranks(num_ranks=100, num_samples=2000):
    return np.random.default_rng(1).integers(0, num_ranks, num_samples)


def test_uniform_ranks_pass():
    check = uniformity(uniform_ranks(), 100, subject="theta")
    assert check.passed
    assert (check.law, check.subject, check.bound, check.false_alarm_rate) == ("uniformity", "theta", 1.0, 1e-6)
    assert check.detects.startswith("P(rank < k) off by 0.")


def test_the_middle_is_favoured():
    rng = np.random.default_rng(2)
    ranks = np.floor(100 * scipy.stats.norm.cdf(rng.normal(size=2000) / 1.3)).astype(int)
    assert not uniformity(ranks, 100).passed
    assert not uniformity(np.floor(100 * rng.beta(1, 1.4, 2000)), 100).passed


def test_ranks_shifted_by_one():
    """A rank of zero never occurs: an error in counting that histograms of few bins hide."""
    assert not uniformity(np.maximum(uniform_ranks(20, 4000), 1), 20).passed
    assert not uniformity(np.minimum(uniform_ranks(20, 4000), 18), 20).passed


def test_what_is_detected_is_detected():
    """Rank laws as far off as `detects` says, 200 times: none is missed."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        sound = uniformity(rng.integers(0, 50, 1000), 50)
        off = float(sound.detects.rsplit(" ", 1)[1])
        ranks = rng.integers(0, 50, 1000)
        moved = (ranks >= 25) & (rng.random(1000) < 2 * off)  # P(rank < 25) rises by `off`
        assert not uniformity(np.where(moved, ranks - 25, ranks), 50).passed


def test_the_edge_of_the_band_passes():
    bands = ecdf_bands(100, 2, 0.01)
    for inside, count in [(True, bands.upper[0]), (False, bands.upper[0] + 1), (True, bands.lower[0])]:
        ranks = np.repeat([0, 1], [count, 100 - count])
        assert uniformity(ranks, 2, false_alarm_rate=0.01).passed is inside


def test_nan_never_passes():
    ranks = uniform_ranks().astype(float)
    ranks[3] = math.nan
    check = uniformity(ranks, 100)
    assert math.isnan(check.found)
    assert not check.passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [0, 1, 100]}, r"`ranks` holds 100; needed integers of 0 \.\. 99"),
        ({"ranks": [0.5, 1]}, r"`ranks` holds 0\.5"),
        ({"ranks": [[1, 2]]}, r"`ranks` has shape \(1, 2\)"),
        ({"ranks": []}, r"`ranks` has shape \(0,\)"),
        ({"ranks": [1]}, "1 `ranks` are too few to ever fail"),
        ({"num_ranks": 1}, "`num_ranks` is 1; needed at least 2"),
        ({"num_points": 1}, "`num_points` is 1; needed at least 2"),
        ({"false_alarm_rate": 0.0}, r"`false_alarm_rate` is 0\.0"),
        ({"false_alarm_rate": 1.0}, r"`false_alarm_rate` is 1\.0"),
        ({"false_alarm_rate": 1e-11}, "at least 1e-10"),
    ],
)
def test_bad_arguments(change, message):
    good = {"ranks": uniform_ranks(), "num_ranks": 100}
    with pytest.raises(ValueError, match=message):
        uniformity(**{**good, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 0.05), "`num_samples` is 0"),
        ((10, 1, 0.05), "`num_points` is 1"),
        ((10, 10, math.nan), "`alpha` is nan"),
    ],
)
def test_bad_arguments_of_the_bands(arguments, message):
    with pytest.raises(ValueError, match=message):
        ecdf_bands(*arguments)
