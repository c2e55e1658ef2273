"""`persistent_smc`: known evidences, agreement with one generation, faults, bad arguments.

Planted bugs that are caught: a mixture without its evidences; a generation that is not in the mixture (slow); moves at
another temperature than that of the weights (slow).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.core import InferenceError, Status
from probinf.samplers import _persistent_smc
from tests._compilations import COMPILED
from tests._smc_targets import HALF_EVIDENCE, bimodal, faulty, move_at_another_temperature, skewed


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


@pytest.mark.slow
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
    assert np.all(np.asarray(out.population.eve) < 256)  # ancestors among the first draws
    # Above one, more generations are made than one a step.
    _, more = log_errors(target, exact, num_runs=4, target_ess=4.0, max_temperatures=16)
    assert np.all(np.sum(np.isfinite(np.asarray(more.inverse_temperatures)), axis=1) > used.sum(axis=1).mean())
    assert np.all(np.sort(np.asarray(more.ess), axis=1)[:, -1] >= 4 * 256)


@pytest.mark.slow
def test_two_modes():
    target, exact = bimodal(4)
    errors, out = log_errors(target, exact, max_temperatures=25)
    assert assert_close(errors, 0.02) < 0.02
    weights = jax.vmap(lambda p: p.weights)(out.population)
    right = np.asarray(jnp.sum(jnp.where(out.population.particles[..., 0] > 0, weights, 0), axis=1), np.float64)
    assert abs(right.mean() - 0.7) < 6 * right.std(ddof=1) / 8 + 0.005


SLOW = pytest.mark.slow


@pytest.mark.slow
def test_generations_without_their_evidences_are_caught(monkeypatch):
    target, exact, _ = skewed()
    grow = _persistent_smc._Grow._grow

    def spoilt(self, key, population):
        # The mixture of the unnormalised laws: every log evidence in it is zero.
        shifted = eqx.tree_at(lambda p: p.log_weights, population, population.log_weights - population.log_evidence)
        return grow(self, key, shifted)

    monkeypatch.setattr(_persistent_smc._Grow, "_grow", spoilt)
    errors, _ = log_errors(target, exact, num_particles=250)  # a size of its own: nothing compiled before is used
    with pytest.raises(AssertionError):
        assert_close(errors, 0.01)


@pytest.mark.slow
def test_a_generation_that_is_not_in_the_mixture_is_caught(monkeypatch):
    target, exact, _ = skewed()
    grow = _persistent_smc._Grow._grow

    def spoilt(self, key, population):
        grown, info = grow(self, key, population)
        late = jnp.arange(grown.num_particles) >= population.context.num_made * self.options.num_particles
        mixture = jnp.where(late, 0, grown.particles.log_mixture)  # as if the prior alone had made them
        return eqx.tree_at(lambda p: p.particles.log_mixture, grown, mixture), info

    monkeypatch.setattr(_persistent_smc._Grow, "_grow", spoilt)
    errors, _ = log_errors(target, exact, num_particles=251)
    with pytest.raises(AssertionError):
        assert_close(errors, 0.01)


@pytest.mark.slow
def test_moves_at_another_temperature_are_caught(monkeypatch):
    target, exact, _ = skewed()
    move_at_another_temperature(monkeypatch)
    errors, _ = log_errors(target, exact, num_particles=252)
    with pytest.raises(AssertionError):
        assert_close(errors, 0.01)


def test_second_call_compiles_nothing():
    (target, _, _), (other, _, _) = skewed((0.0, 7.0)), skewed((3.0, 1.0))
    options = {"num_particles": 62, "max_temperatures": 9, "throw": False}
    before = len(COMPILED)
    jax.block_until_ready(samplers.persistent_smc(jax.random.key(0), target, **options).log_evidence)
    assert len(COMPILED) > before
    before = len(COMPILED)
    jax.block_until_ready(samplers.persistent_smc(jax.random.key(1), other, target_ess=0.9, **options).log_evidence)
    assert len(COMPILED) == before


@pytest.mark.slow
def test_faults():
    def run(kind, **options):
        return samplers.persistent_smc(
            jax.random.key(0), faulty(kind), num_particles=64, target_ess=0.9, max_temperatures=6, **options
        )

    nothing = run("all_zero", throw=False)
    assert int(nothing.status) & Status.ALL_WEIGHTS_ZERO
    assert float(nothing.log_evidence) == -np.inf
    assert np.all(np.isnan(np.asarray(nothing.mean)))
    with pytest.raises(InferenceError, match="NAN_LOG_WEIGHT"):
        run("nan")
    with pytest.raises(InferenceError, match="POSINF") as caught:
        samplers.persistent_smc(
            jax.random.key(0), faulty("infinite"), num_particles=2048, target_ess=0.9, max_temperatures=2
        )
    assert "NAN_LOG_WEIGHT" not in str(caught.value)
    assert np.isnan(caught.value.result.log_evidence)
    with pytest.raises(InferenceError, match="max_temperatures"):
        run("peaked")
    flat = run("constant")
    np.testing.assert_allclose(float(flat.log_evidence), 0, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(flat.inverse_temperatures), [0, 1] + [np.nan] * 5)


def test_half_of_the_prior_is_impossible():
    for kind in ("half_nan", "half_zero"):
        out = samplers.persistent_smc(
            jax.random.key(0), faulty(kind), num_particles=1024, max_temperatures=10, throw=False
        )
        bits = {"half_nan": Status.NAN_LOG_WEIGHT | Status.DIVERGENT, "half_zero": Status.DIVERGENT}[kind]
        assert int(out.status) & ~bits == 0
        assert float(out.log_evidence) == pytest.approx(HALF_EVIDENCE, abs=0.15)
        assert np.all(np.asarray(out.population.particles)[np.asarray(out.population.weights) > 0][:, 0] > 0)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ValueError, "`num_particles` is 1", {"num_particles": 1}),
        (TypeError, "`num_particles` must be an integer", {"num_particles": True}),
        (ValueError, "`target_ess` is 0", {"target_ess": 0.0}),
        (ValueError, "`target_ess` is 60.0; needed at most `max_temperatures`", {"target_ess": 60.0}),
        (ValueError, "`num_steps` is 'all'", {"num_steps": "all"}),
        (ValueError, "`max_temperatures` is 0", {"max_temperatures": 0}),
        (TypeError, "nothing to tune", {"kernel": object()}),
    ],
)
def test_bad_arguments(error, words, changes):
    target, _, _ = skewed()
    with pytest.raises(error, match=words):
        samplers.persistent_smc(jax.random.key(0), target, **{"num_particles": 64, **changes})
