"""nutpie on PyMC models, compiled by Numba, in float64: its defaults, a thread for each of the machine's cores.

The first call compiles the model; new data is put into the compiled model by `with_data`.
"""

import os
from collections.abc import Callable

import numpy as np
import nutpie
import pymc as pm
import pytensor.tensor as pt

from benchmarks.mcmc._adapter import finished
from benchmarks.mcmc._problems import NUM_FUNNEL, Data, Problem

PACKAGES = ("nutpie", "pymc", "pytensor", "numba", "numpy")


def _eight_schools(data: Data) -> None:
    y, scale = pm.Data("y_data", data["y"]), pm.Data("scale_data", data["scale"])
    mu = pm.Normal("mu", 0.0, 5.0)
    tau = pm.HalfCauchy("tau", 5.0)
    raw = pm.Normal("raw", 0.0, 1.0, shape=len(data["y"]))
    pm.Normal("y", mu + tau * raw, scale, observed=y)


def _logistic(data: Data) -> None:
    x, y = pm.Data("x_data", data["x"]), pm.Data("y_data", data["y"])
    beta = pm.Normal("beta", 0.0, 1.0, shape=data["x"].shape[1])
    pm.Bernoulli("y", logit_p=x @ beta, observed=y)


def _stochastic_volatility(data: Data) -> None:
    y = pm.Data("y_data", data["y"])
    mu = pm.Normal("mu", 0.0, 2.0)
    phi = 2 * pm.Beta("half_phi", 20.0, 1.5) - 1
    sigma = pm.HalfNormal("sigma", 1.0)
    h = pm.Flat("h", shape=len(data["y"]))
    pm.Potential("first", pm.logp(pm.Normal.dist(mu, sigma / pt.sqrt(1 - phi * phi)), h[0]))
    pm.Potential("path", pm.logp(pm.Normal.dist(mu + phi * (h[:-1] - mu), sigma), h[1:]).sum())
    pm.Normal("y", 0.0, pt.exp(0.5 * h), observed=y)


def _funnel(data: Data) -> None:
    v = pm.Normal("v", 0.0, pm.Data("scale_data", data["scale"]))
    pm.Normal("x", 0.0, pt.exp(0.5 * v), shape=NUM_FUNNEL)


MODELS = {
    "eight_schools": _eight_schools,
    "logistic": _logistic,
    "stochastic_volatility": _stochastic_volatility,
    "funnel": _funnel,
}


def prepare(variant: str, problem: Problem, num_chains: int) -> Callable:
    """A function from seed to nothing and details; `variant` is the backend, "numba"."""
    made: list = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def run(seed: int):
        if not made:
            with pm.Model() as model:
                MODELS[problem.name](problem.data)
            made.append(nutpie.compile_pymc_model(model, backend=variant))
        new = {f"{name}_data": values for name, values in problem.other.items()}
        compiled = made[0].with_data(**new) if seed < 0 else made[0]
        trace = nutpie.sample(
            compiled,
            draws=problem.num_draws,
            tune=problem.num_draws,
            chains=num_chains,
            cores=cores,
            seed=abs(seed),
            progress_bar=False,
        )
        samples = {name: np.asarray(values) for name, values in trace.posterior.data_vars.items()}
        stats = trace.sample_stats
        return finished(problem, samples, num_gradients=stats.get("n_steps"), divergent=stats["diverging"])

    return run
