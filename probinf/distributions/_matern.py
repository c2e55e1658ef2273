r"""The Matérn covariance with a smoothness that can be learned, and distances whose gradients are finite.

With $s = d / \ell$ and $z = \sqrt{2 \nu}\, s$ (Matérn 1960; Stein 1999),

$$M_\nu(s) = \frac{2^{1 - \nu}}{\Gamma(\nu)} z^\nu K_\nu(z), \qquad
\partial_z \log M_\nu = -K_{\nu - 1}(z) / K_\nu(z).$$

For $\nu \ge 21$ the terms that cancel are taken together. With $r = \nu \sqrt{1 + 2 s^2 / \nu}$, $\delta = r - \nu$,
Debye's D of `probinf.special` and Stirling's series St (of `log_0f1`),

$$\log M_\nu = \nu \log\Bigl(1 + \frac{\delta}{2 \nu}\Bigr) - \delta
- \frac12 \log\Bigl(1 + \frac{\delta}{\nu}\Bigr) + D(-1/r, \nu^2 / r^2) - \mathrm{St}(\nu),$$

a smooth function of $s^2$ whose limit is $-s^2 / 2$, the squared exponential.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, ArrayLike, Float, Shaped

from probinf.special import kv_ratio, log_kv
from probinf.special._arguments import common
from probinf.special._debye import VALUES, horner, series
from probinf.special._derivatives import slope_in_first, tangent, total
from probinf.special._log_0f1 import STIRLING

LOG_TWO = float(np.log(2))
# From this smoothness on the radius is large enough for the terms of Debye's expansion, at any distance.
HIGH = {"float64": 21.0, "float32": 8.0}
TINY = {"float64": 1e-300, "float32": 1e-37}  # as z = 0
NEAR = {"float64": 2e-4, "float32": 2e-2}  # up to this z two terms of the series serve
SMOOTHEST = 1e15  # beyond, the squared exponential to rounding
FARTHEST = 1e6  # with a smoothness of `HIGH` or more the covariance is 0 long before


def matern(
    distance: Shaped[ArrayLike, "..."],
    smoothness: Shaped[ArrayLike, "..."],
    length_scale: Shaped[ArrayLike, "..."],
    variance: Shaped[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    r"""Computes the Matérn covariance of two points at a distance, differentiable in all four arguments.

    Smoothness 1/2 is variance exp(-s), 3/2 is variance (1 + sqrt(3) s) exp(-sqrt(3) s) with s = distance over length
    scale, and infinity the squared exponential variance exp(-s^2 / 2). A process has k derivatives in mean square
    where the smoothness exceeds k.

    The error over the variance is below 1e-13 in float64 and 1e-5 in float32. Derivatives of first and second order
    are right. At distance 0 the value is the variance, and the gradient in the other arguments is 0: for a smoothness
    of 1/2 or less the covariance has a cusp there, whose centre 0 is. For a smoothness of at most 1 the second
    derivative in the distance, infinite there, is 0, too.

    The kernel of a Gaussian process in NumPyro whose smoothness is learned::

        distance = pairwise_distance(x, x)

        def model(y):
            smoothness = numpyro.sample("smoothness", dist.LogNormal(0.5, 1.0))
            length_scale = numpyro.sample("length_scale", dist.LogNormal(0.0, 1.0))
            noise = numpyro.sample("noise", dist.HalfNormal(1.0))
            covariance = matern(distance, smoothness, length_scale) + noise**2 * jnp.eye(len(x))
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)

    Args:
        distance: in the unit of `length_scale`; its sign does not matter, so that a difference of numbers may be given.
        smoothness: nu, positive, also inf.
        length_scale: positive.
        variance: the covariance at distance 0, at least 0.

    Returns:
        The covariance, in the shape that the arguments broadcast to. NaN where smoothness or length scale are not
        positive, and where an argument is NaN; 0 at distance inf.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast; a smoothness or length scale given as a number that is not positive.
    """
    _require_positive(smoothness=smoothness, length_scale=length_scale)
    return _matern(*common(distance=distance, smoothness=smoothness, length_scale=length_scale, variance=variance))


def pairwise_distance(first: Float[Array, "n d"], second: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Computes Euclidean distances, with gradient 0 where two points coincide and the root's own is infinite.

    Args:
        first: points.
        second: points of the same space; the dtype of `first`.
    """
    squares = jnp.sum((first[:, None, :] - second[None, :, :]) ** 2, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _require_positive(**arguments: Any) -> None:
    for name, value in arguments.items():
        known = isinstance(value, int | float | np.ndarray | np.generic)
        if known and not bool(np.all(np.asarray(value) > 0)):
            raise ValueError(f"`{name}` is {value}: give a positive number")


@jax.jit
def _matern(
    distance: Float[Array, "*shape"],
    smoothness: Float[Array, "*shape"],
    length_scale: Float[Array, "*shape"],
    variance: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    valid = (smoothness > 0) & (length_scale > 0) & (distance == distance) & (variance == variance)
    v = jnp.where(valid, smoothness, 1)
    # Not `abs`, whose second derivative at 0 would wipe out that of the covariance.
    size, scale = jnp.where(distance < 0, -distance, distance), jnp.where(valid, length_scale, 1)
    within = valid & (size / scale < jnp.inf)
    log_correlation = _log_correlation(v, jnp.where(within, size, 0) / scale)
    value = variance * jnp.where(within, jnp.exp(log_correlation), 0)
    return jnp.where(valid, value, jnp.nan)


def _log_correlation(v: Float[Array, "..."], s: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logarithm of M for v > 0 and 0 <= s < inf."""
    name = str(s.dtype)
    high = v >= HIGH[name]
    low_v = jnp.where(high, 1, v)
    z = jnp.sqrt(2 * low_v) * s
    near = (z <= TINY[name]) | ((z <= NEAR[name]) & (low_v > 2.5))
    low = _low(low_v, jnp.where(high | near, 1, z))
    low = jnp.where(near, _near(low_v, jnp.where(near, s, 0)), low)
    high_v = jnp.where(high, jnp.minimum(v, SMOOTHEST), HIGH[name])
    return jnp.where(high, _high(high_v, jnp.minimum(jnp.where(high, s, 0), FARTHEST)), low)


def _near(v: Float[Array, "..."], s: Float[Array, "..."]) -> Float[Array, "..."]:
    """The terms of log M in s^2 and s^4, as far as they exist; so derivatives at 0 are right up to the fourth."""
    y = 0.5 * v * (s * s)
    once, twice = v > 1, v > 2
    first = jnp.where(once, 1 / jnp.where(once, v - 1, 1), 0)
    second = jnp.where(twice, 1 / jnp.where(twice, v - 2, 1), 0)
    return first * y * (0.5 * first * second * y - 1)


@jax.custom_jvp
def _low(v: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    return (v * (jnp.log(z) - LOG_TWO) + log_kv(v, z)) + (LOG_TWO - gammaln(v))


def _low_jvp(primals, tangents):
    # That of z^v K_v term by term would cancel at small z.
    v, z = primals
    by_order = tangent(lambda: (slope_in_first(log_kv, v, z) + (jnp.log(z) - LOG_TWO)) - digamma(v), tangents[0])
    by_argument = tangent(lambda: -kv_ratio(-v, z), tangents[1])
    return _low(v, z), total(z, by_order, by_argument)


_low.defjvp(_low_jvp, symbolic_zeros=True)


def _high(v: Float[Array, "..."], s: Float[Array, "..."]) -> Float[Array, "..."]:
    inverse = 1 / v
    square = s * s
    stretch = jnp.sqrt(1 + 2 * square * inverse)
    excess = 2 * square / (1 + stretch)
    lead = v * jnp.log1p(0.5 * excess * inverse) - excess - 0.5 * jnp.log1p(excess * inverse)
    stirling = inverse * horner(inverse * inverse, STIRLING)
    return lead + (series(VALUES, inverse / stretch, 1 / (stretch * stretch), -1) - stirling)
