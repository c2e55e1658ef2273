"""The target as JAX functions, shared by us and by the peers that are written in JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.tempered._problems import Problem


class Bimodal(NamedTuple):
    """The parameters of a `Problem` as JAX scalars, so that new values recompile nothing."""

    prior_scale: jax.Array
    centre: jax.Array
    scale: jax.Array
    mode_weight: jax.Array


def jax_model(problem: Problem) -> Bimodal:
    """The model, as JAX arrays of the default float type."""
    numbers = (problem.prior_scale, problem.centre, problem.scale, problem.mode_weight)
    return Bimodal(*(jnp.asarray(number, jnp.zeros(()).dtype) for number in numbers))


def log_prior(model: Bimodal, x):
    """The log density of the prior at one position [d]."""
    return _log_normal(x, 0, model.prior_scale)


def log_likelihood(model: Bimodal, x):
    """The log likelihood of one position [d]."""
    right = jnp.log(model.mode_weight) + _log_normal(x, model.centre, model.scale)
    left = jnp.log1p(-model.mode_weight) + _log_normal(x, -model.centre, model.scale)
    return jnp.logaddexp(left, right)


def sample_prior(model: Bimodal, key, *, shape: tuple[int, ...]):
    """Draws from the prior, in the given shape."""
    return model.prior_scale * jax.random.normal(key, shape, model.prior_scale.dtype)


def _log_normal(x, mean, scale):
    z = (x - mean) / scale
    return -0.5 * jnp.sum(z * z) - x.shape[-1] * (jnp.log(scale) + 0.9189385332046727)
