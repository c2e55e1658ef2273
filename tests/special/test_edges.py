"""Edges of the domain, dtypes, shapes, transformations and devices."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from probinf.special import iv_ratio, kv_ratio, log_0f1, log_iv, log_ive, log_kv, log_kve
from probinf.special._arguments import common
from tests._processes import finish_worker, start_worker
from tests.special._points import at

INF, NAN = math.inf, math.nan
FUNCTIONS = {
    "log_iv": log_iv,
    "log_ive": log_ive,
    "log_kv": log_kv,
    "log_kve": log_kve,
    "iv_ratio": iv_ratio,
    "kv_ratio": kv_ratio,
    "log_0f1": log_0f1,
}
# (v or b, x or z, log_iv, log_ive, log_kv, log_kve, iv_ratio, kv_ratio, log_0f1)
EDGES = [
    (0.0, 0.0, 0, 0, INF, INF, 0, INF, NAN),
    (1.0, 0.0, -INF, -INF, INF, INF, 0, INF, 0),
    (1e6, 0.0, -INF, -INF, INF, INF, 0, INF, 0),
    (-0.5, 0.0, INF, INF, INF, INF, 0, 1, NAN),
    (-1.0, 0.0, -INF, -INF, INF, INF, INF, 0, NAN),
    (-2.0, 0.0, -INF, -INF, INF, INF, NAN, 0, NAN),
    (0.0, INF, INF, -INF, -INF, -INF, 1, 1, NAN),
    (2.5, INF, INF, -INF, -INF, -INF, 1, 1, INF),
    (INF, 1.0, -INF, -INF, INF, INF, 0, INF, 0),
    (INF, 0.0, -INF, -INF, INF, INF, 0, INF, 0),
    (INF, INF, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (1.0, -1.0, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (NAN, 1.0, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (1.0, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (0.0, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (NAN, 0.0, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (INF, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
]


BOXES = {"float64": (1e-300, 1e300), "float32": (1e-37, 1e37)}


KINDS = [(name, dtype) for name in FUNCTIONS for dtype in BOXES if name[-1] != "e" or dtype == "float64"]


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_edges_and_the_whole_box(name, dtype, x64):
    """The limits at the edges, and a finite number everywhere within, except for ratios that overflow."""
    column = 2 + list(FUNCTIONS).index(name)
    first, second, expected = (np.array([row[i] for row in EDGES], dtype) for i in (0, 1, column))
    orders = [0.1, 0.5, 1, 20.9, 1e3, 1e6] if name == "log_0f1" else [0, 1e-30, 1e-3, 0.5, 1, 20.9, 1e3, 1e6]
    v, x = np.meshgrid(orders, [BOXES[dtype][0], 1e-30, 1e-8, 0.1, 2, 20, 700, 1e8, 1e30, BOXES[dtype][1]])
    joined = [np.concatenate([a, b.ravel().astype(dtype)]) for a, b in ((first, v), (second, x))]
    found = at(FUNCTIONS[name], *joined)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[: len(EDGES)], expected)
    inner = found[len(EDGES) :]
    overflow = (2 * v / x).ravel() > np.finfo(dtype).max if name == "kv_ratio" else np.zeros(inner.shape, bool)
    assert np.all(np.isfinite(inner) | overflow)


def test_orders_and_arguments_of_any_size(x64):
    """Beyond the box the leading terms remain: v log(2v/x) - v for v >> x."""
    v, x = 1e250, 1e-200
    leading = -v * (math.log(2 * v) - math.log(x) - 1)
    np.testing.assert_allclose(at(log_iv, v, x), leading, rtol=1e-14)
    np.testing.assert_allclose(at(log_kv, v, x), -leading, rtol=1e-14)
    np.testing.assert_allclose(at(log_kv, -v, x), -leading, rtol=1e-14)


def test_negative_orders(x64):
    """K is even; I against SciPy's reflection where its value is positive, NaN where it is negative."""
    orders = [-0.3, -0.5, -0.999, -1.0, -1.5, -2.0, -2.5, -3.7, -20.2, -30.5, -41.0]
    v, x = (a.ravel() for a in np.meshgrid(orders, [0.2, 1.7, 4.0, 15.0, 30.0]))
    with np.errstate(invalid="ignore"):
        exact, scaled = np.log(scipy.special.iv(v, x)), np.log(scipy.special.ive(v, x))
    assert np.isnan(exact).sum() == 3
    # Near a zero of I the relative error of SciPy's own value grows.
    first = at(log_iv, v, x)
    np.testing.assert_allclose(first, exact, rtol=2e-13, atol=2e-13)
    np.testing.assert_allclose(at(log_ive, v, x), scaled, rtol=2e-13, atol=2e-13)
    whole = v == np.round(v)
    np.testing.assert_allclose(first[whole], at(log_iv, -v, x)[whole], rtol=1e-15)
    assert np.array_equal(np.isnan(at(partial(log_iv, reflect=False), v, x)), v <= -1)
    np.testing.assert_array_equal(at(log_kv, v, x), at(log_kv, -v, x))


