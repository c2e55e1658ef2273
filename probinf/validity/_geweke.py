r"""Geweke's joint test with many short chains from exact draws.

$\theta \sim p(\theta)$, $y \sim p(y \mid \theta)$, $\theta' \sim K^n(\cdot \mid \theta, y)$: a kernel that leaves
$p(\theta \mid y)$ invariant gives $(\theta', y)$ the law of $(\theta, y)$, whatever n is. Each function g is compared
before and after on the same chain, $D = g(\theta', y) - g(\theta, y)$, $z = \sum D / \sqrt{\sum D^2}$ (Geweke 2004,
with independent chains in the place of long ones).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, PyTree

from probinf.core import Kernel, PRNGKey, is_fatal
from probinf.validity._arguments import callables, sample_size, split_rate
from probinf.validity._chains import Looks, Simulate, Statistics, TargetOf, differs, fitness
from probinf.validity._replicate import flatten, replicate, scalar_names
from probinf.validity._report import SURE, Check, Report

# Data with more coordinates than this in a leaf enter by their mean and mean square.
MOST_COORDINATES = 8


class _Chain(NamedTuple):
    """One chain: what was looked at before and after, the data, and how it fared."""

    before: PyTree
    after: PyTree
    data: PyTree
    moved: Array
    fatal: Array


def geweke(
    key: PRNGKey,
    kernel: Kernel,
    simulate: Simulate,
    target_of: TargetOf,
    *,
    num_chains: int,
    num_steps: int,
    false_alarm_rate: float = 1e-6,
    statistics: Statistics | None = None,
    num_pilot: int = 1000,
    batch_size: int = 8192,
) -> Report:
    """Checks that a kernel leaves the joint law of parameters and data invariant.

    Law: with probability at least 1 - `false_alarm_rate` all checks of an invariant kernel pass, for any `num_steps`.
    Looked at are bounded functions of standardised values: tanh of every coordinate, of the log densities and of
    `statistics`; s^2 / (1 + s^2) of coordinates; products of tanh of coordinates and data. Blind to an error shared by
    `simulate` and the target, and to what chains of `num_steps` steps do not reach: with few steps a bias is seen only
    as far as it has grown. The state that `kernel.init` makes must be a draw of its law given the position.

    Args:
        key: of the whole check.
        kernel: the kernel, with its tunables fixed.
        simulate: `key -> (position, data)`, one draw of the joint law; the position is that of the target.
        target_of: `data -> Target`, the posterior given the data.
        num_chains: how many chains.
        num_steps: how many steps each chain makes; as many as it takes to leave the starting point behind.
        false_alarm_rate: of the report, split evenly over the functions looked at.
        statistics: `(position, data) -> pytree` of further numbers to look at.
        num_pilot: how many further simulations set location and scale of the functions.
        batch_size: how many chains run at once.

    Returns:
        A report: no fatal status, enough movement, and for each function |z| with its normal bound. NaN fails.

    Raises:
        ValueError: a number is out of range, or the target has no scalar density.
        TypeError: an argument is not a function.

    Source: Geweke (2004), Journal of the American Statistical Association 99, 799-804.
    """
    callables(simulate=simulate, target_of=target_of)
    num_chains, num_pilot = sample_size("num_chains", num_chains, 100), sample_size("num_pilot", num_pilot, 100)
    num_steps, batch_size = sample_size("num_steps", num_steps, 1), sample_size("batch_size", batch_size, 1)
    run = eqx.Partial(_run, kernel, simulate, Looks(target_of, statistics), num_steps)
    # The pilot runs the same program, and only its exact draws are used.
    chains = replicate(key, run, num_pilot + num_chains, batch_size=batch_size)
    names, before, after = _functions(chains, num_pilot)
    rate = split_rate("false_alarm_rate", false_alarm_rate, len(names), 1e-300)
    checks = tuple(_check(name, a, b, rate) for name, a, b in zip(names, before.T, after.T, strict=True))
    checks = fitness(chains.moved[num_pilot:], chains.fatal[num_pilot:]) + checks
    return Report(checks, f"Geweke's joint test: {num_chains} chains of {num_steps} steps")


def _run(kernel: Kernel, simulate: Simulate, looks: Looks, num_steps: int, key: PRNGKey) -> _Chain:
    key_simulate, key_init, key_steps = jax.random.split(key, 3)
    position, data = simulate(key_simulate)
    target = looks.target_of(data)

    def step(state: Any, index: Array) -> tuple[Any, None]:
        return kernel.step(jax.random.fold_in(key_steps, index), target, state)[0], None

    state, _ = jax.lax.scan(step, kernel.init(key_init, target, position), jnp.arange(num_steps))
    moved = differs(state.position, position)
    before, after = looks(position, data), looks(state.position, data)
    # Two compilations of one function may round differently, which z would see where nothing moved.
    after = jax.tree.map(lambda new, old: jnp.where(moved, new, old), after, before)
    return _Chain(before, after, data, moved, is_fatal(state.status))


def _functions(
    chains: _Chain, num_pilot: int
) -> tuple[tuple[str, ...], Float[np.ndarray, "c g"], Float[np.ndarray, "c g"]]:
    """Names and values [num_chains, num_functions] of all functions, before and after."""
    first = jax.tree.map(lambda leaf: leaf[0], (chains.before, chains.data))
    looked, data_names = scalar_names(first[0], "value"), _data_names(first[1])
    before, after = _columns(chains.before), _columns(chains.after)
    coordinates = np.array([name == "position" or name.startswith(("position.", "position[")) for name in looked])
    location, scale = _location_and_scale(before[:num_pilot])
    data = _data_columns(chains.data, len(before))
    data_location, data_scale = _location_and_scale(data[:num_pilot])
    squashed_data = np.tanh((data[num_pilot:] - data_location) / data_scale)
    names = [f"tanh {name}" for name in looked] + [f"square of {name}" for name in np.array(looked)[coordinates]]
    names += [f"{name} times {other}" for name in np.array(looked)[coordinates] for other in data_names]

    def values(columns: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "c g"]:
        standard = (columns[num_pilot:] - location) / scale
        squashed, squares = np.tanh(standard), 1 - 1 / (1 + standard[:, coordinates] ** 2)
        products = squashed[:, coordinates, None] * squashed_data[:, None, :]
        return np.concatenate([squashed, squares, products.reshape(len(squashed), -1)], axis=1)

    return tuple(names), values(before), values(after)


def _columns(tree: PyTree) -> Float[np.ndarray, "n f"]:
    return np.asarray(flatten(tree, 1), float)


def _data_columns(data: PyTree, count: int) -> Float[np.ndarray, "n f"]:
    columns = []
    for leaf in jax.tree.leaves(data):
        flat = np.asarray(leaf, float).reshape(len(leaf), -1)
        many = flat.shape[1] > MOST_COORDINATES
        columns.append(np.stack([flat.mean(1), np.mean(flat**2, 1)], axis=1) if many else flat)
    return np.concatenate(columns, axis=1) if columns else np.zeros((count, 0))


def _data_names(data: PyTree) -> tuple[str, ...]:
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        name = "data" + jax.tree_util.keystr(path)
        many = np.size(leaf) > MOST_COORDINATES
        names += [f"mean {name}", f"mean square {name}"] if many else list(scalar_names({name: leaf}, name))
    return tuple(names)


def _location_and_scale(pilot: Float[np.ndarray, "n f"]) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Median and scaled median deviation, which laws without moments have too; for discrete values the deviation."""
    with np.errstate(invalid="ignore"):
        location = np.median(pilot, axis=0)
        scale = 1.4826 * np.median(np.abs(pilot - location), axis=0)
        scale = np.where(scale == 0, np.std(pilot, axis=0), scale)
    return location, np.where(scale == 0, 1, scale)


def _check(name: str, before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], rate: float) -> Check:
    change = after - before
    size = float(np.sqrt(np.sum(change**2)))
    # Not centred by the mean: then z cannot exceed the root of the number of changes, and few changes give no alarm.
    # Chains of a reversible kernel may be turned round, so D is symmetric and z has tails below the normal.
    z = float(np.sum(change)) / size if size != 0 else 0.0
    bound = float(scipy.stats.norm.isf(rate / 2))
    spread = float(np.std(before))
    detects = "nothing: no chain changed it"
    if size > 0 and spread > 0:
        detects = f"a mean off by {(bound + SURE) * size / len(change) / spread:.2g} sd"
    return Check("joint law", name, abs(z) if math.isfinite(z) else math.nan, bound, rate, detects)
