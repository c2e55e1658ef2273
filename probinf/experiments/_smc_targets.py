r"""Targets of SMC samplers whose evidence is known.

Two modes under a wide normal prior: Gaussian integrals. Poisson counts with normal log rates: quadrature. Counts one
by one with a gamma prior: with $n$ counts of sum $s$ behind, the next is negative binomial of shape $a + s$ and
success probability $(1 + n) / (2 + n)$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from probinf.core import Target
from probinf.samplers import DataPath

DIMENSION, PRIOR_SD, CENTRE, MODE_VARIANCE, MODE_WEIGHT = 10, 5.0, 2.0, 0.25, 0.7
RATE_SD = 2.0  # of the log rates of the counts
GAMMA_SHAPE, DATA_SEED, DATA_RATE = 2.0, 0, 3.0


class NormalPrior(eqx.Module):
    """N(0, scale^2 I)."""

    scale: Float[Array, ""]
    dimension: int = eqx.field(static=True)

    def __call__(self, key: jax.Array) -> Float[Array, " d"]:
        return self.scale * jax.random.normal(key, (self.dimension,), self.scale.dtype)

    def log_density(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Normalised."""
        return jnp.sum(-0.5 * (x / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi))


class TwoModes(eqx.Module):
    """(1 - w) N(x; -2, I/4) + w N(x; 2, I/4)."""

    weight: Float[Array, ""]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        def one(centre: float, weight: Array) -> Array:
            squares = (x - centre) ** 2 / MODE_VARIANCE
            return jnp.log(weight) - 0.5 * jnp.sum(squares + math.log(2 * math.pi * MODE_VARIANCE))

        return jnp.logaddexp(one(-CENTRE, 1 - self.weight), one(CENTRE, self.weight))


class Counts(eqx.Module):
    """Independent Poisson counts of log rates x."""

    counts: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(self.counts * x - jnp.exp(x) - gammaln(self.counts + 1))


def two_modes() -> tuple[Target, float]:
    """The target with two modes, and its exact log evidence."""
    prior = NormalPrior(jnp.asarray(PRIOR_SD), DIMENSION)
    total = PRIOR_SD**2 + MODE_VARIANCE
    exact = -DIMENSION / 2 * (math.log(2 * math.pi * total) + CENTRE**2 / total)
    return Target(TwoModes(jnp.asarray(MODE_WEIGHT)), prior.log_density, prior), exact


def poisson_counts(counts: tuple[float, ...]) -> tuple[Target, float, np.ndarray]:
    """A skewed target, its log evidence and its means, by quadrature."""
    prior = NormalPrior(jnp.asarray(RATE_SD), len(counts))
    grid = np.linspace(-16, 8, 40_001)
    masses, means = [], []
    for count in counts:
        density = scipy.stats.norm.pdf(grid, 0, RATE_SD) * scipy.stats.poisson.pmf(count, np.exp(grid))
        masses.append(np.trapezoid(density, grid))
        means.append(np.trapezoid(density * grid, grid) / masses[-1])
    target = Target(Counts(jnp.asarray(counts, jnp.zeros(()).dtype)), prior.log_density, prior)
    return target, float(np.sum(np.log(masses))), np.array(means)


def one_by_one(num_data: int) -> tuple[DataPath, np.ndarray]:
    """Poisson counts with a Gamma(2, 1) rate, one after the other; the exact log p(y_1..t), [T + 1]."""
    counts = np.random.default_rng(DATA_SEED).poisson(DATA_RATE, num_data).astype(float)
    before = np.concatenate([[0.0], np.cumsum(counts)[:-1]])
    rate = 1.0 + np.arange(num_data)
    terms = scipy.stats.nbinom.logpmf(counts, GAMMA_SHAPE + before, rate / (rate + 1))
    prior = Target(_zero, _log_gamma, _log_rate, jnp.exp)
    path = DataPath(prior, _log_poisson, jnp.asarray(counts, jnp.zeros(()).dtype))
    return path, np.concatenate([[0.0], np.cumsum(terms)])


def _zero(x: Array) -> Array:
    return jnp.zeros_like(x)


def _log_gamma(x: Array) -> Array:
    return GAMMA_SHAPE * x - jnp.exp(x) - math.lgamma(GAMMA_SHAPE)


def _log_rate(key: jax.Array) -> Array:
    return jnp.log(jax.random.gamma(key, GAMMA_SHAPE, dtype=jnp.zeros(()).dtype))


def _log_poisson(x: Array, count: Array) -> Array:
    return count * x - jnp.exp(x) - gammaln(count + 1)
