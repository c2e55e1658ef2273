"""Targets of SMC samplers with known evidences, skewed and with two modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import probinf as pb
from probinf.samplers import HMC, _moves


class NormalPrior(eqx.Module):
    """N(0, scale^2) on R^d."""

    scale: jax.Array
    dimension: int = eqx.field(static=True)

    def __call__(self, key):
        return self.scale * jax.random.normal(key, (self.dimension,))

    def log_density(self, x):
        return jnp.sum(-0.5 * (x / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * jnp.log(2 * jnp.pi))


class Bimodal(eqx.Module):
    """.3 N(x; -2, .25 I) + .7 N(x; 2, .25 I)."""

    dimension: int = eqx.field(static=True)

    def __call__(self, x):
        def one(centre, weight):
            normal = -0.5 * jnp.sum((x - centre) ** 2) / 0.25 - 0.5 * self.dimension * jnp.log(2 * jnp.pi * 0.25)
            return jnp.log(weight) + normal

        return jnp.logaddexp(one(-2.0, 0.3), one(2.0, 0.7))


def bimodal(dimension):
    prior = NormalPrior(jnp.array(5.0), dimension)
    exact = -dimension / 2 * (np.log(2 * np.pi * 25.25) + 4 / 25.25)
    return pb.Target(Bimodal(dimension), prior.log_density, prior), exact


class Counts(eqx.Module):
    """A Poisson likelihood of log rates: skewed."""

    counts: jax.Array

    def __call__(self, x):
        return jnp.sum(self.counts * x - jnp.exp(x) - jax.scipy.special.gammaln(self.counts + 1))


def skewed(counts=(0.0, 7.0)):
    """Independent Poisson counts with N(0, 2^2) log rates: the evidence is a product of integrals."""
    prior = NormalPrior(jnp.array(2.0), len(counts))
    grid = np.linspace(-16, 8, 40_001)
    log_z, means = 0.0, []
    for count in counts:
        density = stats.norm.pdf(grid, 0, 2) * stats.poisson.pmf(count, np.exp(grid))
        z = np.trapezoid(density, grid)
        log_z += np.log(z)
        means.append(np.trapezoid(density * grid, grid) / z)
    return pb.Target(Counts(jnp.asarray(counts, jnp.float32)), prior.log_density, prior), log_z, np.array(means)


def assert_unbiased(log_evidence, exact):
    """The mean of the ratios to the exact evidence is 1 within six of its standard errors."""
    ratios = np.exp(np.minimum(np.asarray(log_evidence, np.float64) - exact, 100))
    error = ratios.std(ddof=1) / np.sqrt(ratios.size)
    assert error < 0.2
    assert abs(ratios.mean() - 1) < 6 * error, (ratios.mean(), error)
    return error


class Faulty(eqx.Module):
    """A normal likelihood times `power`, with other values below and above two bounds of the first coordinate."""

    low: float | jax.Array = -np.inf
    below: float | jax.Array = 0.0
    high: float | jax.Array = np.inf
    above: float | jax.Array = 0.0
    power: float | jax.Array = 1.0

    def __call__(self, x):
        value = self.power * -0.5 * jnp.sum((x - 1) ** 2)
        return jnp.where(x[0] > self.high, self.above, jnp.where(x[0] > self.low, value, self.below))


FAULTS = {
    "constant": Faulty(power=0.0),
    "all_zero": Faulty(low=np.inf, below=-np.inf),
    "nan": Faulty(low=np.inf, below=np.nan),
    "half_nan": Faulty(low=0.0, below=np.nan),
    "half_zero": Faulty(low=0.0, below=-np.inf),
    "infinite": Faulty(high=3.0, above=np.inf),
    "peaked": Faulty(power=1e30),
}


def faulty(kind):
    """One structure for all, so that they share a program. The prior is N(0, I) on the plane."""
    prior = NormalPrior(jnp.array(1.0), 2)
    return pb.Target(jax.tree.map(jnp.float32, FAULTS[kind]), prior.log_density, prior)


# The integral over x_0 > 0: E exp(-(x-1)^2/2) = exp(-1/4) / sqrt 2 for each coordinate, times P(N(1/2, 1/2) > 0).
HALF_EVIDENCE = 2 * (-0.25 - 0.5 * np.log(2)) + stats.norm.logsf(0, 0.5, np.sqrt(0.5))


class Stale(eqx.Module):
    kernel: HMC

    def step(self, key, target, state):
        return self.kernel.step(key, target.at_temperature(0.5 * target.inverse_temperature), state)


def move_at_another_temperature(monkeypatch):
    """Planted: the moves of SMC samplers keep another law than that of the weights."""
    original = _moves.tuned_kernel
    monkeypatch.setattr(_moves, "tuned_kernel", lambda *args: Stale(original(*args)))