def test_ratios_at_negative_orders(x64):
    """Both of a pair, in either order, and the elementary ones of order -1/2."""
    x = np.array([0.2, 1.7, 4.0, 15.0, 30.0])
    np.testing.assert_allclose(at(iv_ratio, -0.5, x), np.tanh(x), rtol=1e-15)
    np.testing.assert_allclose(at(iv_ratio, -1.0, x), 1 / at(iv_ratio, 0.0, x), rtol=1e-15)
    np.testing.assert_allclose(at(kv_ratio, -0.5, x), np.ones_like(x), rtol=2e-15)
    np.testing.assert_allclose(at(kv_ratio, -3.7, x), 1 / at(kv_ratio, 2.7, x), rtol=1e-14)


@pytest.mark.slow
def test_derivatives_at_negative_orders(x64):
    """d/dv through the reflection, against differences of SciPy; also at an integer, where the sine vanishes."""
    v, x, step = np.array([-0.4, -2.5, -3.0]), np.array([1.3, 3.0, 2.0]), 1e-6
    below, above = (np.log(scipy.special.iv(v + sign * step, x)) for sign in (-1, 1))
    by_v = jax.jit(jax.vmap(jax.grad(log_iv)))(v, x)
    np.testing.assert_allclose(by_v, (above - below) / (2 * step), rtol=1e-7)


