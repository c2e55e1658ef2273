"""BlackJAX: adaptive tempered SMC inside `inner_kernel_tuning`, the whole loop jitted, as its documentation shows.

"rwm": 10 random-walk moves, whose covariance is (2.38^2 / d) times that of the particles (Roberts, Gelman, Gilks
1997). "hmc/STEP": 3 HMC moves of 5 leapfrogs of that step size, with the inverse mass matrix of the particles'
variances; "hmc-unit/STEP": the same with unit masses. Resampling is systematic.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc import random_walk
from blackjax.smc import extend_params, resampling
from blackjax.smc.tuning.from_particles import inverse_mass_matrix_from_particles, particles_covariance_matrix

from benchmarks.tempered._bimodal import Bimodal, jax_model, log_likelihood, log_prior, sample_prior
from benchmarks.tempered._problems import Problem

PACKAGES = ("blackjax", "jax", "jaxlib")


def _random_walk(dimension: int) -> dict[str, Any]:
    kernel = random_walk.build_additive_step()

    def step(key, state, log_density, factor):
        return kernel(key, state, log_density, random_walk.normal(factor))

    def tune(particles):
        covariance = jnp.atleast_2d(particles_covariance_matrix(particles))
        return {"factor": 2.38 / dimension**0.5 * jnp.linalg.cholesky(covariance)}

    return {"step": step, "init": random_walk.init, "tune": tune, "num_moves": 10}


def _hmc(dimension: int, *, step_size: float, tuned: bool) -> dict[str, Any]:
    kernel = blackjax.hmc.build_kernel()

    def step(key, state, log_density, inverse_mass_matrix):
        return kernel(key, state, log_density, step_size, inverse_mass_matrix, 5)

    def tune(particles):
        variances = jnp.diag(inverse_mass_matrix_from_particles(particles))
        return {"inverse_mass_matrix": variances if tuned else jnp.ones(dimension, variances.dtype)}

    return {"step": step, "init": blackjax.hmc.init, "tune": tune, "num_moves": 3}


def _moves(variant: str, dimension: int) -> dict[str, Any]:
    kind, *number = variant.split("/")
    if kind == "rwm":
        return _random_walk(dimension)
    return _hmc(dimension, step_size=float(number[0]), tuned=kind == "hmc")


def _sampler(key, model: Bimodal, *, shape: tuple[int, int], moves: dict[str, Any]):
    first, rest = jax.random.split(key)
    positions = sample_prior(model, first, shape=shape)
    algorithm = blackjax.inner_kernel_tuning(
        blackjax.adaptive_tempered_smc,
        partial(log_prior, model),
        partial(log_likelihood, model),
        moves["step"],
        moves["init"],
        resampling.systematic,
        mcmc_parameter_update_fn=lambda key, state, info: extend_params(moves["tune"](state.particles)),
        initial_parameter_value=extend_params(moves["tune"](positions)),
        num_mcmc_steps=moves["num_moves"],
        target_ess=0.5,
    )

    def step(carry):
        key, state, log_evidence, count = carry
        own, key = jax.random.split(key)
        state, info = algorithm.step(own, state)
        return key, state, log_evidence + info.log_likelihood_increment, count + 1

    zero = jnp.zeros((), positions.dtype)
    state = algorithm.init(positions)
    # The state is born with a Python scalar for its temperature, which no loop can carry.
    state = state._replace(sampler_state=state.sampler_state._replace(tempering_param=zero))
    start = (rest, state, zero, jnp.zeros((), jnp.int32))
    _, state, log_evidence, count = jax.lax.while_loop(lambda c: c[1].sampler_state.tempering_param < 1, step, start)
    return log_evidence, count, state.sampler_state


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable:
    """A function from seed to log evidence and details, compiled at its first call."""
    model = jax_model(problem)
    moves = _moves(variant, problem.dimension)
    compiled = jax.jit(partial(_sampler, shape=(num_particles, problem.dimension), moves=moves))

    def run(seed: int):
        log_evidence, count, state = jax.block_until_ready(compiled(jax.random.key(seed), model))

        def details() -> dict[str, float]:
            error = problem.mode_weight_error(state.particles, state.weights)
            return {"num_temperatures": int(count), "mode_weight_error": error}

        return float(log_evidence), details

    return run
