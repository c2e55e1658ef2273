"""BlackJAX: `window_adaptation` of NUTS and a scan of its step, vmapped over chains, one jit of key and data.

Every chain adapts by itself, as its documentation shows; the log density is the one written by hand.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import blackjax
import jax
from blackjax.adaptation.base import get_filter_adapt_info_fn

from benchmarks.mcmc._adapter import finished
from benchmarks.mcmc._densities import constrain, log_density, start
from benchmarks.mcmc._jax import jax_data, num_compiled
from benchmarks.mcmc._problems import Problem

PACKAGES = ("blackjax", "jax", "jaxlib")


def _chain(key: jax.Array, data: Any, *, name: str, num_draws: int):
    key_start, key_warmup, key_draws = jax.random.split(key, 3)
    density = partial(log_density, name, data)
    # The history of the adaptation is not wanted.
    adaptation = blackjax.window_adaptation(blackjax.nuts, density, adaptation_info_fn=get_filter_adapt_info_fn())
    (state, parameters), _ = adaptation.run(key_warmup, start(name, data, key_start), num_draws)
    kernel = blackjax.nuts(density, **parameters)

    def step(state, key):
        state, info = kernel.step(key, state)
        return state, (constrain(name, state.position), info.num_integration_steps, info.is_divergent)

    return jax.lax.scan(step, state, jax.random.split(key_draws, num_draws))[1]


def prepare(variant: str, problem: Problem, num_chains: int) -> Callable:
    """A function from seed to nothing and details, compiled at its first call; `variant` is "nuts"."""
    del variant
    chain = partial(_chain, name=problem.name, num_draws=problem.num_draws)
    sample = jax.jit(lambda key, data: jax.vmap(chain, (0, None))(jax.random.split(key, num_chains), data))
    data = {sign: jax_data(problem.data_of(sign)) for sign in (1, -1)}

    def run(seed: int):
        before = num_compiled()
        found = jax.block_until_ready(sample(jax.random.key(abs(seed)), data[-1 if seed < 0 else 1]))
        samples, num_gradients, divergent = found
        return finished(
            problem,
            samples,
            num_gradients=num_gradients,
            divergent=divergent,
            compilations=num_compiled() - before,
        )

    return run
