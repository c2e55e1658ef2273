r"""A mixture of normal laws with an unknown number of components: its targets, its moves, its fixed numbers.

$y_i \sim \sum_j w_j N(\mu_j, \sigma_j^2) / \sum_j w_j$ with $\mu_j$ and $\log \sigma_j$ normal and $w_j$ gamma, so that
shares are Dirichlet and nothing is on a simplex; k uniform. A split keeps weight, mean and variance of the component
(Richardson and Green 1997). For a fixed k the same law has evidence $Z_k$, and $p(k \mid y) \propto Z_k$. Data:
Roeder (1990).
"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf import samplers
from probinf.core import Target, standard_normal
from probinf.experiments._data import load
from probinf.samplers import Components, TransDimensional

MAX_COMPONENTS = 6
MEAN, MEAN_SD = 21.0, 8.0  # of the means, 1000 km/s
LOG_SCALE, LOG_SCALE_SD = 0.0, 0.7
STEPS = {"log_scale": 0.25, "log_weight": 0.35, "mean": 0.25}
NOISE_SD = {"shares": 1.0, "distance": 1.0, "spreads": 1.0}
LOG_2PI = math.log(2 * math.pi)


def galaxies() -> np.ndarray:
    """Velocities in 1000 km/s."""
    return load("galaxies").values[:, 0]


class Component(eqx.Module):
    """The prior law of components of a shape: pytrees of `mean`, `log_scale` and `log_weight`."""

    shape: tuple[int, ...] = eqx.field(static=True, default=())

    def sample(self, key: jax.Array) -> dict[str, Array]:
        """One draw; minus a Gumbel number is the logarithm of an exponential one, and always finite."""
        key_normal, key_weight = jax.random.split(key)
        mean, log_scale = standard_normal(key_normal, (2, *self.shape), jnp.result_type(float))
        return {
            "mean": MEAN + MEAN_SD * mean,
            "log_scale": LOG_SCALE + LOG_SCALE_SD * log_scale,
            "log_weight": -jax.random.gumbel(key_weight, self.shape),
        }

    def log_prob(self, component: dict[str, Array]) -> Array:
        """The normalised log density of each."""
        log_weight = component["log_weight"]
        return (
            _log_normal((component["mean"] - MEAN) / MEAN_SD, MEAN_SD)
            + _log_normal((component["log_scale"] - LOG_SCALE) / LOG_SCALE_SD, LOG_SCALE_SD)
            + log_weight
            - jnp.exp(log_weight)
        )


def _log_normal(z: Array, scale: float) -> Array:
    return -0.5 * z * z - math.log(scale) - 0.5 * LOG_2PI


class Mixture(eqx.Module):
    """Log likelihood of the data under the first `number` components.

    Attributes:
        data: [n].
    """

    data: Float[Array, " n"]

    def __call__(self, components: dict[str, Array], number: Int[Array, ""]) -> Float[Array, ""]:
        active = jnp.arange(components["mean"].size, dtype=number.dtype) < number
        log_share = jnp.where(active, components["log_weight"], -jnp.inf)
        log_share = log_share - jax.nn.logsumexp(log_share)
        # Padding has share zero, and ordinary numbers where a derivative of it is taken.
        log_scale = jnp.where(active, components["log_scale"], 0)
        z = (self.data[None, :] - components["mean"][:, None]) * jnp.exp(-log_scale)[:, None]
        logs = (log_share - log_scale)[:, None] - 0.5 * z * z
        # Row by row and with a dot, XLA's CPU compiler makes half the time of logsumexp and sum.
        largest = functools.reduce(jnp.maximum, list(logs))
        largest = jnp.where(largest == -jnp.inf, 0, largest)
        densities = functools.reduce(jnp.add, [jnp.exp(log - largest) for log in logs])
        terms = largest + jnp.log(densities)
        total = jnp.dot(jnp.ones_like(terms), terms, precision=jax.lax.Precision.HIGHEST)
        return total - 0.5 * self.data.size * LOG_2PI


class UnknownNumber(eqx.Module):
    """The likelihood on positions of a trans-dimensional chain."""

    mixture: Mixture

    def __call__(self, position: TransDimensional) -> Float[Array, ""]:
        return self.mixture(position.parameters, position.model)


class FixedNumber(eqx.Module):
    """The likelihood of a given number; further components are free and have their prior law."""

    mixture: Mixture
    number: Int[Array, ""]

    def __call__(self, components: dict[str, Array]) -> Float[Array, ""]:
        return self.mixture(components, self.number)


def _log_prior(position: TransDimensional) -> Float[Array, ""]:
    active = jnp.arange(MAX_COMPONENTS, dtype=position.model.dtype) < position.model
    return jnp.sum(jnp.where(active, Component().log_prob(position.parameters), 0))


def _log_prior_of_all(components: dict[str, Array]) -> Float[Array, ""]:
    return jnp.sum(Component().log_prob(components))


def _number(position: TransDimensional) -> Array:
    return position.model


def mixture_target(data: np.ndarray) -> Target:
    """The posterior over numbers and components; draws are the numbers."""
    likelihood = UnknownNumber(Mixture(jnp.asarray(data, jnp.zeros(()).dtype)))
    return Target(likelihood, _log_prior, constrain=_number)


def fixed_target(data: np.ndarray, number: Any) -> Target:
    """The posterior for a given number; its evidence is that of the number."""
    likelihood = FixedNumber(Mixture(jnp.asarray(data, jnp.zeros(()).dtype)), jnp.asarray(number, jnp.int32))
    return Target(likelihood, _log_prior_of_all, Component((MAX_COMPONENTS,)).sample)


def starts(key: jax.Array, num_chains: int) -> TransDimensional:
    """One to all components, from the prior."""
    parameters = jax.vmap(Component((MAX_COMPONENTS,)).sample)(jax.random.split(key, num_chains))
    return TransDimensional(1 + jnp.arange(num_chains, dtype=jnp.int32) % MAX_COMPONENTS, parameters)


class SplitNoise(eqx.Module):
    """The three numbers that a split needs: independent normals of mean zero."""

    def sample(self, key: jax.Array) -> dict[str, Array]:
        """One draw."""
        normals = standard_normal(key, (len(NOISE_SD),), jnp.result_type(float))
        return {name: sd * normals[i] for i, (name, sd) in enumerate(NOISE_SD.items())}

    def log_prob(self, noise: dict[str, Array]) -> Float[Array, ""]:
        """Normalised."""
        return jnp.sum(jnp.stack([_log_normal(noise[name] / sd, sd) for name, sd in NOISE_SD.items()]))


def split(component: dict[str, Array], noise: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Two components with the weight, mean and variance of the one.

    The log odds of weights and of the parts of the inner variance, and asinh of the root of outer over inner
    variance, are the noise.
    """
    log_odds, distance, spreads = noise["shares"], noise["distance"], noise["spreads"]
    log_variance = 2 * component["log_scale"]
    log_shares = jax.nn.log_sigmoid(log_odds), jax.nn.log_sigmoid(-log_odds)
    # Of the variance 1 / cosh^2 lies inside the parts and tanh^2 between them.
    outer = jnp.tanh(distance) * jnp.exp(component["log_scale"])
    inner = log_variance - 2 * (jnp.logaddexp(distance, -distance) - math.log(2))
    parts = inner + jax.nn.log_sigmoid(spreads), inner + jax.nn.log_sigmoid(-spreads)
    means = component["mean"] - outer * jnp.exp(-0.5 * log_odds), component["mean"] + outer * jnp.exp(0.5 * log_odds)
    first, second = (
        {"mean": mean, "log_scale": 0.5 * (part - share), "log_weight": component["log_weight"] + share}
        for mean, part, share in zip(means, parts, log_shares, strict=True)
    )
    return first, second


