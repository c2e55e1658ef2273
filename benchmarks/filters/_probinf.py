"""Ours: `samplers.particle_filter` on `StateSpaceModel(...).bootstrap(ys)`, as a user calls it, checks and all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from benchmarks.filters._problems import Problem
from probinf import models, samplers

VARIANTS = {"always": "always", "ess<.5": "ess<.5"}
QUICK = tuple(VARIANTS)
PACKAGES = ("jax", "jaxlib", "numpyro", "equinox")


def state_space_model(problem: Problem) -> models.StateSpaceModel:
    """The problem as a user of probinf would write it."""

    def initial():
        return dist.Normal(problem.mean, float(problem.initial_scale))

    def transition(t, x):
        del t
        return dist.Normal(problem.mean + problem.persistence * (x - problem.mean), problem.scale)

    def observation(t, x):
        del t
        if problem.observation_scale is None:
            return dist.Normal(0.0, jnp.exp(0.5 * x))
        return dist.Normal(x, problem.observation_scale)

    return models.StateSpaceModel(initial, transition, observation)


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence, compiled at its first call."""
    model = state_space_model(problem).bootstrap(jnp.asarray(problem.ys, jnp.zeros(()).dtype))
    threshold = 1.0 if variant == "always" else 0.5

    def run(seed: int) -> float:
        out = samplers.particle_filter(
            jax.random.key(seed), model, num_particles=num_particles, resampling="systematic", ess_threshold=threshold
        )
        return float(out.log_evidence)

    return run
