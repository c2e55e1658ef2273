# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""Reference values by mpmath, and the points that the tests store.

`python -m tests.special._reference` writes `log_bessel_points.csv`: 30 significant digits at arguments that are exact
in float64 (half of them in float32, too). Below radius 200 mpmath sums the defining series; above, where that takes
seconds or fails, Debye's expansion with the polynomials u_k of DLMF 10.41.9, in mpmath: another recursion than that of
the package, and held against the series at radius 200 by `test_reference.py`.
"""

import csv
import sys
from collections.abc import Sequence
from functools import cache, reduce
from pathlib import Path
from typing import NamedTuple

import mpmath as mp

DIGITS = 60
POINTS = Path(__file__).with_name("log_bessel_points.csv")
RADIUS, TERMS = 200, 40
FIELDS = ["v", "x"] + [f"{name}{part}" for name in ("I", "K") for part in ("", "_v", "_x", "_vv", "_vx", "_xx")]


@cache
def debye_polynomials(num_terms: int) -> list[list[mp.mpf]]:
    """u_0 .. u_n of DLMF 10.41.9, coefficients of t^0, t^1 and so on."""
    with mp.workdps(DIGITS):
        found = [[mp.mpf(1)]]
        for _ in range(num_terms):
            last = found[-1]
            row = [mp.mpf(0)] * (len(last) + 3)
            for j, c in enumerate(last):
                # t^2 (1 - t^2) u' / 2 + (1/8) int (1 - 5 t^2) u
                row[j + 1] += c * (mp.mpf(j) / 2 + mp.mpf(1) / (8 * (j + 1)))
                row[j + 3] -= c * (mp.mpf(j) / 2 + mp.mpf(5) / (8 * (j + 3)))
            found.append(row)
        return found


def horner(coefficients: Sequence[mp.mpf | float], x: mp.mpf) -> mp.mpf:
    """The polynomial whose coefficients these are, that of x^0 first."""
    return reduce(lambda total, c: total * x + c, reversed(coefficients), mp.mpf(0))


def by_debye(v: mp.mpf, x: mp.mpf, sign: int) -> mp.mpf:
    """log I (`sign` 1) or log K (`sign` -1) at large radius, for v > 0."""
    r = mp.sqrt(v * v + x * x)
    t = v / r
    terms = [horner(u, t) * (sign / v) ** k for k, u in enumerate(debye_polynomials(TERMS))]
    eta = r - v * mp.asinh(v / x)
    constant = -mp.log(2 * mp.pi * r) / 2 if sign == 1 else mp.log(mp.pi / (2 * r)) / 2
    return sign * eta + constant + mp.log(mp.fsum(terms))


def log_i(v: mp.mpf, x: mp.mpf) -> mp.mpf:
    """log I_v(x) for v >= 0."""
    v, x = mp.mpf(v), mp.mpf(x)
    if v * v + x * x >= RADIUS**2:
        return by_debye(v or mp.mpf(10) ** -40, x, 1)
    return v * mp.log(x / 2) - mp.loggamma(v + 1) + mp.log(mp.hyp0f1(v + 1, x * x / 4))


def log_k(v: mp.mpf, x: mp.mpf) -> mp.mpf:
    """log K_v(x) for v >= 0."""
    v, x = mp.mpf(v), mp.mpf(x)
    if v * v + x * x >= RADIUS**2:
        return by_debye(v or mp.mpf(10) ** -40, x, -1)
    return mp.log(mp.besselk(v, x))


class Derivatives(NamedTuple):
    """A value and its derivatives of first and second order."""

    value: mp.mpf
    v: mp.mpf
    x: mp.mpf
    vv: mp.mpf
    vx: mp.mpf
    xx: mp.mpf


def derivatives(function, v: float, x: float) -> Derivatives:
    """By central differences of 1e-15 relative to the argument, at twice the digits."""
    with mp.workdps(2 * DIGITS):
        v, x = mp.mpf(v), mp.mpf(x)
        a = mp.mpf(10) ** -18 * max(1, v)
        b = mp.mpf(10) ** -18 * x
        # K and I are even or entire in v, so that the stencil may reach below 0.
        f = {(i, j): _any_order(function, v + i * a, x + j * b) for i in (-1, 0, 1) for j in (-1, 0, 1)}
        return Derivatives(
            f[0, 0],
            (f[1, 0] - f[-1, 0]) / (2 * a),
            (f[0, 1] - f[0, -1]) / (2 * b),
            (f[1, 0] - 2 * f[0, 0] + f[-1, 0]) / a**2,
            (f[1, 1] - f[1, -1] - f[-1, 1] + f[-1, -1]) / (4 * a * b),
            (f[0, 1] - 2 * f[0, 0] + f[0, -1]) / b**2,
        )


def _any_order(function, v, x):
    if v >= 0 or function is not log_i:
        return function(abs(v), x)
    # Its own reflection, not one by K: beyond radius 200 K is nothing next to I.
    return function(v, x) if v * v + x * x < RADIUS**2 else function(-v, x)


def points() -> list[tuple[float, float]]:
    """Where the table holds values: a grid, and both sides of every switch of method."""
    arguments = (2.0**-60, 1e-3, 0.3, 1.5, 6.0, 15.0, 21.0, 300.0)
    grid = [(v, x) for v in (0.0, 0.25, 1.0, 2.3, 7.5, 20.0) for x in arguments]
    large = [(v, x) for v in (60.0, 1023.5, 32767.0, 1e6) for x in (2.0**-900, 1e-5, 2.0, 50.0, 1e3, 2e4, 1e6, 1e12)]
    beside_2 = [(v, x) for v in (0.0, 0.4, 3.0) for x in (2 - 2.0**-50, 2 + 2.0**-50)]
    halves = [(n + 0.5 + d, x) for n in (0, 1, 6) for d in (-(2.0**-40), 0.0, 2.0**-40) for x in (0.1, 3.0)]
    beside_21 = [(v, mp.sqrt(441 - v * v) * (1 + d)) for v in (0, 4.2, 14, 20) for d in (-1e-12, 1e-12)]
    zeros = [(v, x) for v, x in ((1023.5, 678.0), (1e5, 66274.0), (10.0, 6.0))]
    found = [*grid, *large, *beside_2, *halves, *zeros, *((float(v), float(x)) for v, x in beside_21)]
    return [(float(v), float(x)) for v, x in found]


def main() -> None:
    """Writes the table."""
    with POINTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for v, x in points():
            numbers = [*derivatives(log_i, v, x), *derivatives(log_k, v, x)]
            writer.writerow([v.hex(), x.hex(), *(mp.nstr(number, 24) for number in numbers)])
    print(POINTS, file=sys.stderr)


if __name__ == "__main__":
    main()
