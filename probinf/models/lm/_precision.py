"""`contract`: products of matrices whose rounding does not depend on the machine's fast modes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def at_least_single(dtype: Any) -> np.dtype:
    """Double precision for float64, and single for every narrower float."""
    return np.dtype(np.float64 if jnp.dtype(dtype) == np.float64 else np.float32)


def contract(equation: str, left: Array, right: Array) -> Array:
    """The `einsum` of two arrays, summed in at least single precision.

    Single precision means that: accelerators may not pass to TF32 or to bfloat16 on the way.
    """
    wide = at_least_single(left.dtype)
    precision = jax.lax.Precision.HIGHEST if left.dtype == wide else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=wide)


def cast_weight(weight: Array, x: Array) -> tuple[Array, Array]:
    """The weight in the dtype of x, cast anew at every use; x is returned as it is.

    The barrier keeps the compiler from casting all weights ahead of a loop over tokens, and so holding them twice.
    """
    if weight.dtype == x.dtype:
        return weight, x
    weight, x = jax.lax.optimization_barrier((weight, x))
    return weight.astype(x.dtype), x


def check_representable(name: str, dtype: Any) -> None:
    """Raises `ValueError` for float64 where JAX would silently compute in single precision."""
    if jnp.dtype(dtype) == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError(
            f'`{name}` is "float64", but JAX computes in single precision: set '
            '`jax.config.update("jax_enable_x64", True)`, or choose "float32"'
        )
