"""The microcanonical flow against its differential equation, its determinant against automatic differentiation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._target import Target
from probinf.samplers._factor import factor_of
from probinf.samplers._hmc import force, hmc
from probinf.samplers._microcanonical import INTEGRATORS, Flow, norm, partly_refreshed, trajectory, turn

with_every_integrator = pytest.mark.parametrize("integrator", INTEGRATORS)
START = jnp.array([0.4, -0.7, 0.2])


def skewed(x: Any) -> Any:
    """Correlated, and a different tail on each side."""
    return 2 * x[0] - jnp.exp(x[0]) - 0.5 * (x[1] - jnp.tanh(x[0])) ** 2 - 0.3 * (x[2] - 0.8 * x[1]) ** 2


TARGET = Target(skewed)


def flow_at(x: Any, u: Any, factor: Any = None) -> Flow:
    point = jax.jit(lambda x: hmc().init(jax.random.key(0), TARGET, x))(x).point
    return Flow(point, u, force(TARGET, factor, point), jnp.zeros((), x.dtype))


def solved(x: np.ndarray, u: np.ndarray, lower: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    """The differential equation, by the method of Runge and Kutta in steps of 1/400."""
    gradient = jax.jit(jax.grad(skewed))

    def slope(y: np.ndarray) -> np.ndarray:
        x, u = y[:3], y[3:]
        g = lower.T @ np.asarray(gradient(jnp.asarray(x)))
        return np.concatenate([lower @ u, (g - u * (u @ g)) / 2])

    y, h = np.concatenate([x, u]), 1 / 400
    for _ in range(round(time / h)):
        a = slope(y)
        b = slope(y + h / 2 * a)
        c = slope(y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c))
    return y[:3], y[3:]


MATRIX = [[1.0, 0.4, 0.0], [0.4, 0.7, 0.1], [0.0, 0.1, 2.0]]
ODE_CASES = [
    ("minimal norm", MATRIX),
    ("leapfrog", None),
    pytest.param("minimal norm", None, marks=pytest.mark.slow),
    pytest.param("leapfrog", MATRIX, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("integrator", "matrix"), ODE_CASES)
def test_integrator_solves_the_differential_equation(integrator: str, matrix: Any, x64: None) -> None:
    factor = None if matrix is None else factor_of("matrix", jnp.asarray(matrix))
    x, u = np.array([0.4, -0.7, 0.2]), np.array([2.0, -1.0, 2.0]) / 3
    there, way = solved(x, u, np.eye(3) if factor is None else np.asarray(factor), 1.0)
    start = flow_at(jnp.asarray(x), jnp.asarray(u), factor)
    run = jax.jit(lambda e, n: trajectory(TARGET, factor, e, n, integrator, start))
    errors, energies = [], []
    for num_steps in (20, 40):
        end = run(jnp.float64(1 / num_steps), jnp.int32(num_steps))
        np.testing.assert_allclose(norm(end.u), 1, rtol=1e-14)
        errors.append(np.max(np.abs(np.concatenate([end.point.position - there, end.u - way]))))
        energies.append(abs(float(end.kinetic - (skewed(end.point.position) - skewed(jnp.asarray(x))))))
    assert errors[1] < 5e-4
    assert 3.7 < errors[0] / errors[1] < 4.3
    assert 3.5 < energies[0] / energies[1] < 4.5


@with_every_integrator
def test_flow_is_reversed_to_rounding(integrator: str, x64: None) -> None:
    @jax.jit
    def run(flow: Flow) -> Flow:
        return trajectory(TARGET, None, jnp.float64(0.3), jnp.int32(7), integrator, flow)

    start = flow_at(START.astype(float), jnp.array([2.0, -1.0, 2.0]) / 3)
    there = run(start)
    back = run(there._replace(u=-there.u))
    np.testing.assert_allclose(back.point.position, start.point.position, atol=1e-13)
    np.testing.assert_allclose(back.u, -start.u, atol=1e-13)
    np.testing.assert_allclose(back.kinetic, 0, atol=1e-13)


@pytest.mark.parametrize("dimension", [2, 5])
def test_turn_is_the_textbook_formula_and_its_determinant(dimension: int, key: Any, x64: None) -> None:
    """Also against automatic differentiation, in coordinates of the sphere at both ends."""

    def tangents(u: Any) -> Any:
        return np.linalg.svd(np.asarray(u)[None])[2][1:].T

    @jax.jit
    @jax.vmap
    def derivative(u: Any, pull: Any, epsilon: Any) -> Any:
        return turn(u, pull, epsilon), jax.jacfwd(lambda v: turn(v / jnp.linalg.norm(v), pull, epsilon)[0])(u)

    times = np.array([1e-4, 0.3, 0.7, 3.0, 8.0])
    u, pull = np.array(jax.random.normal(key, (2, 5, dimension)))
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    (new, change), jacobian = derivative(jnp.asarray(u), jnp.asarray(pull), jnp.asarray(times))
    size = np.linalg.norm(pull, axis=1)
    a, delta = pull / size[:, None], times * size / (dimension - 1)
    c = np.sum(a * u, axis=1)
    divisor = np.cosh(delta) + c * np.sinh(delta)
    expected = u + a * (np.sinh(delta) + c * (np.cosh(delta) - 1))[:, None]
    np.testing.assert_allclose(new, expected / divisor[:, None], atol=1e-10)
    np.testing.assert_allclose(change, (dimension - 1) * np.log(divisor), rtol=1e-9)
    for i in range(len(times)):
        _, log_det = np.linalg.slogdet(tangents(new[i]).T @ np.asarray(jacobian[i]) @ tangents(u[i]))
        np.testing.assert_allclose(log_det, -change[i], rtol=1e-6, atol=1e-12)


def test_turn_at_its_ends() -> None:
    u, across = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])
    cases = [
        (0 * u, u, 0.0),
        (256 * u, u, 256.0),
        (-256 * u, u, -256.0),  # no torque at the far pole
        (-(2.0**100) * u, u, -(2.0**100)),
        (1e30 * across, across, 1e30),
        (1e-30 * across, u, 0.0),
    ]
    pulls = jnp.stack([pull for pull, _, _ in cases])
    new, found = jax.jit(jax.vmap(lambda pull: turn(u, pull, jnp.float32(1.0))))(pulls)
    np.testing.assert_allclose(new, np.stack([expected for _, expected, _ in cases]), atol=1e-6)
    np.testing.assert_allclose(found, [change for _, _, change in cases], rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.jacfwd(lambda p: turn(u, p, jnp.float32(1.0))[0]))(jnp.zeros(3))))
    lengths = jax.jit(jax.vmap(norm))(jnp.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0], [jnp.nan, 1], [jnp.inf, 1]]))
    np.testing.assert_allclose(lengths, [5e30, 5e-30, 0, np.nan, np.inf], rtol=1e-6)


def test_refreshment_forgets_as_stated(key: Any) -> None:
    """E u'u is about exp(-epsilon / length); no refreshment and a full one are exact."""
    u, noise = jnp.full(500, 500**-0.5), jax.random.normal(key, (4000, 500))
    some = jax.jit(jax.vmap(lambda n: partly_refreshed(u, n, jnp.float32(0.7), jnp.float32(1.0))))(noise)
    # The deviation of u'u is under 1 / sqrt(500), and its mean is off by a term of order 1 / 500.
    assert abs(float(jnp.mean(some @ u)) - np.exp(-0.7)) < 6 / np.sqrt(500 * 4000) + 2 / 500
    np.testing.assert_allclose(jnp.linalg.norm(some, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(partly_refreshed(u, noise[0], jnp.float32(1.0), jnp.float32(jnp.inf)), u, rtol=1e-5)
    fresh = partly_refreshed(u, noise[0], jnp.float32(1.0), jnp.float32(1e-30))
    np.testing.assert_allclose(fresh, noise[0] / jnp.linalg.norm(noise[0]), rtol=1e-5, atol=1e-7)
