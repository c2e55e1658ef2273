"""NumPyro's NUTS on all chains at once, in two ways.

"MCMC.run" is what users call: `MCMC(NUTS(model), chain_method="vectorized").run`, a new object for each call, since
NumPyro 0.22.0 maps the step twice, and fails, when an object with vectorised chains runs again.
"scan" is the same kernel in a scan over warm-up and draws written by hand, one jit of key and data: it compiles once,
and every argument of the kernel is that of the first.
"""

from collections.abc import Callable
from typing import Any

import jax
from numpyro.infer import MCMC, NUTS

from benchmarks.mcmc._adapter import finished
from benchmarks.mcmc._jax import jax_data, num_compiled
from benchmarks.mcmc._models import MODELS
from benchmarks.mcmc._problems import Problem

PACKAGES = ("numpyro", "jax", "jaxlib")


def _mcmc(problem: Problem, num_chains: int) -> Callable:
    def sample(key: jax.Array, data: Any):
        mcmc = MCMC(
            NUTS(MODELS[problem.name]),
            num_warmup=problem.num_draws,
            num_samples=problem.num_draws,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(key, data, extra_fields=("num_steps", "diverging"))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)

    return sample


def _scan(problem: Problem, num_chains: int) -> Callable:
    def chain(key: jax.Array, data: Any):
        kernel = NUTS(MODELS[problem.name])
        start = kernel.init(key, problem.num_draws, None, (data,), {})

        def step(state, keep: bool):
            state = kernel.sample(state, (data,), {})
            if not keep:
                return state, None
            fields = {"num_steps": state.num_steps, "diverging": state.diverging}
            return state, (kernel.postprocess_fn((data,), {})(state.z), fields)

        # The kernel adapts by its own count of the steps, so that the two loops differ only in what they keep.
        state, _ = jax.lax.scan(lambda state, _: step(state, False), start, None, problem.num_draws)
        return jax.lax.scan(lambda state, _: step(state, True), state, None, problem.num_draws)[1]

    return jax.jit(lambda key, data: jax.vmap(chain, (0, None))(jax.random.split(key, num_chains), data))


def prepare(variant: str, problem: Problem, num_chains: int) -> Callable:
    """A function from seed to nothing and details."""
    sample = {"MCMC.run": _mcmc, "scan": _scan}[variant](problem, num_chains)
    data = {sign: jax_data(problem.data_of(sign)) for sign in (1, -1)}

    def run(seed: int):
        before = num_compiled()
        samples, fields = jax.block_until_ready(sample(jax.random.key(abs(seed)), data[-1 if seed < 0 else 1]))
        compilations = num_compiled() - before
        return finished(
            problem,
            samples,
            num_gradients=fields["num_steps"],
            divergent=fields["diverging"],
            compilations=compilations,
        )

    return run
