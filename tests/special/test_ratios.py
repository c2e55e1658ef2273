# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""Ratios of neighbouring orders and log 0F1 against mpmath at 60 digits, at points that are exact in either precision.

Planted bugs: the ratio as the exponential of a difference of logarithms, log 0F1 from log I and log Gamma.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import mpmath as mp
import numpy as np
import pytest
import scipy.special

from probinf.special import iv_ratio, kv_ratio, log_0f1, log_iv
from tests.special import _reference
from tests.special._points import at, errors

pytestmark = pytest.mark.usefixtures("x64")

ORDERS = [0.0, 0.5, 1.0, 2.5, 13.0, 20.75, 100.0, 1023.0, 16383.0, 1e6]
ARGUMENTS = [2.0**-60, 2.0**-7, 0.75, 1.75, 6.5, 20.5, 180.0, 5000.0, 65536.0, 1e7]
DTYPES = {"float64": np.float64, "float32": np.float32}
SLOPES = {function: jax.jit(jax.vmap(jax.grad(function, (0, 1)))) for function in (iv_ratio, log_0f1)}


def grid(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    v, x = np.meshgrid(np.array(ORDERS, dtype), np.array(ARGUMENTS, dtype))
    return v.ravel(), x.ravel()


def exact_ratio(name: str, v: float, x: float) -> mp.mpf:
    """Of log I or log K at v + 1 and v."""
    function = getattr(_reference, f"log_{name}")
    return mp.exp(function(mp.mpf(v) + 1, mp.mpf(x)) - function(mp.mpf(v), mp.mpf(x)))


@cache
def exact_log_0f1(b: float, z: float) -> mp.mpf:
    b, z = mp.mpf(b), mp.mpf(z)
    if z < 1e4:
        return mp.log(mp.hyp0f1(b, z))
    return mp.loggamma(b) - (b - 1) * mp.log(z) / 2 + _reference.log_i(b - 1, 2 * mp.sqrt(z))


@pytest.fixture(scope="module")
def exact() -> dict[str, list[mp.mpf]]:
    """The same in either precision: all numbers of the grid are exact in float32."""
    v, x = grid(np.float64)
    with mp.workdps(60):
        found = {name: [exact_ratio(name, a, b) for a, b in zip(v, x, strict=True)] for name in "ik"}
        found["0f1"] = [exact_log_0f1(a + 1, b * b / 4) for a, b in zip(v, x, strict=True)]
    return found


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-15), ("float32", 2e-7)])
def test_iv_ratio(dtype, limit, exact):
    found = at(iv_ratio, *grid(DTYPES[dtype]))
    assert found.dtype == dtype
    assert errors(found, exact["i"], 0).max() < limit


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 2e-15), ("float32", 1e-6)])
def test_kv_ratio(dtype, limit, exact):
    found = at(kv_ratio, *grid(DTYPES[dtype]))
    assert found.dtype == dtype
    assert errors(found, exact["k"], 0).max() < limit


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 2e-15), ("float32", 1e-6)])
def test_log_0f1(dtype, limit, exact):
    """At the rounded `z`; the smallest values, about z / b, are below the normal numbers of float32."""
    v, x = grid(np.float64)
    b, z = (v + 1).astype(dtype), (x * x / 4).astype(dtype)
    with mp.workdps(60):
        values = [exact_log_0f1(p, q) for p, q in zip(b.astype(float), z.astype(float), strict=True)]
    found = at(log_0f1, b, z)
    assert found.dtype == dtype
    assert errors(found, values, 1e-30).max() < limit


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-14), ("float32", 2e-6)])
def test_log_0f1_at_lower_parameters_below_one(dtype, limit):
    """Order in (-1, 0), down to where the terms of the series are of the size of 1 / b."""
    b, z = (a.ravel() for a in np.meshgrid([2.0**-40, 2.0**-10, 0.25, 0.5, 0.75], [2.0**-10, 0.25, 30.0, 105.0, 3000]))
    with mp.workdps(60):
        exact = [exact_log_0f1(p, q) for p, q in zip(b, z, strict=True)]
        slopes = [difference(exact_log_0f1, p, q, 0) for p, q in zip(b, z, strict=True)]
    b, z = b.astype(dtype), z.astype(dtype)
    assert errors(at(log_0f1, b, z), exact, 0).max() < limit
    assert errors(at(SLOPES[log_0f1], b, z)[0], slopes, 1).max() < 10 * limit


