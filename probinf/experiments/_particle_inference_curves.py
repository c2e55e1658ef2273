r"""Curves of accuracy against cost: intervals, and the scaling-rate factor.

The *scaling-rate factor* at an accuracy is how many times fewer tokens a method needs for it than best-of-N: both
curves are made monotone and read between their points linearly in the logarithm of the tokens. Its interval is a
bootstrap over problems, the same ones for both curves.
"""

import math
from typing import NamedTuple

import numpy as np

CONFIDENCE_Z = 1.959964  # of 95 % intervals
LEVEL = 0.95


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
    """How many times fewer tokens one curve needs than another for the same accuracy.

    Attributes:
        level: the accuracy, the best that the baseline reaches.
        estimate, low, high: the factor and its 95 % bootstrap interval; 0 where the level is never reached.
        at_least: whether the method's smallest run is above the level already, so that the factor may be larger.
    """

    level: float
    estimate: float
    low: float
    high: float
    at_least: bool


class Curve(NamedTuple):
    """What a method solves at rising cost.

    Attributes:
        tokens: [k], mean cost of a problem, rising.
        solved: [p, k], whether (or how much of) each problem is solved.
    """

    tokens: np.ndarray
    solved: np.ndarray


def scaling_factor(baseline: Curve, method: Curve, *, seed: int, num_bootstrap: int = 2000) -> Factor:
    """The scaling-rate factor at the best accuracy of the baseline.

    Args:
        baseline: of best-of-N.
        method: of what is compared with it, on the same problems.
        seed: of the bootstrap.
        num_bootstrap: its size.
    """
    num_problems = baseline.solved.shape[0]
    chances = np.full(num_problems, 1 / num_problems)
    counts = np.random.default_rng(seed).multinomial(num_problems, chances, num_bootstrap)
    # The first row is the sample itself.
    weights = np.concatenate([np.ones((1, num_problems)), counts]) / num_problems
    ours, theirs = weights @ method.solved, weights @ baseline.solved
    level = theirs.max(axis=1)
    factors = tokens_needed(baseline.tokens, theirs, level) / tokens_needed(method.tokens, ours, level)
    low, high = np.quantile(factors[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    at_least = bool(ours[0, 0] >= level[0])
    return Factor(float(level[0]), float(factors[0]), float(low), float(high), at_least)
