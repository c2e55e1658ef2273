r"""Simultaneous bands for the distribution function of uniform ranks.

With N ranks, the count $R(z_k)$ of those below $z_k = k/K$ is Bin(N, $z_k$). The band is the interval of binomial
quantiles $\gamma/2$ and $1 - \gamma/2$ at every $z_k$, with $\gamma$ solved so that a uniform sample stays within all K
intervals with probability at least $1 - \alpha$ (Säilynoja, Bürkner, Vehtari 2022).
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from probinf.core import whole_number
from probinf.validity._arguments import rate_between
from probinf.validity._report import SURE, Check

MOST_POINTS = 256
# Coverage is computed to about 1e-13; below this rate its distance from one would be rounding.
SMALLEST_RATE = 1e-10


class EcdfBands(NamedTuple):
    """The band, in counts.

    Attributes:
        lower, upper: [num_points] the smallest and largest number of samples at or below k / num_points.
        gamma: the probability of leaving the interval at one point, at most.
    """

    lower: Int[np.ndarray, " k"]
    upper: Int[np.ndarray, " k"]
    gamma: float


def ecdf_bands(num_samples: int, num_points: int, alpha: float) -> EcdfBands:
    """The simultaneous band for the counts of uniform samples at k / num_points, k = 1 .. num_points.

    Law: the counts of independent uniform samples all lie within the band with probability at least 1 - alpha, and
    gamma is the largest for which that holds.

    Args:
        num_samples: how many samples, at least 1.
        num_points: how many points, at least 2; the last is 1, where the count is `num_samples`.
        alpha: the probability of leaving the band, between 1e-10 and 1.

    Returns:
        `(lower, upper, gamma)`.

    Raises:
        ValueError: an argument is out of range.

    Source: Säilynoja, Bürkner, Vehtari (2022), Statistics and Computing 32, section 3.
    """
    num_samples = whole_number("num_samples", num_samples, 1)
    num_points = whole_number("num_points", num_points, 2, ": a band at one point says nothing")
    alpha = rate_between("alpha", alpha, SMALLEST_RATE)
    return _bands(num_samples, tuple(range(num_points + 1)), alpha)


def uniformity(
    ranks: Any,
    num_ranks: int,
    *,
    false_alarm_rate: float = 1e-6,
    law: str = "uniformity",
    subject: str = "ranks",
    num_points: int | None = None,
) -> Check:
    """Checks that independent ranks are uniform on 0 .. num_ranks - 1.

    Args:
        ranks: [num_samples] integers, or floats of integer value; one NaN makes the check fail.
        num_ranks: how many values a rank has.
        false_alarm_rate: probability that uniform ranks fail, at most; between 1e-10 and 1.
        law: for the report.
        subject: for the report.
        num_points: how many points of the distribution function are looked at; by default all, but at most 256.

    Returns:
        A check whose `found` is the farthest that the distribution function of the ranks strays, in half-widths of
        the band; the bound is 1.

    Raises:
        ValueError: an argument is out of range, a rank is not an integer of 0 .. num_ranks - 1, or there are so few
            ranks that none could fail.

    Source: Säilynoja, Bürkner, Vehtari (2022).
    """
    num_ranks = whole_number("num_ranks", num_ranks, 2, ": one value is always uniform")
    rate = rate_between("false_alarm_rate", false_alarm_rate, SMALLEST_RATE)
    ranks = _ranks(ranks, num_ranks)
    num_points = whole_number("num_points", min(num_ranks, MOST_POINTS) if num_points is None else num_points, 2)
    # With fewer points than ranks, those nearest to an even spacing: each is hit by whole ranks only.
    edges = np.unique(np.round(np.linspace(0, num_ranks, min(num_points, num_ranks) + 1)).astype(int))
    bands = _bands(ranks.size, tuple(edges.tolist()), rate)
    mean = ranks.size * edges[1:] / num_ranks
    if np.all(bands.lower[:-1] == 0) and np.all(bands.upper[:-1] == ranks.size):
        raise ValueError(f"{ranks.size} `ranks` are too few to ever fail at `false_alarm_rate` {rate:.1g}: take more")
    if np.isnan(ranks).any():
        found = math.nan
    else:
        found = _excess(np.searchsorted(np.sort(ranks), edges[1:], side="left"), mean, bands)
    half_width = np.max(np.maximum(bands.upper - mean, mean - bands.lower)) / ranks.size
    seen = half_width + SURE * 0.5 / math.sqrt(ranks.size)
    detects = f"P(rank < k) off by {seen:.2g}" if seen < 1 else "nothing surely: too few ranks"
    return Check(law, subject, found, 1.0, rate, detects)


def _ranks(ranks: Any, num_ranks: int) -> Float[np.ndarray, " n"]:
    values = np.asarray(ranks, float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`ranks` has shape {values.shape}; needed one axis of at least one rank")
    known = values[~np.isnan(values)]
    bad = known[(known < 0) | (known >= num_ranks) | (known != np.round(known))]
    if bad.size:
        raise ValueError(f"`ranks` holds {bad[0]:g}; needed integers of 0 .. {num_ranks - 1}: is `num_ranks` right?")
    return values


def _excess(counts: Int[np.ndarray, " k"], mean: Float[np.ndarray, " k"], bands: EcdfBands) -> float:
    """The largest deviation in half-widths, exactly 1 on the edge of the band."""
    tiny = np.finfo(float).tiny
    above = (counts - mean) / np.maximum(bands.upper - mean, tiny)
    below = (mean - counts) / np.maximum(mean - bands.lower, tiny)
    return float(np.max(np.where(counts >= mean, above, below)))


@functools.lru_cache(maxsize=256)
def _bands(num_samples: int, edges: tuple[int, ...], alpha: float) -> EcdfBands:
    """The band at `edges[1:] / edges[-1]`, gamma by bisection of its logarithm."""
    grid = np.asarray(edges[1:]) / edges[-1]
    kernels = _increments(num_samples, np.diff(edges) / edges[-1])

    def at(gamma: float) -> EcdfBands:
        lower = scipy.stats.binom.ppf(gamma / 2, num_samples, grid).astype(int)
        # The upper quantile of R as the lower one of N - R: 1 - gamma / 2 would round a small gamma away.
        upper = num_samples - scipy.stats.binom.ppf(gamma / 2, num_samples, 1 - grid).astype(int)
        return EcdfBands(np.clip(lower, 0, num_samples), np.clip(upper, 0, num_samples), gamma)

    # At alpha / K the bound of Bonferroni has the coverage; at 1 the band is the median.
    low, high = math.log(alpha / len(grid)), 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _coverage(num_samples, at(math.exp(middle)), kernels) >= 1 - alpha:
            low = middle
        else:
            high = middle
    return at(math.exp(low))


def _increments(num_samples: int, widths: Float[np.ndarray, " k"]) -> list[Float[np.ndarray, " j"]]:
    """The Poisson masses of the counts between neighbouring points, cut where they are below 1e-20."""
    rates, which = np.unique(np.round(num_samples * widths, 12), return_inverse=True)
    masses = [scipy.stats.poisson.pmf(np.arange(r + 12 * math.sqrt(r) + 40), r) for r in rates]
    return [masses[i] for i in which]


def _coverage(num_samples: int, bands: EcdfBands, increments: list[Float[np.ndarray, " j"]]) -> float:
    """The probability that all counts lie within the band.

    The counts are those of a Poisson process given that its total is `num_samples`: the recursion over binomial
    increments of the paper, but with increments that do not depend on the state, so that each step is a convolution.
    """
    mass, offset = np.ones(1), 0
    for low, high, increment in zip(bands.lower.tolist(), bands.upper.tolist(), increments, strict=True):
        mass = np.convolve(mass, increment)[low - offset : high - offset + 1]
        offset = low
        if not mass.size:
            return 0.0
    return float(mass[-1] / scipy.stats.poisson.pmf(num_samples, num_samples))
