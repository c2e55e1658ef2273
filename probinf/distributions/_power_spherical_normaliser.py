r"""The normalising constant of the power spherical distribution relative to the uniform, and its inverse problem.

With $\beta = (p - 1) / 2$, $\alpha = \beta + \kappa$ and t the cosine of a uniform direction,

$$N(\kappa) = \log E (1 + t)^\kappa = \kappa \log 2 + \log \frac{\Gamma(\beta + \kappa)}{\Gamma(\beta)} -
\log \frac{\Gamma(2 \beta + \kappa)}{\Gamma(2 \beta)}.$$

The logarithms of Gamma are a hundred times their difference at p = 32768, and are taken apart by Stirling's formula
with remainder St:
$$N = (\alpha - \tfrac12) \log(1 + \tfrac\kappa\beta) - (\alpha + \beta - \tfrac12) \log(1 + \tfrac{\kappa}{2 \beta})
+ \mathrm{St}(\alpha) - \mathrm{St}(\beta) - \mathrm{St}(\alpha + \beta) + \mathrm{St}(2 \beta).$$
Beyond $\kappa = 2 \beta$ what stands is $N - \kappa \log 2$, relative to a density of 1 at the mean direction.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float

# B_2k / (2k (2k - 1)), k = 1 to 7
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
STIRLING_FROM = 9.0
NUM_STEPS = 12
Numbers = Float[Array, "..."]


def is_large(dimension: int, concentration: Numbers) -> Bool[Array, "..."]:
    """Where the constant is taken relative to a density that is 1 at the mean direction."""
    return concentration > max(dimension - 1, 16)


def log_normaliser(dimension: int, concentration: Numbers) -> Numbers:
    """N of the module's docstring where the concentration is not large, N - concentration log 2 where it `is_large`."""
    large = is_large(dimension, concentration)
    value = jnp.where(
        large,
        _scaled(dimension, jnp.where(large, concentration, 16.0 * dimension)),
        _plain(dimension, jnp.where(large, 0, concentration)),
    )
    return jnp.where(concentration >= 0, value, jnp.nan)


def _remainder(z: Numbers) -> Numbers:
    """St(z), what Stirling's formula for log Gamma(z) lacks, for z >= 9."""
    inverse = 1 / z
    total = jnp.zeros_like(z)
    for coefficient in reversed(STIRLING):
        total = total * (inverse * inverse) + coefficient
    return total * inverse


def _plain(dimension: int, k: Numbers) -> Numbers:
    b = 0.5 * (dimension - 1)
    if b < STIRLING_FROM:
        return k * math.log(2) + (math.lgamma(2 * b) - math.lgamma(b)) + (gammaln(b + k) - gammaln(2 * b + k))
    start = jnp.full_like(k, b)
    rest = (_remainder(b + k) - _remainder(start)) - (_remainder(2 * b + k) - _remainder(2 * start))
    return (b + k - 0.5) * jnp.log1p(k / b) - (2 * b + k - 0.5) * jnp.log1p(k / (2 * b)) + rest


def _scaled(dimension: int, k: Numbers) -> Numbers:
    b = 0.5 * (dimension - 1)
    n = b + k
    constant = math.lgamma(2 * b) - math.lgamma(b) - b * math.log(b) + b
    lead = b * jnp.log1p(k / b) + (n + b - 0.5) * jnp.log1p(b / n)
    return constant - lead - (_remainder(n + b) - _remainder(n))


def normaliser_slope(dimension: int, concentration: Numbers) -> Numbers:
    """The derivative of N - concentration log 2, the mean of log((1 + cosine) / 2)."""
    slope = jax.jvp(partial(log_normaliser, dimension), (concentration,), (jnp.ones_like(concentration),))[1]
    return slope - jnp.where(is_large(dimension, concentration), 0, math.log(2))


def kl_to_uniform(dimension: int, concentration: Numbers) -> Numbers:
    """The Kullback-Leibler divergence to the uniform distribution."""
    endless = concentration == jnp.inf
    k = jnp.where(endless, 1, concentration)
    own = normaliser_slope(dimension, k) + jnp.where(is_large(dimension, k), 0, math.log(2))
    return jnp.where(endless, jnp.inf, k * own - log_normaliser(dimension, k))


def relative_log_prob(dimension: int, concentration: Numbers, cosines: Numbers, deficits: Numbers) -> Numbers:
    """The log density relative to the uniform at points of these cosines to the mean direction.

    Args:
        dimension: p.
        concentration: at least 0, of the shape of the cosines.
        cosines: inner products with the mean direction.
        deficits: 1 - cosine, used where the concentration `is_large`.
    """
    endless = concentration == jnp.inf
    k = jnp.where(endless, 1, concentration)
    change = jnp.where(is_large(dimension, k), -0.5 * deficits, cosines)
    within = change > -1  # rounding may take a cosine below -1
    power = jnp.where(within, k * jnp.log1p(jnp.where(within, change, 0)), jnp.where(k == 0, 0, -jnp.inf))
    value = jnp.where(jnp.isnan(change), jnp.nan, power) - log_normaliser(dimension, k)
    return jnp.where(endless, jnp.where(deficits == 0, jnp.inf, -jnp.inf), value)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def solve(dimension: int, mean_log: Numbers) -> Numbers:
    r"""The concentration with E log((1 + cosine) / 2) = `mean_log`: 0 below the uniform's, inf at 0.

    Newton from $\psi(z) \approx \log(z - 1/2)$; the function is concave, so that no step overshoots after the first.
    """
    b = 0.5 * (dimension - 1)
    inside = mean_log < 0
    target = jnp.where(inside, mean_log, -1)
    start = jnp.maximum(0.5 + b * jnp.exp(target) / -jnp.expm1(target) - b, 0)
    slope_of = partial(normaliser_slope, dimension)

    def newton(_, k):
        value, slope = jax.jvp(slope_of, (k,), (jnp.ones_like(k),))
        return jnp.maximum(k + (target - value) / slope, 0)

    value = jax.lax.fori_loop(0, NUM_STEPS, newton, start)
    return jnp.where(inside, value, jnp.where(mean_log >= 0, jnp.inf, jnp.nan))


@solve.defjvp
def _solve_jvp(dimension, primals, tangents):
    value = solve(dimension, *primals)
    between = (value > 0) & (value < jnp.inf)
    k = jnp.where(between, value, 1)
    slope = jax.jvp(partial(normaliser_slope, dimension), (k,), (jnp.ones_like(k),))[1]
    return value, tangents[0] * jnp.where(between, 1 / slope, 0)
