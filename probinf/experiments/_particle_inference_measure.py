"""What the experiment on particle inference measures of the Bernoulli chain: cells with errors, against known answers.

`REFERENCE` is another simulation of the same chain, written apart from this library: 4,000 problems, three digits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from probinf.experiments import _particle_inference_toy as toy
from probinf.experiments._claims import Comparison, compare, normal_bound

REFERENCE_PROBLEMS = 4000
_ROUNDING = 0.0005
# Setting -> N -> (method, reading) in the order of `COLUMNS`.
COLUMNS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "independent": (
        ("best-of-n", "covered"),
        ("best-of-n", "chosen"),
        ("odds", "sampled"),
        ("odds", "chosen"),
        ("prob", "sampled"),
        ("prob", "chosen"),
        ("ratio", "sampled"),
        ("ratio", "chosen"),
        ("beam", "chosen"),
    ),
    "persistent": (("best-of-n", "chosen"), ("odds", "sampled"), ("odds", "chosen"), ("beam", "chosen")),
}
REFERENCE: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    "independent": {
        2: (0.196, 0.181, 0.346, 0.359, 0.271, 0.305, 0.202, 0.226, 0.370),
        4: (0.296, 0.264, 0.654, 0.704, 0.471, 0.572, 0.215, 0.313, 0.683),
        8: (0.400, 0.329, 0.844, 0.931, 0.579, 0.778, 0.222, 0.418, 0.946),
        16: (0.506, 0.413, 0.912, 0.989, 0.644, 0.913, 0.209, 0.511, 0.994),
        32: (0.612, 0.495, 0.927, 0.997, 0.655, 0.966, 0.196, 0.581, 0.999),
        64: (0.712, 0.558, 0.933, 0.998, 0.667, 0.988, 0.196, 0.662, 0.999),
    },
    "persistent": {
        2: (0.164, 0.324, 0.339, 0.436),
        4: (0.224, 0.580, 0.622, 0.803),
        8: (0.283, 0.743, 0.801, 0.905),
        16: (0.335, 0.826, 0.901, 0.925),
        32: (0.387, 0.882, 0.960, 0.927),
        64: (0.431, 0.904, 0.976, 0.939),
    },
}
SETTINGS: Mapping[str, toy.Setting] = {"independent": toy.INDEPENDENT, "persistent": toy.PERSISTENT}
FEW = {"independent": 4, "persistent": 8}  # an N that every run has

Runs = Mapping[str, Sequence[toy.Found]]  # method -> one for each N


def simulate_all(key: jax.Array, name: str, particles: Sequence[int], num_problems: int) -> dict[str, list[toy.Found]]:
    """Every method of the toy at each N, on the same problems and with the same random numbers."""
    return {
        method: [
            # One key for all: common random numbers make differences between methods sharper.
            toy.simulate(jax.random.clone(key), SETTINGS[name], method, num_particles=count, num_problems=num_problems)
            for count in particles
        ]
        for method in toy.METHODS
    }


def measure_toy(name: str, particles: Sequence[int], runs: Runs) -> dict[str, Any]:
    """The table of one setting and how it stands against closed forms and `REFERENCE`."""
    setting, baseline = SETTINGS[name], runs["best-of-n"]
    exact = {
        "covered": [toy.coverage(setting, count) for count in particles],
        "chosen": [toy.best_of_n(setting, count) for count in particles],
    }
    closed = np.stack([*(found.covered for found in baseline), *(found.chosen for found in baseline)], axis=1)
    found = {
        "sigma": setting.sigma,
        "rho": setting.rho,
        "num_problems": baseline[0].p.size,
        "particles": list(particles),
        "cells": {method: [_cells(one) for one in row] for method, row in runs.items()},
        "exact": exact,
        "closed": brief(compare(closed, np.array(exact["covered"] + exact["chosen"]))),
        "reference": against_reference(name, particles, runs),
        "versus": _versus(name, particles, runs, exact["chosen"]),
    }
    if setting.rho == 0:
        found["limits"] = {potential: toy.limit(setting, potential) for potential in toy.POTENTIALS}
        last = {potential: runs[potential][-1] for potential in toy.POTENTIALS}
        found["evidence"] = brief(against_target(setting, last))
        found["sampled"] = {
            potential: brief(accuracy_error(setting, potential, one)) for potential, one in last.items()
        }
    return found


def _versus(name: str, particles: Sequence[int], runs: Runs, best_of_n: Sequence[float]) -> dict[str, Any]:
    """Few particles against many solutions: the filter's best against best-of-N's, and against the beam's."""
    few = list(particles).index(FEW[name])
    filters, beams = ([one.chosen for one in runs[method]] for method in ("odds", "beam"))
    return {
        "few": particles[few],
        "many": particles[-1],
        "accuracy": float(filters[few].mean()),
        "exact": best_of_n[-1],
        "best_of_n": difference(filters[few], best_of_n[-1]),
        "beam_few": difference(filters[few], beams[few]),
        "beam_many": difference(filters[-1], beams[-1]),
    }


