"""The references of the tests themselves: two ways to compute one number, and the stored table made again."""

import csv

import mpmath as mp
import pytest

from tests.special._reference import FIELDS, POINTS, by_debye, derivatives, log_i, log_k, points


@pytest.mark.parametrize(("v", "x"), [(0.7, 201), (150, 140), (199.9, 30), (201, 1)])
def test_series_and_expansion_agree(v, x):
    with mp.workdps(60):
        v, x = mp.mpf(v), mp.mpf(x)
        series = v * mp.log(x / 2) - mp.loggamma(v + 1) + mp.log(mp.hyp0f1(v + 1, x * x / 4))
        assert abs(series - by_debye(v, x, 1)) < mp.mpf(10) ** -50
        assert abs(mp.log(mp.besselk(v, x)) - by_debye(v, x, -1)) < mp.mpf(10) ** -50


def test_stored_points_are_where_they_should_be():
    with POINTS.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == FIELDS
    assert [(float.fromhex(row[0]), float.fromhex(row[1])) for row in rows[1:]] == points()


@pytest.mark.parametrize("index", [3, 40, 90, 100, -1])
def test_stored_points_can_be_made_again(index):
    with POINTS.open(newline="") as file:
        row = list(csv.reader(file))[1:][index]
    v, x = float.fromhex(row[0]), float.fromhex(row[1])
    with mp.workdps(60):
        for text, exact in zip(row[2:], (*derivatives(log_i, v, x), *derivatives(log_k, v, x)), strict=True):
            assert abs(mp.mpf(text) - exact) <= abs(exact) * mp.mpf(10) ** -22