def slopes(function, first, second) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives in both arguments, item by item, in one program."""

    def both(v, x):
        one = jnp.ones_like(v)
        by_first = jax.jvp(lambda a: function(a, x), (v,), (one,))[1]
        return by_first, jax.jvp(lambda a: function(v, a), (x,), (one,))[1]

    by_first, by_second = jax.jit(both)(jnp.array(first), jnp.array(second))
    return np.asarray(by_first), np.asarray(by_second)


@pytest.mark.slow
def test_derivatives_at_the_edges(x64):
    v, x = [0.0, 2.0, 2.0, INF, -0.5, NAN, 1.0, 0.0], [0.0, 0.0, INF, 1.0, 0.0, 1.0, -1.0, 3.0]
    by_v, by_x = slopes(partial(log_iv, reflect=False), v, x)
    np.testing.assert_array_equal(by_v[:7], [-INF, -INF, 0, -INF, -INF, NAN, NAN])
    np.testing.assert_array_equal(by_x[:7], [0, INF, 1, INF, -INF, NAN, NAN])
    _, by_x = slopes(partial(log_ive, reflect=False), v, x)
    np.testing.assert_array_equal(by_x[:7], [-1, INF, 0, INF, -INF, NAN, NAN])
    by_v, by_x = slopes(log_kv, v, x)
    np.testing.assert_array_equal(by_v, [0, INF, 0, INF, -INF, NAN, NAN, 0])
    np.testing.assert_array_equal(by_x[:7], [-INF, -INF, -1, -INF, -INF, NAN, NAN])


@pytest.mark.slow
def test_ratios_are_differentiable_at_zero(x64):
    v = np.array([0.0, 2.0, 30.0, 1e6])
    zero = np.zeros(4)
    np.testing.assert_allclose(slopes(iv_ratio, v, zero)[1], 1 / (2 * (v + 1)), rtol=1e-15)
    by_b, by_z = slopes(log_0f1, v + 1, zero)
    np.testing.assert_array_equal(by_b, 0)
    np.testing.assert_allclose(by_z, 1 / (v + 1), rtol=1e-15)
    curvature = slopes(lambda b, z: jax.jvp(lambda a: log_0f1(b, a), (z,), (jnp.ones_like(z),))[1], v + 1, zero)[1]
    np.testing.assert_allclose(curvature, -1 / ((v + 1) ** 2 * (v + 2)), rtol=1e-12)
    first = partial(log_iv, reflect=False)
    twice = slopes(
        lambda v, x: jax.jvp(lambda a: first(v, a), (x,), (jnp.ones_like(x),))[1], [0.0] * 3, [0, 1e-200, 1e-9]
    )
    np.testing.assert_allclose(twice[1], 0.5, rtol=1e-15)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes_and_shapes(name):
    def kind(*arguments):
        return jax.eval_shape(lambda: FUNCTIONS[name](*arguments))

    assert kind(jnp.ones((3, 1), jnp.float32), jnp.ones(4, jnp.int32)).shape == (3, 4)
    with jax.enable_x64(True):
        assert kind(1, 2).dtype == jnp.float64
        with pytest.raises(TypeError, match=r"floating dtypes differ .*convert one"):
            kind(jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float64))
    with pytest.raises(TypeError, match="is bfloat16, needed float32 or float64"):
        kind(jnp.ones(2, jnp.bfloat16), 1.0)
    with pytest.raises(TypeError, match="is complex64, needed float32 or float64"):
        kind(1.0, jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match=r"shapes do not broadcast: .*\(2,\), .*\(3,\)"):
        kind(jnp.ones(2), jnp.ones(3))


def test_arguments_take_one_dtype():
    """What every function does first with its arguments."""

    def kind(*arguments):
        return common(**dict(zip("vx", arguments, strict=True)))[0]

    assert kind(1, 2).dtype == jnp.float32
    assert kind(np.arange(1, 4), 2.5).dtype == jnp.float32
    assert kind(jnp.ones((0, 3)), 1.0).shape == (0, 3)
    with jax.enable_x64(True):
        assert kind(jnp.float32(1), 2.0).dtype == jnp.float32
        assert kind(np.arange(1, 4), jnp.ones(3, jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["log_iv", "log_0f1"])
def test_transformations_change_nothing(name):
    """Inside `vmap` over the arguments, and that inside `scan`."""
    function = FUNCTIONS[name]
    v, x = jnp.linspace(0.1, 30, 7), jnp.geomspace(0.01, 90, 7)
    plain = at(function, v, x)
    scanned = jax.lax.scan(lambda carry, one: (carry, jax.vmap(function, (None, 0))(*one)), 0, (v, x[:, None]))[1]
    np.testing.assert_allclose(scanned[:, 0], plain, rtol=1e-6)


WORKER = Path(__file__).with_name("_sharded_worker.py")


@pytest.mark.slow
def test_two_devices_give_the_same_bits():
    """Sharded inputs give outputs sharded alike, and derivatives too; no number changes."""
    process = start_worker(WORKER, flags="--xla_force_host_platform_device_count=2")
    output, complaints = finish_worker(process, seconds=300)
    assert output.split() == ["same"] * 3, complaints


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_programs_hold_no_callback_and_no_loop(name):
    """Also lowers for every platform; what compiles is independent of the numbers."""
    exported = jax.export.export(jax.jit(FUNCTIONS[name]), platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((5,), "float32"), jax.ShapeDtypeStruct((5,), "float32")
    )
    text = exported.mlir_module()
    assert "while" not in text
    assert "custom_call" not in text
