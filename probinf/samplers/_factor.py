r"""Linear factors $L$ of symmetric positive matrices $S = LL^\top$: diagonal, full, or of low rank beside a diagonal.

Kernels keep the factor rather than the matrix: drawing $N(0, S)$ and moving in the coordinates $L^{-1}x$ then need
one product, and nothing is decomposed while sampling.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from probinf.core import is_concrete
from probinf.samplers._low_rank import LowRankFactor

ArrayFactor = Float[Array, " d"] | Float[Array, "d d"]
Factor = ArrayFactor | LowRankFactor


def require_positive(name: str, value: Any) -> Array:
    """The scalar `value` as an array.

    Raises:
        ValueError: it is not a scalar, or it is concrete and not finite and positive.
    """
    if jnp.ndim(value) != 0:
        raise ValueError(f"`{name}` must be a scalar, but has shape {jnp.shape(value)}")
    if is_concrete(value) and not (np.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be finite and positive, but is {value}: try a value such as 0.1")
    return as_float(value)


def as_float(value: Any) -> Array:
    """The number as a floating-point array: of its own dtype if that is one, else of the default one."""
    kind = jnp.result_type(value) if hasattr(value, "dtype") else None
    return jnp.asarray(
        value, kind if kind is not None and jnp.issubdtype(kind, jnp.floating) else jnp.result_type(float)
    )


def factor_of(name: str, matrix: Any) -> ArrayFactor:
    """The factor of `matrix`: the square root of variances `[d]`, the Cholesky factor of a covariance `[d, d]`.

    Raises:
        ValueError: wrong shape, or a concrete matrix that is not symmetric and positive definite.
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim not in (1, 2) or (matrix.ndim == 2 and matrix.shape[0] != matrix.shape[1]):
        raise ValueError(f"`{name}` must have shape [d] (a diagonal) or [d, d], but has shape {matrix.shape}")
    factor = jnp.sqrt(matrix) if matrix.ndim == 1 else jnp.linalg.cholesky(matrix)
    if is_concrete(matrix):
        symmetric = matrix.ndim == 1 or np.allclose(matrix, np.asarray(matrix).T, rtol=1e-4)
        definite = np.all(np.isfinite(factor)) and np.all(np.diagonal(factor) > 0 if factor.ndim == 2 else factor > 0)
        if not (symmetric and definite):
            raise ValueError(f"`{name}` must be symmetric and positive definite, but is {np.asarray(matrix)}")
    return factor


def check_dimension(factor: Factor | None, dimension: int) -> None:
    """Raises `ValueError` at trace time where a factor does not fit positions of `dimension` numbers."""
    if factor is not None and factor.shape[0] != dimension:
        raise ValueError(
            f"the kernel's matrix is for positions of {factor.shape[0]} numbers, but these have {dimension}: pass one "
            "of the right size, or None for the identity"
        )


def as_rows(positions: PyTree) -> Float[Array, "n d"]:
    """Stacked positions as vectors, one a row: what factors multiply.

    Args:
        positions: leaves [n, ...].
    """
    return jax.vmap(lambda position: ravel_pytree(position)[0])(positions)


def times(factor: Factor | None, vector: Float[Array, " d"]) -> Float[Array, " d"]:
    """$L v$, with L the identity for None."""
    if factor is None:
        return vector
    factor = factor.astype(vector.dtype)
    if isinstance(factor, LowRankFactor):
        return factor.times(vector)
    # Not `factor @ vector`: XLA rounds a matrix product by the number of chains on a device, and draws would depend
    # on how many devices there are. Nor a sum over axis 1: with jaxlib 0.10.2 XLA miscompiles it on CPU for some
    # batch sizes (3 x 3 at a batch of 11,000 .. 30,000; right again in 0.12).
    return factor * vector if factor.ndim == 1 else jnp.sum(factor.T * vector[:, None], axis=0)


def solve_rows(factor: Factor | None, rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    r"""$L^{-1} v$ of each row v, with L the identity for None."""
    if factor is None:
        return rows
    factor = factor.astype(rows.dtype)
    if isinstance(factor, LowRankFactor):
        return jax.vmap(factor.solve)(rows)
    if factor.ndim == 1:
        return rows / factor[None, :]
    return jax.scipy.linalg.solve_triangular(factor, rows.T, lower=True).T


def transposed_times(factor: Factor | None, vector: Float[Array, " d"]) -> Float[Array, " d"]:
    r"""$L^\top v$, with L the identity for None."""
    if isinstance(factor, LowRankFactor):
        return factor.astype(vector.dtype).transposed_times(vector)
    return times(factor if factor is None or factor.ndim == 1 else factor.T, vector)
