"""The two models as JAX functions, shared by the bare scan and by the peers that are written in JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.filters._problems import Problem, optimal_proposal

HALF_LOG_2PI = 0.9189385332046727


class Model(NamedTuple):
    """The parameters of a `Problem` as JAX scalars, so that new values recompile nothing."""

    mean: jax.Array
    persistence: jax.Array
    scale: jax.Array
    initial_scale: jax.Array
    observation_scale: jax.Array | None

    def init(self, noise):
        """x_0 from standard normal noise."""
        return self.mean + self.initial_scale * noise

    def mutate(self, x, noise):
        """x_t given x_{t-1}, from standard normal noise."""
        return self.mean + self.persistence * (x - self.mean) + self.scale * noise

    def log_potential(self, y, x):
        """The log density of y given x, elementwise."""
        if self.observation_scale is None:
            return -0.5 * (y * y * jnp.exp(-x) + x) - HALF_LOG_2PI
        z = (y - x) / self.observation_scale
        return -0.5 * z * z - jnp.log(self.observation_scale) - HALF_LOG_2PI

    def propose(self, x, y, noise):
        """x_t given x_{t-1} and y_t, from standard normal noise; linear-Gaussian only."""
        centre, scale = optimal_proposal(y, self.mutate(x, 0), self.scale, self.observation_scale)
        return centre + scale * noise

    def log_predictive(self, y, x):
        """The log density of y_t given x_{t-1}, elementwise; linear-Gaussian only."""
        scale = jnp.hypot(self.scale, jnp.asarray(self.observation_scale))
        z = (y - self.mutate(x, 0)) / scale
        return -0.5 * z * z - jnp.log(scale) - HALF_LOG_2PI


def jax_model(problem: Problem) -> tuple[Model, jax.Array]:
    """The model and the observations, as JAX arrays of the default float type."""
    seen = problem.observation_scale
    numbers = (problem.mean, problem.persistence, problem.scale, problem.initial_scale)
    dtype = jnp.zeros(()).dtype
    mean, persistence, scale, initial_scale = (jnp.asarray(number, dtype) for number in numbers)
    observation_scale = None if seen is None else jnp.asarray(seen, dtype)
    model = Model(mean, persistence, scale, initial_scale, observation_scale)
    return model, jnp.asarray(problem.ys, dtype)
