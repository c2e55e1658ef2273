r"""Debye's uniform expansion in the radius $r = \sqrt{v^2 + x^2}$, for r >= 21 and every order v, zero included.

With $w = 1 / r$ and $q = v^2 / r^2$ (Olver 1997, chapter 10.7; DLMF 10.41, rewritten and its logarithm taken),

$$\log I_v(x) = r - v \operatorname{asinh}(v / x) - \tfrac12 \log(2 \pi r) + D(w, q),$$
$$\log K_v(x) = -r + v \operatorname{asinh}(v / x) + \tfrac12 \log(\pi / (2 r)) + D(-w, q),$$

$D(w, q) = \sum_{k \ge 1} w^k d_k(q)$. Bessel's equation for $g = x\, \partial_x \log I_v$ is Riccati's,
$x g' + g^2 = r^2$, and $g = r - (1 - q) \sum_{k \ge 0} w^k e_k(q)$ turns it into

$$2 e_k = 2 q [(1 - q) e_{k-1}' - e_{k-1}] + (k - 1) (1 - q) e_{k-1} + (1 - q) \sum_{i=0}^{k-1} e_i e_{k-1-i},
\qquad e_0 = \tfrac12.$$

$E_k = 2 \cdot 4^k e_k$ has whole coefficients, so every coefficient below is the exact one, rounded once. That of $q^j$
in $d_k$ is $e_{kj} / (k + 2 j)$, and $\partial_v D = v w^2 \sum_k w^k h_k$ with
$h_{kj} = -e_{kj} + 2 (j + 1) e_{k,j+1} / (k + 2 j + 2)$. On x >= 21 at v = 0 this is Hankel's expansion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from probinf.special._arguments import precision

RADIUS = 21.0
NUM_TERMS = 20


def whole_coefficients(num_terms: int) -> list[list[int]]:
    """E_0 .. E_num_terms, each as coefficients of q^0, q^1 and so on."""
    rows = [[1]]
    for k in range(1, num_terms + 1):
        last = rows[-1]
        row = [0] * (k + 1)
        square = [0] * k
        for i in range(k):
            for j, a in enumerate(rows[i]):
                for m, b in enumerate(rows[k - 1 - i]):
                    square[j + m] += a * b
        for j, (a, b) in enumerate(zip(last, square, strict=True)):
            same = (4 * j + 2 * (k - 1)) * a + b
            row[j] += same
            row[j + 1] -= same + 4 * a
        rows.append(row)
    return rows


WHOLE = whole_coefficients(NUM_TERMS)
Table = tuple[tuple[float, ...], ...]
# Quotients of whole numbers, which Python rounds once. Entry [k - 1][j] stands with w^k q^j.
SLOPES: Table = tuple(tuple(a / (2 * 4**k) for a in row) for k, row in enumerate(WHOLE) if k)
VALUES: Table = tuple(
    tuple(a / (2 * 4**k * (k + 2 * j)) for j, a in enumerate(row)) for k, row in enumerate(WHOLE) if k
)
ORDERS: Table = tuple(
    tuple(
        (2 * (j + 1) * b - (k + 2 * j + 2) * a) / (2 * 4**k * (k + 2 * j + 2))
        for j, (a, b) in enumerate(zip(row, [*row[1:], 0], strict=True))
    )
    for k, row in enumerate(WHOLE)
    if k
)


class Far(NamedTuple):
    """The lanes of radius 21 and more; the others hold v = 0, x = 21, so that nothing there is infinite.

    Attributes:
        mask: which lanes those are.
        v, x: order and argument.
        r: radius.
        w: 1 / r.
        q: (v / r)^2.
    """

    mask: Bool[Array, "..."]
    v: Float[Array, "..."]
    x: Float[Array, "..."]
    r: Float[Array, "..."]
    w: Float[Array, "..."]
    q: Float[Array, "..."]


def far(v: Float[Array, "..."], x: Float[Array, "..."]) -> Far:
    """Splits off the lanes that Debye's expansion serves."""
    r = radius(v, x)
    mask = r >= RADIUS
    w = 1 / jnp.where(mask, r, RADIUS)
    v = jnp.where(mask, v, 0)
    return Far(mask, v, jnp.where(mask, x, RADIUS), jnp.where(mask, r, RADIUS), w, (v * w) ** 2)


def series(table: Table, w: Float[Array, "..."], q: Float[Array, "..."], sign: int) -> Float[Array, "..."]:
    """The sum over k >= 1 of (sign w)^k times the k-th polynomial of `table` in q."""
    result = jnp.zeros_like(w)
    for k in range(precision(w).debye, 0, -1):
        result = (result + horner(q, [sign**k * c for c in table[k - 1]])) * w
    return result


