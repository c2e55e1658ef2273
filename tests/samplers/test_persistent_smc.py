"""`persistent_smc`: known evidences, agreement with one generation, faults, bad arguments.

Planted bugs that are caught: a mixture without its evidences, a generation that is not in the mixture, moves at another
temperature than the weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.core import InferenceError, InferenceWarning, Status
from probinf.samplers import _persistent_smc
from tests._compilations import COMPILED
from tests._smc_targets import bimodal, faulty, skewed


@eqx.filter_jit
def runs(keys, target, num_particles, max_temperatures=12, **options):
    return jax.vmap(
        lambda k: samplers.persistent_smc(
            k, target, num_particles=num_particles, max_temperatures=max_temperatures, throw=False, **options
        )
    )(keys)


def log_errors(target, exact, num_runs=64, num_particles=256, **options):
    """Errors of the log evidence of independent runs, and the runs."""
    out = runs(jax.random.split(jax.random.key(0), num_runs), target, num_particles, **options)
    return np.asarray(out.log_evidence, np.float64) - exact, out


def assert_close(errors, bias):
    """The mean error is within six standard errors (64 runs: 1e-7) of zero, and a bias that is O(1/N)."""
    error = errors.std(ddof=1) / np.sqrt(errors.size)
    assert abs(errors.mean()) < 6 * error + bias, (errors.mean(), error)
    return error


def test_skewed_posterior_and_evidence():
    target, exact, means = skewed()
    errors, out = log_errors(target, exact)
    assert np.all(np.asarray(out.status) & ~Status.DIVERGENT == 0)
    assert assert_close(errors, 0.01) < 0.01
    found = np.asarray(jax.vmap(lambda r: r.mean)(out), np.float64)
    spread = found.std(axis=0, ddof=1) / 8
    assert np.all(np.abs(found.mean(axis=0) - means) < 6 * spread + 0.01)
    assert np.max(spread) < 0.02
    temperatures = np.asarray(out.inverse_temperatures)
    used = np.isfinite(temperatures)
    assert np.all(np.diff(np.where(used, temperatures, 2.0), axis=1) >= 0)
    assert np.all(temperatures[:, 0] == 0)
    assert np.all(np.nanmax(temperatures, axis=1) == 1)
    # Every particle of a generation that was made counts, and no other.
    counted = np.sum(np.isfinite(np.asarray(out.population.log_weights)), axis=1)
    np.testing.assert_array_equal(counted, 256 * used.sum(axis=1))
    # Above one, more generations are made than one a step.
    _, more = log_errors(target, exact, num_runs=4, target_ess=4.0, max_temperatures=16)
    assert np.all(np.sum(np.isfinite(np.asarray(more.inverse_temperatures)), axis=1) > used.sum(axis=1).mean())
    assert np.all(np.sort(np.asarray(more.ess), axis=1)[:, -1] >= 4 * 256)


def test_two_modes():
    target, exact = bimodal(4)
    errors, out = log_errors(target, exact, max_temperatures=25)
    assert assert_close(errors, 0.02) < 0.02
    weights = jax.vmap(lambda p: p.weights)(out.population)
    right = np.asarray(jnp.sum(jnp.where(out.population.particles[..., 0] > 0, weights, 0), axis=1), np.float64)
    assert abs(right.mean() - 0.7) < 6 * right.std(ddof=1) / 8 + 0.005


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "bug", ["no evidences", pytest.param("no new terms", marks=SLOW), pytest.param("another temperature", marks=SLOW)]
)
def test_planted_bugs_are_caught(bug, monkeypatch):
    target, exact, _ = skewed()
    grow = _persistent_smc._Grow.__call__

    def spoilt(self, key, population, step=None):
        pool = population.context
        if bug == "no evidences":  # a mixture of the unnormalised laws
            population = eqx.tree_at(lambda p: p.context.log_evidence, population, jnp.zeros_like(pool.log_evidence))
        if bug == "another temperature":
            stage = pool.tempering.stage
            population = eqx.tree_at(
                lambda p: p.context.tempering.stage, population, stage._replace(inverse_temperature=stage[0] / 4)
            )
        grown, info = grow(self, key, population, step)
        if bug == "no evidences":
            zeros = jnp.zeros_like(pool.log_evidence)
            grown = eqx.tree_at(lambda p: p.context.log_evidence, grown, zeros)
        if bug == "no new terms":  # the new particles think that only the prior made them
            late = jnp.arange(grown.num_particles) >= pool.num_made * self.options.num_particles
            mixture = jnp.where(late, 0, grown.particles.log_mixture)
            grown = eqx.tree_at(lambda p: p.particles.log_mixture, grown, mixture)
        if bug == "another temperature":
            grown = eqx.tree_at(lambda p: p.context.tempering.stage, grown, pool.tempering.stage)
        return grown, info

    monkeypatch.setattr(_persistent_smc._Grow, "__call__", spoilt)
    # Sizes of their own: nothing compiled before is used.
    size = {"no evidences": 250, "no new terms": 251, "another temperature": 252}[bug]
    errors, _ = log_errors(target, exact, num_particles=size)
    with pytest.raises(AssertionError):
        assert_close(errors, 0.01)


def test_second_call_compiles_nothing():
    before = -1
    for i, counts in enumerate(((0.0, 7.0), (3.0, 1.0))):
        target, _, _ = skewed(counts)
        before = len(COMPILED)
        out = samplers.persistent_smc(
            jax.random.key(i), target, num_particles=64, target_ess=0.8 + 0.1 * i, throw=False
        )
        jax.block_until_ready(out.log_evidence)
    assert len(COMPILED) == before


def test_faults():
    def run(kind, **options):
        return samplers.persistent_smc(
            jax.random.key(0), faulty(kind), num_particles=64, target_ess=0.9, max_temperatures=6, **options
        )

    nothing = run("all_zero", throw=False)
    assert int(nothing.status) & Status.ALL_WEIGHTS_ZERO
    assert float(nothing.log_evidence) == -np.inf
    assert np.all(np.isnan(np.asarray(nothing.mean)))
    with pytest.warns(InferenceWarning, match="NAN_LOG_WEIGHT"):
        assert np.isfinite(run("half_nan").log_evidence)
    with pytest.raises(InferenceError, match="NAN_LOG_WEIGHT"):
        run("nan")
    with pytest.raises(InferenceError, match="POSINF"):
        samplers.persistent_smc(
            jax.random.key(0), faulty("infinite"), num_particles=2048, target_ess=0.9, max_temperatures=2
        )
    with pytest.raises(InferenceError, match="max_temperatures"):
        run("peaked")
    flat = run("constant")
    np.testing.assert_allclose(float(flat.log_evidence), 0, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(flat.inverse_temperatures), [0, 1] + [np.nan] * 5)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ValueError, "`num_particles` is 1", {"num_particles": 1}),
        (TypeError, "`num_particles` must be an integer", {"num_particles": True}),
        (ValueError, "`target_ess` is 0", {"target_ess": 0.0}),
        (ValueError, "`num_steps` is 'all'", {"num_steps": "all"}),
        (ValueError, "`max_temperatures` is 0", {"max_temperatures": 0}),
        (TypeError, "nothing to tune", {"kernel": object()}),
    ],
)
def test_bad_arguments(error, words, changes):
    target, _, _ = skewed()
    with pytest.raises(error, match=words):
        samplers.persistent_smc(jax.random.key(0), target, **{"num_particles": 64, **changes})
