r"""Markov kernels on finite spaces as stochastic matrices: invariance and reversibility without Monte Carlo error.

Row i of P is the exact law of one step from state i, its choices enumerated. Invariance is $\pi P = \pi$, reversibility
$\pi_i P_{ij} = \pi_j P_{ji}$ (Tierney 1994).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from probinf.core import Kernel, Target
from probinf.validity._enumerate import enumerate_algorithm, outcome_rows
from probinf.validity._report import Check, Report


class KernelMatrix(NamedTuple):
    """A kernel on S states.

    Attributes:
        matrix: [S, S], the probability of going from row to column.
        stationary: [S], the target's probabilities.
    """

    matrix: Float[Array, "s s"]
    stationary: Float[Array, " s"]


def enumerate_kernel(kernel: Kernel, target: Target, states: PyTree[Array]) -> KernelMatrix:
    """The stochastic matrix of a kernel whose choices go through `choose`, on all states of a finite space.

    Args:
        kernel: a `Kernel`.
        target: its target.
        states: all positions, stacked on a leading axis S. Use float64.

    Returns:
        A `KernelMatrix`.

    Raises:
        ValueError: the kernel leaves the states, two of them are equal, or it made no choice.
    """
    log_density = jax.vmap(target.log_density)(states)
    log_density = jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)

    def step(key: Array, position: PyTree) -> PyTree:
        init_key, step_key = jax.random.split(key)
        return kernel.step(step_key, target, kernel.init(init_key, target, position))[0].position

    return KernelMatrix(transition_matrix(step, states), jax.nn.softmax(log_density))


def transition_matrix(step: Callable[[Any, PyTree], PyTree], states: PyTree[Array]) -> Float[Array, "s s"]:
    """The stochastic matrix of `step(key, state) -> state`.

    Args:
        step: makes its choices through `choose`.
        states: all states, stacked on a leading axis S.

    Raises:
        ValueError: it leaves the states, two of them are equal, or it made no choice.
    """
    count = jax.tree.leaves(states)[0].shape[0]
    rows = outcome_rows(states, count)
    if len(np.unique(rows, axis=0)) != count:
        raise ValueError("two of `states` are equal; needed each state once")
    matrix = np.zeros((count, count))
    for index in range(count):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        law = enumerate_algorithm(lambda key, state=state: step(key, state))
        probabilities = np.asarray(law.probabilities, float)
        reached = outcome_rows(law.outcomes, len(probabilities))
        same = np.all(reached[:, None, :] == rows[None], axis=2)
        lost = ~np.any(same, axis=1) & (probabilities > 0)
        if np.any(lost):
            raise ValueError(
                f"the kernel goes from {rows[index]} to {reached[lost][0]}, which is not among `states`: list them all"
            )
        np.add.at(matrix[index], np.argmax(same, axis=1), probabilities)
    return jnp.asarray(matrix)


def invariance(
    kernel: Kernel, target: Target, states: PyTree[Array], *, reversible: bool = False, subject: str = ""
) -> Report:
    """Whether a kernel on a finite space leaves its target invariant (and is reversible), exactly.

    Args:
        kernel: a `Kernel` whose choices go through `choose`.
        target: its target.
        states: all positions, stacked on a leading axis. Use float64: the bound is 1e-12 there, and 1e-5 in float32.
        reversible: whether reversibility is checked too.
        subject: a name for the table.

    Returns:
        A `Report` with a false-alarm rate of zero.

    Raises:
        ValueError: as for `enumerate_kernel`.
    """
    found = enumerate_kernel(kernel, target, states)
    return matrix_checks(found, reversible=reversible, subject=subject or type(kernel).__name__)


def matrix_checks(found: KernelMatrix, *, reversible: bool, subject: str) -> Report:
    """The laws of a `KernelMatrix` as checks."""
    wide = found.stationary.dtype == jnp.float64
    matrix, stationary = np.asarray(found.matrix, float), np.asarray(found.stationary, float)
    bound, detects = (1e-12, "1e-12") if wide else (1e-5, "1e-5")
    flow = stationary[:, None] * matrix
    errors = {
        "rows sum to 1": matrix.sum(axis=1) - 1,
        "no negative chance": np.minimum(matrix, 0),
        "invariance": stationary @ matrix - stationary,
    }
    if reversible:
        errors["reversibility"] = flow - flow.T
    where = f"{subject}, {len(stationary)} states"
    return Report(
        tuple(Check(law, where, float(np.max(np.abs(e))), bound, 0.0, detects) for law, e in errors.items()), subject
    )
