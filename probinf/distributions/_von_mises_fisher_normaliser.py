r"""The normalising constant of von Mises-Fisher relative to the uniform, and the mean resultant length.

With $\nu = p / 2 - 1$, $r = \sqrt{\nu^2 + \kappa^2}$ and $D$ the sum of Debye's expansion (`probinf/special`):

$$L(\kappa) = \log \frac{C_p(0)}{C_p(\kappa)} = \log {}_0F_1(; p / 2; \kappa^2 / 4), \qquad
L' = A = \frac{I_{p/2}(\kappa)}{I_{p/2-1}(\kappa)}.$$

No constant in it grows with p, while $\log C_p(0)$ alone is 123847 at p = 32768. Beyond $\kappa = 2 p$ the rounding of
$\kappa$ itself would dominate, so that what stands there is

$$L - \kappa = \frac{\nu^2}{r + \kappa} - \nu - \nu \log \frac{r + \nu}{2 \nu} + \bigl[\log \Gamma(\nu + 1) -
\nu \log \nu + \nu\bigr] - \tfrac12 \log(2 \pi r) + D,$$

the bracket taken in double precision on the host (p is a static number), and $1 - A$ without its cancellation:

$$1 - A = \frac{\nu + \nu^2 / (r + \kappa)}{r + \nu} + \frac{\kappa}{r^2} \Bigl(\frac12 + \dots\Bigr).$$
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from probinf.special import iv_ratio, log_0f1
from probinf.special._debye import RADIUS, VALUES, radius, series, slope_sum
from probinf.special._iv_ratio import far_ratio

Numbers = Float[Array, "..."]


class Resultant(NamedTuple):
    """The mean of the cosine to the mean direction.

    Attributes:
        length: A, between 0 and 1.
        complement: 1 - A, with full relative accuracy.
    """

    length: Numbers
    complement: Numbers


def is_large(dimension: int, concentration: Numbers) -> Bool[Array, "..."]:
    """Where the normalising constant is taken relative to a density that is 1 at the mean direction."""
    return concentration > max(2 * dimension, 32)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_normaliser(dimension: int, concentration: Numbers) -> Numbers:
    """L of the module's docstring where the concentration is not large, L - concentration where it `is_large`."""
    inside = (concentration >= 0) & (concentration < jnp.inf)
    large = is_large(dimension, concentration) & inside
    small = jnp.where(large | ~inside, 0, concentration)
    value = jnp.where(
        large, _scaled(dimension, jnp.where(large, concentration, 64.0 * dimension)), _plain(dimension, small)
    )
    return jnp.where(inside, value, jnp.where(concentration == jnp.inf, -jnp.inf, jnp.nan))


@log_normaliser.defjvp
def _log_normaliser_jvp(dimension, primals, tangents):
    (concentration,), (change,) = primals, tangents
    mean = resultant(dimension, concentration)
    slope = jnp.where(is_large(dimension, concentration), -mean.complement, mean.length)
    return log_normaliser(dimension, concentration), slope * change


def _plain(dimension: int, concentration: Numbers) -> Numbers:
    return log_0f1(0.5 * dimension, 0.25 * concentration * concentration)


def _scaled(dimension: int, concentration: Numbers) -> Numbers:
    v = 0.5 * dimension - 1
    r = radius(jnp.full_like(concentration, v), concentration)
    w = 1 / r
    bracket = math.lgamma(v + 1) - v * math.log(v) + v if v else 0.0
    # (r + v) / (2 v) = (kappa / (2 v)) e^asinh(v / kappa)
    slow = v * jnp.log((r + v) / (2 * v)) + (v - v * (v / (r + concentration))) if v else 0.0
    return (bracket - slow) - 0.5 * jnp.log(2 * math.pi * r) + series(VALUES, w, (v * w) ** 2, 1)


def resultant(dimension: int, concentration: Numbers) -> Resultant:
    """The mean resultant length and its complement, NaN below 0; both can be differentiated any number of times."""
    inside = (concentration >= 0) & (concentration < jnp.inf)
    k = jnp.where(inside, concentration, 64.0 * dimension)
    v = jnp.full_like(k, 0.5 * dimension - 1)
    if 0.5 * dimension - 1 >= RADIUS:
        length, complement = far_ratio(v, k), _far_complement(v, k)
    else:
        length = iv_ratio(0.5 * dimension - 1, k)
        far = k >= RADIUS
        complement = jnp.where(far, _far_complement(v, jnp.where(far, k, RADIUS)), 1 - length)
    limit = jnp.where(concentration == jnp.inf, 1, jnp.nan).astype(k.dtype)
    return Resultant(jnp.where(inside, length, limit), jnp.where(inside, complement, 1 - limit))


def _far_complement(v: Numbers, k: Numbers) -> Numbers:
    """1 - A for a radius of at least 21."""
    r = radius(v, k)
    w = 1 / r
    return (v + v * (v / (r + k))) / (r + v) + k * w * slope_sum(w, (v * w) ** 2, 1)


def resultant_slope(dimension: int, concentration: Numbers) -> tuple[Resultant, Numbers]:
    """The resultant and the derivative of its length in the concentration, the variance of the cosine."""
    given = (concentration,)
    mean, slope = jax.jvp(partial(resultant, dimension), given, (jnp.ones_like(concentration),))
    return mean, jnp.where(is_large(dimension, concentration), -slope.complement, slope.length)


def relative_log_prob(dimension: int, concentration: Numbers, cosines: Numbers, deficits: Numbers) -> Numbers:
    """The log density relative to the uniform at points of these cosines to the mean direction.

    Args:
        dimension: p.
        concentration: at least 0, of the shape of the cosines.
        cosines: inner products with the mean direction.
        deficits: 1 - cosine, used where the concentration `is_large`.
    """
    large = is_large(dimension, concentration)
    # Infinitely concentrated, the density is +inf at the mean direction and 0 elsewhere.
    endless = concentration == jnp.inf
    finite = jnp.where(endless, 1, concentration)
    value = finite * jnp.where(large, -deficits, cosines) - log_normaliser(dimension, finite)
    return jnp.where(endless, jnp.where(deficits == 0, jnp.inf, -jnp.inf), value)


def kl_to_uniform(dimension: int, concentration: Numbers) -> Numbers:
    """The Kullback-Leibler divergence to the uniform distribution, kappa A - L."""
    endless = concentration == jnp.inf
    k = jnp.where(endless, 1, concentration)
    mean = resultant(dimension, k)
    value = k * jnp.where(is_large(dimension, k), -mean.complement, mean.length) - log_normaliser(dimension, k)
    return jnp.where(endless, jnp.inf, value)