def _cells(found: toy.Found) -> dict[str, dict[str, float]]:
    readings = {"covered": found.covered, "sampled": found.sampled, "chosen": found.chosen}
    return {
        name: {"mean": float(values.mean()), "error": toy.standard_error(values)} for name, values in readings.items()
    }


def against_reference(name: str, particles: Sequence[int], runs: Runs) -> dict[str, Any]:
    """The largest standardised difference between our cells and those of `REFERENCE`, with both errors."""
    found: list[float] = []
    for index, count in enumerate(particles):
        for (method, reading), theirs in zip(COLUMNS[name], REFERENCE[name].get(count, ()), strict=False):
            values = getattr(runs[method][index], reading)
            variance = values.var(ddof=1) / values.size + theirs * (1 - theirs) / REFERENCE_PROBLEMS
            found.append(max(abs(float(values.mean()) - theirs) - _ROUNDING, 0.0) / float(np.sqrt(variance)))
    if not found:
        return {"worst": None, "bound": None, "count": 0}
    return {"worst": max(found), "bound": normal_bound(len(found)), "count": len(found)}


def against_target(setting: toy.Setting, runs: Mapping[str, toy.Found]) -> Comparison:
    r"""Evidence over its exact value, and evidence times weight of right solutions: unbiased for any N.

    Of each potential the two columns $\hat Z / Z - 1$ and $\hat Z \hat P / Z - P$, whose means over problems are zero.
    """
    columns = []
    for potential, found in runs.items():
        exact = toy.exact_target(setting, potential, found.p)
        # Capped: a wrong evidence may be so large that its square overflows.
        ratio = np.exp(np.minimum(found.log_evidence - exact.log_evidence, 200.0))
        columns += [ratio - 1, ratio * found.sampled - exact.probability]
    return compare(np.stack(columns, axis=1), np.zeros(len(columns)))


def accuracy_error(setting: toy.Setting, potential: str, found: toy.Found) -> Comparison:
    """The accuracy of a draw less that of an exact draw from the target, paired by problem; of order 1/N."""
    exact = toy.exact_target(setting, potential, found.p)
    return compare((found.sampled - exact.probability)[:, None], np.zeros(1))


def difference(first: np.ndarray, second: np.ndarray | float) -> dict[str, Any]:
    """The mean of `first - second`, paired."""
    return brief(compare((first - second)[:, None], np.zeros(1)))


def simulate_finishing(key: jax.Array, num_particles: int, num_problems: int) -> dict[bool, toy.Found]:
    """Solutions of random length, filtered with odds: finished ones absorbing (True), and weighted again (False)."""
    return {
        absorbing: toy.simulate(
            jax.random.clone(key),
            toy.FINISHING,
            "odds",
            num_particles=num_particles,
            num_problems=num_problems,
            absorbing=absorbing,
        )
        for absorbing in (True, False)
    }


def measure_finishing(num_particles: int, runs: Mapping[bool, toy.Found]) -> dict[str, Any]:
    """How both kinds of runs stand against the exact target."""
    exact = toy.exact_target(toy.FINISHING, "odds", runs[True].p)
    found = {
        "stop": toy.FINISHING.stop,
        "num_particles": num_particles,
        "num_problems": exact.probability.size,
        "limit": toy.limit(toy.FINISHING, "odds"),
    }
    for name, absorbing in (("absorbing", True), ("weighted_again", False)):
        found[name] = {
            "cells": _cells(runs[absorbing]),
            "evidence": brief(against_target(toy.FINISHING, {"odds": runs[absorbing]})),
            "median_log_ratio": float(np.median(runs[absorbing].log_evidence - exact.log_evidence)),
        }
    return found


def brief(found: Comparison) -> dict[str, Any]:
    """A comparison as plain numbers."""
    return {
        "mean": found.mean.tolist(),
        "standard_error": found.standard_error.tolist(),
        "worst": found.worst,
        "bound": found.bound,
        "holds": found.holds,
    }
