r"""Curves of accuracy against cost: intervals, and the scaling-rate factor.

The *scaling-rate factor* at an accuracy is how many times fewer tokens a method needs for it than best-of-N: both
curves are made monotone and read between their points linearly in the logarithm of the tokens. Accuracies are fixed
beforehand, `LEVELS`: read at the best that best-of-N reaches, where its curve is flat, a factor would be whatever that
flatness makes it. Its interval is a bootstrap over problems, the same ones for both curves.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE_Z = 1.959964  # of 95 % intervals
LEVEL = 0.95
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # accuracies at which factors are read


def wilson(mean: float, count: float | int) -> tuple[float, float]:
    """The 95 % interval of a chance, from `count` trials with this mean (Wilson 1927)."""
    z2 = CONFIDENCE_Z**2
    centre = (mean + z2 / (2 * count)) / (1 + z2 / count)
    half = CONFIDENCE_Z / (1 + z2 / count) * math.sqrt(max(mean * (1 - mean), 0) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of independent values in [0, 1].

    Wilson's, for as many trials as would leave a chance with the variance that the mean has: for values 0 and 1 their
    number, for fractions more.
    """
    mean, variance = float(values.mean()), float(values.var())
    count = values.size * mean * (1 - mean) / variance if variance > 0 else values.size
    return wilson(mean, count)


def tokens_needed(tokens: np.ndarray, accuracy: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Where curves of accuracy, made monotone, reach a level.

    Args:
        tokens: [k], rising.
        accuracy: [b, k], b curves.
        level: [b].

    Returns:
        [b]: read linearly in log tokens; `tokens[0]` where a curve starts above the level, inf where it never gets
        there.
    """
    best = np.maximum.accumulate(accuracy, axis=1)
    reached = best >= level[:, None]
    after = np.argmax(reached, axis=1)
    before = np.maximum(after - 1, 0)
    row = np.arange(len(level))
    rise = best[row, after] - best[row, before]
    part = np.where(rise > 0, (level - best[row, before]) / np.where(rise > 0, rise, 1), 0.0)
    logs = np.log(tokens)
    found = np.exp(logs[before] + np.where(after > 0, part, 0.0) * (logs[after] - logs[before]))
    return np.where(reached.any(axis=1), found, np.inf)


class Factor(NamedTuple):
    """How many times fewer tokens one curve needs than another for an accuracy.

    Attributes:
        level: the accuracy.
        baseline, method: whether the curves reach it.
        estimate, low, high: the factor and its 95 % bootstrap interval; NaN where one of the two does not reach it, and
            `high` inf where the baseline does not in more than 1 of 40 bootstrap samples.
        at_least: whether the method's smallest run is above the level already, so that the factor may be larger.
        sure: whether both reach the level in at least 39 of 40 bootstrap samples.
    """

    level: float
    baseline: bool
    method: bool
    estimate: float
    low: float
    high: float
    at_least: bool
    sure: bool


class Curve(NamedTuple):
    """What a method solves at rising cost.

    Attributes:
        tokens: [k], mean cost of a problem, rising.
        solved: [p, k], whether (or how much of) each problem is solved.
    """

    tokens: np.ndarray
    solved: np.ndarray


def scaling_factors(
    baseline: Curve, method: Curve, *, seed: int, levels: Sequence[float] = LEVELS, num_bootstrap: int = 2000
) -> list[Factor]:
    """The scaling-rate factor at each level.

    Args:
        baseline: of best-of-N.
        method: of what is compared with it, on the same problems.
        seed: of the bootstrap.
        levels: accuracies.
        num_bootstrap: its size.
    """
    num_problems = baseline.solved.shape[0]
    chances = np.full(num_problems, 1 / num_problems)
    counts = np.random.default_rng(seed).multinomial(num_problems, chances, num_bootstrap)
    # The first row is the sample itself.
    weights = np.concatenate([np.ones((1, num_problems)), counts]) / num_problems
    ours, theirs = weights @ method.solved, weights @ baseline.solved
    return [_factor(baseline.tokens, theirs, method.tokens, ours, level) for level in levels]


def _factor(
    their_tokens: np.ndarray, theirs: np.ndarray, our_tokens: np.ndarray, ours: np.ndarray, level: float
) -> Factor:
    levels = np.full(len(ours), level)
    needed, spent = tokens_needed(their_tokens, theirs, levels), tokens_needed(our_tokens, ours, levels)
    reached = np.isfinite(needed), np.isfinite(spent)
    both = reached[0] & reached[1]
    sure = float(both[1:].mean()) >= (1 + LEVEL) / 2
    at_least = bool(ours[0, 0] >= level)
    if not both[0]:
        nothing = math.nan
        return Factor(level, bool(reached[0][0]), bool(reached[1][0]), nothing, nothing, nothing, at_least, sure)
    # A sample in which the method never gets there has factor 0; one in which neither does says nothing.
    factors = np.where(reached[1], needed / np.where(reached[1], spent, 1.0), 0.0)
    known = np.sort(factors[1:][(reached[0] | reached[1])[1:]])
    # Whole order statistics: one cannot read between a number and infinity.
    low, high = (np.quantile(known, (1 + sign * LEVEL) / 2, method="closest_observation") for sign in (-1, 1))
    return Factor(level, True, True, float(factors[0]), float(low), float(high), at_least, sure)


def highest_sure(factors: Sequence[Factor]) -> Factor | None:
    """The factor at the highest level that both curves surely reach; None where there is none."""
    return next((factor for factor in reversed(factors) if factor.sure), None)
