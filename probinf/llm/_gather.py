r"""`settle` and `copy_rows`: resampling that copies only the rows that moved.

A scheme says how many copies of each row go on; which slots they stand in does not matter to the law, for a population
is read as a set. So every row that goes on keeps its slot, and the extra copies go to the slots of rows that do not.
A slot that is read is then never one that is written, and one loop over the rows that moved can copy them within one
buffer: for a cache of many gigabytes that moves a few rows, where `take` would write it all anew, beside the old one.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from probinf.core import take

# Bytes of a leaf's row from which the loop is used. On 2 CPU cores, with 64 rows in 4 leaves of which 20 had moved, the
# time of `take` over that of the loop was 0.66 at rows of 1 KiB, 1.6 at 4 KiB, 2.5 at 16 KiB, 4 at 64 KiB and 6 at
# 256 KiB; with 40 of them moved it was 0.7 at 4 KiB and 1.5 at 16 KiB.
LOOP_FROM = 1 << 13


def settle(ancestors: Int[Array, " n"]) -> Int[Array, " n"]:
    """An order of the slots in which every row that goes on is where it was: `ancestors[order]` is settled.

    A row that has copies keeps its own slot. The k-th slot that is free takes the k-th copy that is left, in the order
    of slots, so that groups of neighbours that have their ancestors among themselves stay groups; and slot 0 stays
    where it keeps ancestor 0.

    Args:
        ancestors: [N], each in [0, N).

    Returns:
        int32 [N], a permutation, the identity if `ancestors` is settled: `a[a] == a`.
    """
    count = ancestors.shape[0]
    slots = jnp.arange(count, dtype=jnp.int32)
    own = ancestors == slots
    first = jnp.full(count, count, jnp.int32).at[ancestors].min(slots)
    first = jnp.where(own, slots, first)  # the copy that keeps the row's slot; N where there is none
    free = first == count
    extra = _places(first[ancestors] != slots)
    rank = jnp.cumsum(free, dtype=jnp.int32) - 1
    return jnp.where(free, extra[jnp.maximum(rank, 0)], first)


def _places(marked: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Where the marked entries are, in order; 0 behind the last of them."""
    count = marked.shape[0]
    rank = jnp.where(marked, jnp.cumsum(marked, dtype=jnp.int32) - 1, count)
    return jnp.zeros(count, jnp.int32).at[rank].set(jnp.arange(count, dtype=jnp.int32), mode="drop")


def copy_rows(tree: PyTree, ancestors: Int[Array, " n"], axis_name: str | None = None) -> PyTree:
    """The rows at `ancestors`, which must be settled.

    Leaves with large rows are copied row by row, those that moved only; the others by one `take`.

    Args:
        tree: leaves [N, ...].
        ancestors: [N], with `ancestors[ancestors] == ancestors`.
        axis_name: the axis of problems, if they are mapped.
    """
    large, small = eqx.partition(tree, _is_large)
    small = take(small, ancestors)
    if not jax.tree.leaves(large):
        return small
    count = ancestors.shape[0]
    # On CPU a row at a time is the fastest (measured). Elsewhere, not measured, fewer and larger turns are the guess.
    copied = jax.lax.platform_dependent(
        large,
        ancestors,
        cpu=lambda tree, a: _copy_moved(tree, a, 1, axis_name),
        default=lambda tree, a: _copy_moved(tree, a, -(-count // 4), axis_name),
    )
    return eqx.combine(copied, small)


def _copy_moved(tree: PyTree, ancestors: Int[Array, " n"], size: int, axis_name: str | None) -> PyTree:
    """Copies the rows that moved, `size` of them at a time."""
    count = ancestors.shape[0]
    moved = ancestors != jnp.arange(count, dtype=jnp.int32)
    number = jnp.sum(moved, dtype=jnp.int32)
    most = number if axis_name is None else jax.lax.pmax(number, axis_name)
    slots = _places(moved)

    def some(index: Any, tree: PyTree) -> PyTree:
        turn = index * size + jnp.arange(size, dtype=jnp.int32)
        to = slots.at[turn].get(mode="fill", fill_value=0)
        source = ancestors[to]
        to = jnp.where(turn < number, to, count + turn)  # the last turn has room left: written nowhere

        def copy(leaf: Array) -> Array:
            rows = leaf.at[source].get(mode="promise_in_bounds")
            return leaf.at[to].set(rows, mode="drop", unique_indices=True)

        return jax.tree.map(copy, tree)

    return jax.lax.fori_loop(0, (most + size - 1) // size, some, tree)


def _is_large(leaf: Any) -> bool:
    return leaf[:1].size * leaf.dtype.itemsize >= LOOP_FROM
