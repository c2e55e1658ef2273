r"""What distributions on the unit sphere share: its area, cosines, unit directions and one Householder reflection.

A draw that is symmetric about the direction $\mu$ is $x = H y$ with $y = (\cos \theta, \sin \theta\, \eta)$, $\eta$
uniform on the sphere of one dimension less and H the reflection that takes the first axis to $\mu$: O(p) numbers a
draw, never a p x p matrix (Ulrich 1984, "Computer generation of distributions on the m-sphere").
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core._effects import is_concrete


def log_area(dimension: int) -> float:
    r"""The logarithm of the area of the unit sphere in `dimension` dimensions, $2 \pi^{p/2} / \Gamma(p/2)$."""
    return math.log(2) + 0.5 * dimension * math.log(math.pi) - math.lgamma(0.5 * dimension)


def lead(array: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
    """The array with axes of length 1 in front, `ndim` in all."""
    return jnp.reshape(array, (1,) * (ndim - array.ndim) + array.shape)


def cosine(x: Float[Array, "... p"], direction: Float[Array, "... p"]) -> Float[Array, "..."]:
    """The inner product over the last axis, broadcast; by matrices where one axis of points meets one of directions.

    Within rounding of the inputs on every device: GPUs would round factors of matrix products to 10 bits.
    """
    if x.ndim > 1 and x.shape[-2] == 1 and direction.ndim == 2 and direction.shape[0] > 1:
        return jnp.matmul(x[..., 0, :], direction.T, precision="highest")
    ndim = max(x.ndim, direction.ndim)
    return jnp.sum(lead(x, ndim) * lead(direction, ndim), axis=-1)


@jax.custom_jvp
def cosine_deficit(x: Float[Array, "... p"], direction: Float[Array, "... p"]) -> Float[Array, "..."]:
    """1 - `cosine`, with full relative accuracy where the two unit vectors nearly agree: |x - direction|^2 / 2."""
    ndim = max(x.ndim, direction.ndim)
    return 0.5 * jnp.sum((lead(x, ndim) - lead(direction, ndim)) ** 2, axis=-1)


@cosine_deficit.defjvp
def _cosine_deficit_jvp(primals, tangents):
    # Of 1 - x . direction, so that the derivative is the same as that of `cosine` off the sphere, too.
    (x, direction), (dx, d_direction) = primals, tangents
    return cosine_deficit(x, direction), -(cosine(dx, direction) + cosine(x, d_direction))


def norm_tolerance(dimension: int, dtype: Any) -> float:
    """How far from 1 a norm may lie; as for NumPyro's `constraints.sphere`."""
    return 10 * float(jnp.finfo(dtype).eps) * dimension**0.5


def is_unit(vectors: Float[Array, "... p"]) -> Any:
    """Whether vectors are of norm 1 to rounding."""
    norm = jnp.sqrt(jnp.sum(vectors * vectors, axis=-1))
    return jnp.abs(norm - 1) < norm_tolerance(vectors.shape[-1], vectors.dtype)


def check_unit(name: str, vectors: Float[Array, "... p"]) -> None:
    """Raises where a vector that can be looked at is not of norm 1 to rounding.

    Args:
        name: what the caller calls the vectors, for the error.
        vectors: directions along the last axis.

    Raises:
        ValueError: fewer than two dimensions, or a vector that is not of norm 1 (or NaN).
    """
    if vectors.ndim < 1 or vectors.shape[-1] < 2:
        raise ValueError(f"`{name}` has shape {vectors.shape}: needed [..., p] with p of at least 2")
    if not is_concrete(vectors):
        return
    with jax.ensure_compile_time_eval():  # a constant under `jit` is looked at, too
        wrong = np.argwhere(~np.atleast_1d(np.asarray(is_unit(vectors))))
    if len(wrong):
        first = tuple(int(i) for i in wrong[0]) if vectors.ndim > 1 else ()
        norm = float(np.linalg.norm(np.asarray(vectors[first], np.float64)))
        where = f"`{name}`{list(first) if first else ''}"
        raise ValueError(
            f"{where} has norm {norm:.9g} ({len(wrong)} such in all); needed unit vectors: divide by the norm, "
            f"`{name} / jnp.linalg.norm({name}, axis=-1, keepdims=True)`"
        )


def floating_pair(**arguments: Any) -> tuple[Array, ...]:
    """The arguments as arrays of one floating dtype: whole numbers and Python floats take that of the others.

    Args:
        **arguments: numbers or arrays, by the name that the caller gives them.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
    """
    arrays = {name: jnp.asarray(value) for name, value in arguments.items()}
    fixed = {
        name: str(array.dtype)
        for name, array in arrays.items()
        if jnp.issubdtype(array.dtype, jnp.floating) and not array.weak_type
    }
    found = sorted(set(fixed.values()))
    if len(found) > 1 or any(dtype not in ("float32", "float64") for dtype in found):
        given = ", ".join(f"`{name}` {dtype}" for name, dtype in fixed.items())
        raise TypeError(f"needed one dtype, float32 or float64, got {given}: convert with `.astype`")
    dtype = found[0] if found else str(jnp.result_type(float))
    return tuple(jnp.asarray(array, dtype) for array in arrays.values())


def batch_of(direction: Array, concentration: Array) -> tuple[int, ...]:
    """The batch shape of directions [..., p] and concentrations [...].

    Raises:
        ValueError: the two do not broadcast.
    """
    try:
        return jnp.broadcast_shapes(direction.shape[:-1], concentration.shape)
    except ValueError as error:
        raise ValueError(
            f"`mean_direction` of shape {direction.shape} and `concentration` of shape {concentration.shape} do not "
            f"broadcast: needed [..., p] and [...]"
        ) from error


def check_concentration(concentration: Array) -> None:
    """Raises where a concentration that can be looked at is negative or NaN.

    Raises:
        ValueError: it is.
    """
    if is_concrete(concentration) and not np.all(np.asarray(concentration) >= 0):
        least = float(np.min(np.asarray(concentration)))
        raise ValueError(f"`concentration` is {least:.6g} somewhere; needed at least 0, which is the uniform")


def place(
    normal: Float[Array, "... p"], angle: Float[Array, "..."], direction: Float[Array, "... p"]
) -> Float[Array, "... p"]:
    """Unit vectors at `angle` from `direction`, turned about it as standard normal numbers say.

    Differentiable in `angle` and `direction`: which half of the sphere `direction` lies in decides between the
    reflections to it and to its opposite, so that neither degenerates.

    Args:
        normal: standard normal numbers; the first of each row is not used.
        angle: the polar angle in radians, of the shape of `normal` without its last axis.
        direction: unit vectors, of as many axes as `normal`.
    """
    first = jax.lax.broadcasted_iota(jnp.int32, normal.shape, normal.ndim - 1) == 0
    across = jnp.where(first, 0, normal)
    length = jnp.sqrt(jnp.sum(across * across, axis=-1))
    scale = jnp.sin(angle) / jnp.where(length > 0, length, 1)
    along = jnp.sum(direction * across, axis=-1)
    axis = direction[..., 0]
    sign = jnp.where(axis >= 0, 1, -1).astype(axis.dtype)
    # The reflection of (cos, sin eta) written out, which leaves cos times the direction and a tangent.
    shift = along / (1 + sign * axis)
    tangent = jnp.where(first, along[..., None], sign[..., None] * (shift[..., None] * direction - normal))
    return jnp.cos(angle)[..., None] * direction + scale[..., None] * tangent
