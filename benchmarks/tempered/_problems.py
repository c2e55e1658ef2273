r"""The bimodal target and its exact evidence; numpy only, so that every peer can import it.

Prior $N(0, \tau^2 I_d)$, likelihood $w N(x; c 1, s^2 I_d) + (1 - w) N(x; -c 1, s^2 I_d)$ with $\tau = 5$, $c = 2$,
$s = 1/2$, $w = 0.7$. Both modes are equally far from the prior's centre, so the posterior weight of the right one is
$w$, and the evidence is one Gaussian: $\log Z = -\frac d2 (\log 2\pi(\tau^2 + s^2) + c^2 / (\tau^2 + s^2))$.
"""

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """The target.

    Attributes:
        name: "bimodal".
        dimension: d.
        prior_scale, centre, scale: tau, c and s.
        mode_weight: w, both of the likelihood and of the posterior.
        log_evidence: log Z; NaN if it was not asked for.
    """

    name: str
    dimension: int
    prior_scale: float
    centre: float
    scale: float
    mode_weight: float
    log_evidence: float

    def mode_weight_error(self, positions, weights) -> float:
        """The weight of the particles on the right mode's side less `mode_weight`.

        Args:
            positions: [N, d].
            weights: [N], normalised.
        """
        right = np.mean(np.asarray(positions, np.float64), axis=1) > 0
        return float(np.sum(np.asarray(weights, np.float64)[right]) - self.mode_weight)


NAMES = ("bimodal",)


def make_problem(name: str = "bimodal", dimension: int = 10, *, solve: bool = True) -> Problem:
    """The problem of that name.

    Args:
        name: "bimodal".
        dimension: d.
        solve: whether to fill in the exact log evidence.

    Raises:
        ValueError: `name` is not one of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"`name` is {name!r}, needed one of {NAMES}")
    bare = Problem(name, dimension, 5.0, 2.0, 0.5, 0.7, np.nan)
    variance = bare.prior_scale**2 + bare.scale**2
    exact = -0.5 * dimension * (np.log(2 * np.pi * variance) + bare.centre**2 / variance)
    return bare._replace(log_evidence=float(exact)) if solve else bare
