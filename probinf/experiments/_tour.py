"""The main job: one section a room, on real data, each checked against an exact answer.

(a) Bayesian regression on the diabetes data by Hamiltonian Monte Carlo and in closed form, a run of NUTS on it that
ends when its draws are good enough, and its evidence by tempered SMC; (b) the Nile by a particle filter and by the
Kalman filter; (c) a kernel put through its checks; (d) a language model steered by another; (e) the
smoothness of the Nile by log-Bessel functions. Efron, Hastie, Johnstone, Tibshirani (2004), "Least angle regression";
Durbin and Koopman (2012), "Time Series Analysis by State Space Methods", chapter 2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from probinf.experiments import (
    _tour_bessel,
    _tour_llm,
    _tour_mcmc,
    _tour_nile,
    _tour_nile_smoothing,
    _tour_regression,
    _tour_smc,
    _tour_validity,
)
from probinf.experiments._claims import Claim
from probinf.experiments._page import Part
from probinf.experiments._workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the tour.

    Attributes:
        seed: of every random number.
        num_chains, num_warmup, num_samples: of the Markov chains.
        num_leapfrog: leapfrog steps a transition.
        num_particles: of each filter.
        num_replicates: independent filters, whose spread gives the Monte Carlo errors.
    """

    seed: int = 0
    num_chains: int = 4
    num_warmup: int = 1000
    num_samples: int = 2000
    num_leapfrog: int = 24
    num_particles: int = 5_000
    num_replicates: int = 32


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(num_samples=20_000, num_particles=20_000, num_replicates=64),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """Runs the parts in turn."""
    return {
        "regression": workspace.part("regression", _tour_regression.run, config),
        "stopping": workspace.part("stopping", _tour_mcmc.run, config),
        "evidence": workspace.part("evidence", _tour_smc.run, config),
        "nile": workspace.part("nile", _tour_nile.run, config),
        "validity": workspace.part("validity", _tour_validity.run, config),
        "language": workspace.part("language", _tour_llm.run, config),
        "bessel": workspace.part("bessel", _tour_bessel.run, config),
    }


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claims of all parts."""
    nile = metrics["nile"]
    found = _tour_regression.claims(metrics["regression"]) + _tour_mcmc.claims(metrics["stopping"])
    found += _tour_smc.claims(metrics["evidence"])
    found += _tour_nile.claims(nile) + _tour_nile_smoothing.claims(nile["smoothing"])
    found += _tour_validity.claims(metrics["validity"]) + _tour_llm.claims(metrics["language"])
    return found + _tour_bessel.claims(metrics["bessel"])
