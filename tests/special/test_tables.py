# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""The numbers that the functions are made of, against other ways to them.

Planted bugs: one whole coefficient of Debye's expansion changed by one, one entry of a polynomial changed by 1e-12 of
it, two coefficients of 1 / Gamma swapped.
"""

from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest

from probinf.special import _near_k_tables
from probinf.special._debye import NUM_TERMS, ORDERS, SLOPES, VALUES, WHOLE, whole_coefficients
from probinf.special._power_series import GAMMA
from tests.special._near_k_fit import make_tables
from tests.special._reference import horner


def debye_sums(num_terms: int) -> list[list[Fraction]]:
    """P_1 .. P_n with sum_k u_k(t) / v^k = sum_k r^-k P_k(q), by the recursion of DLMF 10.41.9 in q."""
    rows = [[Fraction(1)]]
    for k in range(num_terms):
        row = [Fraction(0)] * (k + 2)
        for j, c in enumerate(rows[-1]):
            m = k + 2 * j
            row[j] += c * (Fraction(m, 2) + Fraction(1, 8 * (m + 1)))
            row[j + 1] -= c * (Fraction(m, 2) + Fraction(5, 8 * (m + 3)))
        rows.append(row)
    return rows


def exponential(logarithms: list[list[Fraction]]) -> list[list[Fraction]]:
    """Rows of exp(sum_k w^k d_k(q)) from those of d, by k p_k = sum_j j d_j p_{k-j}."""
    rows = [[Fraction(1)]]
    for k in range(1, len(logarithms) + 1):
        row = [Fraction(0)] * (k + 1)
        for j in range(1, k + 1):
            for a, c in enumerate(logarithms[j - 1]):
                for b, p in enumerate(rows[k - j]):
                    row[a + b] += Fraction(j, k) * c * p
        rows.append(row)
    return rows


def exact_logarithms(whole: list[list[int]]) -> list[list[Fraction]]:
    return [[Fraction(a, 2 * 4**k * (k + 2 * j)) for j, a in enumerate(row)] for k, row in enumerate(whole) if k]


def test_coefficients_are_those_of_the_published_expansion():
    count = 12
    assert exponential(exact_logarithms(WHOLE[: count + 1])) == debye_sums(count)


def test_all_coefficients_at_order_zero_are_those_of_hankel():
    """At q = 0 the sums are a_k(0) = ((2k-1)!!)^2 / (k! 8^k)."""
    at_zero = [row[:1] for row in exact_logarithms(WHOLE)]
    hankel = [Fraction(1)]
    for k in range(1, NUM_TERMS + 1):
        hankel.append(hankel[-1] * Fraction((2 * k - 1) ** 2, 8 * k))
    found = exponential([[*row, *([Fraction(0)] * k)] for k, row in enumerate(at_zero)])
    assert [row[0] for row in found] == hankel


def test_all_coefficients_at_argument_zero_are_those_of_stirling():
    """At q = 1 the sums d_k are minus Stirling's, -B_{k+1} / (k (k + 1)) for odd k and 0 for even k."""
    for k, row in enumerate(exact_logarithms(WHOLE), start=1):
        assert sum(row) == -Fraction(*mp.bernfrac(k + 1)) / (k * (k + 1))


def test_tables_of_derivatives_are_those_of_the_values():
    """By order: v w^2 sum_k w^k h_k = d/dv of sum_k w^k d_k(v^2 w^2) along w = (v^2 + x^2)^(-1/2)."""
    with mp.workdps(30):
        for v, x in ((3, 25), (40, 2), (30, 31)):

            def total(v, x, table=VALUES):
                r2 = v * v + x * x
                rows = enumerate(table, start=1)
                return mp.fsum(horner(row, v * v / r2) * r2 ** (-mp.mpf(k) / 2) for k, row in rows)

            r2 = mp.mpf(v * v + x * x)
            assert abs(mp.diff(total, (v, x), (1, 0)) - v / r2 * total(v, x, ORDERS)) < 1e-17
            assert abs(mp.diff(total, (v, x), (0, 1)) + x / r2 * total(v, x, SLOPES)) < 1e-17


def reciprocal_gamma_series(count: int) -> list[float]:
    """Coefficients of z, z^2 .. of 1 / Gamma(1 + z) = exp(gamma z - sum_{k >= 2} zeta(k) (-z)^k / k)."""
    with mp.workdps(40):
        logarithm = [mp.mpf(0), mp.euler, *(-mp.zeta(k) * (-1) ** k / k for k in range(2, count + 1))]
        found = [mp.mpf(1)]
        for k in range(1, count + 1):
            found.append(mp.fsum(j * logarithm[j] * found[k - j] for j in range(1, k + 1)) / k)
        return [float(c) for c in found[1:]]


def test_coefficients_of_the_reciprocal_gamma_function():
    np.testing.assert_allclose(GAMMA, reciprocal_gamma_series(len(GAMMA)), rtol=3e-16)


@pytest.mark.slow
def test_fitted_polynomials_are_those_of_the_generator():
    for precision, tables in make_tables().items():
        for name, rows in tables.items():
            digits = 17 if precision == "DOUBLE" else 9
            stored = getattr(_near_k_tables, f"{name}_{precision}")
            assert stored == tuple(tuple(float(f"{c:.{digits}g}") for c in row) for row in rows)


def test_planted_wrong_coefficients_are_caught():
    wrong = whole_coefficients(4)
    wrong[3][1] += 1
    assert exponential(exact_logarithms(wrong)) != debye_sums(4)
    swapped = [*GAMMA[:4], GAMMA[5], GAMMA[4], *GAMMA[6:]]
    assert np.max(np.abs(np.array(swapped) / reciprocal_gamma_series(len(GAMMA)) - 1)) > 1
