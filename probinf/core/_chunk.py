r"""The compiled part of a run: `count` steps of $(x, r) = \mathrm{step}(k_i, i, x)$ with $k_i$ = `fold_in(key, i)`.

`count` is traced and the records go into a buffer of fixed capacity, so one compilation serves every chunk of
every run of the same step and shapes. The numbers of step i depend on the run key and on i alone.
"""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from probinf.core._fast_key import fast_key, plain_key
from probinf.core._layout import shapes_of
from probinf.core._types import PRNGKey

# The buffer is filled with zeros once a call and copied to the host once a call: large enough that short steps
# are not slowed by calls, small enough that the copy and the memory do not matter.
BUFFER_BYTES = 2**24
MAX_STEPS_PER_CALL = 8192


class Chunk(NamedTuple):
    """What one call returns.

    Attributes:
        state: after the last step.
        accumulated: the reducer's accumulator, or None.
        records: buffers `[capacity, ...]`, of which the first `count` are filled; None when not collected.
    """

    state: PyTree
    accumulated: PyTree
    records: PyTree


def as_state(state: PyTree) -> PyTree:
    """The state with numbers and NumPy arrays as strongly typed JAX arrays; other leaves (functions) are static.

    A weak type would be lost after the first chunk, and the second would compile again.
    """
    return jax.tree.map(_as_array, state)


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic):
        leaf = jnp.asarray(leaf)
    if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and leaf.weak_type:
        return jax.lax.convert_element_type(leaf, leaf.dtype)
    return leaf


@eqx.filter_jit
def _apply(step: Any, key: PRNGKey, index: Int[Array, ""], state: PyTree) -> tuple[PyTree, PyTree]:
    """One step. Compiled on its own so that asking for its shapes and looping over it trace it only once."""
    state_next, record = step(plain_key(jax.random.fold_in(key, index)), index, state)
    return _same_layout(state, state_next), jax.tree.map(_plain, record)


def _plain(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError("a record holds PRNG keys, which cannot be stored: record `jax.random.key_data(key)` instead")
    return jax.lax.convert_element_type(array, array.dtype)


def _same_layout(before: PyTree, after: PyTree) -> PyTree:
    """`after` with strong types, if it has the structure, shapes and dtypes of `before`."""
    old, static = eqx.partition(before, eqx.is_array)
    new, _ = eqx.partition(jax.tree.map(_as_array, after), eqx.is_array)
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise TypeError(
            f"`step` must return a state of the structure it was given: it was given {jax.tree.structure(old)} "
            f"and returned {jax.tree.structure(new)}"
        )
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if (one.shape, one.dtype) != (two.shape, two.dtype):
            raise TypeError(
                f"`step` must keep shapes and dtypes: state{jax.tree_util.keystr(path)} was {one.dtype}{one.shape} "
                f"and came back as {two.dtype}{two.shape}. Cast it in `step`, or start from a state of that dtype"
            )
    return eqx.combine(new, static)


def record_shapes(step: Any, key: PRNGKey, state: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one record; traces `step` and runs nothing."""
    return shapes_of(_record, step, key, state)


def _record(step: Any, key: PRNGKey, state: PyTree) -> PyTree:
    return _apply(step, _fast(key), jnp.zeros((), jnp.int32), state)[1]


def _fast(key: PRNGKey) -> PRNGKey:
    """The run's key as a fast one; of a clone, since every chunk takes the key."""
    return fast_key(jax.random.clone(key)) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def buffer_capacity(shapes: PyTree[jax.ShapeDtypeStruct]) -> int:
    """How many records the buffer of one call holds."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return max(1, min(MAX_STEPS_PER_CALL, BUFFER_BYTES // max(1, size)))


@runtime_checkable
class BlockStep(Protocol):
    """A step that makes many records at once, in a way of its own; `__call__` tells the shapes of a record.

    Law: state and records after `count` steps do not depend on how they are cut into blocks.
    """

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: PyTree) -> tuple[PyTree, PyTree]: ...

    def run_block(
        self, key: PRNGKey, start: Int[Array, ""], count: Int[Array, ""], state: PyTree, buffers: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Steps `start .. start + count - 1`: the state, and the buffers `[capacity, ...]` (or None) with records."""
        ...


@eqx.filter_jit
def run_chunk(
    key: PRNGKey,
    step: Any,
    reducer: Any,
    start: Int[Array, ""],
    count: Int[Array, ""],
    state: PyTree,
    accumulated: PyTree,
    collect: bool,
    shardings: tuple[Any, ...] | None,
) -> Chunk:
    """Steps `start .. start + count - 1`.

    Args:
        key: the run's key.
        step: callable pytree `(key_i, index, state) -> (state, record)`. A `BlockStep` makes all the
            steps at once, of the run's key.
        reducer: a `Reducer` or None.
        start: int32 index of the first step.
        count: number of steps, at most the capacity of the buffer; traced.
        state: before the first step.
        accumulated: the reducer's accumulator, or None.
        collect: whether to return the records.
        shardings: one per array leaf of the state, kept over the loop; None leaves placement to the compiler.

    Returns:
        The `Chunk`.
    """
    fast = _fast(key)
    shapes = record_shapes(step, fast, state)
    whole = isinstance(step, BlockStep)
    buffers = None
    if collect or (whole and reducer is not None):
        capacity = buffer_capacity(shapes)
        buffers = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    dynamic, static = eqx.partition(state, eqx.is_array)
    dynamic = _place(dynamic, shardings)
    zero = jnp.zeros((), jnp.int32)

    def folded(total: PyTree, record: PyTree) -> PyTree:
        return None if reducer is None else _same_type(reducer.update(total, record))

    def body(i: Array, carry: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
        current, total, buffer = carry
        new, record = _apply(step, fast, start + i, eqx.combine(current, static))
        if collect:
            buffer = jax.tree.map(lambda b, r: jax.lax.dynamic_update_index_in_dim(b, r, i, 0), buffer, record)
        return _place(eqx.partition(new, eqx.is_array)[0], shardings), folded(total, record), buffer

    if whole:
        new, buffers = step.run_block(fast, start, count, eqx.combine(dynamic, static), buffers)
        dynamic = _place(eqx.partition(_same_layout(state, new), eqx.is_array)[0], shardings)
        if reducer is not None:
            accumulated = jax.lax.fori_loop(
                zero, count, lambda i, total: folded(total, jax.tree.map(lambda b: b[i], buffers)), accumulated
            )
    else:
        dynamic, accumulated, buffers = jax.lax.fori_loop(zero, count, body, (dynamic, accumulated, buffers))
    return Chunk(eqx.combine(dynamic, static), accumulated, buffers if collect else None)


def _same_type(tree: PyTree) -> PyTree:
    return jax.tree.map(_as_array, tree)


def _place(dynamic: PyTree, shardings: tuple[Any, ...] | None) -> PyTree:
    if shardings is None:
        return dynamic
    leaves, structure = jax.tree.flatten(dynamic)
    placed = [jax.lax.with_sharding_constraint(leaf, s) for leaf, s in zip(leaves, shardings, strict=True)]
    return jax.tree.unflatten(structure, placed)


@eqx.filter_jit
def empty_reduction(reducer: Any, shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree:
    """The reducer's accumulator before the first record; None without a reducer."""
    return None if reducer is None else _same_type(reducer.init(shapes))
