r"""The logarithm of the confluent hypergeometric limit function, with full accuracy where it is small.

${}_0F_1(; b; z) = \Gamma(\nu + 1) (x / 2)^{-\nu} I_\nu(x)$ with $\nu = b - 1$, $x = 2 \sqrt z$. Below radius 21, and
where the power series converges as fast, it is $\log(1 + s)$ of that series. Beyond, with $r = \sqrt{\nu^2 + 4 z}$,
$\delta = r - \nu = 4 z / (r + \nu)$ and Debye's D of `_debye.py`, the terms that cancel in $\log I_\nu$ are taken
together:

$$\log {}_0F_1 = \delta - \nu \log\Bigl(1 + \frac{\delta}{2 \nu}\Bigr) - \frac12 \log\Bigl(1 + \frac{\delta}{\nu}\Bigr)
+ \mathrm{St}(\nu) + D, \qquad
\mathrm{St}(\nu) = \log \Gamma(\nu + 1) - \nu \log \nu + \nu - \tfrac12 \log(2 \pi \nu),$$

St from Stirling's series; at small $\nu$, where that fails, with $\log \Gamma(\nu + 1)$ itself.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from probinf.special._arguments import common, precision
from probinf.special._debye import RADIUS, VALUES, horner, radius, series, slope_sum
from probinf.special._derivatives import divide, item_wise, slope_in_first, tangent, total
from probinf.special._power_series import hypergeometric_excess, ratio_over_argument, reciprocal_gamma

# B_2k / (2k (2k - 1)), k = 1 to 8
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
LOG_TWO_PI = float(np.log(2 * np.pi))


def log_0f1(b: Shaped[ArrayLike, "..."], z: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Computes $\log {}_0F_1(; b; z)$, where ${}_0F_1(; b; z) = \sum_k z^k / (k!\, (b)_k)$, for b > 0 and z >= 0.

    It is the normalising constant of the von Mises-Fisher distribution relative to the uniform: at b = p / 2 and
    z = kappa^2 / 4, with no constant that grows with the dimension p. The error is that of rounding `z`, a few units
    in the last place of the value, down to z = 0. Derivatives of any order in both arguments are right; that in z is
    the ratio of neighbouring Bessel functions over sqrt(z), finite at z = 0.

    Edges: 0 at z = 0 and at b = inf, inf at z = inf. NaN for b <= 0, z < 0 (where 0F1 has zeros), b = z = inf and NaN.

    Args:
        b: lower parameter, positive; float32, float64 or whole numbers.
        z: argument, at least 0; broadcast with `b`, of the same floating dtype.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _public(*common(b=b, z=z))


@jax.jit
def _public(b: Float[Array, "*shape"], z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return _log_0f1(b, z)


@jax.custom_jvp
def _log_0f1(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The function with its edges."""
    inside = _inside(b, z)
    value = _value(jnp.where(inside, b, 1), jnp.where(inside, z, 1))
    limit = jnp.where(z == jnp.inf, jnp.inf, 0)
    return jnp.where(inside, value, jnp.where(_defined(b, z), limit, jnp.nan))


def _log_0f1_jvp(primals, tangents):
    b, z = primals
    by_parameter = tangent(lambda: _by_parameter(b, z), tangents[0])
    by_argument = tangent(lambda: _by_argument(b, z), tangents[1])
    return _log_0f1(b, z), total(z, by_parameter, by_argument)


_log_0f1.defjvp(_log_0f1_jvp, symbolic_zeros=True)


def _inside(b, z):
    return (b > 0) & (b < jnp.inf) & (z >= 0) & (z < jnp.inf)


def _defined(b, z):
    return (b > 0) & (z >= 0) & ((b < jnp.inf) | (z < jnp.inf))


def _value(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value for 0 < b < inf and 0 <= z < inf."""
    beyond, near_b, near_z, far_b, far_z = _split(b, z)
    return jnp.where(beyond, _above(far_b, far_z), _below(near_b, near_z))


def _by_parameter(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative in b."""
    inside = _inside(b, z)
    beyond, near_b, near_z, far_b, far_z = _split(jnp.where(inside, b, 1), jnp.where(inside, z, 1))
    value = jnp.where(beyond, ABOVE_SLOPE(far_b, far_z), BELOW_SLOPE(near_b, near_z))
    limit = jnp.where(z == jnp.inf, -jnp.inf, 0)
    return jnp.where(inside, value, jnp.where(_defined(b, z), limit, jnp.nan))


def _by_argument(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative in z, 2 I_{v+1}(x) / (x I_v(x))."""
    inside = _inside(b, z)
    v, z_in = jnp.where(inside, b - 1, 0), jnp.where(inside, z, 1)
    far = _radius(v, z_in) >= RADIUS
    above = _far_ratio(jnp.where(far, v, 0), jnp.where(far, z_in, RADIUS**2 / 4))
    below = ratio_over_argument(jnp.where(far, 1, v), jnp.where(far, 1, z_in))
    return jnp.where(inside, jnp.where(far, above, below), jnp.where(_defined(b, z), 0, jnp.nan))


def _split(b, z):
    """Which lanes leave the power series; b and z for it, and for the others, harmless numbers where not asked."""
    beyond = (_radius(b - 1, z) >= RADIUS) & (z > precision(b).spread * b)
    near = jnp.where(beyond, 1, b), jnp.where(beyond, 0, z)
    return beyond, *near, jnp.where(beyond, b, 1), jnp.where(beyond, z, RADIUS**2 / 4)


def _below(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.log1p(hypergeometric_excess(b, z))


def _above(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    terms, v = precision(b), b - 1
    r = _radius(v, z)
    w = 1 / r
    high = v >= terms.stirling_from
    # High orders: both logarithms relative to v. Low ones: of (r + v) / 2 and of r.
    unit = jnp.where(high, v, 1)
    lead = jnp.where(high, 4 * (z / (r + v)), r)
    first = jnp.where(high, jnp.log1p(0.5 * lead / unit), jnp.log(jnp.where(high, 1, 0.5 * (r + v))))
    # Gamma(b) itself has lost b next to 1: it is Gamma(b + 1) / b.
    low = b < 0.5
    h, product = reciprocal_gamma(jnp.where(high, 0, jnp.where(low, b, v)), int(terms.stirling_from))
    inverse = 1 / unit
    stirling = inverse * horner(inverse * inverse, STIRLING[: terms.stirling])
    product = divide(product, jnp.where(low, b, 1))
    rest = jnp.where(high, stirling, jnp.log(product) - jnp.log1p(h) - 0.5 * LOG_TWO_PI)
    return (lead - v * first) + (rest - 0.5 * jnp.log(r / unit) + series(VALUES, w, (v * w) ** 2, 1))


BELOW_SLOPE = item_wise(partial(slope_in_first, _below))
ABOVE_SLOPE = item_wise(partial(slope_in_first, _above))


@item_wise
def _far_ratio(v: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    r = _radius(v, z)
    w = 1 / r
    return 2 * (1 / (r + v) - w * slope_sum(w, (v * w) ** 2, 1))


@jax.custom_jvp
def _radius(v: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(v^2 + 4 z)."""
    return radius(v, 2 * jnp.sqrt(z))


@_radius.defjvp
def _radius_jvp(primals, tangents):
    (v, z), (dv, dz) = primals, tangents
    r = _radius(v, z)
    w = 1 / jnp.where(r == 0, 1, r)
    return r, (v * w) * dv + (2 * w) * dz
