"""Certificates of parallel tempering, on the product space of its replicas."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf import samplers, validity
from probinf.core import Target
from probinf.experiments._certificates_kernels import CHAINS, finite_kernel, finite_target
from probinf.validity import Report


class _Replicas(eqx.Module):
    """Parallel tempering as a kernel on the product space: positions are those of all replicas."""

    tempering: samplers.ParallelTempering
    target: Target

    def init(self, key: Array, target: Target, position: Any) -> samplers.TemperingState:
        del target
        state = self.tempering.init_replicas(key, self.target, position)
        return state._replace(position=state.points.position)

    def step(self, key: Array, target: Target, state: Any) -> tuple[samplers.TemperingState, Any]:
        del target
        state, info = self.tempering.step(key, self.target, state)
        return state._replace(position=state.points.position), info


class _Product(eqx.Module):
    """The log density of the replicas."""

    target: Target
    inverse_temperatures: Float[Array, " r"]

    def __call__(self, positions: Array) -> Float[Array, ""]:
        def one(beta: Array, x: Array) -> Array:
            return self.target.at_temperature(beta).log_density(x)

        return jnp.sum(jax.vmap(one)(self.inverse_temperatures, positions))


def _on_the_product(target: Target, tempering: samplers.ParallelTempering) -> tuple[_Replicas, Target]:
    return _Replicas(tempering, target), Target(_Product(target, tempering.inverse_temperatures))


def _on_finite_states() -> Report:
    """Two replicas on four states, one of probability zero; exact."""
    kernel, product = _on_the_product(finite_target(), samplers.parallel_tempering(finite_kernel(), [1.0, 0.3]))
    states = jnp.asarray(list(np.ndindex(4, 4)), jnp.int32)
    return validity.invariance(kernel, product, states, subject="two replicas")


def _log_gamma_prior(x: Array) -> Float[Array, ""]:
    return 1.5 * x - jnp.exp(x)


def _log_gamma_likelihood(x: Array) -> Float[Array, ""]:
    return 4 * x - 2 * jnp.exp(x)


def _draw_prior(key: Array) -> Float[Array, ""]:
    return jnp.log(jax.random.gamma(key, 1.5))


def _with_the_prior() -> Report:
    """Three replicas, the last drawn from the prior: each law is that of the log of a gamma variable."""
    betas = jnp.array([1.0, 0.3, 0.0])
    target = Target(_log_gamma_likelihood, _log_gamma_prior, _draw_prior)
    kernel, product = _on_the_product(target, samplers.parallel_tempering(samplers.random_walk(1.0), betas))

    def draw(key: Array) -> Float[Array, " 3"]:
        return jnp.log(jax.random.gamma(key, 1.5 + 4 * betas) / (1 + 2 * betas))

    return validity.stationarity(jax.random.key(6), kernel, product, draw, num_steps=3, num_chains=CHAINS)


TEMPERING: Mapping[str, Callable[[], Report]] = {
    "parallel tempering": _with_the_prior,
    "parallel tempering, finite": _on_finite_states,
}
