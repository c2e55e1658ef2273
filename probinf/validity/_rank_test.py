r"""The exact rank test of Markov kernels: no burn-in, no thinning, no asymptotics.

Put an exact draw $(\theta, y)$ at a uniformly random position of a chain, run K forwards from there and the reversed
kernel backwards. The chain is stationary and its exact draw is at a random place: its rank among the others is uniform
(Gandy, Scott 2020).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from probinf.core import Kernel, PRNGKey, is_fatal
from probinf.validity._arguments import callables, sample_size, split_rate
from probinf.validity._chains import Looks, Simulate, Statistics, TargetOf, differs, fitness
from probinf.validity._ecdf_bands import SMALLEST_RATE, uniformity
from probinf.validity._replicate import replicate, scalar_names
from probinf.validity._report import Report
from probinf.validity._simulation import rank_tree, tie_equals


def rank_test(
    key: PRNGKey,
    kernel: Kernel,
    simulate: Simulate,
    target_of: TargetOf,
    *,
    num_chains: int,
    num_steps: int,
    reverse: Kernel | None = None,
    false_alarm_rate: float = 1e-6,
    statistics: Statistics | None = None,
    batch_size: int = 8192,
) -> Report:
    """Checks by exactly uniform ranks that a kernel leaves the posterior invariant.

    Law: with probability at least 1 - `false_alarm_rate` all checks pass, if `kernel` leaves the posterior invariant
    and `reverse` is its reversal. Ranked are every coordinate, the log densities and `statistics`. A kernel that is
    invariant but not reversible may fail where `reverse` is not given. The state that `kernel.init` makes must be a
    draw of its law given the position.

    Args:
        key: of the whole check.
        kernel: the kernel, with its tunables fixed.
        simulate: `key -> (position, data)`, one draw of the joint law; the position is that of the target.
        target_of: `data -> Target`, the posterior given the data.
        num_chains: how many chains, each on data of its own.
        num_steps: how many steps each chain makes; ranks are 0 .. num_steps.
        reverse: the reversed kernel; the kernel itself by default, which is right for reversible ones.
        false_alarm_rate: of the report, split evenly over what is ranked.
        statistics: `(position, data) -> pytree` of further numbers to rank.
        batch_size: how many chains run at once.

    Returns:
        A report: no fatal status, enough movement, and for each number the uniformity of its ranks. NaN fails.

    Raises:
        ValueError: a number is out of range, or there are too few chains for any to fail.
        TypeError: an argument is not a function.

    Source: Gandy, Scott (2020), "Unit testing for MCMC and other Monte Carlo methods", algorithm 2.
    """
    callables(simulate=simulate, target_of=target_of)
    num_chains, num_steps = sample_size("num_chains", num_chains), sample_size("num_steps", num_steps, 1)
    batch_size = sample_size("batch_size", batch_size, 1)
    run = eqx.Partial(_run, kernel, reverse, simulate, Looks(target_of, statistics), num_steps)
    tree, moved, fatal = replicate(key, run, num_chains, batch_size=batch_size)
    names = scalar_names(jax.tree.map(lambda leaf: leaf[0], tree), "value")
    ranks = np.concatenate([leaf.reshape(num_chains, -1) for leaf in jax.tree.leaves(tree)], axis=1)
    rate = split_rate("false_alarm_rate", false_alarm_rate, len(names), SMALLEST_RATE)
    checks = tuple(
        uniformity(column, num_steps + 1, false_alarm_rate=rate, law="stationary ranks", subject=name)
        for name, column in zip(names, ranks.T, strict=True)
    )
    title = f"exact rank test: {num_chains} chains of {num_steps} steps"
    return Report(fitness(moved, fatal) + checks, title)


def _run(
    kernel: Kernel, reverse: Kernel | None, simulate: Simulate, looks: Looks, num_steps: int, key: PRNGKey
) -> tuple[PyTree, Array, Array]:
    """Ranks like `Looks`, whether the chain moved, and whether it met a fatal status."""
    key_simulate, key_chain, key_place, key_ties = jax.random.split(key, 4)
    position, data = simulate(key_simulate)
    place = jax.random.randint(key_place, (), 0, num_steps + 1)
    positions, fatal = _chain(key_chain, kernel, reverse, looks.target_of(data), position, place, num_steps)
    others = jax.vmap(lambda one: looks(one, data))(positions)
    first = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_steps, *jnp.shape(leaf))), position)
    here = looks(position, data)
    others = tie_equals(here, others, position, positions)
    return rank_tree(key_ties, here, others), differs(positions, first), fatal


def _chain(
    key: PRNGKey, kernel: Kernel, reverse: Kernel | None, target: Any, position: PyTree, place: Array, num_steps: int
) -> tuple[PyTree, Array]:
    """The positions of `place` steps backwards from `position`, then of the other steps forwards from it."""
    key_back, key_forward, key_steps = jax.random.split(key, 3)
    back = (kernel if reverse is None else reverse).init(key_back, target, position)
    forward = kernel.init(key_forward, target, position)

    def step(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], tuple[PyTree, Array]]:
        back, forward = carry
        step_key = jax.random.fold_in(key_steps, index)
        if reverse is None:
            # One kernel does both ways: it starts again where the forward part begins.
            state = jax.tree.map(lambda new, old: jnp.where(index == place, new, old), forward, back)
            state, _ = kernel.step(step_key, target, state)
            return (state, forward), (state.position, is_fatal(state.status))
        keys = jax.random.split(step_key)
        backwards = index < place
        new_back, _ = reverse.step(keys[0], target, back)
        new_forward, _ = kernel.step(keys[1], target, forward)
        back = jax.tree.map(lambda new, old: jnp.where(backwards, new, old), new_back, back)
        forward = jax.tree.map(lambda new, old: jnp.where(backwards, old, new), new_forward, forward)
        where = jax.tree.map(lambda a, b: jnp.where(backwards, a, b), back.position, forward.position)
        return (back, forward), (where, is_fatal(back.status) | is_fatal(forward.status))

    _, (positions, fatal) = jax.lax.scan(step, (back, forward), jnp.arange(num_steps))
    return positions, jnp.any(fatal)
