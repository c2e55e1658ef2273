"""Shared by the tests of trans-dimensional kernels: laws, chains of many starts, exact transition matrices."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probinf.core import choose
from probinf.core._choices import categorical
from probinf.validity import enumerate_algorithm

LOG_2PI = math.log(2 * math.pi)


class Normal(eqx.Module):
    """Independent normal numbers of a shape."""

    mean: Any = 0.0
    scale: Any = 1.0
    shape: tuple[int, ...] = eqx.field(static=True, default=())

    def sample(self, key: Any) -> Any:
        return self.mean + self.scale * jax.random.normal(key, self.shape)

    def log_prob(self, x: Any) -> Any:
        z = (x - self.mean) / self.scale
        return jnp.sum(-0.5 * z * z - jnp.log(self.scale) - 0.5 * LOG_2PI)


def run_chains(key: Any, kernel: Any, target: Any, positions: Any, steps: int, see: Any) -> tuple[Any, np.ndarray]:
    """The last states, and `see(position)` of all chains after each step, [steps, chains, ...]."""
    num = jax.tree.leaves(positions)[0].shape[0]

    @jax.jit
    def run(key: Any, positions: Any) -> Any:
        key_init, key_run = jax.random.split(key)
        states = jax.vmap(lambda k, p: kernel.init(k, target, p))(jax.random.split(key_init, num), positions)

        def body(states: Any, i: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key_run, i), num)
            states = jax.vmap(lambda k, s: kernel.step(k, target, s)[0])(keys, states)
            return states, jax.vmap(see)(states.position)

        return jax.lax.scan(body, states, jnp.arange(steps))

    states, seen = run(key, positions)
    return states, np.asarray(seen)


def z_scores(seen: np.ndarray, expected: Any) -> np.ndarray:
    """(mean - expected) / standard error, from the means of independent chains; seen is [steps, chains, ...]."""
    means = np.asarray(seen, np.float64).mean(0)
    error = means.std(0, ddof=1) / math.sqrt(means.shape[0])
    return (means.mean(0) - np.asarray(expected)) / np.maximum(error, 1e-12)


def transition_matrix(kernel: Any, target: Any, positions: list[Any]) -> np.ndarray:
    """Exact, by enumeration; rows and columns in the order of `positions`."""
    num = len(positions)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *positions)

    def step(key: Any) -> Any:
        key_start, key_init, key_step = jax.random.split(key, 3)
        start = choose(key_start, categorical, jnp.full((1, num), 1 / num))[0]
        state = kernel.init(key_init, target, jax.tree.map(lambda leaf: leaf[start], stacked))
        return start, kernel.step(key_step, target, state)[0].position

    law = enumerate_algorithm(step)
    columns = {_name(position): column for column, position in enumerate(positions)}
    starts, ends = jax.tree.map(np.asarray, law.outcomes)
    probabilities = np.asarray(law.probabilities)
    matrix = np.zeros((num, num))
    for i in np.flatnonzero(probabilities):
        column = columns[_name(jax.tree.map(lambda leaf, i=i: leaf[i], ends))]
        matrix[starts[i], column] += num * probabilities[i]
    return matrix


def _name(position: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(position))


def balance_errors(matrix: np.ndarray, density: np.ndarray) -> tuple[float, float, float]:
    """Largest errors of: rows summing to 1, invariance, detailed balance."""
    density = density / density.sum()
    flow = density[:, None] * matrix
    return np.abs(matrix.sum(1) - 1).max(), np.abs(density @ matrix - density).max(), np.abs(flow - flow.T).max()
