r"""`PowerSpherical`: the power spherical distribution of De Cao and Aziz (2020), "The power spherical distribution".

$f(x) \propto (1 + \mu \cdot x)^\kappa$ on the unit sphere. The cosine to the mean direction is $2 B - 1$ with
$B \sim \mathrm{Beta}(\beta + \kappa, \beta)$, $\beta = (p - 1) / 2$: no rejection but that of the gamma generator, and
no Bessel function.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions.kl import kl_divergence

from probinf.core import plain_key
from probinf.core._types import PRNGKey
from probinf.distributions._directional import AbstractDirectional, Moments, Rules
from probinf.distributions._power_spherical_fit import estimate
from probinf.distributions._power_spherical_normaliser import is_large, kl_to_uniform, relative_log_prob
from probinf.distributions._von_mises_fisher import VonMisesFisher
from probinf.distributions._von_mises_fisher_fit import Directions


def draw_angle(key: PRNGKey, dimension: int, concentration: Array) -> Array:
    """One angle in radians an entry of `concentration`: tan^2 of its half is the quotient of two gamma variates."""
    near_key, far_key = jax.random.split(plain_key(key))
    inside = (concentration >= 0) & (concentration < jnp.inf)
    half = jnp.full_like(concentration, 0.5 * (dimension - 1))
    dtype = concentration.dtype
    near = jax.random.gamma(near_key, half + jnp.where(inside, concentration, 1), dtype=dtype)
    far = jax.random.gamma(far_key, half, dtype=dtype)
    # A gamma variate of shape 1/2 may underflow.
    tiny = float(jnp.finfo(dtype).tiny)
    angle = 2 * jnp.arctan2(jnp.sqrt(jnp.maximum(far, tiny)), jnp.sqrt(jnp.maximum(near, tiny)))
    limit = jnp.where(concentration == jnp.inf, 0, jnp.nan).astype(dtype)
    return jnp.where(inside, jnp.minimum(angle, math.pi), limit)


def moments(dimension: int, concentration: Array) -> Moments:
    """The moments of a concentration from 0 to inf."""
    m = dimension - 1
    complement = m / (concentration + m)
    # 2 B - 1, B with mean 1 - complement / 2
    variance = complement * complement * (2 - complement) / (m + complement)
    across = complement * (2 - complement - variance / complement) / m
    return Moments(1 - complement, complement, variance, jnp.where(complement > 0, across, 0 * complement))


class PowerSpherical(AbstractDirectional):
    r"""The power spherical distribution, $f(x) \propto (1 + \mu \cdot x)^\kappa$ on the unit sphere in p dimensions.

    Close to von Mises-Fisher, of about the same concentration for a concentrated one, but for tails that end in a zero
    opposite to the mean direction. Concentration 0 is the uniform distribution; the limit inf is the point
    `mean_direction`. Draws are differentiable in both parameters.

    A latent site of a NumPyro model needs `SphereReparam` under NUTS and other gradient methods; an observed one needs
    nothing. Under `jit`, a negative or NaN concentration and a mean direction not of norm 1 give NaN.

    Attributes:
        mean_direction: [..., p] unit vectors.
        concentration: [...] kappa, at least 0.
    """

    rules: ClassVar[Rules] = Rules(relative_log_prob, is_large, draw_angle, moments, kl_to_uniform)

    def kl_divergence(self, other: VonMisesFisher) -> Float[Array, "..."]:
        """The Kullback-Leibler divergence to a von Mises-Fisher distribution, in nats; batches broadcast.

        That to another power spherical distribution has no closed form.
        """
        return kl_divergence(self, other)

    @staticmethod
    def fit(
        x: Float[Array, "*batch n p"],
        weights: Float[ArrayLike, "*batch n"] | None = None,
        *,
        num_steps: int = 30,
    ) -> "PowerSpherical":
        """Fits by maximum likelihood: Newton steps for the direction, then the concentration.

        Args:
            x: unit vectors, n points along the axis before the last.
            weights: at least 0, not all 0; None counts each point once.
            num_steps: number of steps for the direction; each costs two passes over `x`.

        Returns:
            One distribution for each entry of the batch. Under `jit`, bad data give NaN and equal points the
            concentration inf, as in `VonMisesFisher.fit`.

        Raises:
            TypeError: `x` and `weights` differ in their floating dtype.
            ValueError: no points, non-unit ones or NaN; weights of a wrong shape, negative, NaN, or all 0; points that
                agree to rounding.
        """
        given = Directions.checked(x, weights)
        direction, concentration = estimate(given.x, given.weights, num_steps)
        given.check_spread(concentration)
        return PowerSpherical(direction, concentration)
