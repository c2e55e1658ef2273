r"""`VonMisesFisher`: the von Mises-Fisher distribution on the unit sphere of any dimension.

$f(x) = C_p(\kappa) e^{\kappa \mu \cdot x}$ with respect to area, $C_p(\kappa) = \kappa^{p/2-1} / ((2 \pi)^{p/2}
I_{p/2-1}(\kappa))$ (Mardia, Jupp 2000, "Directional statistics", chapter 9.3). The Bessel functions are those of
`probinf.special`.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions.kl import kl_divergence

from probinf.distributions._directional import AbstractDirectional, Moments, Rules
from probinf.distributions._sphere import cosine_deficit, lead
from probinf.distributions._von_mises_fisher_angle import draw_angle
from probinf.distributions._von_mises_fisher_fit import Directions, estimate
from probinf.distributions._von_mises_fisher_normaliser import (
    is_large,
    kl_to_uniform,
    relative_log_prob,
    resultant_slope,
)


def moments(dimension: int, concentration: Array) -> Moments:
    """The moments of a concentration from 0 to inf."""
    mean, slope = resultant_slope(dimension, concentration)
    positive = concentration > 0
    limit = jnp.where(concentration == 0, 1 / dimension, jnp.nan).astype(slope.dtype)
    across = jnp.where(positive, mean.length / jnp.where(positive, concentration, 1), limit)
    return Moments(mean.length, mean.complement, jnp.where(concentration == jnp.inf, 0, slope), across)


class VonMisesFisher(AbstractDirectional):
    r"""The von Mises-Fisher distribution, $f(x) \propto e^{\kappa \mu \cdot x}$ on the unit sphere in p dimensions.

    Any p from 2 (von Mises) to 1e6, in float32 or float64. Concentration 0 is the uniform distribution; the
    limit inf is the point `mean_direction`. Draws are exact and differentiable in both parameters.

    A latent site of a NumPyro model needs `SphereReparam` under NUTS and other gradient methods, as the sphere has no
    unconstrained coordinates; an observed one needs nothing.

    Under `jit`, a negative or NaN concentration and a mean direction that is not of norm 1 give NaN.

    Attributes:
        mean_direction: [..., p] unit vectors.
        concentration: [...] kappa, at least 0.
    """

    rules: ClassVar[Rules] = Rules(relative_log_prob, is_large, draw_angle, moments, kl_to_uniform)

    def kl_divergence(self, other: "VonMisesFisher") -> Float[Array, "..."]:
        """The Kullback-Leibler divergence to another von Mises-Fisher distribution, in nats; batches broadcast.

        Within rounding of the larger of the two normalising constants, and never below 0. It is what
        `numpyro.distributions.kl_divergence` computes, too.
        """
        return kl_divergence(self, other)

    @staticmethod
    def fit(
        x: Float[Array, "*batch n p"],
        weights: Float[ArrayLike, "*batch n"] | None = None,
        *,
        bias_corrected: bool = False,
    ) -> "VonMisesFisher":
        """Fits by maximum likelihood; differentiable in points and weights, by the implicit function theorem.

        The mean direction is that of the weighted mean, the concentration solves A(kappa) = R, its norm, in a fixed
        number of Newton steps. Points of mean zero fit the uniform distribution, with the first axis for a direction.

        In few points of many dimensions R is inflated by noise, and so is the concentration: `bias_corrected` takes
        R^2 to (n R^2 - 1) / (n - 1), or 0 if that is negative, with n the number of points, or
        sum(weights)^2 / sum(weights^2).

        Under `jit` nothing can raise: points that agree to rounding (a single one too) have the concentration inf, the
        limit; NaN, non-unit points, negative weights or a sum of zero give NaN.

        Args:
            x: unit vectors, n points along the axis before the last.
            weights: at least 0, not all 0; None counts each point once.
            bias_corrected: whether to correct the concentration for the number of points.

        Returns:
            One distribution for each entry of the batch.

        Raises:
            TypeError: `x` and `weights` differ in their floating dtype.
            ValueError: no points, non-unit ones or NaN; weights of a wrong shape, negative, NaN, or all 0; points that
                agree to rounding, so that the likelihood has no maximum (one point alone, for example).
        """
        given = Directions.checked(x, weights)
        direction, concentration = estimate(given.x, given.weights, bias_corrected)
        given.check_spread(concentration)
        return VonMisesFisher(direction, concentration)


@kl_divergence.register(AbstractDirectional, VonMisesFisher)  # pyright: ignore[reportFunctionMemberAccess]
def _kl_to_von_mises_fisher(p: AbstractDirectional, q: VonMisesFisher) -> Array:
    if p.event_shape != q.event_shape:
        raise ValueError(f"`p` is on the sphere in {p.event_shape[0]} dimensions, `q` in {q.event_shape[0]}")
    return _kl(p.kl_to_uniform(), p.mean_direction, p.moments, q.mean_direction, q.checked_concentration)


@jax.jit
def _kl(own: Array, direction: Array, moments: Moments, second: Array, other: Array) -> Array:
    # What log q is on average: that if q pointed the same way, less the share of the angle between the two.
    deficit = cosine_deficit(direction, second)
    shape = jnp.broadcast_shapes(own.shape, other.shape, deficit.shape)
    own, length, complement, other, deficit = (
        jnp.broadcast_to(lead(one, len(shape)), shape)
        for one in (own, moments.length, moments.complement, other, deficit)
    )
    endless = other == jnp.inf
    finite = jnp.where(endless, 0, other)
    value = own - relative_log_prob(direction.shape[-1], finite, length, complement) + finite * length * deficit
    return jnp.where(endless, jnp.inf, jnp.maximum(value, 0))
