r"""What `probinf doctor` shows and tries.

The self-test runs the two kinds of algorithm once each on problems whose answers are known: a particle filter on a
linear Gaussian model against the Kalman filter, and Hamiltonian Monte Carlo on a normal law. Each is judged at 6
standard errors (false-alarm rate below 1e-8), which are known here and not estimated.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial

from probinf import models, samplers
from probinf.core import InferenceError, Target
from probinf.experiments import environment

STANDARD_ERRORS = 6.0


class Check(NamedTuple):
    """One line of the self-test."""

    name: str
    passed: bool
    detail: str


def facts() -> dict[str, str]:
    """Versions, devices and precision."""
    return environment()


def checks() -> Iterator[Check]:
    """Runs the self-test, one check at a time."""
    yield _attempt("particle filter against Kalman filter", check_filter)
    yield _attempt("Hamiltonian Monte Carlo on a normal law", check_hmc)


def check_filter(num_particles: int = 2000) -> Check:
    """Log evidence of 20 observations of a noisy random walk."""
    ys = jnp.cos(jnp.arange(20, dtype=jnp.zeros(()).dtype))
    exact = float(models.kalman_filter(models.LinearGaussian(0.0, 1.0, 1.0, 1.0, 1.0, 1.0), ys).log_evidence)
    walk = Partial(_around_one)
    model = models.StateSpaceModel(Partial(dist.Normal, jnp.zeros(()), jnp.ones(())), walk, walk)
    # Sixteen filters, whose spread measures the error: `log_evidence` is that of their mean.
    found = samplers.particle_filter(
        jax.random.key(0), model.bootstrap(ys), num_particles=num_particles, num_replicates=16
    )
    error = abs(float(found.log_evidence) - exact)
    allowed = STANDARD_ERRORS * math.sqrt(float(found.log_evidence_variance))
    detail = f"log evidence {float(found.log_evidence):.3f}, exact {exact:.3f}, allowed error {allowed:.3f}"
    # Also bounded from above, so that a filter too noisy to be of use does not pass.
    return Check("particle filter", error <= allowed <= 0.5, detail)


def check_hmc(num_samples: int = 1000) -> Check:
    """Mean and variance of a normal law with standard deviations 1 and 10."""
    scale = jnp.asarray([1.0, 10.0])
    target = Target(Partial(_log_normal, scale))
    draws = samplers.sample(
        jax.random.key(0),
        samplers.hmc(num_steps=8),
        target,
        num_samples=num_samples,
        num_warmup=300,
        num_chains=4,
        initial_position=jnp.zeros((4, 2)),
    )
    standardised = np.asarray(draws.samples) / np.asarray(scale)
    # HMC of this length does at least as well as a quarter as many independent draws.
    size = standardised.shape[0] * standardised.shape[1] / 4
    mean, variance = standardised.mean(axis=(0, 1)), standardised.var(axis=(0, 1))
    errors = np.maximum(np.abs(mean), np.abs(variance - 1) / math.sqrt(2)) * math.sqrt(size)
    worst = float(np.max(errors))
    detail = f"largest error of means and variances {worst:.2f} standard errors, allowed {STANDARD_ERRORS:.0f}"
    return Check("HMC", worst <= STANDARD_ERRORS, detail)


def _around_one(t: jax.Array, x: jax.Array) -> dist.Normal:
    del t
    return dist.Normal(x, jnp.ones_like(x))


def _log_normal(scale: jax.Array, position: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum((position / scale) ** 2)


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    """A check that stops with an error has failed; the error is its detail."""
    try:
        result = check()
    except (InferenceError, RuntimeError, ValueError, TypeError) as error:
        return Check(name, False, f"{type(error).__name__}: {error}")
    return Check(name, result.passed, result.detail)
