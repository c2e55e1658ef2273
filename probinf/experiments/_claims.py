r"""`Claim`: one line of the first table of a report, *claim, paper, ours, how measured, holds?*.

A claim about $k$ random numbers at once is judged by the largest of their $k$ standardised differences. With normal
errors $\max_i |z_i|$ exceeds $\Phi^{-1}(1 - \alpha / 2k)$ with probability at most $\alpha$ (Bonferroni); where the
standard errors themselves come from $r$ replicates, Student's $t$ with $r - 1$ degrees of freedom takes the place of
the normal. `FALSE_ALARM` is the $\alpha$ of every claim of this room.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats

FALSE_ALARM = 1e-6


class Claim(NamedTuple):
    """A statement, what the paper says of it, what this run measured, and whether it holds.

    Attributes:
        text: the claim, one sentence.
        paper: the published number or statement, with its source.
        ours: the number that this run measured, with its error.
        measured: how it was measured, and the rule by which it holds.
        holds: the verdict; a claim that fails is reported like any other.
    """

    text: str
    paper: str
    ours: str
    measured: str
    holds: bool


def below(value: float | None, bound: float) -> bool:
    """Whether `value` is a number and at most `bound`: a missing or NaN measurement never upholds a claim."""
    return value is not None and math.isfinite(value) and value <= bound


def near(value: float | None, target: float, *, relative: float) -> bool:
    """Whether `value` is a number within `relative` of `target`."""
    return value is not None and below(abs(value - target), relative * abs(target))


def normal_bound(num: int, *, alpha: float = FALSE_ALARM) -> float:
    """The bound that the largest of `num` absolute standard normals exceeds with probability at most `alpha`."""
    _check(num, alpha)
    return float(scipy.stats.norm.isf(alpha / (2 * num)))


def student_bound(num: int, replicates: int, *, alpha: float = FALSE_ALARM) -> float:
    """As `normal_bound`, for means of `replicates` runs over the standard errors of those same runs.

    Raises:
        ValueError: fewer than two replicates have no standard error.
    """
    _check(num, alpha)
    if replicates < 2:
        raise ValueError(f"`replicates` must be at least 2 to give a standard error, got {replicates}")
    return float(scipy.stats.t.isf(alpha / (2 * num), replicates - 1))


def _check(num: int, alpha: float) -> None:
    if num < 1:
        raise ValueError(f"`num` must be at least 1, got {num}")
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must lie between 0 and 1, got {alpha}")


class Comparison(NamedTuple):
    """Means of replicates against exact values.

    Attributes:
        mean: [k], over replicates.
        standard_error: [k], of `mean`, from the spread of the replicates.
        z: [k], (mean - exact) / standard_error.
        worst: the largest absolute `z`; NaN as soon as one replicate is NaN.
        bound: what `worst` exceeds with probability at most `FALSE_ALARM`.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    z: np.ndarray
    worst: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether every mean agrees with its exact value within Monte Carlo error."""
        return below(self.worst, self.bound)


def compare(replicates: np.ndarray, exact: np.ndarray) -> Comparison:
    """Compares independent replicates of k unbiased estimates with the k exact values.

    Args:
        replicates: [r, k] with r >= 2, read as float64.
        exact: [k].

    Raises:
        ValueError: the shapes do not fit, or there are fewer than two replicates.
    """
    values = np.asarray(replicates, dtype=np.float64)
    truth = np.asarray(exact, dtype=np.float64)
    if values.ndim != 2 or truth.shape != values.shape[1:]:
        raise ValueError(f"`replicates` must be [r, k] and `exact` [k], got {values.shape} and {truth.shape}")
    count, num = values.shape
    bound = student_bound(num, count)
    mean = values.mean(axis=0)
    standard_error = values.std(axis=0, ddof=1) / math.sqrt(count)
    difference = mean - truth
    # Replicates that agree to the last bit have no error to divide by: then only equality will do.
    exactly = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
    z = np.where(standard_error == 0, exactly, difference / np.where(standard_error == 0, 1.0, standard_error))
    return Comparison(mean, standard_error, z, float(np.max(np.abs(z))), bound)
