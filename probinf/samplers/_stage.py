r"""Pieces of SMC samplers: the next temperature, and the kernel tuned to the population.

The next inverse temperature is the largest $\lambda' = \lambda + \delta \le 1$ whose conditional effective sample size
(Zhou, Johansen, Aston 2016)

$$\text{CESS}(\delta) = \frac{N (\sum_i W_i e^{\delta l_i})^2}{\sum_i W_i e^{2 \delta l_i}}, \quad l_i = \log L(x_i),$$

is at least a fraction of N. It decreases in $\delta$, also for unequal weights, where the plain ESS need not.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from probinf.samplers._factor import Factor

NUM_HALVINGS = 32
SMALLEST_LOG_STEP = 80.0  # e^-80 of what is left is the smallest step tried
GAIN = 1.5


class Stage(NamedTuple):
    """One temperature of an SMC sampler and the kernel that moves the particles there.

    Attributes:
        inverse_temperature: [] in (0, 1].
        factor: `[d]` or `[d, d]`, of the kernel's matrix.
        step_sizes: [max_moves], one a move.
        num_moves: [] int32, how many of them are made.
    """

    inverse_temperature: Array
    factor: Factor
    step_sizes: Array
    num_moves: Array


class Tempering(NamedTuple):
    """The context of a tempered population: its stage, and the step size that the next one begins with."""

    stage: Stage
    step_size: Array


def next_temperature(
    weights: Float[Array, " n"],
    log_likelihood: Float[Array, " n"],
    inverse_temperature: Float[Array, ""],
    target_ess: Float[Array, ""],
) -> Float[Array, ""]:
    """The next inverse temperature, by bisection of the conditional ESS in the logarithm of the step.

    Particles of likelihood zero (or NaN) die at any step: the target is taken of what the others can reach. The
    number of halvings is fixed, so a constant or infinitely peaked likelihood ends it as any other.

    Args:
        weights: [N], summing to 1.
        log_likelihood: [N].
        inverse_temperature: the present one.
        target_ess: in (0, 1), fraction of the particles.

    Returns:
        The next, in (inverse_temperature, 1]; 1 where no weight or no likelihood is left.
    """
    alive = (weights > 0) & (log_likelihood > -jnp.inf) & (log_likelihood < jnp.inf)
    top = jnp.max(jnp.where(alive, log_likelihood, -jnp.inf))
    shifted = jnp.where(alive, log_likelihood - jnp.where(jnp.isfinite(top), top, 0), 0)
    weights = jnp.where(alive, weights, 0)
    bound = target_ess.astype(weights.dtype) * jnp.sum(weights)

    def enough(step: Float[Array, ""]) -> Array:
        powers = jnp.exp(step * shifted)
        first, second = jnp.sum(weights * powers), jnp.sum(weights * powers * powers)
        return first * first >= bound * second

    return jnp.where(jnp.any(alive), raised_while(enough, inverse_temperature), 1)


def raised_while(
    enough: Callable[[Float[Array, ""]], Bool[Array, ""]], inverse_temperature: Float[Array, ""]
) -> Float[Array, ""]:
    """An inverse temperature at which `enough` turns false, found by a fixed number of halvings.

    Args:
        enough: of the distance from the present inverse temperature; where it is monotone the result is the largest
            that is enough.
        inverse_temperature: the present one.

    Returns:
        1 if that is enough; the smallest step where none is.
    """
    rest = 1 - inverse_temperature

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        good = enough(rest * jnp.exp(middle))
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    low = jnp.full_like(rest, -SMALLEST_LOG_STEP)
    log_step, _ = jax.lax.fori_loop(0, NUM_HALVINGS, halve, (low, jnp.zeros_like(rest)))
    stepped = inverse_temperature + rest * jnp.exp(log_step)
    # A step below the resolution of the number would stand still.
    stepped = jnp.maximum(stepped, jnp.nextafter(inverse_temperature, jnp.ones_like(rest)))
    return jnp.where(enough(rest), 1, jnp.minimum(stepped, 1))


def spread_factor(weights: Float[Array, " n"], positions: Float[Array, "n d"], *, dense: bool) -> Factor:
    """The factor of the weighted covariance (or variances) of the particles, kept away from zero.

    Covariances are shrunk to zero as if by five more particles without any, which does not depend on the units of the
    coordinates; the identity where nothing is finite or all particles are copies of one.
    """
    total = jnp.sum(weights)
    share = weights / jnp.where(total > 0, total, 1)
    used = jnp.where(share[:, None] > 0, positions, 0)
    mean = share @ used
    centred = jnp.where(share[:, None] > 0, used - mean[None, :], 0)
    variances = share @ (centred * centred)
    dimension = positions.shape[1]
    size = 1 / jnp.maximum(jnp.sum(share * share), jnp.finfo(share.dtype).tiny)
    shrink = (5 / (size + 5)).astype(positions.dtype)
    variances = variances + 1e-6 * jnp.mean(variances)
    if dense:
        covariance = (1 - shrink) * ((share[:, None] * centred).T @ centred)
        diagonal = jnp.arange(dimension)
        factor = jnp.linalg.cholesky(covariance.at[diagonal, diagonal].set(variances))
        identity = jnp.eye(dimension, dtype=positions.dtype)
    else:
        factor = jnp.sqrt(variances)
        identity = jnp.ones(dimension, positions.dtype)
    # Copies of one particle have no spread but what rounding makes.
    rounding = (4 * jnp.finfo(positions.dtype).eps) ** 2 * jnp.mean(mean * mean)
    usable = jnp.all(jnp.isfinite(factor)) & (jnp.mean(variances) > rounding)
    return jnp.where(usable, factor, identity)


def corrected_step(step_size: Float[Array, ""], acceptance: Float[Array, ""], aim: float) -> Float[Array, ""]:
    """The step size after a look at the mean acceptance rate of all particles (NaN counts as 0)."""
    acceptance = jnp.where(jnp.isnan(acceptance), 0, acceptance)
    return step_size * jnp.exp(jnp.clip(GAIN * (acceptance - aim), -1, 1)).astype(step_size.dtype)
