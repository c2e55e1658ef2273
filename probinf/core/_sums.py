r"""Cumulative sums as one pass of vector additions on CPU.

A vector of n items is viewed as `rows` blocks of `columns` consecutive items, stored column by column, and scanned
over the columns, all blocks at once, each starting from the sum of the blocks before it. XLA's own `cumsum` takes
several passes over memory on CPU: this one measured 2 to 3 times faster at 1e3 to 1e6 items. Integer sums are
exact in any order, so they are the same on every device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree


def view_shape(count: int) -> tuple[int, int]:
    """(columns, rows) for `count` items: columns is a power of two near the square root of `count`.

    Rows are whole vector registers: a remainder of 15 of 63 cost more than 48 full ones.
    """
    columns = 1 << (max(count, 1).bit_length() // 2)
    rows = -(-count // columns)
    return columns, rows if rows < 16 else -(-rows // 16) * 16


def to_columns(values: Array) -> Array:
    """The values, padded with zeros at the end, as [columns, rows]: item r * columns + c stands at [c, r]."""
    columns, rows = view_shape(values.shape[0])
    return jnp.pad(values, (0, rows * columns - values.shape[0])).reshape(rows, columns).T


def from_columns(values: Array, count: int) -> Array:
    """The first `count` items of a [columns, rows] view, in order."""
    return values.T.reshape(-1)[:count]


def exclusive(sums: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """The sum of all entries before each."""
    count = sums.shape[0]
    if count > 64:
        return jnp.cumsum(sums, dtype=sums.dtype) - sums
    before = np.tri(count, k=-1, dtype=bool)  # one pass, where `cumsum` takes four
    return jnp.sum(jnp.where(before.T, sums[:, None], 0), axis=0, dtype=sums.dtype)


def largest(values: Float[Array, " n"]) -> Float[Array, ""]:
    """The largest, NaN if one is; as integers, because on CPU the maximum of floats is not vectorised."""
    integer = jnp.dtype(f"int{jnp.finfo(values.dtype).bits}")
    flip = jnp.iinfo(integer).max  # turns the order of negative numbers; as a float it is NaN
    bits = jax.lax.bitcast_convert_type(values, integer)
    top = jnp.max(jnp.where(jnp.isnan(values), flip, jnp.where(bits < 0, bits ^ flip, bits)))
    return jax.lax.bitcast_convert_type(jnp.where(top < 0, top ^ flip, top), values.dtype)


def cumulate(
    start: PyTree,
    items: PyTree,
    add: Callable[[PyTree, PyTree], PyTree],
    read: Callable[[PyTree], PyTree] = lambda sums: sums,
) -> PyTree:
    """Running sums down the columns of a view, `read` as they are made.

    Args:
        start: leaves [rows], the sum before each block.
        items: leaves [columns, rows].
        add: elementwise sum of two such numbers.
        read: elementwise function of the running sum.

    Returns:
        `read` of the inclusive sums, leaves [columns, rows].
    """

    def step(sums: PyTree, column: PyTree) -> tuple[PyTree, PyTree]:
        sums = add(sums, column)
        return sums, read(sums)

    def by_columns(start: PyTree, items: PyTree) -> PyTree:
        return jax.lax.scan(step, start, items)[1]

    def by_tree(start: PyTree, items: PyTree) -> PyTree:
        sums = jax.lax.associative_scan(add, items)
        return read(add(jax.tree.map(lambda leaf: leaf[None], start), sums))

    return jax.lax.platform_dependent(start, items, cpu=by_columns, default=by_tree)


def cumulative_sum(values: Int[Array, " n"]) -> Int[Array, " n"]:
    """Inclusive cumulative sum of integers; the total must fit the dtype."""
    columns = to_columns(values)
    start = exclusive(jnp.sum(columns, axis=0, dtype=values.dtype))
    return from_columns(cumulate(start, columns, jnp.add), values.shape[0])
