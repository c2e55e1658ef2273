r"""Laws of whole particle algorithms on finite models, by enumeration of everything that they draw.

An evidence estimate is unbiased, $E\hat Z = Z$; drawn paths have $E[\hat Z\,1\{\text{path}\}]$ equal to the mass of the
path; a kernel on paths leaves their law invariant (Scibior et al. 2018; Andrieu, Doucet, Holenstein 2010).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from probinf.core import Population, categorical, choose
from probinf.validity._enumerate import enumerate_algorithm
from probinf.validity._finite import FiniteModel, path_masses
from probinf.validity._kernel_matrix import KernelMatrix, matrix_checks, transition_matrix
from probinf.validity._report import Check, Report

BOUND = 1e-6


def measure(population: Population, num_states: int) -> Float[Array, " s"]:
    """The meaning of a population of states 0 .. S-1: the mass that it puts on each."""
    weights = jnp.exp(population.log_scale + population.log_weights) / population.num_particles
    return jnp.zeros(num_states, weights.dtype).at[population.particles].add(weights)


def measure_law(run: Callable[[Any], PyTree], expected: np.ndarray, *, subject: str) -> Check:
    """Whether the expected value of `run(key)`, over all its choices, is `expected`.

    Args:
        run: returns numbers of the shape of `expected`; use float64.
        expected: what their mean must be.
        subject: a name for the table.
    """

    def with_a_coin(key: Any) -> PyTree:
        choose(key, categorical, jnp.ones((1, 1)))  # so that what makes no choice can be enumerated too
        return run(key)

    found = np.asarray(enumerate_algorithm(with_a_coin).expectation(lambda value: value))
    _require_double(found)
    if found.shape != np.shape(expected):
        raise ValueError(
            f"`run` returns an array of shape {found.shape}; needed {np.shape(expected)}, that of `expected`"
        )
    error = float(np.max(np.abs(found - expected) / np.max(np.abs(expected))))
    return Check("expected measure", subject, error, BOUND, 0.0, f"{BOUND:.0e}")


def evidence_law(run: Callable[[Any, FiniteModel], Array], model: FiniteModel, *, subject: str) -> Check:
    """Whether `run(key, model)`, a log evidence estimate, is unbiased.

    Args:
        run: returns the log of the estimate.
        model: a small `FiniteModel`; use float64.
        subject: a name for the table.
    """
    law = enumerate_algorithm(lambda key: run(key, model))
    _require_double(law.probabilities)
    error = abs(float(law.expectation(jnp.exp)) / float(path_masses(model).sum()) - 1)
    return Check("unbiased evidence", subject, error, BOUND, 0.0, f"{BOUND:.0e}")


def path_law(run: Callable[[Any, FiniteModel], tuple[Array, Array]], model: FiniteModel, *, subject: str) -> Check:
    """Whether paths that an algorithm draws have their law.

    Args:
        run: `(key, model) -> (log evidence, paths [T, num_paths])`.
        model: a small `FiniteModel`; use float64.
        subject: a name for the table.
    """
    masses = path_masses(model)
    paths = _all_paths(model)

    def share(outcome: tuple[Array, Array]) -> Float[Array, " m"]:
        log_evidence, drawn = outcome
        same = jnp.all(drawn.T[:, None] == paths[None], axis=2)
        return jnp.exp(log_evidence) * jnp.mean(same, axis=0, dtype=log_evidence.dtype)

    found = np.asarray(enumerate_algorithm(lambda key: run(key, model)).expectation(share))
    _require_double(found)
    error = float(np.max(np.abs(found - masses.reshape(-1))) / masses.sum())
    return Check("law of paths", subject, error, BOUND, 0.0, f"{BOUND:.0e}")


def path_kernel_law(
    step: Callable[[Any, Array], Array], model: FiniteModel, *, reversible: bool = False, subject: str
) -> Report:
    """Whether a kernel on paths, such as conditional SMC, leaves the law of paths invariant.

    Args:
        step: `(key, path [T]) -> path [T]`.
        model: a small `FiniteModel`; use float64.
        reversible: whether it must be reversible too.
        subject: a name for the table.
    """
    masses = path_masses(model).reshape(-1)
    matrix = transition_matrix(step, _all_paths(model))
    stationary = jnp.asarray(masses / masses.sum())
    return matrix_checks(KernelMatrix(matrix, stationary), reversible=reversible, subject=subject)


def _require_double(values: Any) -> None:
    if np.asarray(values).dtype != np.float64:
        raise ValueError("laws of algorithms need float64: run under `with jax.enable_x64(True)`")


def _all_paths(model: FiniteModel) -> Array:
    count = model.initial.shape[0]
    paths = np.indices((count,) * model.num_steps).reshape(model.num_steps, -1).T
    return jnp.asarray(paths, jnp.int32)
