r"""Data for filters: checked on the host, with missing entries (NaN) filled and marked.

A missing entry cannot simply be selected away after its density is computed, since the gradient of a density at
NaN is NaN and 0 * NaN stays NaN. So it is first replaced by a value from the support: one that occurs in the data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from probinf.core import is_concrete
from probinf.models._types import Numbers


def prepare_observations(
    ys: Numbers, one: jax.ShapeDtypeStruct, block_ndim: int, example: Callable[[], Array]
) -> tuple[Array, Bool[Array, "..."] | None]:
    """Checks observations, and fills missing ones.

    Args:
        ys: observations [T, *one.shape].
        one: shape and dtype of one observation.
        block_ndim: number of trailing axes whose components are dependent: such a block is there or not as a whole.
        example: gives a possible observation, for a block that is missing throughout.

    Returns:
        The filled observations in the dtype of `one`, and which blocks are there: [T, *one.shape without the last
        `block_ndim` axes], or None when the data cannot hold NaN. A block missing in part keeps its NaN.

    Raises:
        ValueError, TypeError: see `StateSpaceModel.bootstrap`.
    """
    data = np.asarray(ys) if is_concrete(ys) else jnp.asarray(ys)
    if isinstance(data, np.ndarray):
        _check_values(data, one, block_ndim)
    return _prepare(data, one, block_ndim, example)


def _prepare(
    ys: Array | np.ndarray, one: jax.ShapeDtypeStruct, block_ndim: int, example: Callable[[], Array]
) -> tuple[Array, Bool[Array, "..."] | None]:
    if ys.ndim == 0 or ys.shape[1:] != one.shape:
        raise ValueError(
            f"`ys` has shape {ys.shape}, but one observation has shape {one.shape}: pass `ys` of shape "
            f"(num_steps, {', '.join(map(str, one.shape))})"
        )
    if not jnp.issubdtype(ys.dtype, jnp.inexact):
        return jnp.asarray(ys, one.dtype), None
    is_float = jnp.issubdtype(one.dtype, jnp.inexact)
    values = jnp.asarray(ys, one.dtype) if is_float else jnp.asarray(ys)
    blocks = tuple(range(values.ndim - block_ndim, values.ndim))
    missing = jnp.all(jnp.isnan(values), axis=blocks)
    if values.size:
        values = _fill(values, jnp.expand_dims(missing, blocks), example)
    return values.astype(one.dtype), ~missing


def _fill(values: Array, missing: Bool[Array, "..."], example: Callable[[], Array]) -> Array:
    first_there = jnp.argmin(missing, axis=0, keepdims=True)
    filler = jnp.take_along_axis(values, first_there, axis=0)
    absent = jnp.all(missing, axis=0, keepdims=True)
    if not is_concrete(absent) or bool(jnp.any(absent)):
        filler = jnp.where(absent, example().astype(values.dtype)[None], filler)
    return jnp.where(missing, filler, values)


def _check_values(ys: np.ndarray, one: jax.ShapeDtypeStruct, block_ndim: int) -> None:
    if not np.issubdtype(ys.dtype, np.number) and ys.dtype != np.bool_:
        raise TypeError(f"`ys` has dtype {ys.dtype}: pass numbers, with NaN for a missing observation")
    if not np.issubdtype(ys.dtype, np.floating):
        return
    if np.isinf(ys).any():
        where = tuple(int(i) for i in np.argwhere(np.isinf(ys))[0])
        raise ValueError(f"`ys` is {ys[where]} at {list(where)}: observations must be finite, or NaN where missing")
    if not jnp.issubdtype(one.dtype, jnp.inexact) and np.any(ys % 1 > 0):
        where = tuple(int(i) for i in np.argwhere(ys % 1 > 0)[0])
        raise ValueError(f"`ys` is {ys[where]} at {list(where)}, but `observation` draws integers: pass whole numbers")
    if block_ndim and ys.ndim >= block_ndim:
        blocks = tuple(range(ys.ndim - block_ndim, ys.ndim))
        partly = np.isnan(ys).any(axis=blocks) & ~np.isnan(ys).all(axis=blocks)
        if partly.any():
            where = [int(i) for i in np.argwhere(partly)[0]]
            raise ValueError(
                f"`ys` is missing in part at {where}, and `observation` makes its components dependent: set all of "
                "that observation to NaN, or use a distribution with independent components"
            )
