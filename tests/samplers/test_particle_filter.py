"""The particle filter: faults, known answers, shapes, compilation.

Planted bugs, shown to be caught: a NaN that is let through (test_nan_is_let_through_by_the_planted_bug), a
variance read off systematic resampling (test_variance_of_systematic_is_meaningless).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf import models
from probinf.core import fresh_population
from probinf.samplers import particle_filter, systematic
from tests._compilations import COMPILED
from tests._finite import exact_evidence, skewed_model
from tests._walks import walk

MODES = ["eager", "jit", "vmap", "scan"]


class Faulty(pb.FeynmanKac):
    """A random walk whose log potentials get `faults[t]` added, particle by particle."""

    batch: ClassVar[bool] = True
    faults: jax.Array

    @property
    def num_steps(self):
        return self.faults.shape[0]

    def init(self, key, num_particles):
        return jax.random.normal(key, (num_particles,))

    def mutate(self, key, t, x):
        return x + jax.random.normal(key, x.shape)

    def log_potential(self, t, x_prev, x):
        return -0.5 * (x - 1) ** 2 + self.faults[t]


def run(faults, mode="eager", **options):
    """(log_evidence, status, num_nan, first_bad_step, ess, log_weights) of one member under a transformation."""

    def one(faults):
        options_ = {"num_particles": 4, "throw": False, **options}
        out = particle_filter(jax.random.key(1), Faulty(faults), **options_)
        fields = (out.log_evidence, out.status, out.num_nan, out.first_bad_step, out.ess)
        return (*fields, out.population.log_weights, out.population.particles)

    faults = jnp.asarray(faults, jnp.float32)
    if mode == "eager":
        return one(faults)
    if mode == "jit":
        return jax.jit(one)(faults)
    if mode == "vmap":
        healthy = jnp.zeros_like(faults)
        both = jax.jit(jax.vmap(one))(jnp.stack([healthy, faults]))
        np.testing.assert_array_equal(both[1][0], 0)  # the bad member does not touch the healthy one
        return jax.tree.map(lambda leaf: leaf[1], both)
    _, rows = jax.jit(lambda f: jax.lax.scan(lambda c, row: (c, one(row)), 0, f[None]))(faults)
    return jax.tree.map(lambda leaf: leaf[0], rows)


def with_fault(value, t, particles: slice | int = slice(None), num_steps=5):
    faults = np.zeros((num_steps, 4), np.float32)
    faults[t, particles] = value
    return faults


@pytest.mark.no_key_reuse
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", [0, 2])
def test_all_weights_zero(t, mode):
    log_evidence, status, num_nan, first, ess, log_weights, _ = run(with_fault(-np.inf, t), mode)
    assert log_evidence == -np.inf
    assert int(status) == pb.Status.ALL_WEIGHTS_ZERO  # a later healthy step does not clear it
    assert (int(num_nan), int(first)) == (0, t)
    np.testing.assert_array_equal(ess[t:], 0)
    assert np.all(np.asarray(log_weights) == -np.inf)


@pytest.mark.no_key_reuse
@pytest.mark.parametrize("mode", MODES)
def test_one_nan_counts_as_zero(mode):
    nan = run(with_fault(np.nan, 2, 1), mode)
    zero = run(with_fault(-np.inf, 2, 1), mode)
    assert int(nan[1]) == pb.Status.NAN_LOG_WEIGHT
    assert (int(nan[2]), int(nan[3])) == (1, 2)
    assert np.asarray(nan[0]) == np.asarray(zero[0])  # bit-equal evidence
    assert np.isfinite(nan[0])


@pytest.mark.no_key_reuse
@pytest.mark.parametrize("mode", MODES)
def test_all_nan_is_fatal(mode):
    log_evidence, status, num_nan, first, *_ = run(with_fault(np.nan, 2), mode)
    assert int(status) == pb.Status.NAN_LOG_WEIGHT | pb.Status.ALL_WEIGHTS_ZERO
    assert (int(num_nan), int(first)) == (4, 2)
    assert np.isnan(log_evidence)


@pytest.mark.no_key_reuse
@pytest.mark.parametrize("mode", MODES)
def test_plus_infinity_is_fatal_and_freezes(mode):
    log_evidence, status, _, first, _, _, particles = run(with_fault(np.inf, 2, 3), mode)
    assert int(status) == pb.Status.POSINF_LOG_WEIGHT
    assert int(first) == 2
    assert np.isnan(log_evidence)
    shorter = run(with_fault(np.inf, 2, 3, num_steps=3), mode)
    np.testing.assert_array_equal(np.sort(particles), np.sort(shorter[-1]))


def test_nan_is_let_through_by_the_planted_bug():
    population = fresh_population(jnp.zeros(4))
    assert jnp.isnan(jnp.mean(jnp.exp(population.log_weights + jnp.array([0.0, jnp.nan, 0.0, 0.0]))))
    weighted, info = pb.reweight(lambda step, x: jnp.where(x == 0, jnp.nan, 0.0))(jax.random.key(0), population)
    assert int(info.num_nan) == 4
    assert not np.any(np.isnan(weighted.log_weights))


@pytest.mark.parametrize("fault", [-np.inf, 0.0])
@pytest.mark.parametrize("particles", [slice(None), slice(0, 2)])
def test_gradient_is_finite_with_zero_weights(fault, particles):
    faults = with_fault(fault, 2, particles)

    def evidence(shift):
        scaled = jnp.where(jnp.isfinite(faults), faults + shift, faults)
        result = particle_filter(jax.random.key(1), Faulty(scaled), num_particles=4, throw=False)
        return jnp.where(jnp.isfinite(result.log_evidence), result.log_evidence, 0)

    assert np.isfinite(jax.grad(evidence)(0.0))


def test_the_host_raises_and_warns():
    with pytest.raises(pb.InferenceError, match=r"POSINF_LOG_WEIGHT.*first at time step 2"):
        particle_filter(jax.random.key(0), Faulty(jnp.asarray(with_fault(np.inf, 2, 0))), num_particles=4)
    with pytest.warns(pb.InferenceWarning, match=r"NAN_LOG_WEIGHT \(1 log weights, first at time step 2\)"):
        particle_filter(jax.random.key(0), Faulty(jnp.asarray(with_fault(np.nan, 2, 0))), num_particles=4)


def local_level(ys):
    model = models.LinearGaussian(0.5, 2.0, 0.9, 0.7, 1.0, 0.5)
    return model, models.kalman_filter(model, ys), model.state_space().bootstrap(ys)


@pytest.fixture(scope="module")
def observations():
    ys = np.cumsum(np.random.default_rng(0).standard_normal((40, 1)), axis=0).astype(np.float32)
    ys[7] = np.nan  # a missing year
    return jnp.asarray(ys)


@pytest.mark.numpyro
@pytest.mark.parametrize("name", ["systematic", "multinomial"])
def test_agrees_with_kalman(observations, name):
    _, exact, fk = local_level(observations)
    out = particle_filter(
        jax.random.key(0), fk, num_particles=2000, resampling=name, num_replicates=40, quantiles=(0.05, 0.5, 0.95)
    )
    # The mean of 40 evidence estimates, in standard errors estimated from them: 6 leaves 1e-6 with 39 degrees.
    error = np.sqrt(float(out.log_evidence_variance))
    assert error < 0.1
    assert abs(float(out.log_evidence) - float(exact.log_evidence)) < 6 * error
    means = np.asarray(out.mean)
    spread = means.std(axis=0, ddof=1) / np.sqrt(40)
    exact_mean = np.asarray(exact.filtered_mean)
    assert np.all(np.abs(means.mean(axis=0) - exact_mean) < 8 * spread + 2e-3)
    sd = np.sqrt(np.asarray(exact.filtered_cov)[:, 0, 0])
    quantiles = np.asarray(out.quantiles).mean(axis=0)[..., 0]
    expected = exact_mean + sd[:, None] * np.array([-1.6449, 0, 1.6449])
    np.testing.assert_allclose(quantiles, expected, atol=0.06)


@pytest.mark.no_key_reuse
def test_single_run_variance_is_unbiased():
    # E[Zhat^2 V] = Var(Zhat) for multinomial resampling at every step (Lee, Whiteley 2018).
    # 1,000 particles: no run is refused. Standard errors of both sides from 4,000 runs; 6 of them is 1e-8.
    model = skewed_model(4, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), 4_000)

    def one(key):
        out = particle_filter(key, model, num_particles=1000, resampling="multinomial", ess_threshold=1.0, throw=False)
        return jnp.exp(out.log_evidence), out.log_evidence_variance

    z, v = (np.asarray(a, np.float64) for a in jax.jit(lambda k: jax.lax.map(one, k, batch_size=200))(keys))
    assert np.all(np.isfinite(v))
    spread, estimate = (z - exact_evidence(model)) ** 2, z**2 * v
    error = np.sqrt(spread.var() / z.size + estimate.var() / z.size)
    assert abs(spread.mean() - estimate.mean()) < 6 * error
    assert 6 * error < 0.2 * spread.mean()  # a variance off by a fifth would be seen


def test_variance_of_systematic_is_meaningless():
    out = particle_filter(jax.random.key(0), skewed_model(3, dtype=np.float32), num_particles=100)
    assert np.isnan(out.log_evidence_variance)
    assert "num_replicates" in out.variance_note
    few = particle_filter(
        jax.random.key(0), skewed_model(3, dtype=np.float32), num_particles=5, resampling="multinomial"
    )
    assert "distinct ancestors" in few.variance_note


def test_own_composition_is_the_filter():
    fk = skewed_model(4, dtype=np.float32)
    step = pb.sequence(pb.resample(systematic, when=pb.ess_below(0.9)), pb.extend(fk))
    population, record = pb.iterate(step, over=jnp.arange(1, 4))(jax.random.key(0), pb.spawn(fk, 50)(jax.random.key(1)))
    assert record["log_evidence"].shape == (3,)
    np.testing.assert_allclose(record["log_evidence"][-1], population.log_evidence, rtol=1e-6)
    assert abs(float(population.log_evidence) - np.log(exact_evidence(fk))) < 0.5


@pytest.mark.parametrize("num_steps", [0, 1])
def test_no_and_one_observation(num_steps):
    out = particle_filter(jax.random.key(0), skewed_model(num_steps, dtype=np.float32), num_particles=3)
    assert out.ess.shape == out.mean.shape == out.resampled.shape == (num_steps,)
    if num_steps == 0:
        assert float(out.log_evidence) == 0


def test_one_particle():
    out = particle_filter(jax.random.key(0), skewed_model(3, dtype=np.float32), num_particles=1)
    np.testing.assert_allclose(out.ess, 1)


def test_history_and_paths():
    fk = skewed_model(4, dtype=np.float32)
    out = particle_filter(jax.random.key(0), fk, num_particles=30, history=True, record=lambda p: p.num_resampled)
    assert out.history is not None
    assert out.history.particles.shape == (4, 30)
    assert out.history.ancestors.shape == (3, 30)
    assert out.records.shape == (4,)
    paths = pb.trace_back(
        jax.random.key(1), out.population.log_weights, out.history.particles, out.history.ancestors, num_paths=7
    )
    assert paths.shape == (4, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_particles": 0}, "`num_particles` is 0"),
        ({"num_particles": -3}, "`num_particles` is -3"),
        ({"num_particles": 10, "resampling": "sistematic"}, "`resampling` is 'sistematic'"),
        ({"num_particles": 10, "ess_threshold": 1.5}, "`ess_threshold` is 1.5"),
        ({"num_particles": 10, "ess_threshold": float("nan")}, "`ess_threshold` is nan"),
        ({"num_particles": 10, "quantiles": (0.0, 0.5)}, "`quantiles`"),
        ({"num_particles": 10, "num_replicates": 1}, "`num_replicates` is 1"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        particle_filter(jax.random.key(0), skewed_model(2, dtype=np.float32), **options)


def test_what_is_no_model():
    with pytest.raises(TypeError, match="FeynmanKac"):
        particle_filter(jax.random.key(0), lambda: 0, num_particles=3)  # pyright: ignore[reportArgumentType]

    class Half(pb.FeynmanKac):
        @property
        def num_steps(self):
            return 2

        def init(self, key):
            return jnp.zeros(())

    with pytest.raises(TypeError, match="`Half` does not define `log_potential`"):
        particle_filter(jax.random.key(0), Half(), num_particles=3)


def test_particle_form_of_a_model():
    out = particle_filter(jax.random.key(0), walk(ys=np.ones(5)), num_particles=100)
    assert out.mean["x"].shape == (5,)
    np.testing.assert_allclose(out.mean["n"], np.arange(5), rtol=1e-6)


@pytest.mark.numpyro
def test_second_call_compiles_nothing(observations):
    ssm = models.LinearGaussian(0.5, 2.0, 0.9, 0.7, 1.0, 0.5).state_space()
    options = {"num_particles": 64, "ess_threshold": 0.5}
    jax.block_until_ready(particle_filter(jax.random.key(0), ssm.bootstrap(observations), **options).log_evidence)
    ssm.bootstrap(observations + 1)
    before = len(COMPILED)
    other = models.LinearGaussian(0.1, 1.0, 0.8, 0.6, 1.0, 0.4).state_space().bootstrap(observations + 1)
    counted = len(COMPILED)
    options["ess_threshold"] = 0.7
    jax.block_until_ready(particle_filter(jax.random.key(3), other, **options).log_evidence)
    assert len(COMPILED) == counted
    assert counted - before == 0
    particle_filter(jax.random.key(3), other, **{**options, "num_particles": 65})  # the counter does count
    assert len(COMPILED) > counted


def test_no_large_constant_in_the_program(observations):
    big = jnp.zeros((400_000, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(
        lambda key, faults: particle_filter(key, Faulty(faults), num_particles=4, throw=False).log_evidence
    )(jax.random.key(0), big)
    assert all(np.size(constant) < 2**18 for constant in jaxpr.consts)


def test_x64_keeps_dtypes(x64):
    model = skewed_model(3)
    out = particle_filter(jax.random.key(0), model, num_particles=7)
    assert out.log_evidence.dtype == out.ess.dtype == jnp.float64
    assert out.population.particles.dtype == jnp.int32


@pytest.mark.slow
def test_host_loop_gives_the_same_result():
    class OnHost(Faulty):
        traceable: ClassVar[bool] = False

    faults = jnp.zeros((4, 16), jnp.float32)
    compiled = particle_filter(jax.random.key(0), Faulty(faults), num_particles=16)
    hosted = particle_filter(jax.random.key(0), OnHost(faults), num_particles=16)
    np.testing.assert_allclose(hosted.log_evidence, compiled.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(hosted.mean, compiled.mean, rtol=1e-5)


def test_iterate_until():
    step = pb.reweight(lambda step, x: jnp.log(0.5) * jnp.ones_like(x))
    start = fresh_population(jnp.zeros(4))
    loop = pb.iterate(step, until=lambda p: p.log_evidence < -2, max_steps=10)
    population, (records, count) = loop(jax.random.key(0), start)
    assert int(count) == 3
    assert records["log_evidence"].shape == (10,)
    assert int(population.status) == 0
    bounded, _ = pb.iterate(step, until=lambda p: p.log_evidence < -2, max_steps=2)(jax.random.key(0), start)
    assert int(bounded.status) == pb.Status.MAX_STEPS
    with pytest.raises(ValueError, match="max_steps"):
        pb.iterate(step, until=lambda p: p.ess < 1)
    with pytest.raises(ValueError, match="exactly one"):
        pb.iterate(step)


class Constant(pb.FeynmanKac):
    """Potentials that do not depend on the state: the evidence is their product."""

    batch: ClassVar[bool] = True
    log_values: jax.Array

    @property
    def num_steps(self):
        return self.log_values.shape[0]

    def init(self, key, num_particles):
        return jnp.zeros(num_particles, self.log_values.dtype)

    def mutate(self, key, t, x):
        return x

    def log_potential(self, t, x_prev, x):
        return jnp.full(x.shape, self.log_values[t], jnp.float32)


@pytest.mark.parametrize("ess_threshold", [0.0, 1.0])
def test_evidence_does_not_drift_in_float32(ess_threshold):
    # A plain float32 sum of 20,000 such terms is off by 20.
    values = np.full(20_000, -10.1, np.float32)
    out = particle_filter(
        jax.random.key(0), Constant(jnp.asarray(values)), num_particles=4, ess_threshold=ess_threshold
    )
    exact = values.astype(np.float64).sum()
    assert abs(float(out.log_evidence) - exact) < 0.05
    assert abs(float(np.cumsum(values, dtype=np.float32)[-1]) - exact) > 5


def test_half_precision_particles_have_float32_weights():
    out = particle_filter(jax.random.key(0), Constant(jnp.zeros(3, jnp.float16)), num_particles=5000)
    assert out.ess.dtype == jnp.float32
    np.testing.assert_allclose(out.ess, 5000, rtol=1e-5)


def test_look_ahead_that_is_not_finite_keeps_the_evidence():
    population = fresh_population(jnp.arange(4.0))

    def look_ahead(step, x):
        return jnp.array([0.0, jnp.nan, -jnp.inf, 1.0])

    resampled, info = pb.resample(systematic, look_ahead=look_ahead)(jax.random.key(0), population)
    assert bool(info.resampled)
    assert int(resampled.status) == pb.Status.NAN_LOG_WEIGHT
    assert np.isfinite(resampled.log_evidence)


def test_wrong_number_of_particles_is_refused():
    class Seven(Faulty):
        def init(self, key, num_particles):
            return jnp.zeros(7)

    with pytest.raises(ValueError, match="drew 7 particles; asked for 4"):
        particle_filter(jax.random.key(0), Seven(jnp.zeros((2, 4))), num_particles=4)


def test_model_with_fields_only():
    class Fields(pb.FeynmanKac):
        num_steps: int  # pyright: ignore[reportIncompatibleMethodOverride]
        scale: jax.Array

        def init(self, key):
            return jax.random.normal(key)

        def mutate(self, key, t, x):
            return x + self.scale * jax.random.normal(key)

        def log_potential(self, t, x_prev, x):
            return -(x**2)

    out = particle_filter(jax.random.key(0), Fields(3, jnp.float32(0.1)), num_particles=8)
    assert out.ess.shape == (3,)


def test_the_error_carries_the_result():
    with pytest.raises(pb.InferenceError) as caught:
        particle_filter(jax.random.key(0), Faulty(jnp.asarray(with_fault(np.inf, 2, 0))), num_particles=4)
    assert caught.value.result.first_bad_step == 2


@pytest.mark.no_key_reuse  # vmap of a scan over keys
def test_replicates_are_not_one_population():
    out = particle_filter(jax.random.key(0), skewed_model(3, dtype=np.float32), num_particles=10, num_replicates=3)
    # The jaxtyping hook of the tests raises its own TypeError before ours.
    with pytest.raises((ValueError, TypeError), match="log_weights"):
        _ = out.population.ess
    assert "3 members" not in out.summary()
