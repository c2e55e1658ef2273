"""Certificates of Markov kernels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from probinf import samplers, validity
from probinf.core import Kernel, Target, categorical, choose, standard_normal
from probinf.experiments._tour_validity import scaling
from probinf.samplers import LowRankFactor
from probinf.validity import Report

CHAINS = 20_000


class _Leaning(eqx.Module):
    """Proposes a state by a row of a matrix that is not symmetric; v is the proposed state."""

    matrix: Float[Array, "s s"]

    def sample(self, key: Array, target: Target, state: Any) -> Int[Array, ""]:
        del target
        return choose(key, categorical, self.matrix[state.position][None])[0]

    def log_prob(self, target: Target, state: Any, v: Array) -> Float[Array, ""]:
        del target
        return jnp.log(self.matrix[state.position, v])


class _Swap(eqx.Module):
    """(x, v) -> (v, x)."""

    def __call__(self, target: Target, state: Any, v: Array) -> tuple[Any, Array, Array]:
        return samplers.relocate(target, state, v), state.position, jnp.zeros(())


class _Table(eqx.Module):
    """Log weights of the states."""

    logs: Float[Array, " s"]

    def __call__(self, state: Array) -> Float[Array, ""]:
        return self.logs[state]


def finite_target() -> Target:
    """Prior and likelihood on four states; one has probability zero."""
    prior, likelihood = jnp.array([0.4, 0.3, 0.2, 0.1]), jnp.array([0.5, 1.7, 0.0, 3.0])
    return Target(_Table(jnp.log(likelihood)), _Table(jnp.log(prior)))


def finite_kernel() -> Kernel:
    """Metropolis-Hastings on four states with proposals that lean to one side."""
    matrix = jnp.array([[0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.3, 0.4], [0.3, 0.3, 0.1, 0.3], [0.5, 0.2, 0.2, 0.1]])
    return samplers.mhg(_Leaning(matrix), _Swap())


def _on_finite_states() -> Report:
    kernel, states = finite_kernel(), jnp.arange(4, dtype=jnp.int32)
    whole = validity.invariance(kernel, finite_target(), states, reversible=True, subject="posterior")
    return whole + validity.invariance(kernel, finite_target().at_temperature(0.3), states, subject="temperature .3")


def _half(x: Float[Array, " 1"]) -> Float[Array, ""]:
    """Gamma of shape two, and NaN below zero."""
    return jnp.sum(jnp.log(x) - x)


def _draw_half(key: Array) -> Float[Array, " 1"]:
    return jnp.sum(jax.random.exponential(key, (2,)), keepdims=True)


def _beyond_a_boundary() -> Report:
    return validity.stationarity(
        jax.random.key(3),
        samplers.random_walk(1.5),
        Target(_half),
        _draw_half,
        num_chains=CHAINS,
        subject="NaN below 0",
    )


def _tempered() -> Report:
    """Of a target whose prior is drawn exactly, at temperature zero."""
    exact = validity.exact_target("skewed")

    def prior(x: Float[Array, " 2"]) -> Float[Array, ""]:
        return -0.5 * jnp.sum(x * x)

    def draw(key: Array) -> Float[Array, " 2"]:
        return standard_normal(key, (2,), jnp.result_type(float))

    target = Target(exact.target.log_likelihood, prior, draw)
    return validity.check(samplers.hmc(0.6, 3), target, num_chains=CHAINS)


def checked(make: Callable[[], Kernel], name: str = "skewed", reversible: bool | None = None) -> Callable[[], Report]:
    """The certificate of a kernel on one of the exact targets."""

    def certificate() -> Report:
        exact = validity.exact_target(name)
        return validity.check(make(), exact.target, exact.draw, num_chains=CHAINS, reversible=reversible)

    return certificate


def everywhere(
    kernel: str, make: Callable[[], Kernel], reversible: bool | None = None
) -> dict[str, Callable[[], Report]]:
    """On the skewed target under the name of the kernel, and on the others."""
    names = {"skewed": kernel} | {name: f"{kernel}, {name}" for name in validity.TARGETS if name != "skewed"}
    return {title: checked(make, name, reversible) for name, title in names.items()}


def _single(make: Callable[[], Kernel]) -> Callable[[], Report]:
    """In float32, in which kernels draw their own normal numbers."""

    def certificate() -> Report:
        with jax.enable_x64(False):
            return checked(make)()

    return certificate


def _dense() -> Kernel:
    return samplers.hmc(0.5, 3, inverse_mass_matrix=jnp.array([[1.0, 0.3], [0.3, 0.6]]))


def _low_rank() -> Kernel:
    scales, direction = jnp.array([1.0, 0.8]), jnp.array([[0.6], [0.8]])
    return dataclasses.replace(samplers.hmc(0.5, 3), factor=LowRankFactor(scales, direction, jnp.array([0.7])))


KERNELS: Mapping[str, Callable[[], Report]] = {
    **everywhere("random_walk", lambda: samplers.random_walk(1.0)),
    **everywhere("hmc", lambda: samplers.hmc(0.5, 3)),
    "hmc, full matrix": checked(_dense),
    "hmc, low rank": checked(_low_rank),
    "random_walk, float32": _single(lambda: samplers.random_walk(1.0)),
    "hmc, float32": _single(lambda: samplers.hmc(0.5, 3)),
    **everywhere("mala", lambda: samplers.mala(0.8)),
    **everywhere("nuts", lambda: samplers.nuts(0.8), reversible=True),
    "nuts, small steps": checked(lambda: samplers.nuts(0.2), reversible=True),
    "mhg, scaling": checked(scaling),
    "finite kernel": _on_finite_states,
    "mhg, boundary": _beyond_a_boundary,
    "hmc, temperature zero": _tempered,
}
