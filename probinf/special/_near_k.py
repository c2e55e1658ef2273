r"""K below radius 21: two neighbours at an order of at most 1/2, then forward recurrence; no quadrature, no loop test.

With $n = \mathrm{round}(|v|)$ and $\mu = |v| - n$, the seeds $K_\mu$ and $K_{\mu+1}$ are polynomials of two variables
(`_near_k_tables.py`), all even in $\mu$, so that they are smooth through v = 0:

- $x \le 2$: $K_\mu = \frac{\pi \mu}{\sin \pi \mu} \bigl[L \frac{\sinh \sigma}{\sigma} E - \cosh \sigma\, O\bigr]$ with
  $L = \log(2 / x)$, $\sigma = \mu L$ and $(x/2)^{-\mu} I_\mu(x) = E + \mu O$ (Temme 1975), E and O functions of
  $x^2 / 4$ and $\mu^2$; the Wronskian gives $K_{\mu+1}$. The recurrence runs on $f_j = (x/2)^j K_{\mu+j}$,
  $f_{j+1} = (x^2/4) f_{j-1} + (\mu + j) f_j$, so that nothing overflows at x = 1e-300.
- $2 < x < 21$: $e^x K_\mu$ and $-e^x K_\mu'$ as functions of $\log x$ and $\mu^2$, where they are entire;
  $K_{\mu+1} = -K_\mu' + (\mu / x) K_\mu$ and $K_{j+1} = K_{j-1} + (2 j / x) K_j$.

All terms of the recurrence are positive, so it loses nothing.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from probinf.special import _near_k_tables as tables
from probinf.special._debye import Table, horner
from probinf.special._derivatives import divide, item_wise, slope_in_first, tangent, total

LOG_TWO = float(np.log(2))
SWITCH = 2.0  # from the formula with logarithms to that with exponentials
MOST = 21  # steps of recurrence
CENTRE = float(np.log(2 * 21) / 2)
PER_HALF_WIDTH = float(2 / np.log(21 / 2))


class Tables(NamedTuple):
    """The polynomials of one precision, a row for each power of m."""

    even: Table
    odd: Table
    scaled_k: Table
    scaled_slope: Table


DOUBLE = Tables(tables.EVEN_DOUBLE, tables.ODD_DOUBLE, tables.SCALED_K_DOUBLE, tables.SCALED_SLOPE_DOUBLE)
SINGLE = Tables(tables.EVEN_SINGLE, tables.ODD_SINGLE, tables.SCALED_K_SINGLE, tables.SCALED_SLOPE_SINGLE)


class Near(NamedTuple):
    """K around one order, times one factor: (x/2)^n, and (x/2)^mu where n >= 1, for x <= 2; e^x above.

    Attributes:
        small: whether x <= 2.
        before: K at |v| - 1, times x/2 less where x <= 2; only where n >= 1.
        here: K at |v|.
        after: K at mu + 1, times x/2 more where x <= 2; only where n = 0.
        slope: -K' at mu, times x/2 more where x <= 2, even in mu; only where n = 0.
    """

    small: Bool[Array, "..."]
    before: Float[Array, "..."]
    here: Float[Array, "..."]
    after: Float[Array, "..."]
    slope: Float[Array, "..."]


def near_k(v: Float[Array, "..."], x: Float[Array, "..."], log_half: Float[Array, "..."]) -> Near:
    """K around order v, for x > 0 and v^2 + x^2 <= 441; `log_half` is log(x / 2)."""
    fractional, order = split(v)
    n = jnp.round(jnp.abs(v))
    mu = order - n
    m = 8 * mu * mu - 1
    small = x <= SWITCH
    inner = jnp.where(small, 3, x)
    seeds = zip(
        _small_seeds(mu, m, jnp.where(small, x, 1), jnp.where(small, log_half, -LOG_TWO), fractional),
        _large_seeds(mu, m, inner, jnp.where(small, CENTRE - LOG_TWO, log_half)),
        strict=True,
    )
    first, after, slope = (jnp.where(small, below, above) for below, above in seeds)
    before, here = first, after
    y = jnp.where(small, 0.25 * x * x, 1)
    step = jnp.where(small, 1, 2 / inner)
    step_mu = step * mu
    result = jnp.where(fractional, first, here)
    neighbour = first
    for j in range(1, MOST):
        before, here = here, y * before + (step_mu + step * j) * here
        found = n == j + 1
        result, neighbour = jnp.where(found, here, result), jnp.where(found, before, neighbour)
    return Near(small, neighbour, result, after, slope)


def split(v: Float[Array, "..."]) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """Whether n = 0, and the order that is worked with: v there, so that all is smooth through 0, and |v| elsewhere."""
    fractional = jnp.round(jnp.abs(v)) == 0
    return fractional, jnp.where(fractional, v, jnp.abs(v))


@jax.custom_jvp
def near_decay(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """-K'_v / K_v below radius 21, exactly even in v."""
    return _decay(v, x)


