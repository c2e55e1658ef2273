# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportReturnType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
r"""Bessel functions, their derivatives and the von Mises-Fisher constants to 40 digits, by mpmath.

Below radius $r = \sqrt{v^2 + x^2} = 200$ the defining series; above, where those take seconds or fail, Debye's
expansion (DLMF 10.41), which is there right to 40 digits,

$$\log I_v = r - v \operatorname{asinh}(v / x) - \tfrac12 \log(2 \pi r) + \log \sum_k r^{-k} P_k(v^2 / r^2),$$

with the coefficients of $P_k$ as exact fractions. It has no code in common with `probinf.special`.
"""

from fractions import Fraction
from functools import cache, reduce
from typing import Any

import numpy as np

try:
    import mpmath as mp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the experiment `log-bessel` needs mpmath: `pip install mpmath`") from error

DIGITS = 40
RADIUS, TERMS = 200, 26
STEP = mp.mpf(10) ** -12


@cache
def debye_rows() -> list[list[Any]]:
    """P_0 .. P_TERMS, coefficients of q^0, q^1 and so on."""
    rows = [[Fraction(1)]]
    for k in range(TERMS):
        row = [Fraction(0)] * (k + 2)
        for j, c in enumerate(rows[k]):
            m = k + 2 * j
            row[j] += c * (Fraction(m, 2) + Fraction(1, 8 * (m + 1)))
            row[j + 1] -= c * (Fraction(m, 2) + Fraction(5, 8 * (m + 3)))
        rows.append(row)
    with mp.workdps(DIGITS + 10):
        return [[mp.mpf(c.numerator) / c.denominator for c in row] for row in rows]


def _by_debye(v: Any, x: Any, sign: int) -> Any:
    r = mp.sqrt(v * v + x * x)
    q = (v / r) ** 2
    total = mp.mpf(0)
    for row in reversed(debye_rows()):
        total = total * (sign / r) + reduce(lambda value, c: value * q + c, reversed(row))
    constant = -mp.log(2 * mp.pi * r) / 2 if sign == 1 else mp.log(mp.pi / (2 * r)) / 2
    return sign * (r - v * mp.asinh(v / x)) + constant + mp.log(total)


def log_i(v: Any, x: Any) -> Any:
    """The logarithm of I_v(x) for v >= 0 and x > 0."""
    with mp.workdps(DIGITS):
        v, x = mp.mpf(v), mp.mpf(x)
        if v * v + x * x >= RADIUS**2:
            return _by_debye(v, x, 1)
        return v * mp.log(x / 2) - mp.loggamma(v + 1) + mp.log(mp.hyp0f1(v + 1, x * x / 4))


def log_k(v: Any, x: Any) -> Any:
    """The logarithm of K_v(x) for v >= 0 and x > 0."""
    with mp.workdps(DIGITS):
        v, x = mp.mpf(v), mp.mpf(x)
        return _by_debye(v, x, -1) if v * v + x * x >= RADIUS**2 else mp.log(mp.besselk(v, x))


def log_i0(x: Any) -> Any:
    """The logarithm of I_0(x), right to 40 digits however small it is."""
    with mp.workdps(DIGITS):
        return mp.log1p(mp.nsum(lambda k: (mp.mpf(x) ** 2 / 4) ** k / mp.factorial(k) ** 2, [1, mp.inf]))


def slopes(function: Any, v: Any, x: Any) -> tuple[Any, Any]:
    """The derivatives in v and x, by central differences; right to about 22 digits."""
    with mp.workdps(DIGITS):
        v, x = mp.mpf(v), mp.mpf(x)
        by_order = (function(v * (1 + STEP), x) - function(v * (1 - STEP), x)) / (2 * STEP * v)
        return by_order, (function(v, x * (1 + STEP)) - function(v, x * (1 - STEP))) / (2 * STEP * x)


def resultant(dimension: int, concentration: Any) -> Any:
    """The mean resultant length A_p(kappa) = I_{p/2} / I_{p/2 - 1} of the von Mises-Fisher distribution."""
    with mp.workdps(DIGITS):
        v = mp.mpf(dimension) / 2 - 1
        return mp.exp(log_i(v + 1, concentration) - log_i(v, concentration))


def log_density(dimension: int, concentration: Any, cosine: float) -> Any:
    """Its log density at this cosine to the mean direction."""
    with mp.workdps(DIGITS):
        v, k = mp.mpf(dimension) / 2 - 1, mp.mpf(concentration)
        return v * mp.log(k) - (v + 1) * mp.log(2 * mp.pi) - log_i(v, k) + k * mp.mpf(cosine)


def errors(found: Any, exact: Any, scale: Any = 0.0) -> np.ndarray:
    """|found - exact| / max(|exact|, scale), float64; inf where `found` is not finite."""
    values, scales = np.asarray(found, np.float64), np.broadcast_to(scale, np.shape(found))
    return np.array([_error(float(a), b, float(s)) for a, b, s in zip(values, exact, scales, strict=True)])


def _error(found: float, exact: Any, scale: float) -> float:
    if not np.isfinite(found):
        return float("inf")
    with mp.workdps(DIGITS):
        return float(abs(mp.mpf(found) - exact) / max(abs(exact), mp.mpf(scale)))
