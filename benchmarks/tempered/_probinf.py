"""Ours: `samplers.tempered_smc` as a user calls it, checks and all: with its defaults, or waste-free."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from benchmarks.tempered._bimodal import Bimodal, jax_model, log_likelihood, log_prior, sample_prior
from benchmarks.tempered._problems import Problem
from probinf import Target, samplers

PACKAGES = ("jax", "jaxlib", "equinox")
OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "waste-free": {"waste_free": True, "num_steps": 3}}


def make_target(model: Bimodal, dimension: int) -> Target:
    """The problem as a user of probinf would write it."""
    draw = partial(sample_prior, shape=(dimension,))
    bind = jax.tree_util.Partial
    return Target(bind(log_likelihood, model), bind(log_prior, model), bind(draw, model))


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable:
    """A function from seed to log evidence and details, compiled at its first call; `variant` is one of `OPTIONS`."""
    target = make_target(jax_model(problem), problem.dimension)
    sample = partial(samplers.tempered_smc, target=target, num_particles=num_particles, **OPTIONS[variant])

    def run(seed: int):
        out = sample(jax.random.key(seed))

        def details() -> dict[str, float]:
            error = problem.mode_weight_error(out.population.particles, out.population.weights)
            return {"num_temperatures": len(out.temperatures) - 1, "mode_weight_error": error}

        return float(out.log_evidence), details

    return run
