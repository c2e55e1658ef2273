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

    mean: Any
    scale: Any

    def sample(self, key: Array) -> Float[Array, ""]:
        return self.mean + self.scale * standard_normal(key, (), jnp.result_type(float))

    def log_prob(self, x: Array) -> Float[Array, ""]:
        z = (x - self.mean) / self.scale
        return -0.5 * z * z - jnp.log(self.scale * np.sqrt(2 * np.pi))


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


def _weighted_birth_death() -> Kernel:
    """Large components die sooner, and a new one looks at those that are there and at the shared parameter."""

    def proposal(position: TransDimensional, slot: Array) -> _Normal:
        there = jnp.sum(jnp.where(jnp.arange(CAPACITY) < position.model, position.parameters, 0))
        return _Normal(0.3 * jnp.tanh(there) + 0.2 * slot + 0.1 * position.shared, 1.2)

    def dying(position: TransDimensional) -> Array:
        return jnp.exp(0.3 * position.parameters)

    return samplers.birth_death(proposal, Components(CAPACITY, minimum=1), death_weights=dying)


def _weighted_split_merge() -> Kernel:
    """Neighbours merge, near ones sooner; the noise of a split is as wide as the shared parameter says."""

    def noise(position: TransDimensional, slot: Array) -> _Normal:
        return _Normal(0.2 * position.parameters[slot], 0.8 + 0.1 * jnp.exp(-(position.shared**2)))

    def merging(position: TransDimensional) -> Array:
        x = position.parameters
        return jnp.exp(-0.2 * jnp.abs(x[:, None] - x[None, :])) * (jnp.eye(CAPACITY, k=1) + jnp.eye(CAPACITY, k=-1))

    options = {"merge_weights": merging, "split_probability": 0.6}
    return samplers.split_merge(_apart, _together, noise, Components(CAPACITY, minimum=1), **options)


def _log_density_shared(position: TransDimensional) -> Float[Array, ""]:
    """With a shared normal number that shifts nothing."""
    return _log_density(TransDimensional(position.model, position.parameters)) - 0.5 * position.shared**2


def _draw_shared(key: Array) -> TransDimensional:
    key, shared_key = jax.random.split(key)
    shared = standard_normal(shared_key, (), jnp.result_type(float))
    return TransDimensional(*_draw(key)[:2], shared)


def _shared(make: Callable[[], Kernel]) -> Callable[[], Report]:
    return lambda: validity.check(make(), Target(_log_density_shared), _draw_shared, num_chains=CHAINS, num_steps=4)


TABLE_CHANCES = (0.35, 0.65)  # of the model of one parameter and of that of two


def _two_models() -> Report:
    """A table of two models: one parameter becomes two and back."""

    def forward(parameters: Array, noise: Array) -> tuple[Array, tuple[()]]:
        return jnp.stack(_apart(parameters[0], noise)), ()

    def backward(parameters: Array, noise: tuple[()]) -> tuple[Array, Array]:
        del noise
        together, noise_back = _together(parameters[0], parameters[1])
        return jnp.stack([together, jnp.zeros_like(together)]), noise_back

    masks = jnp.array([[True, False], [True, True]])
    jump = samplers.ModelJump(0, 1, forward, backward, forward_noise=_Normal(0.3, 1.0))
    back = samplers.ModelJump(1, 0, backward, forward, backward_noise=_Normal(0.3, 1.0))

    def log_density(position: TransDimensional) -> Float[Array, ""]:
        x = position.parameters
        each = jnp.where(masks[position.model], 2 * x - jnp.exp(x), 0)
        return jnp.log(jnp.asarray(TABLE_CHANCES))[position.model] + jnp.sum(each)

    def draw(key: Array) -> TransDimensional:
        model_key, key = jax.random.split(key)
        model = jax.random.bernoulli(model_key, TABLE_CHANCES[1]).astype(jnp.int32)
        x = jnp.log(jnp.sum(jax.random.exponential(key, (2, 2)), axis=1))
        return TransDimensional(model, jnp.where(masks[model], x, 0))

    kernel = samplers.between_models([jump, back], masks, weights=jnp.array([0.4, 0.6]))
    return validity.check(kernel, Target(log_density), draw, num_chains=CHAINS, num_steps=4)


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
    "birth_death, weighted": _shared(_weighted_birth_death),
    "split_merge": _jumps(_split_merge),
    "split_merge, weighted": _shared(_weighted_split_merge),
    "between_models": _two_models,
    "active_random_walk": _jumps(lambda: samplers.active_random_walk(Components(CAPACITY, minimum=1), 0.9)),
    "combined kernels": _combined(samplers.cycle),
    "combined kernels, mixture": _combined(samplers.mixture, (0.3, 0.7)),
}
