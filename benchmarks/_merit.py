r"""What accuracy costs: the gain of one competitor over another in error and in variance per second.

With log-evidence errors $e_r$ and times $t_r$ of R runs, a competitor's price is $\mathrm{rmse}^p \times
\mathrm{median}(t)$, and the gain of B over A is price(A) / price(B), above 1 when B is better. With p = 1 that is the
ratio of errors at equal speed, or of speeds at equal error. With p = 2 it is the ratio of the times in which averages
of independent runs would reach the same variance (Glynn, Whitt 1992). The interval is the percentile bootstrap over
runs (Efron 1979), the two competitors resampled apart because their random numbers have nothing in common.
"""

from typing import NamedTuple

import numpy as np

from benchmarks._harness import Row

NUM_RESAMPLES = 2_000
LEVEL = 0.9


class Gain(NamedTuple):
    """A ratio of prices with the ends of its `LEVEL` bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g}-{self.high:.3g})"


def price(row: Row, *, clock: str = "wall", power: int = 1) -> float:
    """The rmse to the `power` times median seconds by `clock` ("wall" or "cpu"); the lower the better."""
    return float(_price(np.asarray(row.errors), np.asarray(getattr(row, clock)), power))


def gain(base: Row, other: Row, *, clock: str = "wall", power: int = 1) -> Gain:
    """How many times lower the price of `other` is than that of `base`, both with runs."""
    # A fixed seed: the same table whenever it is made from the same runs.
    rng = np.random.default_rng(0)
    values = [_price(np.asarray(row.errors), np.asarray(getattr(row, clock)), power) for row in (base, other)]
    samples = [_resampled(rng, row, clock, power) for row in (base, other)]
    with np.errstate(divide="ignore", invalid="ignore"):  # a competitor without error has price zero
        spread = samples[0] / samples[1]
        value = values[0] / values[1]
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(float(value), float(low), float(high))


def _resampled(rng: np.random.Generator, row: Row, clock: str, power: int) -> np.ndarray:
    picks = rng.integers(len(row.runs), size=(NUM_RESAMPLES, len(row.runs)))
    return _price(np.asarray(row.errors)[picks], np.asarray(getattr(row, clock))[picks], power)


def _price(errors: np.ndarray, seconds: np.ndarray, power: int) -> np.ndarray:
    return np.sqrt(np.mean(errors**2, axis=-1)) ** power * np.median(seconds, axis=-1)
