"""Ours: `samplers.sample` with a kernel's defaults, as a user calls it, checks and all.

A variant is the name of a kernel, whose target comes from the NumPyro model; with "/density" behind it, from the log
density written by hand.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax

from benchmarks.mcmc._adapter import finished
from benchmarks.mcmc._densities import constrain, log_density, start
from benchmarks.mcmc._jax import jax_data, num_compiled
from benchmarks.mcmc._models import MODELS
from benchmarks.mcmc._problems import Problem
from probinf import Target, samplers

PACKAGES = ("jax", "jaxlib", "numpyro", "equinox")
# New kernels are added here, by the name that `_run.OURS` has for them.
KERNELS: dict[str, Callable[[], Any]] = {"nuts": samplers.nuts, "chees_hmc": samplers.chees_hmc}


class _Density(eqx.Module):
    """The density written by hand; the data are leaves, so that new ones compile nothing."""

    data: Mapping[str, jax.Array]
    name: str = eqx.field(static=True)

    def __call__(self, position: Any) -> jax.Array:
        return log_density(self.name, self.data, position)


class _Start(eqx.Module):
    """What tells `sample` the shapes of a position."""

    data: Mapping[str, jax.Array]
    name: str = eqx.field(static=True)

    def __call__(self, key: jax.Array) -> Any:
        return start(self.name, self.data, key)


class _Constrain(eqx.Module):
    """The sites of the models."""

    name: str = eqx.field(static=True)

    def __call__(self, position: Any) -> Any:
        return constrain(self.name, position)


def make_target(name: str, data: Mapping[str, jax.Array], source: str = "") -> Target:
    """The posterior; `source` is "density" or empty for the NumPyro model."""
    if source == "density":
        return Target(_Density(data, name), sample_prior=_Start(data, name), constrain=_Constrain(name))
    return Target.from_numpyro(MODELS[name], data)


def prepare(variant: str, problem: Problem, num_chains: int) -> Callable:
    """A function from seed to nothing and details, compiled at its first call."""
    kernel, _, source = variant.partition("/")
    make = KERNELS[kernel]
    targets = {sign: make_target(problem.name, jax_data(problem.data_of(sign)), source) for sign in (1, -1)}

    def run(seed: int):
        before = num_compiled()
        draws = samplers.sample(
            jax.random.key(abs(seed)),
            make(),
            targets[-1 if seed < 0 else 1],
            num_samples=problem.num_draws,
            num_warmup=problem.num_draws,
            num_chains=num_chains,
        )
        jax.block_until_ready((draws.samples, draws.info))
        return finished(
            problem,
            draws.samples,
            num_gradients=draws.info.get("num_steps"),
            divergent=draws.info.get("divergent", 0),
            compilations=num_compiled() - before,
        )

    return run
