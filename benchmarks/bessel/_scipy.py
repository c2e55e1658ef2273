"""SciPy's exponentially scaled functions, whose logarithms are only taken off the clock; it computes in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.special

from benchmarks.bessel._problems import Problem, details, pairs

PACKAGES = ("scipy", "numpy")
FUNCTIONS = {"log_iv": (scipy.special.ive, 1), "log_kv": (scipy.special.kve, -1)}


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], tuple[float, Any]]:
    """A function from seed, which is not used, to the mean of the first values and the details."""
    function, sign = FUNCTIONS[problem.name]
    v, x = pairs(problem, num_particles, variant)

    def run(seed: int) -> tuple[float, Any]:
        del seed
        values = function(v, x)
        return float(values[:8].mean()), partial(_details, values, sign * x)

    return run


def _details(values: np.ndarray, shift: np.ndarray) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return details(np.log(values) + shift)
