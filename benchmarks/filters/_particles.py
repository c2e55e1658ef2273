"""particles (Chopin, Papaspiliopoulos): `SMC` on the `Bootstrap` of a state-space model, in float64 numpy.

Summaries are off, as its documentation offers, since log evidence is kept without them.
"""

from collections.abc import Callable

import numpy as np
import particles
from particles import distributions, state_space_models

from benchmarks.filters._problems import Problem

VARIANTS = {"always": "always", "ess<.5": "ess<.5"}
QUICK = tuple(VARIANTS)
PACKAGES = ("particles", "numpy", "numba")


class _Ar1(state_space_models.StateSpaceModel):
    """The hidden AR(1) and its observation; the parameters are set by the constructor of the parent."""

    def PX0(self):
        return distributions.Normal(loc=self.mean, scale=self.initial_scale)

    def PX(self, t, xp):
        return distributions.Normal(loc=self.mean + self.persistence * (xp - self.mean), scale=self.scale)

    def PY(self, t, xp, x):
        if self.observation_scale is None:
            return distributions.Normal(loc=0.0, scale=np.exp(0.5 * x))
        return distributions.Normal(loc=x, scale=self.observation_scale)


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence."""
    names = ("mean", "persistence", "scale", "initial_scale", "observation_scale")
    model = _Ar1(**{name: getattr(problem, name) for name in names})
    bootstrap = state_space_models.Bootstrap(ssm=model, data=problem.ys)
    # The ESS can equal N only when all weights are equal; then resampling would change nothing.
    threshold = 1.0 if variant == "always" else 0.5

    def run(seed: int) -> float:
        np.random.seed(seed)  # noqa: NPY002 (the library draws from numpy's global generator)
        smc = particles.SMC(fk=bootstrap, N=num_particles, resampling="systematic", ESSrmin=threshold, collect="off")
        smc.run()
        return float(smc.logLt)

    return run
