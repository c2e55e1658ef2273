"""Certificates of reversible jump and of combined kernels."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf import samplers, validity
from probinf.core import Kernel, Target, standard_normal
from probinf.samplers import Components, Subsets, TransDimensional
from probinf.validity import Report

CHAINS, CAPACITY = 20_000, 3
CHANCES = (0.2, 0.5, 0.3)  # of one, two and three components


class _Normal(eqx.Module):
    """A normal law."""

    mean: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def sample(self, key: Array) -> Float[Array, ""]:
        return self.mean + self.scale * standard_normal(key, (), jnp.result_type(float))

    def log_prob(self, x: Array) -> Float[Array, ""]:
        z = (x - self.mean) / self.scale
        return -0.5 * z * z - float(np.log(self.scale * np.sqrt(2 * np.pi)))


def _log_density(position: TransDimensional) -> Float[Array, ""]:
    """Each component is the log of a gamma variable of shape 2, and their number is none too even."""
    x, there = position.parameters, jnp.arange(CAPACITY) < position.model
    number = jnp.log(jnp.asarray(CHANCES))[position.model - 1]
    return number + jnp.sum(jnp.where(there, 2 * x - jnp.exp(x), 0))


def _draw(key: Array) -> TransDimensional:
    number_key, key = jax.random.split(key)
    number = 1 + jax.random.choice(number_key, CAPACITY, p=jnp.asarray(CHANCES)).astype(jnp.int32)
    x = jnp.log(jnp.sum(jax.random.exponential(key, (CAPACITY, 2)), axis=1))
    return TransDimensional(number, jnp.where(jnp.arange(CAPACITY) < number, x, 0))


def _apart(x: Array, u: Array) -> tuple[Array, Array]:
    return x + u, x - 0.5 * u


def _together(a: Array, b: Array) -> tuple[Array, Array]:
    return (a + 2 * b) / 3, (a - b) / 1.5


def _birth_death() -> Kernel:
    return samplers.birth_death(_Normal(0.4, 1.2), Components(CAPACITY, minimum=1), birth_probability=0.4)


def _split_merge() -> Kernel:
    return samplers.split_merge(_apart, _together, _Normal(0.3, 1.0), Components(CAPACITY, minimum=1))


def _jumps(make: Callable[[], Kernel]) -> Callable[[], Report]:
    return lambda: validity.check(make(), Target(_log_density), _draw, num_chains=CHAINS, num_steps=4)


class _Subset(eqx.Module):
    """Log weights of subsets, by their binary number."""

    logs: Float[Array, " m"]

    def __call__(self, position: TransDimensional) -> Float[Array, ""]:
        places = 2 ** jnp.arange(position.model.shape[0], dtype=jnp.int32)
        return self.logs[jnp.sum(position.model * places)]


def _subsets() -> Report:
    masks = jnp.asarray(list(itertools.product([False, True], repeat=3)))
    target = Target(_Subset(jnp.log(jnp.linspace(0.2, 1.6, 8) ** 2)))
    kernel = samplers.birth_death(None, Subsets(3), birth_probability=0.3)
    return validity.invariance(kernel, target, TransDimensional(masks, ()), reversible=True, subject="subsets")


def _combined(combine: Callable[..., Any], *options: Any) -> Callable[[], Report]:
    def certificate() -> Report:
        exact = validity.exact_target("skewed")
        parts = samplers.random_walk(1.0), samplers.hmc(0.5, 3)
        kernel = combine(*parts) if not options else combine(parts, *options)
        return validity.check(kernel, exact.target, exact.draw, num_chains=CHAINS)

    return certificate


JUMPS: Mapping[str, Callable[[], Report]] = {
    "birth_death": _jumps(_birth_death),
    "birth_death, subsets": _subsets,
    "split_merge": _jumps(_split_merge),
    "active_random_walk": _jumps(lambda: samplers.active_random_walk(Components(CAPACITY, minimum=1), 0.9)),
    "cycle": _combined(samplers.cycle),
    "mixture": _combined(samplers.mixture, (0.3, 0.7)),
}
