# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""Makes the tables of `probinf/special/_near_k_tables.py` with mpmath at 40 digits.

`python -m tests.special._near_k_fit` prints that file; `test_near_k_tables.py` checks that it is what stands there.

Each function of two variables is interpolated at Chebyshev points of the square [-1, 1]^2, the coefficients below the
tolerance are left out, and the rest is written in powers, so that Horner's rule evaluates it. The tolerance is far
below a rounding unit because the derivatives lose two digits an order.
"""

import textwrap
from collections.abc import Callable, Sequence

import mpmath as mp

DIGITS = 40
TOLERANCES = {"DOUBLE": 1e-19, "SINGLE": 1e-9}
MIDDLE = (2, 21)  # the range of x of the functions of log x


def order(m: mp.mpf) -> mp.mpf:
    """Order mu in [0, 1/2] from m = 8 mu^2 - 1."""
    return mp.sqrt((m + 1) / 8)


def argument(u: mp.mpf) -> mp.mpf:
    """Argument x in `MIDDLE` from u in [-1, 1], linear in log x."""
    low, high = map(mp.log, MIDDLE)
    return mp.exp((low + high) / 2 + (high - low) / 2 * u)


def scaled_k(u: mp.mpf, m: mp.mpf) -> mp.mpf:
    """e^x K_mu(x)."""
    return mp.exp(argument(u)) * mp.besselk(order(m), argument(u))


def scaled_slope(u: mp.mpf, m: mp.mpf) -> mp.mpf:
    """-e^x K'_mu(x), half the sum of K at mu - 1 and mu + 1."""
    mu, x = order(m), argument(u)
    return mp.exp(x) * (mp.besselk(1 - mu, x) + mp.besselk(1 + mu, x)) / 2


def _entire(mu: mp.mpf, u: mp.mpf) -> mp.mpf:
    """(x/2)^-mu I_mu(x) at x^2 / 4 = (u + 1) / 2."""
    return mp.rgamma(1 + mu) * mp.hyp0f1(1 + mu, (u + 1) / 2)


def even_part(u: mp.mpf, m: mp.mpf) -> mp.mpf:
    """The part of `_entire` that is even in mu."""
    return (_entire(order(m), u) + _entire(-order(m), u)) / 2


def odd_part(u: mp.mpf, m: mp.mpf) -> mp.mpf:
    """The part of `_entire` that is odd in mu, over mu."""
    return (_entire(order(m), u) - _entire(-order(m), u)) / (2 * order(m))


FUNCTIONS = {"EVEN": even_part, "ODD": odd_part, "SCALED_K": scaled_k, "SCALED_SLOPE": scaled_slope}
SIZES = {"EVEN": (20, 14), "ODD": (20, 14), "SCALED_K": (34, 12), "SCALED_SLOPE": (34, 12)}

Rows = list[list[mp.mpf]]


def interpolate(function: Callable[[mp.mpf, mp.mpf], mp.mpf], rows: int, columns: int) -> Rows:
    """Chebyshev coefficients of the interpolant at `rows` x `columns` Chebyshev points."""
    first, second = ([mp.cos(mp.pi * (i + mp.mpf(1) / 2) / n) for i in range(n)] for n in (rows, columns))
    values = [[function(u, m) for m in second] for u in first]
    partly = [_transform(list(column)) for column in zip(*values, strict=True)]
    return [_transform(list(row)) for row in zip(*partly, strict=True)]


def _transform(values: Sequence[mp.mpf]) -> list[mp.mpf]:
    n = len(values)
    angles = [mp.pi * (i + mp.mpf(1) / 2) / n for i in range(n)]
    sums = [mp.fsum(value * mp.cos(k * a) for value, a in zip(values, angles, strict=True)) for k in range(n)]
    return [total * (2 if k else 1) / n for k, total in enumerate(sums)]


def in_powers(coefficients: Sequence[mp.mpf]) -> list[mp.mpf]:
    """The same polynomial in powers."""
    n = len(coefficients)
    chebyshev = [[mp.mpf(1)], [mp.mpf(0), mp.mpf(1)]]
    while len(chebyshev) < n:
        following = [mp.mpf(0), *(2 * c for c in chebyshev[-1])]
        for i, c in enumerate(chebyshev[-2]):
            following[i] -= c
        chebyshev.append(following)
    powers = [mp.mpf(0)] * n
    for coefficient, polynomial in zip(coefficients, chebyshev, strict=False):
        for i, c in enumerate(polynomial):
            powers[i] += coefficient * c
    return powers


def reduce(coefficients: Rows, tolerance: float) -> list[list[float]]:
    """Powers of the second variable (rows) and of the first, without what is below the tolerance."""
    widths = [max((j + 1 for j, c in enumerate(row) if abs(c) > tolerance), default=0) for row in coefficients]
    height = max(i + 1 for i, width in enumerate(widths) if width)
    columns = max(widths)
    rows = []
    for row, width in zip(coefficients[:height], widths[:height], strict=True):
        powers = in_powers(row[:width]) if width else []
        rows.append([*powers, *([mp.mpf(0)] * (columns - width))])
    table = [in_powers(column) for column in zip(*rows, strict=True)]
    # The power u^i comes from Chebyshev polynomials of degree i and more.
    lengths = [sum(max(widths[i:height]) > j for i in range(height)) for j in range(columns)]
    return [[float(c) for c in row[:length]] for row, length in zip(table, lengths, strict=True)]


def make_tables() -> dict[str, dict[str, list[list[float]]]]:
    """All tables by precision and name."""
    with mp.workdps(DIGITS):
        full = {name: interpolate(function, *SIZES[name]) for name, function in FUNCTIONS.items()}
        return {
            precision: {name: reduce(coefficients, tolerance) for name, coefficients in full.items()}
            for precision, tolerance in TOLERANCES.items()
        }


HEADER = '''"""Polynomials of two variables for K below radius 21; made by `tests/special/_near_k_fit.py`, do not edit.

Entry [j][i] stands with m^j u^i. `_near_k.py` says what the functions and the variables are.
"""

# fmt: off
'''


def main() -> None:
    """Prints the module."""
    print(HEADER, end="")
    for precision, tables in make_tables().items():
        for name, rows in tables.items():
            digits = 17 if precision == "DOUBLE" else 9
            print(f"\n{name}_{precision} = (")
            for row in rows:
                text = "(" + ", ".join(repr(float(f"{c:.{digits}g}")) for c in row) + ("),", ",),")[len(row) == 1]
                print(textwrap.fill(text, 120, initial_indent=" " * 4, subsequent_indent=" " * 5))
            print(")")


if __name__ == "__main__":
    main()
