"""A skewed joint law of position and data, and a Metropolis kernel with planted bugs, for the checks of kernels."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from probinf.core import Target

NOISE = 0.7


def simulate(key):
    """A log rate with one waiting time (skewed), a location with one measurement."""
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (2,))
    return {"x": x}, (jax.random.exponential(keys[1]) * jnp.exp(-x[0]), x[1] + NOISE * jax.random.normal(keys[2]))


def log_prior(position):
    return -0.5 * jnp.sum(position["x"] ** 2)


def log_likelihood(data, position):
    wait, y = data
    x = position["x"]
    return x[0] - wait * jnp.exp(x[0]) - 0.5 * (y - x[1]) ** 2 / NOISE**2


def target_of(data):
    return Target(jax.tree_util.Partial(log_likelihood, data), log_prior)


class State(NamedTuple):
    position: Any
    status: Any


class Info(NamedTuple):
    acceptance_rate: Any
    status: Any


class Metropolis(eqx.Module):
    """Sound with the defaults; all are array leaves, so that planted bugs compile nothing.

    Attributes:
        scale: of the steps; zero stands still.
        weight: of the log ratio in the acceptance; 0 leaves the acceptance out.
        drift: added to every proposal and not corrected for.
        prior_weight: power of the prior in the ratio.
        poison: positions of first coordinate above it become NaN.
        fatal: the status bits that every step sets.
    """

    scale: Any = eqx.field(default=0.8, converter=jnp.asarray)
    weight: Any = eqx.field(default=1.0, converter=jnp.asarray)
    drift: Any = eqx.field(default=0.0, converter=jnp.asarray)
    prior_weight: Any = eqx.field(default=1.0, converter=jnp.asarray)
    poison: Any = eqx.field(default=jnp.inf, converter=jnp.asarray)
    fatal: Any = eqx.field(default=0, converter=lambda bits: jnp.asarray(bits, jnp.uint32))

    def init(self, key, target, position):
        del key
        return State(position, jnp.zeros((), jnp.uint32))

    def step(self, key, target, state):
        keys = jax.random.split(key)
        old = state.position["x"]
        new = old + self.scale * jax.random.normal(keys[0], (2,)) + self.drift
        ratio = self.log_density(target, new) - self.log_density(target, old)
        accepted = jnp.log(1 - jax.random.uniform(keys[1])) < self.weight * ratio
        moved = jnp.where(accepted, new, old)
        moved = jnp.where(moved > self.poison, jnp.nan, moved)
        return State({"x": moved}, state.status | self.fatal), Info(accepted.astype(float), self.fatal)

    def log_density(self, target, x):
        position = {"x": x}
        return self.prior_weight * target.log_prior(position) + target.log_likelihood(position)
