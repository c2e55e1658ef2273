# mpmath tells other types than it takes and gives.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportReturnType=false, reportAssignmentType=false
"""First and second derivatives of log I and log K in order and argument, and what happens at every switch of method.

Planted bugs: the silent zero of other libraries for d/dv, and a value that jumps at radius 21 by 1e-13.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.special import _log_i, iv_ratio, kv_ratio, log_iv, log_kv
from tests.special._points import Points, at, errors

FUNCTIONS = {"I": partial(log_iv, reflect=False), "K": log_kv}
PARTS = ("", "_v", "_x", "_vv", "_vx", "_xx")

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def points() -> Points:
    return Points()


def slope_in(function: Callable[..., Any], argument: int) -> Callable[..., Any]:
    """The derivative in one argument of a function that works item by item, by forward mode."""

    def of(v, x):
        if argument == 0:
            return jax.jvp(lambda a: function(a, x), (v,), (jnp.ones_like(v),))[1]
        return jax.jvp(lambda a: function(v, a), (x,), (jnp.ones_like(x),))[1]

    return of


def sides() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of points [2, n] that are neighbours in float64 on both sides of a switch."""
    pairs = []
    for v in (0.0, 0.3, 4.2, 14.0, 20.5):
        # The radius that the function computes may round either way, so that the step is a few units wide.
        x = np.sqrt(441 - v * v)
        pairs.append(((v, x * (1 - 1e-15)), (v, x * (1 + 1e-15))))
    pairs += [((v, 2.0), (v, np.nextafter(2.0, 3))) for v in (0.0, 0.3, 0.5, 4.2, 14.0, 20.5)]
    for half in (0.5, 1.5, 6.5, 19.5):
        pairs += [((np.nextafter(half, 0), x), (np.nextafter(half, 99), x)) for x in (1e-9, 0.4, 2.5, 7.0)]
    first, second = (np.array([[pair[side][k] for pair in pairs] for side in (0, 1)]) for k in (0, 1))
    return first, second