def merge(first: dict[str, Array], second: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inverse of `split`."""
    log_weight = jnp.logaddexp(first["log_weight"], second["log_weight"])
    log_shares = first["log_weight"] - log_weight, second["log_weight"] - log_weight
    parts = log_shares[0] + 2 * first["log_scale"], log_shares[1] + 2 * second["log_scale"]
    inner = jnp.logaddexp(*parts)
    difference = second["mean"] - first["mean"]
    distance = jnp.arcsinh(difference * jnp.exp(0.5 * (log_shares[0] + log_shares[1] - inner)))
    log_variance = inner + 2 * (jnp.logaddexp(distance, -distance) - math.log(2))
    mean = first["mean"] + jnp.exp(log_shares[1]) * difference
    noise = {"shares": log_shares[0] - log_shares[1], "distance": distance, "spreads": parts[0] - parts[1]}
    return {"mean": mean, "log_scale": 0.5 * log_variance, "log_weight": log_weight}, noise


def mixture_kernel(*, check: bool = False) -> Any:
    """Components come and go, split and merge, and take a random step."""
    space = Components(MAX_COMPONENTS, 1)
    return samplers.cycle(
        samplers.birth_death(Component(), space, check=check),
        samplers.split_merge(split, merge, SplitNoise(), space, check=check),
        samplers.active_random_walk(space, (STEPS, ()), check=check),
    )
