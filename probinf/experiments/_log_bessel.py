r"""Log-Bessel functions and the von Mises-Fisher distribution, side by side with SciPy, TFP and 40 digits of mpmath.

Plesner, Sørensen and Hauberg (2024), "Accurate computation of the logarithm of modified Bessel functions on GPUs",
claim errors of machine precision without over- or underflow, and von Mises-Fisher distributions fitted in 2048, 8192
and 32768 dimensions, where SciPy and mpmath fail. Here: the error of log I and log K over the plane of order and
argument, that of their derivatives in both, time beside SciPy, and those fits, from exact moments and from features
that a convolutional net makes of images.
"""

import dataclasses
from collections.abc import Mapping

from probinf.experiments import _log_bessel_accuracy as accuracy
from probinf.experiments import _log_bessel_fits as fits
from probinf.experiments import _log_bessel_speed as speed
from probinf.experiments._log_bessel_claims import claims as claims
from probinf.experiments._page import Part
from probinf.experiments._workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of the random points.
        num_plane: points with v = 10^U(-1, 5) and x = 10^U(-3, 6).
        num_box: points with v = 10^U(-6, 6) and x = 10^U(-300, 300).
        num_derivatives: points of the plane where derivatives are compared.
        num_timed: pairs of a timed call.
        num_rounds: timed calls of each library.
    """

    seed: int = 0
    num_plane: int = 600
    num_box: int = 600
    num_derivatives: int = 150
    num_timed: int = 200_000
    num_rounds: int = 7


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(num_plane=8000, num_box=20_000, num_derivatives=2000, num_timed=1_000_000, num_rounds=15),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """Runs the parts in turn."""
    return {
        "accuracy": workspace.part("accuracy", accuracy.values, config),
        "derivatives": workspace.part("derivatives", accuracy.derivatives, config),
        "speed": workspace.part("speed", speed.run, config),
        "fits": workspace.part("fits", fits.exact_pairs),
        "features": workspace.part("features", fits.features),
    }
