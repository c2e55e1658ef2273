"""Certificates of the Markov kernels beyond those of `_certificates_kernels`: slices, spheres, parts and sites."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf import samplers, validity
from probinf.core import IntegerInterval, Target
from probinf.experiments._certificates_kernels import CHAINS, checked, everywhere
from probinf.validity import Report


def _small_steps() -> Report:
    """Unadjusted: its bias is far below what the check sees at this step."""
    exact = validity.exact_target("skewed")
    return validity.check(samplers.mclmc(0.4), exact.target, exact.draw, num_steps=20, num_chains=CHAINS)


class _Cells(eqx.Module):
    """Log weights of a table of two discrete sites."""

    logs: Float[Array, "a b"]

    def __call__(self, position: dict[str, Array]) -> Float[Array, ""]:
        return self.logs[position["a"], position["b"]]


def _gibbs() -> Report:
    """The matrices of both kinds of update, on six states."""
    prior = jnp.array([[0.3, 0.1, 0.2], [0.05, 0.25, 0.1]])
    likelihood = jnp.array([[0.5, 1.7, 0.4], [2.0, 0.9, 3.0]])
    supports = {"a": IntegerInterval(0, 1), "b": IntegerInterval(0, 2)}
    target = Target(_Cells(jnp.log(likelihood)), _Cells(jnp.log(prior)), supports=supports)
    a, b = jnp.divmod(jnp.arange(6, dtype=jnp.int32), 3)
    states = {"a": a, "b": b}
    metropolised = samplers.gibbs(metropolised=True)
    return validity.invariance(
        samplers.gibbs(), target, states, reversible=True, subject="gibbs"
    ) + validity.invariance(metropolised, target, states, reversible=True, subject="gibbs, metropolised")


def _draw_pair(key: Array) -> dict[str, Array]:
    key_y, key_x = jax.random.split(key)
    y = jnp.log(jax.random.gamma(key_y, 1.5))
    return {"x": y + 0.5 * jax.random.gumbel(key_x), "y": y}


def _prior_of_pair(position: dict[str, Array]) -> Array:
    return 1.5 * position["y"] - jnp.exp(position["y"])


def _likelihood_of_pair(position: dict[str, Array]) -> Array:
    away = 2 * (position["x"] - position["y"])
    return -away - jnp.exp(-away)


def _on_sites() -> Report:
    """Kernels on one of two dependent sites each, after one of both that leaves its gradients behind."""
    walk = samplers.on_sites(samplers.random_walk(1.0), ["y"])
    kernel = samplers.cycle(samplers.hmc(0.9, 1), walk, samplers.on_sites(samplers.hmc(0.5, 3), ["x"]))
    target = Target(_likelihood_of_pair, _prior_of_pair)
    return validity.check(kernel, target, _draw_pair, num_chains=CHAINS, reversible=False)


def _ellipse() -> Any:
    return samplers.elliptical_slice(None, jnp.full(2, 1.5))


MCMC: Mapping[str, Callable[[], Report]] = {
    **everywhere("chees_hmc", lambda: samplers.chees_hmc(0.5, 1.4)),
    **everywhere("barker", lambda: samplers.barker(0.8)),
    **everywhere("slice_sampling", lambda: samplers.slice_sampling(2.0), reversible=True),
    "slice_sampling, coordinates": checked(
        lambda: samplers.slice_sampling(0.7, directions="coordinates", max_expansions=2), reversible=True
    ),
    "elliptical_slice": checked(_ellipse, reversible=True),
    "repeat": checked(lambda: samplers.repeat(samplers.random_walk(1.0), 3), reversible=True),
    "adjusted_mclmc": checked(lambda: samplers.adjusted_mclmc(1.0, 3)),
    "adjusted_mclmc, correlated": checked(lambda: samplers.adjusted_mclmc(1.0, 3), "correlated"),
    "mclmc, small steps": _small_steps,
    "gibbs": _gibbs,
    "on_sites": _on_sites,
}
