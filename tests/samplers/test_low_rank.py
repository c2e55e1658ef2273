"""The matrix of low rank: algebra, the exact answer for Gaussians, what warm-up learns, and what is refused.

Planted bugs, each of which a test here catches: gradients scaled as positions are; the mean of matrices without its
inverse; a stretch that is a variance and not its root; rows of failed chains that count.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.core import Target
from probinf.samplers import _low_rank
from probinf.samplers._factor import solve_rows, times, transposed_times
from probinf.samplers._low_rank import LowRankFactor, as_low_rank, low_rank_estimate


def spiked(dimension, spikes, seed=0, spread=1.0):
    """A covariance: scales, times a few directions of other variances."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((dimension, len(spikes))))[0]
    scales = np.exp(spread * rng.standard_normal(dimension))
    inner = np.eye(dimension) + (directions * (np.asarray(spikes) - 1)) @ directions.T
    return scales[:, None] * inner * scales[None, :]


def condition(matrix, covariance):
    """How far a matrix is from a covariance: the ratio of the extreme eigenvalues of one in units of the other."""
    root = np.linalg.cholesky(np.asarray(matrix, float))
    inner = np.linalg.solve(root, np.linalg.solve(root, covariance).T)
    values = np.linalg.eigvalsh((inner + inner.T) / 2)
    return values[-1] / values[0]


def gaussian(covariance):
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    return Target(
        lambda x: -0.5 * jnp.sum(x * jnp.sum(precision * x[:, None], axis=0)),
        sample_prior=lambda key: jnp.zeros(covariance.shape[0], jnp.float32),
    )


def test_products_are_those_of_the_matrix():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        directions = jnp.asarray(np.linalg.qr(rng.standard_normal((7, 3)))[0])
        factor = LowRankFactor(jnp.asarray(rng.uniform(0.5, 2, 7)), directions, jnp.asarray([3.0, 0.2, 1.0]))
        full = jax.vmap(factor.times)(jnp.eye(7)).T
        v = jnp.asarray(rng.standard_normal(7))
        np.testing.assert_allclose(times(factor, v), full @ v, rtol=1e-13)
        np.testing.assert_allclose(transposed_times(factor, v), full.T @ v, rtol=1e-13)
        np.testing.assert_allclose(solve_rows(factor, v[None])[0], np.linalg.solve(full, v), rtol=1e-12)
        np.testing.assert_allclose(factor.matrix(), full @ full.T, rtol=1e-12)
        assert factor.astype(jnp.float32).times(v.astype(jnp.float32)).dtype == jnp.float32


def exact(monkeypatch, scales_power=1.0, root=True):
    """The estimate for draws and gradients of a Gaussian in 6 dimensions, where 6 directions are all there are."""
    with jax.enable_x64(True):
        monkeypatch.setattr(_low_rank, "CUTOFF", 1.0)
        monkeypatch.setattr(_low_rank, "RIDGE", 1e-14)
        covariance = spiked(6, [100, 0.01, 5])
        draws = np.random.default_rng(1).standard_normal((20, 6)) @ np.linalg.cholesky(covariance).T
        draws[15:] = 1e3
        gradients = -np.linalg.solve(covariance, draws.T).T
        scales = jnp.asarray(np.linspace(0.5, 2, 6))
        found = low_rank_estimate(
            scales, jnp.asarray(draws), jnp.asarray(gradients) * scales_power, jnp.arange(20, dtype=jnp.int32) < 15, 6
        )
        if not root:
            found = LowRankFactor(found.scales, found.directions, found.stretches**2)
        return np.max(np.abs(np.asarray(found.matrix()) / covariance - 1))


def test_draws_and_gradients_of_a_gaussian_tell_its_covariance_exactly(monkeypatch):
    # cov(g)^-1 # cov(x) is C for any draws, since cov(g) = C^-1 cov(x) C^-1.
    assert exact(monkeypatch) < 1e-6


def test_planted_bugs_are_seen(monkeypatch):
    assert exact(monkeypatch, scales_power=2.0) > 0.1
    assert exact(monkeypatch, root=False) > 0.1


@pytest.mark.slow
def test_warm_up_learns_directions_and_leaves_a_failed_chain_out():
    covariance = spiked(30, [200, 0.01])
    target = gaussian(covariance)
    start = np.random.default_rng(0).standard_normal((8, 30)).astype(np.float32)
    start[2] = np.nan
    options = {"num_steps": 300, "num_chains": 8, "initial_position": jnp.asarray(start), "throw": False}
    learned = samplers.warmup(jax.random.key(3), samplers.nuts(rank=4), target, **options)
    diagonal = samplers.warmup(jax.random.key(3), samplers.nuts(), target, **options)
    assert condition(np.diag(np.asarray(diagonal.factor) ** 2), covariance) > 1000
    assert condition(learned.factor.matrix(), covariance) < 20
    assert float(learned.step_size) > 3 * float(diagonal.step_size)


def test_more_directions_than_coordinates_and_a_start_from_a_diagonal():
    target = gaussian(np.diag([4.0, 1.0]))
    kernel = samplers.hmc(0.5, 4, rank=8, inverse_mass_matrix=[4.0, 1.0])
    tuned = samplers.warmup(jax.random.key(0), kernel, target, num_steps=30, num_chains=3)
    assert tuned.factor.directions.shape == (2, 2)
    assert np.all(np.isfinite(tuned.factor.matrix()))
    np.testing.assert_array_equal(as_low_rank(jnp.asarray([2.0, 1.0]), 1).matrix(), np.diag([4.0, 1.0]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: samplers.nuts(rank=-1), ValueError, "`rank` is -1"),
        (lambda: samplers.hmc(rank=2, dense=True), ValueError, "take one of `rank` and `dense`"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_part_of_another_kernel_is_refused():
    target = gaussian(np.eye(2))
    kernel = samplers.cycle(samplers.hmc(rank=2), samplers.random_walk())
    with pytest.raises(ValueError, match="in a part of another kernel"):
        samplers.warmup(jax.random.key(0), kernel, target, num_steps=20)
    with pytest.raises(ValueError, match="in a part of another kernel"):
        samplers.warmup(jax.random.key(0), samplers.parallel_tempering(samplers.hmc(rank=2)), target, num_steps=20)
