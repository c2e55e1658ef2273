r"""`concentration_from_resultant`: the concentration kappa with mean resultant length $A_p(\kappa) = R$.

Four Newton steps from Banerjee et al. (2005), $\kappa_0 = R (p - R^2) / (1 - R^2)$, are exact to rounding for every p
and R (Sra 2012 takes two). Beyond R = 1/2 the equation solved is $1 - A = 1 - R$, both sides without cancellation, so
that points which nearly agree have a concentration to full relative accuracy, too. The derivative is
$d\kappa / dR = 1 / A'(\kappa)$.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from probinf.core import is_concrete
from probinf.core._arguments import whole_number
from probinf.distributions._sphere import floating_pair
from probinf.distributions._von_mises_fisher_normaliser import resultant_slope

NUM_STEPS = 4
Numbers = Float[Array, "..."]


def concentration_from_resultant(
    dimension: int, length: Shaped[ArrayLike, "..."], complement: Shaped[ArrayLike, "..."] | None = None
) -> Float[Array, "..."]:
    """Solves for the concentration of the von Mises-Fisher distribution with a given mean resultant length.

    Right to rounding of the arguments (1e-12, relative, in float64) for every dimension, and differentiable any number
    of times; the derivative is that of the exact solution. 0 gives 0 and 1 gives inf, the limits. Under `jit`, a length
    outside of [0, 1] gives NaN.

    Args:
        dimension: p, at least 2; a Python integer.
        length: the mean resultant length R, between 0 and 1: float32, float64 or a Python number, of any shape.
        complement: 1 - R, where it is known more accurately than by the difference; of the same shape.

    Returns:
        The concentrations, of the shape of `length`.

    Raises:
        TypeError: `dimension` is no integer, or a dtype is neither float32 nor float64.
        ValueError: `dimension` is below 2, a length is not in [0, 1], or the shapes differ.
    """
    p = whole_number("dimension", dimension, 2)
    given: dict[str, Any] = {"length": length}
    arrays = floating_pair(**given) if complement is None else floating_pair(**given, complement=complement)
    if arrays[0].shape != arrays[-1].shape:
        raise ValueError(f"`length` has shape {arrays[0].shape} and `complement` {arrays[-1].shape}; needed the same")
    for name, array in zip(("length", "complement"), arrays, strict=False):
        if is_concrete(array) and not np.all((np.asarray(array) >= 0) & (np.asarray(array) <= 1)):
            wrong = np.asarray(array)[~((np.asarray(array) >= 0) & (np.asarray(array) <= 1))].ravel()[0]
            raise ValueError(
                f"`{name}` is {wrong:.9g} somewhere; needed a number in [0, 1]: the norm of a mean of units"
            )
    return _public(p, arrays[0], 1 - arrays[0] if complement is None else arrays[1])


@partial(jax.jit, static_argnums=0)
def _public(dimension: int, length: Numbers, complement: Numbers) -> Numbers:
    return solve(dimension, length, complement)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def solve(dimension: int, length: Numbers, complement: Numbers) -> Numbers:
    """The concentration for R = `length` and 1 - R = `complement`; the derivative is that in the length alone."""
    inside = (length > 0) & (length <= 1) & (complement > 0)
    near = length <= 0.5
    r, c = jnp.where(inside, length, 0.5), jnp.where(inside, complement, 0.5)
    start = r * ((dimension - 1) + c * (1 + r)) / (c * (1 + r))

    def newton(_, k):
        mean, slope = resultant_slope(dimension, k)
        return k + jnp.where(near, r - mean.length, mean.complement - c) / slope

    value = jax.lax.fori_loop(0, NUM_STEPS, newton, start)
    limit = jnp.where(length == 0, 0, jnp.where((length <= 1) & (complement == 0), jnp.inf, jnp.nan))
    return jnp.where(inside, value, limit)


@solve.defjvp
def _solve_jvp(dimension, primals, tangents):
    value = solve(dimension, *primals)
    finite = value < jnp.inf
    slope = resultant_slope(dimension, jnp.where(finite, value, 1))[1]
    return value, tangents[0] * jnp.where(finite, 1 / slope, jnp.inf)


def unbiased(length: Numbers, complement: Numbers, count: Numbers) -> tuple[Numbers, Numbers]:
    r"""The length and complement without the share of the noise: $\rho^2 = (n R^2 - 1) / (n - 1)$, at least 0.

    A mean of n independent unit vectors with resultant length rho has $E[R^2] = \rho^2 + (1 - \rho^2) / n$.

    Args:
        length: R.
        complement: 1 - R.
        count: n, the number of points; with weights their effective number. Nothing is taken off at 1.
    """
    some = (complement > 0) & (count > 1)  # else 0 / 0 for a single point
    inflated = complement * (1 + length) * (count / jnp.where(count > 1, count - 1, 1))
    lost = jnp.where(some, jnp.minimum(inflated, 1), complement * (1 + length))  # 1 - rho^2
    positive = lost < 1
    rho = jnp.where(positive, jnp.sqrt(jnp.where(positive, 1 - lost, 1)), 0)
    return rho, lost / (1 + rho)
