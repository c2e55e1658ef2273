"""particles (Chopin, Papaspiliopoulos): `SMC` on the `Bootstrap` of a state-space model, in float64 numpy.

Summaries are off, as its documentation offers, since log evidence is kept without them. "guided" and "auxiliary" are
its `GuidedPF` and `AuxiliaryPF` with the locally optimal proposal and, for the latter, the exact look-ahead.
"""

from collections.abc import Callable

import numpy as np
import particles
from particles import distributions, state_space_models

from benchmarks.filters._problems import Problem, log_predictive, optimal_proposal

PACKAGES = ("particles", "numpy", "numba")
ALGORITHMS = {
    "bootstrap": state_space_models.Bootstrap,
    "guided": state_space_models.GuidedPF,
    "auxiliary": state_space_models.AuxiliaryPF,
}


class _Ar1(state_space_models.StateSpaceModel):
    """The hidden AR(1) and its observation; the parameters are set by the constructor of the parent."""

    def PX0(self):
        return distributions.Normal(loc=self.mean, scale=self.initial_scale)

    def PX(self, t, xp):
        return distributions.Normal(loc=self._centre(xp), scale=self.scale)

    def PY(self, t, xp, x):
        if self.observation_scale is None:
            return distributions.Normal(loc=0.0, scale=np.exp(0.5 * x))
        return distributions.Normal(loc=x, scale=self.observation_scale)

    def proposal0(self, data):
        return self._given(data[0], self.mean, self.initial_scale)

    def proposal(self, t, xp, data):
        return self._given(data[t], self._centre(xp), self.scale)

    def logeta(self, t, x, data):
        return log_predictive(data[t + 1], self._centre(x), self.scale, self.observation_scale)

    def _centre(self, xp):
        return self.mean + self.persistence * (xp - self.mean)

    def _given(self, y, centre, scale):
        loc, scale = optimal_proposal(y, centre, scale, self.observation_scale)
        return distributions.Normal(loc=loc, scale=scale)


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence."""
    names = ("mean", "persistence", "scale", "initial_scale", "observation_scale")
    model = _Ar1(**{name: getattr(problem, name) for name in names})
    *algorithm, rule = variant.split("/")
    feynman_kac = ALGORITHMS[algorithm[0] if algorithm else "bootstrap"](ssm=model, data=problem.ys)
    # The ESS can equal N only when all weights are equal; then resampling would change nothing.
    threshold = 1.0 if rule == "always" else 0.5

    def run(seed: int) -> float:
        np.random.seed(seed)  # noqa: NPY002 (the library draws from numpy's global generator)
        smc = particles.SMC(fk=feynman_kac, N=num_particles, resampling="systematic", ESSrmin=threshold, collect="off")
        smc.run()
        return float(smc.logLt)

    return run
