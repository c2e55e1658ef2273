"""What every adapter does after its run, off the clock; numpy only."""

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.mcmc._problems import Problem, quantities

FOLDER = "BENCHMARK_DRAWS"  # the variable that names the folder for draws


def finished(
    problem: Problem, samples: Mapping[str, Any], *, num_gradients: Any, divergent: Any, compilations: int | None = None
) -> tuple[float, Callable[[], dict[str, Any]]]:
    """The answer of a run.

    Args:
        problem: what was sampled.
        samples: constrained, [chains, draws, ...] by site.
        num_gradients: [chains, draws], leapfrog steps of each draw; None where they are not known.
        divergent: [chains, draws] or their number.
        compilations: programs that XLA compiled during the run; None for libraries without XLA.
    """

    def details() -> dict[str, Any]:
        file, path = tempfile.mkstemp(suffix=".npy", dir=os.environ.get(FOLDER))
        with os.fdopen(file, "wb") as out:
            np.save(out, quantities(problem.name, samples))
        numbers: dict[str, Any] = {"draws": path, "num_divergent": int(np.sum(np.asarray(divergent)))}
        if num_gradients is not None:
            numbers["gradients_per_draw"] = float(np.mean(np.asarray(num_gradients)))
        if compilations is not None:
            numbers["num_compilations"] = compilations
        return numbers

    return 0.0, details
