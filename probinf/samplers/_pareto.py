r"""Pareto-smoothed importance weights (Vehtari, Simpson, Gelman, Yao, Gabry 2024).

The largest $M = \min(S/5, 3\sqrt S)$ weights are replaced by the expected order statistics of a generalised Pareto law
fitted to them by the posterior mean of Zhang and Stephens (2009). Its shape $\hat k$ tells whether the weights can be
trusted: above $\min(1 - 1/\log_{10} S, 0.7)$ they cannot.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SMALLEST_TAIL = 5
PRIOR_SCALE, PRIOR_SHAPE, PRIOR_COUNT = 3.0, 0.5, 10.0


class Pareto(NamedTuple):
    """A fitted generalised Pareto law.

    Attributes:
        shape: [] k; -inf where the tail is constant, NaN where it is too short to be fitted.
        scale: [] sigma.
    """

    shape: Array
    scale: Array


def tail_length(num_samples: int) -> int:
    """How many of the largest weights count as the tail; 0 if too few for a fit."""
    length = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
    return length if length >= SMALLEST_TAIL else 0


def fit_pareto(excess: Float[Array, " m"]) -> Pareto:
    """Fits a generalised Pareto law to sorted excesses over a threshold.

    Args:
        excess: [M], ascending, >= 0.

    Returns:
        The shape, shrunk towards 0.5 as if by ten more observations, and the scale.
    """
    count, largest = excess.shape[0], excess[-1]
    safe = jnp.where(largest > 0, excess, jnp.ones_like(excess))
    quartile = safe[int(count / 4 + 0.5) - 1]
    quartile = jnp.where(quartile > 0, quartile, safe[-1])
    grid = 30 + int(math.sqrt(count))
    steps = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = jnp.asarray(steps, excess.dtype) / (PRIOR_SCALE * quartile) + 1 / safe[-1]
    k = jnp.mean(jnp.log1p(-b[:, None] * safe[None, :]), axis=1)
    profile = count * (jnp.log(-(b / k)) - k - 1)
    weights = jax.nn.softmax(jnp.where(jnp.isfinite(profile), profile, -jnp.inf))
    mean_b = jnp.sum(weights * jnp.where(weights > 0, b, 0))
    shape = jnp.mean(jnp.log1p(-mean_b * safe))
    scale = -shape / mean_b
    shrunk = (count * shape + PRIOR_COUNT * PRIOR_SHAPE) / (count + PRIOR_COUNT)
    return Pareto(jnp.where(largest > 0, shrunk, -jnp.inf), scale)


def smooth_weights(log_weights: Float[Array, " s"]) -> tuple[Float[Array, " s"], Float[Array, ""]]:
    """Replaces the largest importance weights by expected order statistics of a fitted Pareto law.

    Args:
        log_weights: [S], unnormalised; -inf counts as zero.

    Returns:
        The smoothed log weights in the same order, none above the largest there was, and the shape k: NaN with
        fewer than 21 samples, where nothing is smoothed.
    """
    count = log_weights.shape[0]
    length = tail_length(count)
    top = jnp.max(log_weights)
    shift = jnp.where(jnp.isfinite(top), top, 0)
    if length == 0:
        return log_weights, jnp.full((), jnp.nan, log_weights.dtype)
    order = jnp.argsort(log_weights)
    ascending = log_weights[order] - shift
    cutoff = jnp.exp(jnp.maximum(ascending[-length - 1], jnp.log(jnp.finfo(log_weights.dtype).tiny)))
    excess = jnp.maximum(jnp.exp(ascending[-length:]) - cutoff, 0)
    law = fit_pareto(excess)
    levels = jnp.asarray((np.arange(length) + 0.5) / length, log_weights.dtype)
    small = jnp.abs(law.shape) < 1e-6
    k = jnp.where(small | ~jnp.isfinite(law.shape), 1, law.shape)
    exceeding = -jnp.log1p(-levels)
    quantiles = law.scale * jnp.where(small, exceeding, jnp.expm1(k * exceeding) / k)
    smoothed = jnp.minimum(jnp.log(quantiles + cutoff), 0)
    # A tail with particles of weight zero has no Pareto law.
    usable = jnp.isfinite(law.shape) & jnp.all(jnp.isfinite(smoothed)) & (ascending[-length] > -jnp.inf)
    tail = jnp.where(usable, smoothed, ascending[-length:])
    replaced = log_weights.at[order[-length:]].set(tail + shift)
    shape = jnp.where(ascending[-length] > -jnp.inf, law.shape, jnp.inf)
    return replaced, jnp.where(jnp.isfinite(top), shape, jnp.nan)
