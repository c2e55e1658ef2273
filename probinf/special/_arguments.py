"""What every function of two arrays does with its arguments: one floating dtype, one shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SUPPORTED = ("float32", "float64")


class Precision(NamedTuple):
    """How many terms the series need to be right to rounding.

    Attributes:
        debye: terms of Debye's expansion from radius 21 on.
        power: terms of the power series below radius 21.
        backward: steps of the backward recurrence for I below radius 21.
        gamma: coefficients of the Taylor series of 1 / Gamma(1 + v).
        stirling: terms of Stirling's series.
        stirling_from: the order from which those are enough.
        spread: the power series serves up to z = `spread` b, too.
        rescale: factor of each step of a recurrence, so that products of 30 orders up to 51 do not overflow.
    """

    debye: int
    power: int
    backward: int
    gamma: int
    stirling: int
    stirling_from: float
    spread: float
    rescale: float


PRECISIONS = {
    np.dtype(np.float64): Precision(20, 48, 30, 28, 8, 8.0, 8.0, 1.0),
    np.dtype(np.float32): Precision(6, 26, 16, 16, 4, 4.0, 4.0, 0.0625),
}


def precision(x: Array) -> Precision:
    """The numbers of terms for the dtype of `x`."""
    return PRECISIONS[np.dtype(x.dtype)]


def common(**arguments: Any) -> tuple[Float[Array, "..."], ...]:
    """The arguments as arrays of one floating dtype and one shape.

    Whole numbers and Python floats take the dtype of the others, or the default one.

    Args:
        **arguments: numbers or arrays, by the name that the caller gives them.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    dtypes = {name: _floating(name, value) for name, value in arguments.items()}
    found = sorted({dtype for dtype in dtypes.values() if dtype is not None})
    if len(found) > 1:
        given = ", ".join(f"`{name}` {dtype}" for name, dtype in dtypes.items() if dtype is not None)
        raise TypeError(f"floating dtypes differ ({given}): convert one with `.astype`")
    dtype = found[0] if found else str(jnp.result_type(float))
    arrays = [jnp.asarray(value, dtype) for value in arguments.values()]
    shapes = [array.shape for array in arrays]
    try:
        shape = jnp.broadcast_shapes(*shapes)
    except ValueError as error:
        given = ", ".join(f"`{name}` {shape}" for name, shape in zip(arguments, shapes, strict=True))
        raise ValueError(f"shapes do not broadcast: {given}") from error
    return tuple(jnp.broadcast_to(array, shape) for array in arrays)


def _floating(name: str, value: Any) -> str | None:
    """The floating dtype of an argument, None if it takes that of the others."""
    if isinstance(value, bool | int | float) and not isinstance(value, np.generic):
        return None
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(value))
    if np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_):
        return None
    if str(dtype) not in SUPPORTED:
        raise TypeError(f"`{name}` is {dtype}, needed float32 or float64: convert it with `.astype`")
    return None if getattr(value, "weak_type", False) else str(dtype)


def known_above_minus_one(v: Any) -> bool:
    """Whether no item of `v` is -1 or less, as far as this can be told while tracing and without a device."""
    return isinstance(v, int | float | np.ndarray | np.generic) and not bool(np.any(np.asarray(v) <= -1))
