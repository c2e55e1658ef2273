"""BlackJAX: a bootstrap filter built by hand on its SMC step `blackjax.smc.base.step`, inside one jitted scan.

The step resamples always, by design: it forgets the weights it is given once it has resampled. Its update function
is given one key a particle; "vmap" uses them, as its documentation does, and "one-key" draws all noise from the
first of them, which is what a user in search of speed would do.
"""

from collections.abc import Callable
from functools import partial

import blackjax.smc.base as smc
import jax
import jax.numpy as jnp
from blackjax.smc import resampling
from jax.scipy.special import logsumexp

from benchmarks.filters._ar1 import Model, jax_model
from benchmarks.filters._problems import Problem

PACKAGES = ("blackjax", "jax", "jaxlib")


def _filter(key, model: Model, ys, *, num_particles: int, one_key: bool):
    def update(keys, particles, parameters):
        del parameters
        if one_key:
            return model.mutate(particles, jax.random.normal(keys[0], particles.shape, particles.dtype)), None
        noise = jax.vmap(lambda k: jax.random.normal(k, (), particles.dtype))(keys)
        return model.mutate(particles, noise), None

    def step(state, inputs):
        key, y = inputs
        weight = jax.vmap(lambda x: model.log_potential(y, x))
        state, info = smc.step(key, state, update, weight, resampling.systematic)
        return state, info.log_likelihood_increment

    first, rest = jax.random.split(key)
    particles = model.init(jax.random.normal(first, (num_particles,), ys.dtype))
    log_weights = model.log_potential(ys[0], particles)
    total = logsumexp(log_weights)
    state = smc.SMCState(particles, jnp.exp(log_weights - total), None)
    keys = jax.random.split(rest, ys.shape[0] - 1)
    state, increments = jax.lax.scan(step, state, (keys, ys[1:]))
    return total - jnp.log(num_particles) + jnp.sum(increments)


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence, compiled at its first call."""
    model, ys = jax_model(problem)
    one_key = variant.startswith("one-key")
    compiled = jax.jit(partial(_filter, num_particles=num_particles, one_key=one_key))

    def run(seed: int) -> float:
        return float(jax.block_until_ready(compiled(jax.random.key(seed), model, ys)))

    return run
