"""`tempered_smc`: known evidences on skewed and multimodal targets, frozen re-runs, faults, bad arguments.

Planted bugs that are caught: the sign of the temperature step (a symmetric target hides it, a skewed one does not);
moves at the temperature before (slow); a schedule that is not frozen (its evidence is biased for few particles); a
factor left from the start; waste-free chains that always start from the first of each group.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf import samplers
from probinf.core import InferenceError, InferenceWarning, Status
from probinf.samplers import _stage, _tempered_smc
from probinf.samplers._stage import next_temperature, spread_factor
from tests._compilations import COMPILED
from tests._smc_targets import HALF_EVIDENCE, assert_unbiased, bimodal, faulty, move_at_another_temperature, skewed


@functools.cache
def compiled_runs(num_runs, options):
    """Independent runs as one program, for all targets of one shape and all schedules."""
    return eqx.filter_jit(
        lambda keys, target, schedule: jax.vmap(
            lambda k: samplers.tempered_smc(k, target, throw=False, schedule=schedule, **dict(options))
        )(keys)
    )


def estimates(target, num_runs, seed=0, schedule=None, **options):
    """Results of independent runs."""
    keys = jax.random.split(jax.random.key(seed), num_runs)
    return compiled_runs(num_runs, tuple(options.items()))(keys, target, schedule)


OPTIONS = {
    "adaptive": {"num_particles": 256},
    "waste_free": {"num_particles": 512, "num_steps": 3, "waste_free": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_skewed_posterior_and_evidence(name):
    # 64 runs: Student's t beyond six has probability 1.1e-7 a comparison.
    target, exact, means = skewed()
    out = estimates(target, 64, **OPTIONS[name])
    assert np.all(np.asarray(out.status) & ~Status.DIVERGENT == 0)
    assert assert_unbiased(out.log_evidence, exact) < 0.03
    found = np.asarray(jax.vmap(lambda r: r.mean)(out), np.float64)
    errors = found.std(axis=0, ddof=1) / 8
    assert np.all(np.abs(found.mean(axis=0) - means) < 6 * errors + 0.01)


def test_the_wrong_sign_of_the_step_is_caught(monkeypatch):
    target, exact, _ = skewed()
    monkeypatch.setattr(_tempered_smc, "increment", lambda before, after: before - after)
    out = estimates(target, 16, num_particles=255)  # a size of its own: nothing compiled before is used
    with pytest.raises(AssertionError):
        assert_unbiased(out.log_evidence, exact)


@pytest.mark.slow
def test_moves_at_the_old_temperature_are_caught(monkeypatch):
    target, exact, _ = skewed()
    move_at_another_temperature(monkeypatch)
    out = estimates(target, 16, num_particles=254)
    with pytest.raises(AssertionError):
        assert_unbiased(out.log_evidence, exact)


@pytest.mark.slow  # and certificates
@pytest.mark.parametrize("name", OPTIONS)
def test_frozen_schedule_is_unbiased(name):
    target, exact, _ = skewed((0.0, 40.0))
    options = {**OPTIONS[name], "num_particles": 32}
    first = samplers.tempered_smc(jax.random.key(5), target, throw=False, **options)
    # The variance of the weights is large with 32 particles: 2,000 runs put the standard error at a few per cent.
    out = estimates(target, 2_000, seed=1, schedule=first.schedule, **options)
    assert assert_unbiased(out.log_evidence, exact) < 0.1
    same = np.asarray(out.schedule.stages.inverse_temperature)
    assert np.all(same == np.asarray(first.schedule.stages.inverse_temperature)[None])
    assert np.all(np.asarray(out.schedule.stages.step_sizes) == np.asarray(first.schedule.stages.step_sizes)[None])


def test_multimodal_evidence_and_mode_weight():
    target, exact = bimodal(4)
    out = estimates(target, 32, num_particles=1024)
    assert assert_unbiased(out.log_evidence, exact) < 0.03
    in_mode = np.asarray(out.population.particles[..., 0] > 0, np.float64).mean(axis=1)
    assert abs(in_mode.mean() - 0.7) < 6 * in_mode.std(ddof=1) / np.sqrt(32)


@pytest.mark.parametrize(
    "kernel",
    [
        samplers.random_walk(0.8),
        pytest.param(samplers.mala(0.8), marks=pytest.mark.slow),
        pytest.param(samplers.hmc(0.5, 3, dense=True), marks=pytest.mark.slow),
    ],
    ids=["random_walk", "mala", "dense"],
)
def test_other_kernels(kernel):
    target, exact, _ = skewed()
    run = jax.jit(jax.vmap(lambda k: samplers.tempered_smc(k, target, num_particles=256, kernel=kernel, throw=False)))
    assert_unbiased(run(jax.random.split(jax.random.key(0), 32)).log_evidence, exact)


def test_second_call_compiles_nothing_and_keys_matter():
    target, _, _ = skewed()
    before = len(COMPILED)
    a = samplers.tempered_smc(jax.random.key(0), target, num_particles=63)
    assert len(COMPILED) > before
    other, _, _ = skewed((3.0, 1.0))
    before = len(COMPILED)
    b = samplers.tempered_smc(jax.random.key(1), other, num_particles=63, target_ess=0.7)
    assert len(COMPILED) == before
    assert float(a.log_evidence) != float(b.log_evidence)
    assert b.temperatures[0] == 0
    assert b.temperatures[-1] == 1
    assert np.all(np.diff(b.temperatures) > 0)


def test_constant_likelihood_takes_one_step():
    out = samplers.tempered_smc(jax.random.key(0), faulty("constant"), num_particles=64)
    np.testing.assert_array_equal(out.temperatures, [0, 1])
    assert float(out.log_evidence) == pytest.approx(0, abs=1e-6)
    assert int(out.status) == 0


def test_likelihood_of_zero_everywhere():
    with pytest.warns(InferenceWarning, match="ALL_WEIGHTS_ZERO"):
        out = samplers.tempered_smc(jax.random.key(0), faulty("all_zero"), num_particles=64)
    assert float(out.log_evidence) == -np.inf
    assert np.all(np.isnan(np.asarray(out.mean)))


def test_likelihood_of_nan_everywhere_is_fatal():
    with pytest.raises(InferenceError, match="NAN_LOG_WEIGHT"):
        samplers.tempered_smc(jax.random.key(0), faulty("nan"), num_particles=64)


@pytest.mark.parametrize("kind", ["half_nan", "half_zero"])
def test_half_of_the_prior_is_impossible(kind):
    out = samplers.tempered_smc(jax.random.key(0), faulty(kind), num_particles=4096, throw=False)
    bits = {"half_nan": Status.NAN_LOG_WEIGHT | Status.DIVERGENT, "half_zero": Status.DIVERGENT}[kind]
    assert int(out.status) & ~bits == 0
    assert float(out.log_evidence) == pytest.approx(HALF_EVIDENCE, abs=0.15)
    assert np.all(np.asarray(out.population.particles)[np.asarray(out.population.weights) > 0][:, 0] > 0)


def test_infinite_likelihood_is_fatal():
    with pytest.raises(InferenceError, match="POSINF_LOG_WEIGHT"):
        samplers.tempered_smc(jax.random.key(0), faulty("infinite"), num_particles=4096)


def test_infinitely_peaked_likelihood_ends_at_its_bound():
    options = {"num_particles": 64, "max_temperatures": 3, "throw": False}
    out = samplers.tempered_smc(jax.random.key(0), faulty("peaked"), **options)
    assert int(out.schedule.num_temperatures) == 3
    assert int(out.status) & Status.MAX_STEPS
    assert np.isnan(float(out.log_evidence))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_particles": 1}, "num_particles"),
        ({"target_ess": 0.0}, "target_ess"),
        ({"target_ess": 1.0}, "target_ess"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": "many"}, "num_steps"),
        ({"waste_free": True}, "num_steps"),
        ({"waste_free": True, "num_steps": 4}, "multiple of 5"),
        ({"max_temperatures": 0}, "max_temperatures"),
        ({"resampling": "best"}, "resampling"),
    ],
)
def test_bad_arguments(changes, words):
    target, _, _ = skewed()
    with pytest.raises(ValueError, match=words):
        samplers.tempered_smc(jax.random.key(0), target, **{"num_particles": 64, **changes})


def test_bad_targets_kernels_and_schedules():
    target, _, _ = skewed()
    with pytest.raises(ValueError, match="sample_prior"):
        samplers.tempered_smc(jax.random.key(0), pb.Target(target.log_likelihood), num_particles=64)
    with pytest.raises(TypeError, match="`kernel`"):
        samplers.tempered_smc(jax.random.key(0), target, num_particles=64, kernel=0.1)
    with pytest.raises(ValueError, match="inverse temperature"):
        samplers.tempered_smc(jax.random.key(0), target.at_temperature(0.5), num_particles=64)
    out = samplers.tempered_smc(jax.random.key(0), target, num_particles=64)
    with pytest.raises(ValueError, match="schedule"):
        samplers.tempered_smc(jax.random.key(0), target, num_particles=64, num_steps=3, schedule=out.schedule)
    dense = samplers.hmc(num_steps=1, dense=True)
    with pytest.raises(ValueError, match=r"`schedule` holds `factor` of shape .*needed"):
        samplers.tempered_smc(jax.random.key(0), target, num_particles=64, kernel=dense, schedule=out.schedule)
    with pytest.raises(TypeError, match="schedule"):
        samplers.tempered_smc(jax.random.key(0), target, num_particles=64, schedule={})  # pyright: ignore[reportArgumentType]


def conditional_ess(weights, log_likelihood, step):
    first, second = (np.sum(weights * np.exp(k * step * log_likelihood)) for k in (1, 2))
    return first**2 / second


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 1e12])
def test_temperature_solves_the_equation(x64, scale):
    rng = np.random.default_rng(0)
    weights, values = rng.dirichlet(np.ones(50)), -scale * rng.gamma(0.5, size=50)
    after = float(next_temperature(jnp.asarray(weights), jnp.asarray(values), jnp.asarray(0.25), jnp.asarray(0.6)))
    found = conditional_ess(weights, values - values.max(), after - 0.25)
    if after == 1:
        assert found >= 0.6
    else:
        # At 1e12 the temperature itself is only a multiple of its resolution.
        assert found == pytest.approx(0.6, abs=1e-6 if scale < 1e9 else 1e-2)


def test_dead_particles_do_not_block_the_temperature(x64):
    values = jnp.asarray([-np.inf, -np.inf, -np.inf, -0.1, -40.0])
    after = float(next_temperature(jnp.full(5, 0.2), values, jnp.asarray(0.0), jnp.asarray(0.9)))
    assert 0 < after < 1
    assert float(next_temperature(jnp.full(5, 0.2), jnp.full(5, -jnp.inf), jnp.asarray(0.0), jnp.asarray(0.9))) == 1


@pytest.mark.parametrize("dense", [False, True])
def test_factor_is_that_of_the_weighted_covariance(x64, dense):
    rng = np.random.default_rng(1)
    positions = rng.normal(size=(4000, 2)) @ np.array([[1.0, 0.0], [0.9, 0.3]]).T
    weights = rng.gamma(2.0, size=4000)
    factor = np.asarray(spread_factor(jnp.asarray(weights), jnp.asarray(positions), dense=dense))
    covariance = np.cov(positions.T, aweights=weights)
    found = factor @ factor.T if dense else factor**2
    np.testing.assert_allclose(found, covariance if dense else np.diag(covariance), rtol=0.01, atol=0.005)


@pytest.mark.parametrize("dense", [False, True])
def test_factor_does_not_depend_on_units(x64, dense):
    positions = np.random.default_rng(2).normal(size=(60, 2))
    scales = np.array([1e4, 1e-3])
    one = np.asarray(spread_factor(jnp.ones(60), jnp.asarray(positions), dense=dense))
    other = np.asarray(spread_factor(jnp.ones(60), jnp.asarray(positions * scales), dense=dense))
    # But for the floor of one part in 1e6 of the mean variance.
    np.testing.assert_allclose(other[0], one[0] * scales[0], rtol=1e-3)


def test_factor_of_one_distinct_particle_is_the_identity(x64):
    positions = jnp.ones((10, 3))
    for dense in (False, True):
        factor = np.asarray(spread_factor(jnp.ones(10), positions, dense=dense))
        np.testing.assert_array_equal(factor, np.eye(3) if dense else np.ones(3))
    assert _stage.GAIN > 0