def horner(x: Float[Array, "..."], coefficients: list[float] | tuple[float, ...]) -> Float[Array, "..."]:
    """The polynomial with these coefficients, that of x^0 first."""
    result = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * x + c
    return result


def order_slope(sign: int, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative in v of log I (`sign` 1, v > -1) or log K (`sign` -1) for r >= 21."""
    w = 1 / radius(v, x)
    return -sign * log_slope(v, x) - (v * w) * (w * (0.5 - series(ORDERS, w, (v * w) ** 2, sign)))


def argument_slope(sign: int, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative in x of log I - x (`sign` 1, v > -1) or log K + x (`sign` -1) for r >= 21."""
    r = radius(v, x)
    w = 1 / r
    return sign * (v / x) * (v / (r + x)) - x * w * slope_sum(w, (v * w) ** 2, sign)


def slope_sum(w: Float[Array, "..."], q: Float[Array, "..."], sign: int) -> Float[Array, "..."]:
    """The sum w (1/2 + w e_1 + w^2 e_2 + ...), with -w in the brackets for `sign` -1."""
    return w * (0.5 + series(SLOPES, w, q, sign))


@jax.custom_jvp
def radius(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(v^2 + x^2), which overflows only where that does."""
    v, x = jnp.abs(v), jnp.abs(x)
    larger = jnp.maximum(v, x)
    quotient = jnp.minimum(v, x) / jnp.where(larger == 0, 1, larger)
    return larger * jnp.sqrt(1 + quotient * quotient)


@radius.defjvp
def _radius_jvp(primals, tangents):
    (v, x), (dv, dx) = primals, tangents
    r = radius(v, x)
    w = 1 / jnp.where(r == 0, 1, r)
    return r, (v * w) * dv + (x * w) * dx


@jax.custom_jvp
def log_slope(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """asinh(v / x), with full relative accuracy and no overflow of v / x."""
    one_more, rest, shift = slope_parts(jnp.abs(v), x, radius(v, x))
    return jnp.sign(v) * (jnp.log(one_more) + rest / one_more + shift)


@log_slope.defjvp
def _log_slope_jvp(primals, tangents):
    (v, x), (dv, dx) = primals, tangents
    w = 1 / radius(v, x)
    return log_slope(v, x), w * dv - (v * w / x) * dx  # v / x alone may overflow


def slope_parts(
    v: Float[Array, "..."], x: Float[Array, "..."], r: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """(a, b, s) with asinh(v / x) = log(a + b) + s and b far below a, for v >= 0 and x > 0.

    Two logarithms are one where each lane needs only one of them; so the caller takes it.
    """
    steps, half = (512, 520) if x.dtype == jnp.float64 else (60, 64)
    steep = v * 2.0**-steps > x
    tiny, huge = 2.0**-half, 2.0**half
    u = (v + v * (v / (r + x))) / jnp.where(steep, 1, x)
    one_more = jnp.where(steep, 2 * (v * tiny) / jnp.where(steep, x * huge, 1), 1 + u)
    rest = jnp.where(steep, 0, u - (one_more - 1))
    return one_more, rest, jnp.where(steep, 2 * half * float(np.log(2)), 0)


@jax.custom_jvp
def rise(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(r + v) / x = exp(asinh(v / x)) for v >= 0, x > 0; its derivatives do not cancel."""
    return (radius(v, x) + v) / x


@rise.defjvp
def _rise_jvp(primals, tangents):
    (v, x), (dv, dx) = primals, tangents
    value, w = rise(v, x), 1 / radius(v, x)
    return value, value * (w * dv - (v * w / x) * dx)


def fall(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Divides x by r + v, the radius plus v: exp(-asinh(v / x)) for x >= 0 and v >= 0, or v > -1 where x is large."""
    lead, rest = fall_parts(v, x)
    return lead - rest


@jax.custom_jvp
def fall_parts(v: Float[Array, "..."], x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(a, b) with a - b = x / (r + v), a rounded once or twice and b small, so that the difference is, too."""
    wide = jnp.abs(v) <= x
    q = jnp.where(wide, v, x) / jnp.where(wide, x, v)
    root = jnp.sqrt(1 + q * q)
    flat = wide & (q < 0.4)
    lead = jnp.where(flat, 1, 0.5 * q)
    rest = jnp.where(flat, q * (1 + q / (1 + root)) / (root + q), lead * (q / (1 + root)) ** 2)
    steep = wide & ~flat
    return jnp.where(steep, 1 / (root + q), lead), jnp.where(steep, 0, rest)


@fall_parts.defjvp
def _fall_parts_jvp(primals, tangents):
    (v, x), (dv, dx) = primals, tangents
    r = radius(v, x)
    value, w = fall(v, x), 1 / r
    return fall_parts(v, x), ((v * w / (r + v)) * dx - (value * w) * dv, jnp.zeros_like(value))
