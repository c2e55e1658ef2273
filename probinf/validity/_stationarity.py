r"""Exact-draw stationarity: what starts from the target must still have its law after a few steps of the kernel.

M independent chains start from exact draws x and end at x'. For bounded functions g the means of $g(x')$ and of exact
draws are the same for an invariant kernel, and that of $g(x)h(x') - h(x)g(x')$ after one step is zero for a reversible
one. Nothing has to converge and no draws are dependent, so both are plain tests of a mean.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from probinf.core import Kernel, PRNGKey, Target, is_fatal, unwrap_key, whole_number
from probinf.validity._arguments import rate_between
from probinf.validity._chains import differs, fitness
from probinf.validity._report import SURE, Check, Report

MOST_PAIRS = 200  # of functions, in the test of reversibility
NUM_PILOTS = 2000
BLOCK = 1000  # chains that run at once


class _Scale(NamedTuple):
    """Median and spread of each number of a position [d], and pairs of functions [p, 2]."""

    median: Array
    spread: Array
    pairs: Array


class _Sums(NamedTuple):
    """Means over a block of chains: of values, [B, F], and of their squares."""

    means: Any
    squares: Any
    moved: Array
    fatal: Array


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

    Looked at are every number of a position, its square, and products of neighbours. A reversible kernel is compared
    with where its chains started, of which the changes are symmetric; another with independent exact draws, because
    its changes may be skewed (many small ones, and few large ones back).

    Args:
        key: PRNG key.
        kernel: a `Kernel`.
        target: its target.
        draw: key -> position, exactly from the target.
        num_steps: steps of each chain, at least 1.
        num_chains: M, at least 1000 and rounded up to whole thousands.
        reversible: whether the kernel is said to be reversible, which is then tested for one step.
        false_alarm_rate: of the whole report, shared among its tests.
        subject: a name for the table.

    Returns:
        A `Report`. It also fails where nine in ten chains never moved, from which nothing could be seen, and where a
        chain carries a fatal status bit.

    Raises:
        ValueError: a size below its least value, or a rate that is no probability.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    num_chains = whole_number("num_chains", num_chains, 1000)
    rate = rate_between("false_alarm_rate", false_alarm_rate)
    pilot_key, run_key = jax.random.split(key)
    scale = _scale_of(jax.vmap(draw)(jax.random.split(pilot_key, NUM_PILOTS)))
    keys = jax.random.split(run_key, (-(-num_chains // BLOCK), BLOCK))
    sums = _run(kernel, target, draw, keys, num_steps, scale)
    moments = {
        name: (np.mean(np.asarray(first, float), axis=0), np.mean(np.asarray(sums.squares[name], float), axis=0))
        for name, first in sums.means.items()
    }
    count, name = keys.size, subject or type(kernel).__name__
    names = _names(scale.median.shape[0])
    spreads = _deviation(*moments["before"])
    if reversible:
        pairs = np.asarray(scale.pairs)
        labels = [f"{names[i]} and {names[j]}" for i, j in pairs]
        laws = {
            "invariance": (names, *moments["change"], spreads),
            "reversibility": (labels, *moments["flow"], spreads[pairs[:, 0]] * spreads[pairs[:, 1]]),
        }
    else:
        (after, after_squares), (other, other_squares) = moments["after"], moments["other"]
        variance = _deviation(after, after_squares) ** 2 + _deviation(other, other_squares) ** 2
        difference = after - other
        laws = {"invariance": (names, difference, variance + difference**2, spreads)}
    health = fitness(np.asarray(sums.moved).reshape(-1), np.asarray(sums.fatal).reshape(-1))
    checks = [check._replace(subject=f"{name}: {check.subject}") for check in health]
    checks += [_worst(law, name, *parts, count, rate / len(laws)) for law, parts in laws.items()]
    return Report(tuple(checks), name)


def _deviation(mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(square - mean**2, 0))


def _worst(
    law: str,
    name: str,
    labels: list[str],
    means: np.ndarray,
    squares: np.ndarray,
    spreads: np.ndarray,
    count: int,
    rate: float,
) -> Check:
    """The largest of the z scores of means that should be zero."""
    bound = float(scipy.stats.norm.isf(rate / (2 * len(labels))))
    errors = _deviation(means, squares) / np.sqrt(count - 1)
    # Of a number that never varies float32 leaves a deviation of rounding.
    still = errors <= 1e-6 * np.abs(means) + 1e-9
    found = np.where(still, np.where(np.abs(means) <= 1e-6, 0, np.inf), np.abs(means) / np.where(still, 1, errors))
    size = np.max((bound + SURE) * errors / np.where(spreads > 1e-6, spreads, 1))
    at = int(np.argmax(found))  # NaN counts as the largest
    subject = f"{name}: {len(labels)} means, worst {labels[at]}"
    return Check(law, subject, float(found[at]), bound, rate, f"a shift of {size:.2g} sd")


@eqx.filter_jit
def _run(kernel: Kernel, target: Target, draw: Callable, keys: Array, num_steps: int, scale: _Scale) -> _Sums:
    def chain(key: PRNGKey) -> tuple[dict[str, Array], Array, Array]:
        draw_key, init_key, run_key, other_key = jax.random.split(key, 4)
        start = kernel.init(init_key, target, draw(draw_key))
        # The loop takes the bits of the keys: under `vmap` the key-reuse checker calls a scan over typed keys reuse.
        bits, restore = unwrap_key(jax.random.split(run_key, num_steps))

        def step(state: PyTree, bits: Array) -> tuple[PyTree, Array]:
            state, _ = kernel.step(restore(bits), target, state)
            return state, _features(scale, state.position)

        end, seen = jax.lax.scan(step, start, bits)
        before, first, second = _features(scale, start.position), scale.pairs[:, 0], scale.pairs[:, 1]
        values = {
            "before": before,
            "after": seen[-1],
            "other": _features(scale, draw(other_key)),
            "change": seen[-1] - before,
            "flow": before[first] * seen[0][second] - before[second] * seen[0][first],
        }
        return values, differs(start.position, end.position), is_fatal(end.status)

    def block(_: None, keys: Array) -> tuple[None, _Sums]:
        values, moved, fatal = jax.vmap(chain)(restore_block(keys))
        means = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
        squares = jax.tree.map(lambda v: jnp.mean(v * v, axis=0), values)
        return None, _Sums(means, squares, moved, fatal)

    block_bits, restore_block = unwrap_key(keys)
    return jax.lax.scan(block, None, block_bits)[1]


def _flat(position: PyTree) -> Float[Array, " d"]:
    floating = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), position)
    return ravel_pytree(floating)[0]


def _scale_of(pilots: PyTree) -> _Scale:
    rows = np.asarray(jax.vmap(_flat)(pilots), float)
    low, median, high = np.quantile(rows, [0.16, 0.5, 0.84], axis=0)
    spread = np.where(high > low, (high - low) / 2, 1.0)
    number = len(_names(rows.shape[1]))
    pairs = np.stack(np.triu_indices(number, 1), axis=1)
    if len(pairs) > MOST_PAIRS:
        pairs = np.random.default_rng(0).choice(pairs, MOST_PAIRS, replace=False)
    floats = [jnp.asarray(x, jnp.result_type(float)) for x in (median, spread)]
    return _Scale(floats[0], floats[1], jnp.asarray(pairs, jnp.int32))


def _features(scale: _Scale, position: PyTree) -> Float[Array, " g"]:
    z = (_flat(position) - scale.median) / scale.spread
    return jnp.concatenate([jnp.tanh(z), jnp.tanh(z * z - 1), jnp.tanh(z[:-1] * z[1:])])


def _names(count: int) -> list[str]:
    singles = [f"x[{i}]" for i in range(count)]
    squares = [f"x[{i}]^2" for i in range(count)]
    return [*singles, *squares, *(f"x[{i}] x[{i + 1}]" for i in range(count - 1))]
