r"""Cumulative sums, as one pass of vector additions on CPU.

A vector of n items is viewed as [rows, columns] and scanned column by column, all rows at once, each row
starting from the sum of the rows before it. XLA's own `cumsum` takes several passes over memory on CPU: this one
measured 3 to 10 times faster at 1e3 to 1e6 items. Integer sums are exact in any order, so they are the same on
every device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


def view_shape(count: int) -> tuple[int, int]:
    """The [rows, columns] view of `count` items: columns is a power of two, at most the square root of `count`."""
    columns = 1 << ((max(count, 1).bit_length() - 1) // 2)
    return -(-count // columns), columns


def as_rows(values: Array) -> Array:
    """The values, padded with zeros at the end, as the [rows, columns] view."""
    rows, columns = view_shape(values.shape[0])
    return jnp.pad(values, (0, rows * columns - values.shape[0])).reshape(rows, columns)


def exclusive(sums: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """The sum of all entries before each."""
    return jnp.cumsum(sums, dtype=sums.dtype) - sums


def cumulative_sum(values: Int[Array, " n"]) -> Int[Array, " n"]:
    """Inclusive cumulative sum of integers; the total must fit the dtype."""
    count = values.shape[0]

    def by_columns(values: Array) -> Array:
        rows = as_rows(values)

        def step(carry: Array, column: Array) -> tuple[Array, Array]:
            carry = carry + column
            return carry, carry

        _, sums = jax.lax.scan(step, exclusive(jnp.sum(rows, axis=1, dtype=values.dtype)), rows.T)
        return sums.T.reshape(-1)[:count]

    return by_platform(values, cpu=by_columns, default=lambda v: jnp.cumsum(v, dtype=v.dtype))


def by_platform(*operands: PyTree, cpu: object, default: object) -> PyTree:
    """`lax.platform_dependent`: one function lowered for CPU, another elsewhere."""
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)
