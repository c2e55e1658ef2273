"""Maximum likelihood on the unit sphere: points and weights checked once, mean direction, concentration."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core import is_concrete
from probinf.distributions._concentration import solve, unbiased
from probinf.distributions._sphere import check_unit, floating_pair, is_unit


class Directions(NamedTuple):
    """Unit vectors with weights.

    Attributes:
        x: [..., n, p].
        weights: [..., n], NaN where negative and at points that are not unit vectors.
    """

    x: Float[Array, "... n p"]
    weights: Float[Array, "... n"]

    @staticmethod
    def checked(x: Any, weights: Any) -> "Directions":
        """The points and weights, or an error.

        Raises:
            TypeError: floating dtypes differ.
            ValueError: a wrong shape, no points, non-unit points, NaN, or bad weights.
        """
        if weights is None:
            (x,) = floating_pair(x=x)
        else:
            x, weights = floating_pair(x=x, weights=weights)
        if x.ndim < 2 or x.shape[-1] < 2:
            raise ValueError(f"`x` has shape {x.shape}: needed [..., n, p] with p of at least 2")
        if x.shape[-2] == 0:
            raise ValueError(
                f"`x` has shape {x.shape}, no points: needed at least one (two that differ, for a finite fit)"
            )
        check_unit("x", x)
        if weights is None:
            weights = jnp.ones(x.shape[:-1], x.dtype)
        if weights.shape != x.shape[:-1]:
            raise ValueError(f"`weights` has shape {weights.shape}; needed {x.shape[:-1]}, one for each point of `x`")
        if is_concrete(weights):
            check_weights(np.asarray(weights))
        return Directions(x, jnp.where(is_unit(x) & (weights >= 0), weights, jnp.nan))

    def check_spread(self, concentration: Any) -> None:
        """Raises where the points leave the likelihood without a maximum.

        Raises:
            ValueError: all points of positive weight agree to rounding.
        """
        if is_concrete(concentration) and np.any(np.isinf(np.asarray(concentration))):
            raise ValueError(
                f"all points of `x` that count agree to rounding (n = {self.x.shape[-2]}): the likelihood grows "
                "without bound in the concentration. Give points that differ, or set the concentration yourself"
            )


def check_weights(weights: np.ndarray) -> None:
    """Raises on weights that are no measure.

    Raises:
        ValueError: a weight is negative, NaN or infinite, or all of an entry of the batch are 0.
    """
    bad = weights[~((weights >= 0) & (weights < np.inf))]
    if bad.size:
        raise ValueError(f"`weights` holds {bad[0]:.6g}; needed finite numbers of at least 0")
    if np.any(np.sum(weights, axis=-1) == 0):
        raise ValueError("`weights` are all 0: no point counts; needed at least one above 0")


@partial(jax.jit, static_argnums=2)
def estimate(
    x: Float[Array, "*batch n p"], weights: Float[Array, "*batch n"], bias_corrected: bool
) -> tuple[Float[Array, "*batch p"], Float[Array, "*batch"]]:
    """The mean direction and the concentration of highest likelihood."""
    # Of sum 1 and largest 1 before that, so that no sum of squares underflows.
    top = jnp.max(weights, axis=-1, keepdims=True)
    shares = weights / jnp.where(top > 0, top, 1)
    effective = jnp.sum(shares, axis=-1) ** 2 / jnp.sum(shares * shares, axis=-1)
    shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    direction, length, complement = mean_direction(x, shares)
    if bias_corrected:
        length, complement = unbiased(length, complement, effective)
    return direction, solve(x.shape[-1], length, complement)


def mean_direction(x: Array, shares: Array) -> tuple[Array, Array, Array]:
    """The direction of the mean of points with these shares, the mean's length, and 1 less that without cancellation.

    Points that agree to rounding have complement 0. A mean of length 0 has the first axis for a direction.
    """
    mean = jnp.einsum("...n,...np->...p", shares, x, precision="highest")
    square = jnp.sum(mean * mean, axis=-1)
    rounding = float(jnp.finfo(x.dtype).eps) ** 2
    # A mean that is rounding alone has no direction, and its square root no derivative.
    somewhere = ~(square <= rounding)
    length = jnp.where(somewhere, jnp.sqrt(jnp.where(somewhere, square, 1)), 0)
    first = (jnp.arange(x.shape[-1]) == 0).astype(x.dtype)
    first = jnp.broadcast_to(first, mean.shape)
    direction = jnp.where(somewhere[..., None], mean / jnp.where(somewhere, length, 1)[..., None], first)
    # 1 - R is the mean of 1 - cos, (|x - mu|^2 - (|x| - 1)^2) / 2 to rounding, for points of norm 1 to rounding.
    squares = jnp.sum((x - direction[..., None, :]) ** 2, axis=-1)
    excess = jnp.sqrt(jnp.sum(x * x, axis=-1)) - 1
    spread = jax.lax.stop_gradient(0.5 * jnp.sum(shares * (squares - excess * excess), axis=-1))
    spread = jnp.where(spread <= 64 * rounding, 0, spread)
    complement = jnp.where(somewhere, jnp.minimum(spread, 1), 1 - length)
    # The derivative is that of 1 - R.
    return direction, jnp.minimum(length, 1), complement + (jax.lax.stop_gradient(length) - length)