def _decay_jvp(primals, tangents):
    v, x = primals
    decay = near_decay(v, x)
    by_order = tangent(lambda: DECAY_SLOPE(v, x), tangents[0])
    return decay, total(x, by_order, tangent(lambda: _decay_slope(decay, v, x), tangents[1]))


near_decay.defjvp(_decay_jvp, symbolic_zeros=True)


def _decay_slope(decay, v, x):
    """decay^2 - decay / x - (v / x)^2 - 1, Bessel's equation; it cancels by at most the order, which is below 21."""
    # Two groupings, so that it is -inf and not NaN where its terms overflow.
    whole = jnp.abs(v) / x
    beyond = decay - whole
    above = (beyond * decay + beyond * whole) - decay / x
    return jnp.where(split(v)[0], decay * (decay - 1 / x) - (v / x) ** 2, above) - 1


def _decay(v, x):
    near = near_k(v, x, jnp.log(0.5 * x))
    unit = jnp.where(near.small, 0.5 * x, 1)
    fractional, order = split(v)
    quotient = divide(jnp.where(fractional, near.slope, near.before), near.here)
    return jnp.where(fractional, divide(quotient, unit), quotient * unit + divide(order, x))


DECAY_SLOPE = item_wise(partial(slope_in_first, _decay))


@item_wise
def near_ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """K_{v+1} / K_v below radius 21."""
    near = near_k(v, x, jnp.log(0.5 * x))
    unit = jnp.where(near.small, 0.5 * x, 1)
    fractional, order = split(v)
    # In this order: at x = 1e-300 the numerator over `unit` alone would overflow.
    quotient = divide(jnp.where(fractional, near.after, near.before), near.here)
    whole = quotient * unit + jnp.where(v < 0, 0, divide(2 * order, x))
    return jnp.where(fractional, divide(quotient, unit), whole)


def _small_seeds(mu, m, x, log_half, fractional):
    """f_0, f_1, -(x/2) K'_mu for x <= 2; times (x/2)^mu unless `fractional`, where that would not be even in mu."""
    rows = DOUBLE if x.dtype == jnp.float64 else SINGLE
    y, log_scale = 0.25 * x * x, -log_half
    even, even_slope = _polynomial_and_slope(rows.even, 2 * y - 1, m)
    odd, odd_slope = _polynomial_and_slope(rows.odd, 2 * y - 1, m)
    sigma = mu * log_scale
    up = jnp.exp(sigma)
    down = divide(jnp.ones_like(up), up)
    scale = jnp.where(fractional, 1, down)
    rising = jnp.where(fractional, up, 1)
    # Beyond the cap the square times y is nothing, and its derivatives would overflow.
    cap = 1e50 if x.dtype == jnp.float64 else 1e10
    over = ~fractional & (down > cap)
    falling = jnp.where(fractional, down, jnp.where(over, cap, down) ** 2)
    slow = jnp.abs(sigma) < 0.5
    sinh = jnp.where(
        slow,
        _sinh_over_argument(jnp.where(slow, sigma, 0) ** 2) * scale,
        (rising - falling) / (2 * jnp.where(slow, 1, sigma)),
    )
    sine = _sinh_over_argument(-((float(np.pi) * mu) ** 2))
    cosh, sinh = 0.5 * (rising + falling), log_scale * sinh
    first = (sinh * even - cosh * odd) / sine
    second = (0.5 * rising - 2 * y * first * (even_slope + mu * odd_slope)) / (even + mu * odd)
    slope = (0.5 * (cosh * even - mu * mu * sinh * odd) - 2 * y * (sinh * even_slope - cosh * odd_slope)) / sine
    return first, second, slope


def _sinh_over_argument(square):
    """sinh(z) / z from z^2 in [-2.5, 0.25]; sin(|z|) / |z| where that is negative."""
    result = jnp.ones_like(square)
    for k in range(12 if square.dtype == jnp.float64 else 7, 0, -1):
        result = 1 + square * (1 / (2 * k * (2 * k + 1))) * result
    return result


def _large_seeds(mu, m, x, log_half):
    """e^x times K at mu and mu + 1, and -K'_mu, for 2 < x < 21."""
    rows = DOUBLE if x.dtype == jnp.float64 else SINGLE
    u = (log_half - (CENTRE - LOG_TWO)) * PER_HALF_WIDTH
    first, slope = _polynomial(rows.scaled_k, u, m), _polynomial(rows.scaled_slope, u, m)
    return first, slope + (mu / x) * first, slope


def _polynomial(table, u, m):
    # Powers of u inside: derivatives in the order then touch the few powers of m alone, in programs a third as long.
    return _horner_of([horner(u, row) for row in table], m)


def _polynomial_and_slope(table, u, m):
    """The polynomial and its derivative in u."""
    values, slopes = zip(*(_horner_and_slope(u, row) for row in table), strict=True)
    return _horner_of(values, m), _horner_of(slopes, m)


def _horner_of(coefficients, m):
    result = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * m + c
    return result


def _horner_and_slope(u, row):
    result, slope = jnp.full_like(u, row[-1]), jnp.zeros_like(u)
    for c in row[-2::-1]:
        slope = slope * u + result
        result = result * u + c
    return result, slope
