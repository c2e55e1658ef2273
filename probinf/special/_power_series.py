r"""I below radius 21: the power series, 1 / Gamma, and the backward recurrence for ratios; no division in a loop.

$${}_0F_1(; b; z) = 1 + \frac{z}{1 b} \Bigl(1 + \frac{z}{2 (b + 1)} (1 + \dots)\Bigr), \qquad
I_v(x) = \frac{(x/2)^v}{\Gamma(v + 1)}\, {}_0F_1(; v + 1; x^2 / 4).$$

Both loops carry numerator and denominator and divide once. The coefficients of $1 / \Gamma$ are those of Wrench (1968;
Abramowitz and Stegun 6.1.34).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.special._arguments import precision
from probinf.special._debye import horner
from probinf.special._derivatives import divide, item_wise

# 1 / Gamma(1 + v) = 1 + v (GAMMA[0] + GAMMA[1] v + ...)
GAMMA = (
    0.57721566490153286,
    -0.65587807152025388,
    -0.042002635034095236,
    0.16653861138229149,
    -0.042197734555544337,
    -0.0096219715278769736,
    0.0072189432466630995,
    -0.0011651675918590651,
    -0.00021524167411495097,
    0.00012805028238811619,
    -0.000020134854780788239,
    -1.2504934821426707e-6,
    1.1330272319816959e-6,
    -2.0563384169776071e-7,
    6.1160951044814158e-9,
    5.0020076444692229e-9,
    -1.1812745704870201e-9,
    1.0434267116911005e-10,
    7.7822634399050713e-12,
    -3.6968056186422057e-12,
    5.1003702874544760e-13,
    -2.0583260535665068e-14,
    -5.3481225394230180e-15,
    1.2267786282382608e-15,
    -1.1812593016974588e-16,
    1.1866922547516003e-18,
    1.4123806553180318e-18,
    -2.2987456844353702e-19,
)


MOST = 21  # the order up to which the power series serves
LOG_EIGHT = float(np.log(8))


def hypergeometric_excess(b: Float[Array, "..."], z: Float[Array, "..."]) -> Float[Array, "..."]:
    """0F1(; b; z) - 1 for b > 0 and z >= 0, to full relative accuracy.

    Good for z <= 110.25, and for z <= `spread` b of the precision.
    """
    # Factors (b + k - 1) / (4 max(b, 1)): products of all of them, and their squares, are in the range of float32.
    low = b < 1
    c = 1 / jnp.where(low, 1, b)
    scaled, first = 0.25 * z * c, 0.25 * jnp.where(low, b, 1)
    denominator = jnp.ones_like(b)
    numerator = jnp.ones_like(b)
    for k in range(precision(b).power, 1, -1):
        denominator = denominator * (first + 0.25 * (k - 1) * c)
        numerator = denominator + (scaled * (1 / k)) * numerator
    return divide(z, b) * divide(numerator, denominator)


def reciprocal_gamma(
    v: Float[Array, "..."], most: int, unit: float = 1.0
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(h, p) with 1 / Gamma(1 + v) = (1 + h) / p for -1 < v < `most` + 1/2; h = 0 at v = 0 and p = 1 for v <= 1/2.

    Each of the round(v) factors of p is taken over `unit`.
    """
    nearest = jnp.maximum(jnp.round(v), 0)
    mu = v - nearest
    product = jnp.ones_like(v)
    for j in range(most):
        product = product * jnp.where(nearest > j, (v - j) * (1 / unit), 1)
    return mu * horner(mu, GAMMA[: precision(v).gamma]), product


def log_factor(v: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logarithm of 0F1(; v + 1; y) / Gamma(v + 1) for v in [0, 21] and y <= 110.25, for its derivatives."""
    # The square of 21! is beyond float32.
    h, product = reciprocal_gamma(v, MOST, unit=8.0)
    constant = jnp.maximum(jnp.round(v), 0) * LOG_EIGHT
    return (jnp.log1p(hypergeometric_excess(v + 1, y)) + jnp.log1p(h)) - (jnp.log(product) + constant)


def factor_parts(v: Float[Array, "..."], y: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(a, b) with a + b = 0F1(; v + 1; y) / Gamma(v + 1) and b far below a; b keeps what a drops next to 1."""
    s = hypergeometric_excess(v + 1, y)
    h, product = reciprocal_gamma(v, MOST)
    excess = s + (1 + s) * h
    alone = v <= 0.5  # then no factor of the product is taken, and the excess may be tiny
    one_more = jnp.where(alone, 1 + excess, (1 + s) * (1 + h) / product)
    return one_more, jnp.where(alone, excess - (one_more - 1), 0)


@item_wise
def ratio_over_argument(v: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""2 I_{v+1}(x) / (x I_v(x)) at x^2 / 4 = y for v in [-1, 21] and y <= 110.25, by backward recurrence.

    With $f_j = (x/2)^{-j} I_{v+j}$, $f_{j-1} = y f_{j+1} + (v + j) f_j$. The start is Amos's bound (1974), whose error
    the recurrence takes below rounding.
    """
    terms = precision(v)
    last, c = terms.backward, terms.rescale
    top = v + (last + 1)
    current = jnp.ones_like(v)
    above = (2 / c) / (top - 0.5 + jnp.sqrt((top + 0.5) ** 2 + 4 * y))
    scaled_y, scaled_v = (c * c) * y, c * v
    for j in range(last, 1, -1):
        current, above = scaled_y * above + (scaled_v + c * j) * current, current
    # `above` carries one factor c less than `current`. The last step divides, which rounds less.
    return 1 / ((v + 1) + y * divide(c * above, current))