def test_log_0f1_is_continuous_at_every_switch():
    """Radius 21 and z = 8 b end the power series; at order 8 Stirling's series begins."""
    z = np.array([110.25, 8 * 100.0, 8 * 1e4, 200.0, 1e6])
    b = np.array([1.0, 100.0, 1e4, 9.0, 9.0])
    z_sides = np.stack([z * (1 - 4e-16), z * (1 + 4e-16)])
    b_sides = np.stack([np.nextafter(b, 0), np.nextafter(b, 1e9)])
    for arguments in ((b, z_sides), (b_sides, z)):
        for found in (at(log_0f1, *arguments), *at(SLOPES[log_0f1], *arguments)):
            assert np.max(np.abs(found[0] - found[1]) / np.abs(found[0])) < 2e-14


def test_the_ratio_in_single_precision_at_random_points():
    """Against itself in float64, which the other tests hold against exact numbers; every seed passes."""
    generator = np.random.default_rng(3)
    v = np.concatenate([generator.uniform(0, 45, 10_000), 10 ** generator.uniform(-3, 6, 10_000)])
    x = 10 ** np.concatenate([generator.uniform(-3, 3, 10_000), generator.uniform(-8, 7, 10_000)])
    v, x = v.astype(np.float32), x.astype(np.float32)
    exact = at(iv_ratio, v.astype(float), x.astype(float))
    assert np.max(np.abs(at(iv_ratio, v, x) / exact - 1)) < 2e-7


@pytest.mark.slow
def test_ratios_at_fresh_points(request):
    """Of log I and log K by mpmath at v and v + 1, for v up to 1e6 and x up to 1e7."""
    generator = np.random.default_rng(request.config.option.seed)
    v = np.concatenate([generator.uniform(0, 30, 1000), 10 ** generator.uniform(-3, 6, 1000)])
    x = 10 ** np.concatenate([generator.uniform(-2, 2, 1000), generator.uniform(-8, 7, 1000)])
    with mp.workdps(60):
        for name, function, limit in (("i", iv_ratio, 1e-15), ("k", kv_ratio, 3e-15)):
            exact = [exact_ratio(name, a, b) for a, b in zip(v, x, strict=True)]
            assert errors(at(function, v, x), exact, 0).max() < limit


def difference(function: Callable[[mp.mpf, mp.mpf], mp.mpf], v: float, x: float, argument: int) -> mp.mpf:
    """The derivative of a function of mpmath numbers in one argument."""
    first, second = mp.mpf(v), mp.mpf(x)
    step = (first, second)[argument] * mp.mpf(10) ** -12
    a, b = (step, 0) if argument == 0 else (0, step)
    return (function(first + a, second + b) - function(first - a, second - b)) / (2 * step)


def test_derivatives_of_ratios_and_log_0f1():
    """Far out, too, where differences of numbers near 1 would leave nothing: A' ~ (v + 1/2) / x^2."""
    v, x = np.array([0.5, 0.5, 3.0, 50.0, 1e4, 2.0]), np.array([1e-3, 1e6, 7.0, 60.0, 3e4, 1e7])
    pairs = list(zip(v.tolist(), x.tolist(), strict=True))
    for ours, exact in ((iv_ratio, partial(exact_ratio, "i")), (log_0f1, exact_log_0f1)):
        by_v, by_x = at(SLOPES[ours], v, x)
        with mp.workdps(60):
            for slope, argument in ((by_v, 0), (by_x, 1)):
                differences = [difference(exact, *pair, argument) for pair in pairs]
                assert errors(slope, differences, 0).max() < 1e-13


def test_planted_bugs_are_caught(exact):
    v, x = grid(np.float64)
    naive = np.exp(np.asarray(log_iv(v + 1, x, reflect=False) - log_iv(v, x, reflect=False)))
    assert errors(naive, exact["i"], 0).max() > 1e-11
    split = np.asarray(log_iv(v, x, reflect=False)) + scipy.special.gammaln(v + 1) - v * np.log(x / 2)
    assert errors(split, exact["0f1"], 0).max() > 1e-6
