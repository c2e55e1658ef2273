r"""Exact-draw stationarity: what starts from the target must still have its law after a few steps of the kernel.

M independent chains start from exact draws x and end at x'. For bounded functions g the mean of $g(x') - g(x)$ is zero
for an invariant kernel, and that of $g(x)h(x') - h(x)g(x')$ after one step for a reversible one. Nothing has to
converge and no draws are dependent, so both are plain tests of a mean.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from probinf.core import Kernel, PRNGKey, Target, is_fatal, unwrap_key, whole_number
from probinf.validity._report import Check, Report

MISSED = 1e-3  # the probability with which a fault of the size that a check names is missed
MAX_COORDINATES = 6
NUM_PILOTS = 2000
FEWEST_MOVED = 0.02


class _Scale(NamedTuple):
    """Makes positions into a few numbers of order one: projection [d, k], median [k], spread [k]."""

    projection: Array
    median: Array
    spread: Array


def stationarity(
    key: PRNGKey,
    kernel: Kernel,
    target: Target,
    draw: Callable[[PRNGKey], PyTree],
    *,
    num_steps: int = 2,
    num_chains: int = 20_000,
    reversible: bool = False,
    false_alarm_rate: float = 1e-6,
    subject: str = "",
) -> Report:
    """Whether a kernel keeps the law of exact draws of its target.

    Args:
        key: PRNG key.
        kernel: a `Kernel`.
        target: its target.
        draw: key -> position, exactly from the target.
        num_steps: steps of each chain, at least 1.
        num_chains: M, at least 1000: the tests rely on means of many bounded numbers being normal.
        reversible: whether one step is also tested for reversibility.
        false_alarm_rate: of the whole report, shared among its tests.
        subject: a name for the table.

    Returns:
        A `Report`. It also fails where fewer than 2 % of the chains moved, from which nothing could be seen, and where
        a chain carries a fatal status bit.

    Raises:
        ValueError: a size below its least value.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    num_chains = whole_number("num_chains", num_chains, 1000)
    pilot_key, run_key = jax.random.split(key)
    scale = _scale_of(jax.vmap(draw)(jax.random.split(pilot_key, NUM_PILOTS)))
    ends = _run(kernel, target, draw, jax.random.split(run_key, num_chains), num_steps, scale)
    before, once, after, moved, fatal = (np.asarray(leaf, float) for leaf in ends)
    name = subject or type(kernel).__name__
    laws = {"invariance": (_names(scale.median.shape[0]), after - before, before.std(axis=0))}
    if reversible:
        laws["reversibility"] = _flows(laws["invariance"][0], before, once)
    checks = [
        Check("faults", f"{name}: chains at fault", float(fatal.sum()), 0.0, 0.0, "any"),
        Check("moves", f"{name}: share that stayed", float(1 - moved.mean()), 1 - FEWEST_MOVED, 0.0, "a stuck kernel"),
    ]
    checks += [_worst(law, name, *parts, false_alarm_rate / len(laws)) for law, parts in laws.items()]
    return Report(tuple(checks), name)


def _flows(names: list[str], before: np.ndarray, after: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The antisymmetric functions of a step, whose means are zero for a reversible kernel."""
    first, second = np.triu_indices(before.shape[1], 1)
    flows = before[:, first] * after[:, second] - before[:, second] * after[:, first]
    labels = [f"{names[i]} and {names[j]}" for i, j in zip(first, second, strict=True)]
    spreads = before.std(axis=0)
    return labels, flows, spreads[first] * spreads[second]


def _worst(law: str, name: str, labels: list[str], values: np.ndarray, spreads: np.ndarray, rate: float) -> Check:
    """The largest of the z scores of means that should be zero."""
    bound = float(scipy.stats.norm.isf(rate / (2 * len(labels))))
    means, errors = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
    found = np.where(errors > 0, np.abs(means) / np.where(errors > 0, errors, 1), np.where(means == 0, 0, np.nan))
    size = np.max((bound + scipy.stats.norm.isf(MISSED)) * errors / np.where(spreads > 0, spreads, 1))
    at = int(np.argmax(found))  # NaN counts as the largest
    subject = f"{name}: {len(labels)} means, worst {labels[at]}"
    return Check(law, subject, float(found[at]), bound, rate, f"a shift of {size:.2g} sd")


@eqx.filter_jit
def _run(
    kernel: Kernel, target: Target, draw: Callable, keys: Array, num_steps: int, scale: _Scale
) -> tuple[Array, ...]:
    def chain(key: PRNGKey) -> tuple[Array, ...]:
        draw_key, init_key, run_key = jax.random.split(key, 3)
        start = kernel.init(init_key, target, draw(draw_key))

        # The loop takes the bits of the keys: under `vmap` the key-reuse checker calls a scan over typed keys reuse.
        bits, restore = unwrap_key(jax.random.split(run_key, num_steps))

        def step(state: PyTree, bits: Array) -> tuple[PyTree, Array]:
            state, _ = kernel.step(restore(bits), target, state)
            return state, _features(scale, state.position)

        end, seen = jax.lax.scan(step, start, bits)
        flat, flat_end = ravel_pytree(start.position)[0], ravel_pytree(end.position)[0]
        first = _features(scale, start.position)
        return first, seen[0], seen[-1], jnp.any(flat != flat_end), is_fatal(end.status)

    return jax.vmap(chain)(keys)


def _flat(position: PyTree) -> Float[Array, " d"]:
    floating = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), position)
    return ravel_pytree(floating)[0]


def _scale_of(pilots: PyTree) -> _Scale:
    rows = np.asarray(jax.vmap(_flat)(pilots), float)
    dimension = rows.shape[1]
    projection = np.eye(dimension)
    if dimension > MAX_COORDINATES:
        mixed = np.random.default_rng(0).normal(size=(dimension, MAX_COORDINATES))
        projection = mixed / np.maximum(rows.std(axis=0), 1e-12)[:, None] / np.sqrt(dimension)
    seen = rows @ projection
    low, median, high = np.quantile(seen, [0.16, 0.5, 0.84], axis=0)
    spread = np.where(high > low, (high - low) / 2, 1.0)
    return _Scale(*(jnp.asarray(x, jnp.result_type(float)) for x in (projection, median, spread)))


def _features(scale: _Scale, position: PyTree) -> Float[Array, " g"]:
    z = (_flat(position) @ scale.projection - scale.median) / scale.spread
    return jnp.concatenate([jnp.tanh(z), jnp.tanh(z * z - 1), jnp.tanh(z[:-1] * z[1:])])


def _names(count: int) -> list[str]:
    singles = [f"x[{i}]" for i in range(count)]
    squares = [f"x[{i}]^2" for i in range(count)]
    return [*singles, *squares, *(f"x[{i}] x[{i + 1}]" for i in range(count - 1))]
