r"""Streaming reducers: statistics of a run whose records are not stored, in memory independent of its length.

`Moments` keeps $m_n = m_{n-1} + (x_n - m_{n-1})/n$ and $S_n = S_{n-1} + (x_n - m_{n-1})(x_n - m_n)$ (Welford 1962),
each with a compensation term (Kahan 1965; Neumaier 1974), so that float32 stays right over 1e7 and more steps.
"""

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


class Reducer(Protocol):
    """Folds the records of a run into an accumulator of fixed size; an `equinox.Module`.

    Law: after n steps `finalize` receives `update(... update(init(shape), record_1) ..., record_n)`, whatever the
    chunks in which the driver ran them, and whether or not the run was resumed.
    """

    def init(self, record_shape: PyTree[jax.ShapeDtypeStruct]) -> PyTree:
        """The empty accumulator for records of this shape: a pytree of arrays."""
        ...

    def update(self, accumulated: PyTree, record: PyTree) -> PyTree:
        """Adds one record; shapes and dtypes stay."""
        ...

    def finalize(self, accumulated: PyTree) -> Any:
        """What the run returns as `reduced`."""
        ...


class MomentsResult(NamedTuple):
    """Moments over the steps of a run.

    Attributes:
        num_records: how many records there were.
        mean: pytree like a record; NaN without records.
        variance: pytree like a record, divisor `num_records - 1`; NaN with fewer than two records.
    """

    num_records: Int[Array, ""]
    mean: PyTree
    variance: PyTree


class _LeafMoments(NamedTuple):
    mean: Float[Array, "..."]
    mean_lost: Float[Array, "..."]
    squares: Float[Array, "..."]
    squares_lost: Float[Array, "..."]


class Moments(eqx.Module):
    """Running mean and variance of every entry of the records, over steps (not over chains).

    Integer and boolean entries are averaged in the default float. A NaN record makes its entry NaN for good.
    """

    def init(self, record_shape: PyTree[jax.ShapeDtypeStruct]) -> tuple[Int[Array, ""], PyTree]:
        """Count zero and zero moments."""
        return jnp.zeros((), jnp.int32), jax.tree.map(_empty, record_shape)

    def update(self, accumulated: tuple[Int[Array, ""], PyTree], record: PyTree) -> tuple[Int[Array, ""], PyTree]:
        """Welford's step with compensated sums."""
        count, moments = accumulated
        count = count + jnp.int32(1)
        leaves, structure = jax.tree.flatten(record)
        old = structure.flatten_up_to(moments)
        new = [_welford(moment, leaf, count) for moment, leaf in zip(old, leaves, strict=True)]
        return count, jax.tree.unflatten(structure, new)

    @eqx.filter_jit
    def finalize(self, accumulated: tuple[Int[Array, ""], PyTree]) -> MomentsResult:
        """The moments so far."""
        count, moments = accumulated

        def variance(moment: _LeafMoments) -> Array:
            total = moment.squares + moment.squares_lost
            return jnp.where(count > 1, total / jnp.maximum(count - 1, 1).astype(total.dtype), jnp.nan)

        def mean(moment: _LeafMoments) -> Array:
            return jnp.where(count > 0, moment.mean + moment.mean_lost, jnp.nan)

        is_moment = _is_leaf_moments
        return MomentsResult(
            count,
            jax.tree.map(mean, moments, is_leaf=is_moment),
            jax.tree.map(variance, moments, is_leaf=is_moment),
        )


def _is_leaf_moments(node: Any) -> bool:
    return isinstance(node, _LeafMoments)


def _empty(shape: jax.ShapeDtypeStruct) -> _LeafMoments:
    dtype = shape.dtype if jnp.issubdtype(shape.dtype, jnp.floating) else jnp.result_type(float)
    zero = jnp.zeros(shape.shape, dtype)
    return _LeafMoments(zero, zero, zero, zero)


def _welford(moment: _LeafMoments, leaf: Array, count: Int[Array, ""]) -> _LeafMoments:
    x = jnp.asarray(leaf).astype(moment.mean.dtype)
    before = (x - moment.mean) - moment.mean_lost
    mean, mean_lost = _add(moment.mean, moment.mean_lost, before / count.astype(x.dtype))
    after = (x - mean) - mean_lost
    squares, squares_lost = _add(moment.squares, moment.squares_lost, before * after)
    return _LeafMoments(mean, mean_lost, squares, squares_lost)


def _add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """Sums total + lost + term, with the rounding error carried in `lost` (two-sum: any order of size)."""
    term = term + lost
    new = total + term
    part = new - total
    return new, (total - (new - part)) + (term - part)
