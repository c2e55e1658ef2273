r"""Draws from the backward kernel of a particle filter, $B_t(x', i) \propto W_t^i\, M_{t+1} G_{t+1}(x_t^i, x')$.

Three ways to draw an index for each of M states x' of time t + 1, all with one signature. Sources: Godsill, Doucet,
West 2004 (exact, O(N) a draw); Douc, Garivier, Moulines, Olsson 2011 (rejection); Bunch, Godsill 2013 (Metropolis
from the genealogical ancestor); Dau, Chopin 2023 (rejection that ends in an exact draw, and why the ancestor is the
right start).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

from probinf.core import (
    FeynmanKac,
    PRNGKey,
    Status,
    categorical,
    choose,
    flag,
    is_fatal,
    map_items,
    repeat,
    take,
    weigh,
    whole_number,
)
from probinf.core._effects import scan
from probinf.core._feynman_kac import Batched
from probinf.samplers._filter_result import History

_BLOCK = 2**20  # pairs of particles that are looked at together: larger blocks leave the cache, at twice the time


class Past(NamedTuple):
    """The weighted particles of one time: log_weights [N], particles with leading axis N."""

    log_weights: Float[Array, " n"]
    particles: PyTree


class BackwardInfo(NamedTuple):
    """What backward draws report; stacked over time by what calls them.

    Attributes:
        acceptance_rate: accepted over proposed; 1 for exact draws.
        num_exact: draws that took the exact O(N) way.
        num_violations: proposals whose density was above `log_bound`; if there is one the draws are not exact.
    """

    acceptance_rate: Float[Array, "*t"]
    num_exact: Int[Array, "*t"]
    num_violations: Int[Array, "*t"]


class Drawn(NamedTuple):
    """One index for each of M states, the status bits of each, and the counts."""

    slots: Int[Array, " m"]
    status: UInt32[Array, " m"]
    info: BackwardInfo


class Alike(eqx.Module):
    """Independent draws that share one law; `choose(key, Alike(num), weights) -> int32 [num]`.

    Law: each is i with probability `weights[i] / sum(weights)`. O(N + num log N), where `categorical` would take
    O(N num). A state of weight zero is never drawn.
    """

    num: int = eqx.field(static=True)

    def sample(self, key: PRNGKey, weights: Float[Array, " n"]) -> Int[Array, " num"]:
        """The draws, by inversion."""
        sums = jnp.cumsum(weights)
        positions = jax.random.uniform(key, (self.num,), sums.dtype) * sums[-1]
        drawn = jnp.searchsorted(sums, positions, side="right").astype(jnp.int32)
        last = weights.shape[0] - 1 - jnp.argmax((weights > 0)[::-1])  # a rounded position on the end
        return jnp.minimum(drawn, last.astype(jnp.int32))

    def law(self, weights: Float[Array, " n"]) -> tuple[Int[Array, "m num"], Float[Array, " m"]]:
        """All tuples."""
        return categorical.law(jnp.broadcast_to(weights, (self.num, weights.shape[0])))


class Exact(eqx.Module):
    """Looks at all N weights: O(N) a draw, in blocks of draws that bound the memory."""

    def __call__(
        self, key: PRNGKey, model: FeynmanKac, t: Array, past: Past, now: PyTree, start: Int[Array, " m"]
    ) -> Drawn:
        """An index into `past` for each state of `now`, which is of time `t`; `start` is not used."""
        del start

        def draw(block: Array, states: PyTree) -> tuple[Array, Array]:
            relative, status = _backward_weights(model, t, past, states)
            return choose(jax.random.fold_in(key, block), categorical, relative), status

        slots, status = in_blocks(draw, now, past.log_weights.shape[0], traceable=model.traceable)
        one = jnp.ones((), past.log_weights.dtype)
        info = BackwardInfo(one, jnp.full((), slots.shape[0], jnp.int32), jnp.zeros((), jnp.int32))
        return Drawn(slots, status, info)


class Rejection(eqx.Module):
    """Proposes by the weights and accepts by the density over its bound; ends in exact draws, so always right.

    Trials stop when they have cost as much as exact draws for the states that are left would, or after `num_trials`.
    """

    log_bound: Any
    num_trials: Any

    def __call__(
        self, key: PRNGKey, model: FeynmanKac, t: Array, past: Past, now: PyTree, start: Int[Array, " m"]
    ) -> Drawn:
        """An index into `past` for each state of `now`, which is of time `t`; `start` is not used."""
        del start
        dtype = past.log_weights.dtype
        weights = weigh(past.log_weights).relative
        bound = jnp.asarray(self.log_bound(t) if callable(self.log_bound) else self.log_bound).astype(dtype)
        slack = 100 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(bound), 1)  # a bound that is reached is no fault
        num, count = jax.tree.leaves(now)[0].shape[0], past.log_weights.shape[0]
        trial_key, exact_key = jax.random.split(key)

        def unfinished(carry: tuple) -> Array:
            trial, _, todo, *_ = carry
            spent, left = trial.astype(dtype) * num, jnp.sum(todo).astype(dtype) * count
            return (left > 0) & (spent < left) & (trial < self.num_trials)

        def attempt(carry: tuple) -> tuple:
            trial, slots, todo, status, proposed, violations = carry
            propose_key, accept_key = jax.random.split(jax.random.fold_in(trial_key, trial))
            other = Alike(num).sample(propose_key, weights)
            excess = _log_backward(model, t, take(past.particles, other), now).astype(dtype) - bound
            accepted = todo & (jnp.log(jax.random.uniform(accept_key, (num,), dtype)) < excess)
            status = status | flag(Status.NAN_LOG_WEIGHT, todo & jnp.isnan(excess))
            status = status | flag(Status.POSINF_LOG_WEIGHT, todo & (excess == jnp.inf))
            violations = violations + jnp.sum(todo & (excess > slack), dtype=jnp.int32)
            proposed = proposed + jnp.sum(todo).astype(dtype)
            return trial + 1, jnp.where(accepted, other, slots), todo & ~accepted, status, proposed, violations

        def finish(carry: tuple) -> tuple:
            slots, todo, status = carry
            index = jnp.argmax(todo)[None]
            relative, bits = _backward_weights(model, t, past, take(now, index))
            slot = categorical.sample(jax.random.fold_in(exact_key, index[0]), relative)
            return slots.at[index].set(slot), todo.at[index].set(False), status.at[index].set(status[index] | bits)

        zero = jnp.zeros((), jnp.int32)
        nothing = (jnp.zeros(num, jnp.int32), jnp.ones(num, bool), jnp.zeros(num, jnp.uint32))
        carry = (zero, *nothing, jnp.zeros((), dtype), zero)
        _, slots, todo, status, proposed, violations = jax.lax.while_loop(unfinished, attempt, carry)
        num_exact = jnp.sum(todo, dtype=jnp.int32)
        slots, _, status = jax.lax.while_loop(lambda c: jnp.any(c[1]), finish, (slots, todo, status))  # ends: at most M
        rate = (num - num_exact).astype(dtype) / jnp.maximum(proposed, 1)
        return Drawn(slots, status, BackwardInfo(rate, num_exact, violations))


class Metropolis(eqx.Module):
    """Independent Metropolis moves with proposals by the weights, from the genealogical ancestor."""

    num_steps: Any

    def __call__(
        self, key: PRNGKey, model: FeynmanKac, t: Array, past: Past, now: PyTree, start: Int[Array, " m"]
    ) -> Drawn:
        """An index into `past` for each state of `now`, which is of time `t`, begun at `start`."""
        weighed, dtype = weigh(past.log_weights), past.log_weights.dtype
        weights = jnp.where(weighed.total > 0, weighed.relative, 1)  # no weight at all: the filter is flagged
        num = jax.tree.leaves(now)[0].shape[0]

        def look(slots: Array, status: Array) -> tuple[Array, Array]:
            log_density = _log_backward(model, t, take(past.particles, slots), now).astype(dtype)
            bits = flag(Status.NAN_LOG_WEIGHT, jnp.isnan(log_density))
            bits = bits | flag(Status.POSINF_LOG_WEIGHT, log_density == jnp.inf)
            return jnp.where(jnp.isnan(log_density), -jnp.inf, log_density), status | bits

        def step(i: Any, carry: tuple) -> tuple:
            slots, here, status, num_accepted = carry
            propose_key, accept_key = jax.random.split(jax.random.fold_in(key, i))
            other = choose(propose_key, Alike(num), weights)
            there, status = look(other, status)
            chance = jnp.where(there > -jnp.inf, jnp.exp(jnp.minimum(there - here, 0)), 0)
            chances = jnp.stack([1 - chance, chance], axis=1)
            accepted = choose(accept_key, categorical, chances) == 1
            moved = (jnp.where(accepted, other, slots), jnp.where(accepted, there, here))
            return *moved, status, num_accepted + jnp.sum(accepted).astype(dtype)

        here, status = look(start, jnp.zeros(num, jnp.uint32))
        slots, here, status, num_accepted = repeat(self.num_steps, step, (start, here, status, jnp.zeros((), dtype)))
        zero = jnp.zeros((), jnp.int32)
        rate = num_accepted / jnp.maximum(jnp.asarray(self.num_steps).astype(dtype) * num, 1)
        return Drawn(slots, status | flag(Status.ALL_WEIGHTS_ZERO, here == -jnp.inf), BackwardInfo(rate, zero, zero))


def find_kernel(
    method: str, methods: tuple[str, ...], log_bound: Any, num_trials: int | None, num_steps: int, traceable: bool
) -> Exact | Rejection | Metropolis:
    """The backward kernel of that name.

    Raises:
        ValueError: `method` is unknown or does not fit the other arguments.
        TypeError: `log_bound` is neither a number nor a function.
    """
    if method not in methods:
        raise ValueError(f"`method` is {method!r}; needed one of {list(methods)}")
    if (log_bound is not None) != (method == "rejection"):
        mend = "pass an upper bound of `model.log_backward(t, ...)`, a number or a function of t"
        raise ValueError(f"`log_bound` is {log_bound} with method {method!r}; it belongs to 'rejection': {mend}")
    if method == "exact":
        return Exact()
    if not traceable and method == "rejection":
        raise ValueError("`method` is 'rejection', which needs a model that can be traced: use 'exact'")
    if method == "mcmc":
        return Metropolis(_count("num_steps", num_steps))
    if not callable(log_bound):
        if not jnp.issubdtype(jnp.result_type(log_bound), jnp.number) or jnp.ndim(log_bound) != 0:
            raise TypeError(f"`log_bound` is {log_bound!r}; needed a number, or a function of t that returns one")
        log_bound = jnp.asarray(log_bound)
    num_trials = np.iinfo(np.int32).max if num_trials is None else num_trials
    return Rejection(log_bound, _count("num_trials", num_trials))


def in_blocks(function: Callable[[Array, PyTree], PyTree], items: PyTree, width: int, *, traceable: bool) -> PyTree:
    """`function(block number, items)`, item by item independent, over blocks of items in turn.

    Args:
        function: leaves [m, ...] to leaves [m, ...].
        items: leaves [M, ...].
        width: what one item costs; a block costs about 2^20 at most, or one item.
        traceable: whether `function` may run under `lax.scan`.

    Returns:
        Leaves [M, ...].
    """
    num = jax.tree.leaves(items)[0].shape[0]
    size = max(1, min(num, _BLOCK // max(width, 1)))
    if size >= num:
        return function(jnp.zeros((), jnp.int32), items)
    count = -(-num // size)
    # The last block is filled up with copies of the last item, so that nothing new is met there.
    index = jnp.minimum(jnp.arange(count * size, dtype=jnp.int32), num - 1).reshape(count, size)

    def one(carry: None, block: tuple[Array, Array]) -> tuple[None, PyTree]:
        return carry, function(block[0], take(items, block[1]))

    _, rows = scan(one, None, (jnp.arange(count, dtype=jnp.int32), index), count, traceable=traceable)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num], rows)


def pair_up(function: Callable[[PyTree, PyTree], Array], ones: PyTree, others: PyTree, *, traceable: bool) -> Array:
    """`function` of each of M `ones` with each of N `others`, [M, N]; it takes N pairs at a time."""
    count = jax.tree.leaves(others)[0].shape[0]

    def row(one: PyTree) -> Array:
        return function(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), one), others)

    return map_items(row, ones, traceable=traceable)


def weigh_rows(rows: Float[Array, "m n"]) -> tuple[Float[Array, "m n"], Float[Array, " m"], UInt32[Array, " m"]]:
    """Relative weights of each row, the log of its sum, and its status bits; NaN counts as zero.

    A row without any weight is flagged and gets equal ones, for a draw must return something.
    """
    nan = jnp.isnan(rows)
    weighed = jax.vmap(weigh)(jnp.where(nan, -jnp.inf, rows))
    empty = weighed.total == 0
    status = (
        flag(Status.NAN_LOG_WEIGHT, jnp.any(nan, axis=1))
        | flag(Status.POSINF_LOG_WEIGHT, jnp.any(rows == jnp.inf, axis=1))
        | flag(Status.ALL_WEIGHTS_ZERO, empty)
    )
    log_sum = weighed.log_mean + jnp.log(jnp.asarray(rows.shape[1], rows.dtype))
    return jnp.where(empty[:, None], 1, weighed.relative), log_sum, status


def is_lost(status: UInt32[Array, "..."]) -> Array:
    """Whether there is no smoothing law: a backward draw from no weights is not fatal, but means nothing."""
    return is_fatal(status) | ((status & jnp.uint32(int(Status.ALL_WEIGHTS_ZERO))) != 0)


def past_at(history: History, t: Array) -> Past:
    """The weighted particles at time t."""
    return Past(history.log_weights[t], jax.tree.map(lambda leaf: leaf[t], history.particles))


def _log_backward(model: FeynmanKac, t: Array, x_prev: PyTree, x: PyTree) -> Float[Array, " n"]:
    return Batched(model).log_backward(t, x_prev, x)


def _backward_weights(
    model: FeynmanKac, t: Array, past: Past, states: PyTree
) -> tuple[Float[Array, "m n"], UInt32[Array, " m"]]:
    """The unnormalised backward kernel, a row for each state."""

    def log_density(x: PyTree, x_prev: PyTree) -> Array:
        return _log_backward(model, t, x_prev, x).astype(past.log_weights.dtype)

    log_weights = past.log_weights[None]
    rows = log_weights + pair_up(log_density, states, past.particles, traceable=model.traceable)
    relative, _, status = weigh_rows(jnp.where(log_weights > -jnp.inf, rows, -jnp.inf))
    return relative, status


def _count(name: str, value: Any) -> np.ndarray:
    # A NumPy array is a leaf, so that another number recompiles nothing, and can be read in an enumeration.
    return np.asarray(whole_number(name, value), np.int32)
