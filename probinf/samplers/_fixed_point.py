r"""Cumulative offspring numbers $N (W_1 + \dots + W_i)$ as exact fixed-point numbers.

Each $N W_i$ is rounded once to a whole part and a fractional part of `bits` bits; all sums after that are sums
of integers: exact, monotone and independent of the order of addition, so of the number of devices. A weight
of zero therefore has an interval of length exactly zero, and N = 1e7 is right in float32, where a floating
cumulative sum resolves no single offspring. The price is the one rounding: an expected offspring number is off
by at most $2^{-bits-1}$ plus the relative rounding of the weight itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from probinf.core import cumulate, exclusive, from_columns, to_columns, view_shape


class FixedPoint(NamedTuple):
    """Numbers `whole + part / 2**bits` with 0 <= part < 2**bits."""

    whole: Int[Array, "..."]
    part: Int[Array, "..."]


def fraction_bits(count: int, dtype: Any) -> int:
    """Bits of the fractional part: as many as sums over `count` items leave room for, at most the mantissa's."""
    _, rows = view_shape(count)
    wide = jnp.finfo(dtype).bits == 64
    return min((63 if wide else 31) - (rows - 1).bit_length(), 52 if wide else 23)


def cumulative_offspring(weights: Float[Array, " n"], num_offspring: int) -> FixedPoint:
    """Cumulative expected offspring numbers, inclusive, the last exactly `num_offspring`.

    Args:
        weights: unnormalised weights >= 0; negative, NaN and infinite ones count as zero.
        num_offspring: their total.

    Returns:
        [n] numbers; zero when every weight is zero.
    """
    numbers = offspring_columns(weights, num_offspring, lambda number: number)
    return jax.tree.map(lambda leaf: from_columns(leaf, weights.shape[0]), numbers)


def offspring_columns(weights: Float[Array, " n"], num_offspring: int, read: Callable[[FixedPoint], Any]) -> Any:
    """An elementwise function of the cumulative offspring numbers, leaves [columns, rows] (see `to_columns`).

    Padding has the number of the last particle.
    """
    bits = fraction_bits(weights.shape[0], weights.dtype)
    integer = jnp.int64 if jnp.finfo(weights.dtype).bits == 64 else jnp.int32
    one = 1 << bits
    weights = jnp.where((weights > 0) & (weights < jnp.inf), weights, 0)
    total = jnp.sum(weights)
    expected = to_columns(weights * (num_offspring / jnp.where(total > 0, total, 1)))

    def settle(whole: Array, part: Array) -> FixedPoint:
        return FixedPoint(whole + (part >> bits), part & (one - 1))

    def quantise(values: Array) -> FixedPoint:
        floor = jnp.floor(values)
        return FixedPoint(floor.astype(integer), ((values - floor) * one + 0.5).astype(integer))

    cells = quantise(expected)
    blocks = settle(jnp.sum(cells.whole, 0, dtype=integer), jnp.sum(cells.part, 0, dtype=integer))
    before = settle(exclusive(blocks.whole), exclusive(blocks.part))
    last = settle(before.whole[-1] + blocks.whole[-1], before.part[-1] + blocks.part[-1])

    def size(number: FixedPoint) -> Array:
        return number.whole.astype(weights.dtype) + number.part.astype(weights.dtype) / one

    # The last number is off by the rounding of `total`: spread that evenly, C -> C - C (C_n - M) / C_n.
    excess = (last.whole - num_offspring).astype(weights.dtype) * one + last.part.astype(weights.dtype)
    slope = excess / jnp.where(total > 0, size(last), 1)

    def corrected(number: FixedPoint) -> Any:
        shift = jnp.floor(size(number) * slope + 0.5).astype(integer)
        whole, part = settle(number.whole, number.part - shift)
        ended = (number.whole == last.whole) & (number.part == last.part) & (total > 0)
        whole = jnp.where(ended, num_offspring, jnp.clip(whole, 0, num_offspring))
        return read(FixedPoint(whole, jnp.where(ended, 0, part)))

    def add(a: FixedPoint, b: FixedPoint) -> FixedPoint:
        return settle(a.whole + b.whole, a.part + b.part)

    return cumulate(before, cells, add, corrected)


def ancestors_from_ends(ends: Int[Array, "..."], num_particles: int, num_offspring: int) -> Int[Array, " m"]:
    """The ancestor of each offspring slot, given the slot at which each particle's offspring end.

    Args:
        ends: at least `num_particles` of them, in any order and shape; if all are zero each slot gets itself.
        num_particles: number of particles.
        num_offspring: number of slots.

    Returns:
        Nondecreasing int32 indices in [0, num_particles).
    """
    # Marks are counted straight into the column view of the slots, which saves a transposition.
    columns, rows = view_shape(num_offspring + 1)
    places = (ends & (columns - 1)) * rows + (ends >> (columns.bit_length() - 1))
    marks = jnp.zeros(columns * rows, jnp.int32).at[places.reshape(-1)].add(1, mode="promise_in_bounds")
    marks = marks.reshape(columns, rows)
    start = exclusive(jnp.sum(marks, axis=0, dtype=jnp.int32))
    ancestors = from_columns(cumulate(start, marks, jnp.add), num_offspring)
    identity = jnp.arange(num_offspring, dtype=jnp.int32) % num_particles
    # As many ends before a slot as there are particles: that slot has no ancestor.
    return jnp.where(ancestors < num_particles, ancestors, identity)
