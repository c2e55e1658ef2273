# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""log I, log K and their exponentially scaled forms against exact values.

The error of a logarithm that crosses zero is measured against r = sqrt(v^2 + x^2), too: rounding the arguments changes
it by a rounding unit of that. `python -m pytest -m slow tests/special` makes 20,000 fresh points with mpmath at 60
digits (about a minute); `--seed N` makes others.

Planted bugs: 48 terms of the power series cut to 24, the branch x > 2 of K used at x = 0.1, the sign of the odd terms
of Debye's expansion forgotten.
"""

import csv
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy
import scipy.special

from probinf.special import _debye, _log_i, _near_k, _power_series, log_iv, log_ive, log_kv, log_kve
from tests.special import _reference
from tests.special._points import Points, at, errors

ENVIRONMENT = "PROBINF_LOG_BESSEL"
TABLE = Path(os.environ.get(ENVIRONMENT) or Path(__file__).parents[2].parent / "shared/reference/log_bessel.csv")
FUNCTIONS = {"I": log_iv, "K": log_kv}
SCALED = {"I": (log_ive, -1), "K": (log_kve, 1)}

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def points() -> Points:
    return Points()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_double_is_right_to_the_last_digits(name, points):
    found = at(FUNCTIONS[name], points.v, points.x)
    assert found.dtype == np.float64
    assert errors(found, points[name], np.maximum(1, points.radius)).max() < 1e-15
    moderate = points.radius < 100
    assert errors(found[moderate], np.array(points[name])[moderate], 1).max() < 2e-15


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_is_right_to_the_last_digits(name, points):
    v, x, exact, inside = points.single(name)
    found = at(FUNCTIONS[name], v, x)
    assert found.dtype == np.float32
    assert errors(found, exact, np.maximum(1, points.radius[inside])).max() < 1.2e-6


@pytest.mark.parametrize("name", SCALED)
def test_scaled_forms_do_not_take_the_difference(name, points):
    function, sign = SCALED[name]
    with mp.workdps(60):
        exact = [value + sign * mp.mpf(x) for value, x in zip(points[name], points.x, strict=True)]
    # The stored digits of the logarithm leave 30 after the point up to x = 1e6.
    rows = points.x < 1e7
    found = at(function, points.v, points.x)
    assert errors(found[rows], np.array(exact)[rows], np.maximum(1, points.v[rows])).max() < 2e-15
    far = np.array([1e15, 1e100, 1e300])
    leading = 0.5 * np.log((1 / (2 * np.pi) if name == "I" else np.pi / 2) / far)
    np.testing.assert_allclose(at(function, 2.5, far), leading, rtol=1e-15)


def test_order_zero_keeps_its_relative_accuracy_as_the_argument_vanishes():
    x = np.concatenate([10.0 ** np.arange(-8, 0.6, 0.5), [1e-40, 1e-150]])
    with mp.workdps(60):
        exact = [mp.log1p(mp.hyp0f1(1, mp.mpf(a) ** 2 / 4) - 1) if a > 1e-20 else mp.mpf(a) ** 2 / 4 for a in x]
    assert errors(at(log_iv, 0.0, x), exact, 0).max() < 1e-15
    single = x[x > 1e-15].astype(np.float32)
    with mp.workdps(60):
        exact = [mp.log(mp.hyp0f1(1, mp.mpf(float(a)) ** 2 / 4)) for a in single]
    assert errors(at(log_iv, 0, single), exact, 0).max() < 5e-7


def test_known_values():
    """Half-odd orders are elementary, and two values to 16 digits from Abramowitz and Stegun, tables 9.8 and 9.11."""
    x = np.array([0.1, 1.0, 5.0, 30.0, 700.0])
    np.testing.assert_allclose(at(log_kv, 0.5, x), 0.5 * np.log(np.pi / (2 * x)) - x, rtol=2e-15, atol=4e-16)
    exact = 0.5 * np.log(np.pi / (2 * x)) - x + np.log1p(1 / x)
    np.testing.assert_allclose(at(log_kv, 1.5, x), exact, rtol=1e-15, atol=4e-16)
    log_sinh = x + np.log(-np.expm1(-2 * x) / 2)
    np.testing.assert_allclose(at(log_iv, 0.5, x), 0.5 * np.log(2 / (np.pi * x)) + log_sinh, rtol=1e-15, atol=4e-16)
    np.testing.assert_allclose(np.exp(at(log_iv, 0, 1.0)), 1.2660658777520084, rtol=1e-15)
    np.testing.assert_allclose(np.exp(at(log_kv, 0, 1.0)), 0.4210244382407083, rtol=1e-15)


def test_the_boost_tables_of_scipy():
    """Values of the tables within the range of exp."""
    folder = Path(scipy.special.__file__).parent / "tests" / "data"
    if not (folder / "boost.npz").exists():
        pytest.skip("this SciPy comes without its tests")
    with np.load(folder / "boost.npz") as tables:
        for name, function in (("i", log_iv), ("k", log_kv)):
            kinds = [tables[f"bessel_{name}_{kind}_ipp-bessel_{name}_{kind}"] for kind in ("data", "int_data")]
            v, x, value = np.concatenate(kinds)[:, [0, 1, -1]].T
            used = (v >= 0) & (x > 0) & (value > 1e-300) & np.isfinite(value)
            assert used.sum() > 100
            np.testing.assert_allclose(at(function, v[used], x[used]), np.log(value[used]), rtol=1e-14, atol=1e-14)


@pytest.mark.slow
@pytest.mark.skipif(not TABLE.is_file(), reason=f"no {TABLE}: set {ENVIRONMENT} to a table log_bessel.csv to run this")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_of_an_interval_arithmetic(name):
    """513 points whose 45 digits were checked by Arb; the derivatives in it move the float32 reference."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    v, x = (np.array([float(row[field]) for row in rows]) for field in "vx")
    with mp.workdps(45):
        exact, by_x, by_v = (
            [mp.mpf(row[field]) for row in rows] for field in (f"log{name}", f"dlog{name}_dx", f"dlog{name}_dv")
        )
    function = FUNCTIONS[name] if name == "K" else partial(log_iv, reflect=False)
    assert errors(at(function, v, x), exact, 1).max() < 2e-15
    if name == "I":
        assert errors(at(function, v, x)[v == 0], np.array(exact)[v == 0], 0).max() < 1e-14
    single = [a.astype(np.float32) for a in (v, x)]
    moves = [(a.astype(np.float64) - b).astype(object) * mp.mpf(1) for a, b in ((single[0], v), (single[1], x))]
    moved = [f + a * f_v + b * f_x for f, f_v, f_x, a, b in zip(exact, by_v, by_x, *moves, strict=True)]
    assert errors(at(function, *single), moved, 1).max() < 1.2e-6
    for slope, argnum in ((by_v, 0), (by_x, 1)):
        gradient = at(jax.jit(jax.vmap(jax.grad(function, argnum))), v, x)
        assert errors(gradient, slope, 1).max() < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_twenty_thousand_fresh_points(name, request):
    """Half of them in the whole box, half in the middle where the methods meet."""
    generator = np.random.default_rng(request.config.option.seed)
    orders = 10 ** generator.uniform(-3, 6, 20_000)
    orders[::7] = np.round(orders[::7])
    orders[::50] = 0
    wide, middle = generator.uniform(-300, 300, 10_000), generator.uniform(-8, 8, 10_000)
    x = 10 ** np.concatenate([wide, middle])
    with mp.workdps(60):
        exact = [getattr(_reference, f"log_{name.lower()}")(a, b) for a, b in zip(orders, x, strict=True)]
    found = at(FUNCTIONS[name], orders, x)
    assert np.isfinite(found).all()
    assert errors(found, exact, np.maximum(1, np.hypot(orders, x))).max() < 2e-15


# --- planted bugs ---


def test_planted_bugs_are_caught(points, monkeypatch):
    near = points.radius < 21
    inside = points.v[near], points.x[near]

    def worst(function, name):
        return errors(np.asarray(function(*inside)), np.array(points[name])[near], 1).max()

    log_i, log_k = partial(jax.jit(_log_i.log_i, static_argnums=0), False), log_kv
    assert worst(partial(at, log_iv), "I") < 2e-15
    few = _power_series.precision(jnp.zeros(1))._replace(power=24)
    with monkeypatch.context() as patch:
        patch.setattr(_power_series, "precision", lambda _: few)
        jax.clear_caches()
        assert worst(log_i, "I") > 1e-13
    with monkeypatch.context() as patch:
        patch.setattr(_near_k, "SWITCH", 0.05)
        jax.clear_caches()
        assert worst(log_k, "K") > 1e-13
    series = _debye.series
    with monkeypatch.context() as patch:
        patch.setattr(_log_i, "series", lambda table, w, q, sign: series(table, w, q, -sign))
        jax.clear_caches()
        found = np.asarray(log_i(points.v, points.x))
        assert errors(found, points["I"], np.maximum(1, points.radius)).max() > 1e-5
    jax.clear_caches()