@cache
def derivatives(name: str, parts: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """These derivatives, in one program."""
    function = FUNCTIONS[name]
    by_v, by_x = slope_in(function, 0), slope_in(function, 1)
    second = (slope_in(by_v, 0), slope_in(by_v, 1), slope_in(by_x, 1))
    known = dict(zip(PARTS, (function, by_v, by_x, *second), strict=True))
    return jax.jit(lambda v, x: {part: known[part](v, x) for part in parts})


def worst_errors(name: str, found: dict[str, np.ndarray], points: Points) -> dict[str, float]:
    """Of each part; with a slash, relative to the exact number however small, for derivatives in x alone."""
    worst = {part: errors(f, points[name + part], 1).max() for part, f in found.items()}
    # Far out the derivatives of log I in x are the differences of numbers of the size of 1 / x.
    rows = points.x < 1e7
    for part in found.keys() & {"_x", "_xx"}:
        worst[part + "/"] = errors(found[part][rows], np.array(points[name + part])[rows], 0).max()
    return worst


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives_are_right_and_continuous(name, points):
    both = derivatives(name, PARTS[1:3])
    found, beside = at(both, points.v, points.x), at(both, *sides())
    worst = worst_errors(name, found, points)
    assert max(worst.values()) < 1e-13, worst
    assert max(jump(beside[part]) for part in ("_v", "_x")) < 1e-13
    # The steps are a unit or a few in the last place wide, and the value changes by the slope times that.
    v, x = sides()
    change = beside["_v"][0] * (v[1] - v[0]) + beside["_x"][0] * (x[1] - x[0])
    values = at(FUNCTIONS[name], v, x)
    scale = np.maximum(np.maximum(1, np.abs(values[0])), np.hypot(v[0], x[0]))
    assert np.max(np.abs(values[1] - values[0] - change) / scale) < 2e-15


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_right_and_continuous(name, points):
    both = derivatives(name, PARTS[3:])
    found, beside = at(both, points.v, points.x), at(both, *sides())
    worst = worst_errors(name, found, points)
    assert max(worst.values()) < 1e-10, worst
    assert max(map(jump, beside.values())) < 1e-11


def jump(found: Any) -> float:
    return float(np.max(np.abs(found[0] - found[1]) / np.maximum(1, np.abs(found[0]))))


@pytest.mark.slow
def test_orders_below_zero_mirror_those_above(points):
    """log K is even: its first derivative in v is odd, 0 at 0, and so is the mixed one."""
    v, x = points.v[:40], points.x[:40]
    by_v = slope_in(log_kv, 0)
    for function, sign in ((log_kv, 1), (by_v, -1), (slope_in(log_kv, 1), 1), (slope_in(by_v, 1), -1)):
        above, below = jax.jit(lambda v, x, f=function: (f(v, x), f(-v, x)))(v, x)
        np.testing.assert_allclose(above, sign * below, rtol=1e-14)
        assert sign == 1 or np.all(above[v == 0] == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_reverse_and_forward_mode_agree(name):
    function = FUNCTIONS[name]
    v, x = jnp.array([0.3, 4.0, 30.0]), jnp.array([1.0, 7.0, 50.0])
    reverse = jax.jit(jax.vmap(jax.grad(function, (0, 1))))(v, x)
    forward = jax.jit(lambda v, x: [slope_in(function, argument)(v, x) for argument in (0, 1)])(v, x)
    np.testing.assert_allclose(reverse, forward, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_hessians_are_right(name, points):
    rows = slice(10, 40, 7)
    v, x = points.v[rows], points.x[rows]
    found = jax.jit(jax.vmap(jax.hessian(lambda both: FUNCTIONS[name](*both))))(jnp.stack([v, x], -1))
    for part, (i, j) in {"_vv": (0, 0), "_vx": (0, 1), "_xx": (1, 1)}.items():
        assert errors(np.asarray(found[:, i, j]), points[name + part][rows], 1).max() < 1e-10
        np.testing.assert_allclose(found[:, i, j], found[:, j, i], rtol=1e-10)


def compare_precisions(name: str, parts: tuple[str, ...], limit: float) -> None:
    """float32 against float64 at random pairs, many of them with an order beside the largest of the power series."""
    generator = np.random.default_rng(4)
    orders = [0.0, 0.5, 20.45, 20.95, *generator.uniform(0, 21, 40), *10 ** generator.uniform(-3, 6, 20)]
    v, x = (a.ravel().astype(np.float32) for a in np.meshgrid(orders, 10 ** np.linspace(-15, 6, 24)))
    both = derivatives(name, parts)
    found, exact = at(both, v, x), at(both, v.astype(float), x.astype(float))
    for part in parts:
        assert found[part].dtype == np.float32
        held = np.abs(exact[part]) < 1e38
        error = np.abs(found[part] - exact[part]) / np.maximum(np.abs(exact[part]), 1)
        assert np.all(error[held] < limit), (part, v[held][error[held].argmax()], x[held][error[held].argmax()])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_in_single_precision(name):
    compare_precisions(name, PARTS[1:3], 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_in_single_precision(name):
    compare_precisions(name, PARTS[3:], 2e-3)


# At (v, x) = (2.3, 1.5), (9.2, 6), (40, 30), by differences of 1e-10 in 60 digits of mpmath.
THIRD = {
    "I_vvv": (0.09924542370182421, 0.006969538473410814, 0.0003226043778843307),
    "I_xxx": (1.343409619289101, 0.0826808697648096, 0.002804468645200821),
    "K_vvv": (-0.08812920182837855, -0.006731614442679232, -0.0003169827437460077),
    "K_xxx": (-1.264993066984003, -0.08121252647626966, -0.002789507813664964),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", THIRD)
def test_third_derivatives_are_right(name):
    function = FUNCTIONS[name[0]]
    for _ in range(3):
        function = slope_in(function, "vx".index(name[-1]))
    found = jax.jit(function)(jnp.array([2.3, 9.2, 40.0]), jnp.array([1.5, 6.0, 30.0]))
    np.testing.assert_allclose(found, THIRD[name], rtol=1e-10)


@pytest.mark.parametrize("function", [iv_ratio, kv_ratio], ids=["iv_ratio", "kv_ratio"])
def test_ratios_are_continuous_at_every_switch(function):
    assert jump(at(function, *sides())) < 4e-15


def test_values_grow_or_fall_in_the_argument():
    """log I and both ratios' relations are monotone in x; steps of 1e-4 are far above rounding."""
    x = np.concatenate([np.geomspace(1e-3, 1e3, 2001), np.linspace(1.99, 2.01, 201), np.linspace(20.9, 21.1, 201)])
    x = np.unique(x)
    for v in (0.0, 0.5, 3.3, 20.0, 500.0):
        assert np.all(np.diff(at(log_iv, v, x)) > 0)
        assert np.all(np.diff(at(log_kv, v, x)) < 0)
        assert np.all(np.diff(at(iv_ratio, v, x)) > 0)
        assert np.all(np.diff(at(kv_ratio, v, x)) < 0)


# --- planted bugs ---


def test_planted_bugs_are_caught(points, monkeypatch):
    rows = slice(8, 40)
    v, x = points.v[rows], points.x[rows]

    @jax.custom_jvp
    def silent(v, x):
        return log_iv(v, x, reflect=False)

    silent.defjvp(lambda primals, tangents: (silent(*primals), jnp.zeros_like(tangents[0])))
    found = np.asarray(jax.jit(slope_in(silent, 0))(v, x))
    assert errors(found, points["I_v"][rows], 1).max() > 0.1
    far = _log_i.far

    def jumping(v, x):
        lanes = far(v, x)
        return lanes._replace(r=lanes.r * (1 + 1e-13))

    monkeypatch.setattr(_log_i, "far", jumping)
    v, x = map(jnp.asarray, sides())
    found = jax.jit(lambda v, x: _log_i.log_i(False, v, x))(v, x)
    scale = np.maximum(np.maximum(1, np.abs(found[0])), np.hypot(v[0], x[0]))
    assert np.max(np.abs(found[0] - found[1]) / scale) > 2e-14
