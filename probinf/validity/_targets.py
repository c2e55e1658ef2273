r"""Targets with exact draws, on which kernels are checked.

A skewed one is always among them: a sign error that a symmetric target hides stood in a released sampler for years.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core import PRNGKey, Target

WIDTH = 0.6


class ExactTarget(NamedTuple):
    """A target, and a function that draws from it exactly.

    Attributes:
        target: a `Target`.
        draw: key -> position.
    """

    target: Target
    draw: Callable[[PRNGKey], Array]


def _skewed_prior(x: Float[Array, " 2"]) -> Float[Array, ""]:
    """x[0] is the log of a gamma variable of shape 2."""
    return 2 * x[0] - jnp.exp(x[0])


def _skewed_likelihood(x: Float[Array, " 2"]) -> Float[Array, ""]:
    """x[1] is normal about a bend of x[0]."""
    z = (x[1] - jnp.tanh(x[0])) / WIDTH
    return -0.5 * z * z - jnp.log(WIDTH) - 0.5 * jnp.log(2 * jnp.pi)


def _draw_skewed(key: PRNGKey) -> Float[Array, " 2"]:
    first_key, second_key = jax.random.split(key)
    # The sum of two exponentials has the gamma law of shape 2.
    first = jnp.log(jnp.sum(jax.random.exponential(first_key, (2,))))
    return jnp.stack([first, jnp.tanh(first) + WIDTH * jax.random.normal(second_key)])


def _two_modes_likelihood(x: Float[Array, " 1"]) -> Float[Array, ""]:
    near, far = -0.5 * jnp.sum((x + 1) ** 2), -0.5 * jnp.sum(((x - 1.5) / 0.5) ** 2) - jnp.log(0.5)
    return jnp.logaddexp(jnp.log(0.7) + near, jnp.log(0.3) + far)


def _draw_two_modes(key: PRNGKey) -> Float[Array, " 1"]:
    which_key, key = jax.random.split(key)
    z = jax.random.normal(key, (1,))
    return jnp.where(jax.random.uniform(which_key) < 0.7, z - 1, 1.5 + 0.5 * z)


def _correlated_likelihood(x: Float[Array, " 3"]) -> Float[Array, ""]:
    mean = 0.5 * x[:-1] + 1
    return -0.5 * x[0] ** 2 - 0.5 * jnp.sum((x[1:] - mean) ** 2)


def _draw_correlated(key: PRNGKey) -> Float[Array, " 3"]:
    z = jax.random.normal(key, (3,))
    second = 0.5 * z[0] + 1 + z[1]
    return jnp.stack([z[0], second, 0.5 * second + 1 + z[2]])


_PARTS: Mapping[str, tuple[Callable, Callable | None, Callable]] = {
    "skewed": (_skewed_likelihood, _skewed_prior, _draw_skewed),
    "two modes": (_two_modes_likelihood, None, _draw_two_modes),
    "correlated": (_correlated_likelihood, None, _draw_correlated),
}
TARGETS = tuple(_PARTS)


def exact_target(name: str) -> ExactTarget:
    """One of the targets of this room, of unit scale.

    Args:
        name: an entry of `TARGETS`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _PARTS:
        raise ValueError(f"`name` is {name!r}; needed one of {', '.join(TARGETS)}")
    log_likelihood, log_prior, draw = _PARTS[name]
    return ExactTarget(Target(log_likelihood) if log_prior is None else Target(log_likelihood, log_prior), draw)
