"""TensorFlow Probability on JAX, the nightly: `log_bessel_ive` and `log_bessel_kve`, jitted, with x added back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from benchmarks.bessel._problems import Problem, details, pairs

PACKAGES = ("tfp-nightly", "jax", "jaxlib", "numpy")


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], tuple[float, Any]]:
    """A function from seed, which is not used, to the mean of the first values and the details."""
    jax.config.update("jax_enable_x64", variant == "float64")
    scaled, sign = {"log_iv": (tfp.math.log_bessel_ive, 1), "log_kv": (tfp.math.log_bessel_kve, -1)}[problem.name]
    function = jax.jit(lambda v, x: scaled(v, x) + sign * x)
    v, x = jax.device_put(pairs(problem, num_particles, variant))

    def run(seed: int) -> tuple[float, Any]:
        del seed
        values = np.asarray(function(v, x))
        return float(values[:8].mean()), partial(details, values)

    return run
