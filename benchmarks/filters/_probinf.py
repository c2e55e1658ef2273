"""Ours: `samplers.particle_filter` on `StateSpaceModel(...).bootstrap(ys)`, as a user calls it, checks and all.

"guided" and "auxiliary" are the models of those names, whose proposal is locally optimal where nothing is asked for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from benchmarks.filters._problems import Problem
from probinf import FeynmanKac, models, samplers

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


def feynman_kac(problem: Problem, algorithm: str = "bootstrap") -> FeynmanKac:
    """The problem's model for one algorithm: "bootstrap", "guided" or "auxiliary"."""
    make = getattr(state_space_model(problem), algorithm)
    return make(jnp.asarray(problem.ys, jnp.zeros(()).dtype))


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence, compiled at its first call."""
    *algorithm, rule = variant.split("/")
    model = feynman_kac(problem, *algorithm)
    threshold = 1.0 if rule == "always" else 0.5

    def run(seed: int) -> float:
        out = samplers.particle_filter(
            jax.random.key(seed), model, num_particles=num_particles, resampling="systematic", ess_threshold=threshold
        )
        return float(out.log_evidence)

    return run
