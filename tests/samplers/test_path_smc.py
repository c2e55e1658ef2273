"""`path_smc`: data tempering against conjugate posteriors and evidences, a user's path, faults.

Planted bugs that are caught: the first datum counted twice; moves by a law that hardly looks at the data (slow).
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf import samplers
from probinf.core import Status

COUNTS = np.array([3.0, 0.0, 5.0, 2.0, 4.0, 1.0, 3.0, 6.0], np.float32)


def log_gamma_prior(x):
    """Gamma(2, 1) on the rate exp(x), with the Jacobian."""
    return 2 * x - jnp.exp(x)


def log_poisson(x, count):
    return count * x - jnp.exp(x) - jax.scipy.special.gammaln(count + 1)


PRIOR = pb.Target(
    lambda x: jnp.zeros_like(x), log_gamma_prior, lambda key: jnp.log(jax.random.gamma(key, 2.0)), jnp.exp
)


def exact_evidence(counts):
    """Gamma-Poisson, sequentially: negative binomial predictives."""
    shape, rate, path = 2.0, 1.0, [0.0]
    for count in counts:
        lg = jax.scipy.special.gammaln
        term = (
            lg(shape + count) - lg(shape) - lg(count + 1) + shape * np.log(rate / (rate + 1)) - count * np.log(rate + 1)
        )
        shape, rate = shape + count, rate + 1
        path.append(path[-1] + float(term))
    return np.array(path), shape / rate


class Twice(samplers.DataPath):
    """Counts the first datum twice."""

    def log_increment(self, t, position):
        return self.log_likelihood(position, self.data[jnp.maximum(t - 2, 0)])


class Flat(samplers.DataPath):
    """Moves by a law that hardly looks at the data."""

    def target(self, t):
        return samplers.DataPath.target(self, t).at_temperature(0.1)


@functools.cache
def runs(path_type):
    path = path_type(PRIOR, log_poisson, jnp.asarray(COUNTS))

    def one(key):
        out = samplers.path_smc(key, path, num_particles=256, ess_threshold=0.7, throw=False)
        return out.log_evidence_path, out.mean, out.status, out.moved

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 64))


def assert_right(path_type):
    # 64 runs: Student's t beyond six has probability 1.1e-7 a comparison.
    evidence, means, status, moved = runs(path_type)
    exact, mean = exact_evidence(COUNTS)
    assert np.all(np.asarray(status) & ~Status.DIVERGENT == 0)
    assert np.asarray(moved).any()
    assert not np.asarray(moved).all()
    ratios = np.exp(np.asarray(evidence, np.float64) - exact)
    errors = ratios.std(axis=0, ddof=1) / 8
    assert errors.max() < 0.05
    assert np.all(np.abs(ratios.mean(axis=0) - 1) <= 6 * errors + 1e-6)
    found = np.asarray(means, np.float64)
    assert abs(found.mean() - mean) < 6 * found.std(ddof=1) / 8


@pytest.mark.no_key_reuse  # JAX's own gamma sampler splits its key in a loop that the checker cannot follow
def test_data_tempering():
    assert_right(samplers.DataPath)


@pytest.mark.no_key_reuse
@pytest.mark.parametrize("broken", [Twice, pytest.param(Flat, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_planted_bugs_are_caught(broken):
    with pytest.raises(AssertionError):
        assert_right(broken)


class Bridge(samplers.AbstractPath):
    """From N(0, 1) to an unnormalised skewed law exp(1.5 x - exp(x)) of mass Gamma(1.5), geometrically."""

    length: int = eqx.field(static=True)

    @property
    def num_steps(self):
        return self.length

    def initial(self, key):
        return jax.random.normal(key, (1,))

    def target(self, t):
        fraction = jnp.asarray(t, jnp.float32) / self.length

        def log_density(x):
            normal = -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi)
            return jnp.sum((1 - fraction) * normal + fraction * (1.5 * x - jnp.exp(x)))

        return pb.Target(log_density)


def test_a_path_of_the_user():
    run = jax.jit(jax.vmap(lambda k: samplers.path_smc(k, Bridge(4), num_particles=128, throw=False).log_evidence))
    ratios = np.exp(np.asarray(run(jax.random.split(jax.random.key(1), 64)), np.float64)) / 0.886226925
    error = ratios.std(ddof=1) / 8
    assert error < 0.03
    assert abs(ratios.mean() - 1) < 6 * error


def test_no_data_and_bad_arguments(key):
    empty = samplers.DataPath(PRIOR, log_poisson, jnp.zeros(0))
    out = samplers.path_smc(key, empty, num_particles=8)
    assert float(out.log_evidence) == 0
    assert out.ess.shape == (0,)
    with pytest.raises(ValueError, match="num_particles"):
        samplers.path_smc(jax.random.key(0), empty, num_particles=1)
    with pytest.raises(ValueError, match="max_moves"):
        samplers.path_smc(jax.random.key(0), empty, num_particles=8, max_moves=1)
    with pytest.raises(ValueError, match="fraction"):
        samplers.path_smc(jax.random.key(0), empty, num_particles=8, ess_threshold=1.5)


def test_nan_datum_is_flagged():
    path = samplers.DataPath(PRIOR, log_poisson, jnp.asarray([1.0, np.nan]))
    with pytest.raises(pb.InferenceError, match="NAN_LOG_WEIGHT"):
        samplers.path_smc(jax.random.key(0), path, num_particles=16)
