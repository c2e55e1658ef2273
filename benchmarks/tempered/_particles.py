"""particles (Chopin, Papaspiliopoulos): `AdaptiveTempering`, in float64 numpy.

"standard": 10 random-walk moves, covariance of the particles, the last states kept. "waste-free/M kept": chains of 10
states (9 moves) all of which are kept (Dau, Chopin 2022), from as many particles as give M in all; 10 N of them need as
many moves as "standard", N a tenth.
"""

from collections.abc import Callable

import numpy as np
import particles
from particles import distributions, smc_samplers

from benchmarks.tempered._problems import Problem

PACKAGES = ("particles", "numpy", "numba")
# Chain length, waste-free, and by what the number of particles is divided to give chains.
SETTINGS = {"standard": (11, False, 1), "waste-free/10 N kept": (10, True, 1), "waste-free/N kept": (10, True, 10)}


class _Bimodal(smc_samplers.StaticModel):
    """The likelihood; the prior is that of the parent."""

    def __init__(self, problem: Problem) -> None:
        d = problem.dimension
        super().__init__(prior=distributions.MvNormal(scale=problem.prior_scale, cov=np.eye(d)))
        self.problem = problem

    def loglik(self, theta, t=None):
        one = self.problem
        constant = theta.shape[1] * (np.log(one.scale) + 0.5 * np.log(2 * np.pi))
        squares = [-0.5 * np.sum(((theta - c) / one.scale) ** 2, axis=1) for c in (one.centre, -one.centre)]
        right, left = squares[0] + np.log(one.mode_weight), squares[1] + np.log1p(-one.mode_weight)
        return np.logaddexp(left, right) - constant


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable:
    """A function from seed to log evidence and details."""
    length, waste_free, divisor = SETTINGS[variant]
    model = _Bimodal(problem)

    def run(seed: int):
        np.random.seed(seed)  # noqa: NPY002 (the library draws from numpy's global generator)
        feynman_kac = smc_samplers.AdaptiveTempering(model, len_chain=length, wastefree=waste_free, ESSrmin=0.5)
        smc = particles.SMC(fk=feynman_kac, N=num_particles // divisor, resampling="systematic", collect="off")
        smc.run()

        def details() -> dict[str, float]:
            error = problem.mode_weight_error(smc.X.theta, smc.W)
            return {"num_temperatures": len(smc.X.shared["exponents"]) - 1, "mode_weight_error": error}

        return float(smc.logLt), details

    return run
