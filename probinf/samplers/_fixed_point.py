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

from probinf.core import as_rows, by_platform, cumulative_sum, exclusive, view_shape


class FixedPoint(NamedTuple):
    """Numbers `whole + part / 2**bits` with 0 <= part < 2**bits."""

    whole: Int[Array, "..."]
    part: Int[Array, "..."]


def fraction_bits(count: int, dtype: Any) -> int:
    """Bits of the fractional part: as many as sums over `count` items leave room for, at most the mantissa's."""
    rows, _ = view_shape(count)
    wide = jnp.finfo(dtype).bits == 64
    return min((63 if wide else 31) - (rows - 1).bit_length(), 52 if wide else 23)


def _settle(whole: Array, part: Array, bits: int) -> FixedPoint:
    """Moves the whole units of `part` (which may be negative or large) into `whole`."""
    return FixedPoint(whole + (part >> bits), part & ((1 << bits) - 1))


def cumulative_offspring(
    weights: Float[Array, " n"], num_offspring: int, read: Callable[[FixedPoint], Any] = lambda number: number
) -> Any:
    """Cumulative expected offspring numbers, inclusive, the last exactly `num_offspring`.

    Args:
        weights: unnormalised weights >= 0; negative, NaN and infinite ones count as zero.
        num_offspring: their total.
        read: elementwise function of the numbers (applied inside the one pass that makes them).

    Returns:
        `read` of the [n] numbers, by default the numbers; they are zero when every weight is zero.
    """
    count = weights.shape[0]
    bits = fraction_bits(count, weights.dtype)
    integer = jnp.int64 if jnp.finfo(weights.dtype).bits == 64 else jnp.int32
    one = 1 << bits
    weights = jnp.where((weights > 0) & (weights < jnp.inf), weights, 0)
    total = jnp.sum(weights)
    expected = as_rows(weights * (num_offspring / jnp.where(total > 0, total, 1)))

    def quantise(values: Array) -> FixedPoint:
        floor = jnp.floor(values)
        return FixedPoint(floor.astype(integer), ((values - floor) * one + 0.5).astype(integer))

    cells = quantise(expected)
    rows = _settle(jnp.sum(cells.whole, 1, dtype=integer), jnp.sum(cells.part, 1, dtype=integer), bits)
    before = _settle(exclusive(rows.whole), exclusive(rows.part), bits)
    last = _settle(before.whole[-1] + rows.whole[-1], before.part[-1] + rows.part[-1], bits)

    # The last number is off by the rounding of `total`: spread that evenly, C -> C - C (C_n - M) / C_n.
    def size(number: FixedPoint) -> Array:
        return number.whole.astype(weights.dtype) + number.part.astype(weights.dtype) / one

    excess = (last.whole - num_offspring).astype(weights.dtype) * one + last.part.astype(weights.dtype)
    slope = excess / jnp.where(total > 0, size(last), 1)

    def corrected(number: FixedPoint) -> FixedPoint:
        shift = jnp.floor(size(number) * slope + 0.5).astype(integer)
        whole, part = _settle(number.whole, number.part - shift, bits)
        ended = (number.whole == last.whole) & (number.part == last.part) & (total > 0)
        whole = jnp.where(ended, num_offspring, jnp.clip(whole, 0, num_offspring))
        return FixedPoint(whole, jnp.where(ended, 0, part))

    def by_columns(expected: Array) -> Any:
        def step(carry: FixedPoint, column: Array) -> tuple[FixedPoint, Any]:
            more = quantise(column)
            carry = _settle(carry.whole + more.whole, carry.part + more.part, bits)
            return carry, read(corrected(carry))

        _, readings = jax.lax.scan(step, before, expected.T)
        return jax.tree.map(lambda leaf: leaf.T.reshape(-1)[:count], readings)

    def by_cumsum(expected: Array) -> Any:
        more = quantise(expected)
        numbers = _settle(
            before.whole[:, None] + jnp.cumsum(more.whole, 1, dtype=integer),
            before.part[:, None] + jnp.cumsum(more.part, 1, dtype=integer),
            bits,
        )
        return jax.tree.map(lambda leaf: leaf.reshape(-1)[:count], read(corrected(numbers)))

    return by_platform(expected, cpu=by_columns, default=by_cumsum)


def ancestors_from_ends(ends: Int[Array, " n"], num_offspring: int) -> Int[Array, " m"]:
    """The ancestor of each offspring slot, given the slot at which each particle's offspring end.

    Args:
        ends: nondecreasing, the last `num_offspring`; all zero gives each slot itself (nothing to copy).
        num_offspring: number of slots.

    Returns:
        Nondecreasing int32 indices in [0, n).
    """
    marks = jnp.zeros(num_offspring + 1, jnp.int32)
    marks = marks.at[ends].add(1, mode="promise_in_bounds", indices_are_sorted=True)
    ancestors = cumulative_sum(marks[:num_offspring])
    identity = jnp.arange(num_offspring, dtype=jnp.int32) % ends.shape[0]
    return jnp.where(ends[-1] > 0, ancestors, identity)
