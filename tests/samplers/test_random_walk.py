"""`random_walk`: proposals, acceptance, settings. Laws shared by all kernels: `test_kernels`.

Planted bug that must be caught: a proposal whose covariance is the square of what was asked
(`test_proposals_have_the_covariance`).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers._factor import times, transposed_times
from probinf.samplers._random_walk import random_walk

FLAT = Target(lambda x: jnp.zeros(()) * jnp.sum(x))
COVARIANCE = np.array([[2.0, 0.6], [0.6, 0.5]])


def displacements(key: Any, kernel: Any, num: int = 40_000) -> np.ndarray:
    state = kernel.init(jax.random.key(0), FLAT, jnp.zeros(2))
    step = jax.jit(jax.vmap(lambda k: kernel.step(k, FLAT, state)[0].position))
    return np.asarray(step(jax.random.split(key, num)), np.float64)


@pytest.mark.parametrize("covariance", [None, np.diagonal(COVARIANCE), COVARIANCE], ids=["none", "diagonal", "dense"])
def test_proposals_have_the_covariance(covariance: Any, key: Any) -> None:
    kernel = random_walk(1.3, covariance=None if covariance is None else jnp.asarray(covariance, jnp.float32))
    expected = np.eye(2) if covariance is None else np.diag(covariance) if covariance.ndim == 1 else covariance
    moved = displacements(key, kernel)
    # Each entry of a Gaussian covariance of n draws has standard error at most sqrt(2 / n) of its diagonal; 6 of them.
    tolerance = 6 * np.sqrt(2 / len(moved)) * 1.69 * expected.max()
    np.testing.assert_allclose(np.cov(moved.T), 1.69 * expected, atol=tolerance)
    assert np.abs(np.cov(moved.T) - 1.69**2 * expected).max() > tolerance


def test_acceptance_by_hand() -> None:
    target = Target(lambda x: -0.5 * jnp.sum(x * x))
    kernel = random_walk(0.8)
    state = kernel.init(jax.random.key(0), target, jnp.array([1.0]))
    for seed in range(10):
        new, info = eqx.filter_jit(kernel.step)(jax.random.key(seed), target, state)
        assert float(info.acceptance_rate) == pytest.approx(min(1.0, np.exp(-float(info.energy_error))), rel=1e-5)
        if bool(info.accepted):
            change = 0.5 * (float(new.position[0]) ** 2 - 1.0)
            assert float(info.energy_error) == pytest.approx(change, abs=1e-5)
        assert float(info.log_density) == pytest.approx(-0.5 * float(new.position[0]) ** 2, rel=1e-5)


def test_needs_no_gradient() -> None:
    state = random_walk().init(jax.random.key(0), FLAT, jnp.zeros(2))
    assert state.point.grad_log_prior is None
    assert state.point.grad_log_likelihood is None


def test_a_density_of_zero_is_a_plain_rejection() -> None:
    target = Target(lambda x: jnp.where(x[0] == 0, 0.0, -jnp.inf))
    kernel = random_walk()
    state = kernel.init(jax.random.key(0), target, jnp.zeros(1))
    new, info = kernel.step(jax.random.key(1), target, state)
    assert int(info.status) == 0
    assert not bool(info.divergent)
    assert float(new.position[0]) == 0.0


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_scale_is_checked_when_static_and_flagged_when_traced(scale: float) -> None:
    with pytest.raises(ValueError, match="`scale` must be finite and positive"):
        random_walk(scale)
    state = random_walk().init(jax.random.key(0), FLAT, jnp.zeros(2))
    new, info = jax.jit(lambda s: random_walk(s).step(jax.random.key(1), FLAT, state))(jnp.float32(scale))
    assert int(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(new.position, 0)


def test_covariance_is_checked() -> None:
    with pytest.raises(ValueError, match="`covariance` must be symmetric and positive definite"):
        random_walk(covariance=jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    kernel = random_walk(covariance=jnp.ones(3))
    state = kernel.init(jax.random.key(0), FLAT, jnp.zeros(2))
    with pytest.raises(ValueError, match="positions of 3 numbers"):
        kernel.step(jax.random.key(0), FLAT, state)


@pytest.mark.parametrize("num", [3_000, 11_000, 30_000, 100_000])
@pytest.mark.parametrize("dimension", [3, 5])
def test_products_with_a_factor_are_right_for_every_batch_size(num: int, dimension: int, key: Any) -> None:
    """A sum over the other axis is miscompiled by jaxlib 0.10.2 for some of these, silently."""
    factor = np.linalg.cholesky(np.eye(dimension) + 0.3)
    vectors = jax.random.normal(key, (num, dimension))
    for function, matrix in ((times, factor), (transposed_times, factor.T)):
        batched = jax.jit(jax.vmap(lambda f, v, function=function: v - 0.1 * function(f, v), (None, 0)))
        exact = np.asarray(vectors, np.float64) @ (np.eye(dimension) - 0.1 * matrix).T
        np.testing.assert_allclose(batched(jnp.asarray(factor, jnp.float32), vectors), exact, atol=1e-5)
