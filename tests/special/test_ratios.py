# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""Ratios of neighbouring orders and log 0F1 against mpmath at 60 digits, at points that are exact in either precision.

Planted bugs: the ratio as the exponential of a difference of logarithms, log 0F1 from log I and log Gamma.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special

from probinf.special import iv_ratio, kv_ratio, log_0f1, log_iv
from tests.special import _reference
from tests.special._points import errors

pytestmark = pytest.mark.usefixtures("x64")

ORDERS = [0.0, 0.5, 1.0, 2.5, 13.0, 20.75, 100.0, 1023.0, 16383.0, 1e6]
ARGUMENTS = [2.0**-60, 2.0**-7, 0.75, 1.75, 6.5, 20.5, 180.0, 5000.0, 65536.0, 1e7]
DTYPES = {"float64": np.float64, "float32": np.float32}


def grid(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    v, x = np.meshgrid(np.array(ORDERS, dtype), np.array(ARGUMENTS, dtype))
    return v.ravel(), x.ravel()


def exact_ratio(name: str, v: float, x: float) -> mp.mpf:
    """Of log I or log K at v + 1 and v."""
    function = getattr(_reference, f"log_{name}")
    return mp.exp(function(mp.mpf(v) + 1, mp.mpf(x)) - function(mp.mpf(v), mp.mpf(x)))


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
    found = np.asarray(iv_ratio(*grid(DTYPES[dtype])))
    assert found.dtype == dtype
    assert errors(found, exact["i"], 0).max() < limit


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 2e-15), ("float32", 1e-6)])
def test_kv_ratio(dtype, limit, exact):
    found = np.asarray(kv_ratio(*grid(DTYPES[dtype])))
    assert found.dtype == dtype
    assert errors(found, exact["k"], 0).max() < limit


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 2e-15), ("float32", 1e-6)])
def test_log_0f1(dtype, limit, exact):
    """At the rounded `z`; the smallest values, about z / b, are below the normal numbers of float32."""
    v, x = grid(np.float64)
    b, z = (v + 1).astype(dtype), (x * x / 4).astype(dtype)
    with mp.workdps(60):
        values = [exact_log_0f1(p, q) for p, q in zip(b.astype(float), z.astype(float), strict=True)]
    found = np.asarray(log_0f1(b, z))
    assert found.dtype == dtype
    assert errors(found, values, 1e-30).max() < limit


def test_log_0f1_at_lower_parameters_below_one():
    """b in (0, 1) is order in (-1, 0): the elementary 0F1(1/2; z) = cosh(2 sqrt z), and SciPy."""
    z = np.array([0.0, 1e-9, 0.3, 30.0, 3000.0])
    x = 2 * np.sqrt(z)
    np.testing.assert_allclose(log_0f1(0.5, z), x + np.log1p(np.exp(-2 * x)) - np.log(2), rtol=2e-15, atol=1e-16)
    np.testing.assert_allclose(log_0f1(0.05, z[2:]), np.log(scipy.special.hyp0f1(0.05, z[2:])), rtol=1e-12)


def difference(function: Callable[[mp.mpf, mp.mpf], mp.mpf], v: float, x: float, argument: int) -> mp.mpf:
    """The derivative of a function of mpmath numbers in one argument."""
    first, second = mp.mpf(v), mp.mpf(x)
    step = (first, second)[argument] * mp.mpf(10) ** -12
    a, b = (step, 0) if argument == 0 else (0, step)
    return (function(first + a, second + b) - function(first - a, second - b)) / (2 * step)


def test_derivatives_of_ratios_and_log_0f1():
    """Far out, too, where differences of numbers near 1 would leave nothing: A' ~ (v + 1/2) / x^2."""
    v, x = jnp.array([0.5, 0.5, 3.0, 50.0, 1e4, 2.0]), jnp.array([1e-3, 1e6, 7.0, 60.0, 3e4, 1e7])
    pairs = list(zip(v.tolist(), x.tolist(), strict=True))
    for ours, exact in ((iv_ratio, partial(exact_ratio, "i")), (log_0f1, exact_log_0f1)):
        by_v, by_x = jax.jit(jax.vmap(jax.grad(ours, (0, 1))))(v, x)
        with mp.workdps(60):
            for slope, argument in ((by_v, 0), (by_x, 1)):
                differences = [difference(exact, *pair, argument) for pair in pairs]
                assert errors(np.asarray(slope), differences, 0).max() < 1e-13


def test_planted_bugs_are_caught(exact):
    v, x = grid(np.float64)
    naive = np.exp(np.asarray(log_iv(v + 1, x, reflect=False) - log_iv(v, x, reflect=False)))
    assert errors(naive, exact["i"], 0).max() > 1e-11
    split = np.asarray(log_iv(v, x, reflect=False)) + scipy.special.gammaln(v + 1) - v * np.log(x / 2)
    assert errors(split, exact["0f1"], 0).max() > 1e-6
