"""Backward simulation: its exact law by enumeration, known answers, faults.

The identity is E[Zhat 1{path}] = unnormalised smoothing measure of the path, over all randomness of the filter and of
the way back. Planted bugs, shown to break it: weights of the wrong time, transition arguments swapped, ancestors off by
one, a potential that looks at the past left out. A bound that is none is warned of.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf import models
from probinf.samplers import _backward_kernels, backward_sample, particle_filter
from probinf.validity import enumerate_algorithm
from tests._compilations import COMPILED
from tests._finite import Ahead, Finite, Swapped, as_kind, skewed_model, tables
from tests._slow import slow_after
from tests._walks import LOG_BOUND, HostWalk, Walk, linear_gaussian, walk

METHODS = {
    "exact": {},
    "rejection": {"log_bound": 1.0},
    "mcmc": {"num_steps": 30},
}


def path_measure(model):
    """Unnormalised measure of each path, [2] * T, in NumPy."""
    initial, transition, potentials = tables(model)
    mass = initial * potentials[0, 0]
    for t in range(1, potentials.shape[0]):
        mass = mass[..., None] * (transition * potentials[t])
    return mass


def expected_measure(model, num_particles, spoil=lambda out: out, num_paths=1, ess_threshold=1.0, **options):
    num_steps = model.num_steps

    def run(key):
        key, path_key = jax.random.split(key)
        out = particle_filter(key, model, num_particles=num_particles, history=True, ess_threshold=ess_threshold)
        paths = backward_sample(path_key, spoil(out), num_paths, **options)
        return jnp.exp(out.log_evidence), paths

    def mass(outcome):
        z, paths = outcome
        code = jnp.sum(paths * 2 ** jnp.arange(num_steps - 1, -1, -1, dtype=jnp.int32)[:, None], axis=0)
        return z * jnp.mean(code[:, None] == jnp.arange(2**num_steps)[None], axis=0, dtype=z.dtype)

    return np.asarray(enumerate_algorithm(run).expectation(mass)).reshape([2] * num_steps)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "num_particles", "num_steps", "ess_threshold"),
    [
        ("exact", 2, 1, 1.0),
        ("exact", 2, 3, 0.8),  # resamples on some runs only
        ("exact", 3, 2, 1.0),
        ("mcmc", 2, 3, 1.0),
        ("mcmc", 3, 2, 0.9),
    ],
)
def test_law_of_paths(method, num_particles, num_steps, ess_threshold):
    model = skewed_model(num_steps)
    found = expected_measure(model, num_particles, ess_threshold=ess_threshold, method=method)
    np.testing.assert_allclose(found, path_measure(model), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_law_of_paths_of_an_auxiliary_filter():
    plain = skewed_model(2)
    model = as_kind(Ahead, plain)
    np.testing.assert_allclose(expected_measure(model, 2), path_measure(model), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_law_in_blocks(monkeypatch):
    monkeypatch.setattr(_backward_kernels, "_BLOCK", 4)
    found = expected_measure(skewed_model(2), 2, num_paths=3)  # one block of two paths, one of one and a copy
    np.testing.assert_allclose(found, path_measure(skewed_model(2)), rtol=1e-9)


class Blind(Finite):
    def log_backward(self, t, x_prev, x):
        return self.log_transition(t, x_prev, x)


def with_model(kind):
    def spoil(out):
        return with_history_of(as_kind(kind, out.history.model), out)

    return spoil


def shifted(field):
    def spoil(out):
        rows = getattr(out.history, field)
        return eqx.tree_at(lambda o: getattr(o.history, field), out, jnp.roll(rows, 1, axis=0))

    return spoil


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "num_steps", "spoil"),
    [
        ("exact", 2, shifted("log_weights")),
        ("exact", 2, with_model(Swapped)),
        ("exact", 2, with_model(Blind)),
        ("mcmc", 3, shifted("ancestors")),
    ],
)
@pytest.mark.slow
def test_planted_bugs_break_the_law(method, num_steps, spoil):
    model = skewed_model(num_steps)
    found = expected_measure(model, 2, spoil, method=method)
    assert np.max(np.abs(found / path_measure(model) - 1)) > 1e-2


@pytest.fixture(scope="module")
def small():
    """A filter of 4 particles and 3 steps, and the exact law of its backward paths, [4, 4, 4]."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, ys = linear_gaussian(3)
        fk = model.state_space().bootstrap(ys)
        out = particle_filter(jax.random.key(2), fk, num_particles=4, history=True, ess_threshold=1.0)
    assert out.history is not None
    x = np.asarray(out.history.particles)[..., 0].astype(np.float64)
    weights = np.exp(np.asarray(out.history.log_weights, np.float64))
    law = weights[-1] / weights[-1].sum()
    for t in (1, 0):
        density = np.exp(-0.5 * (x[t + 1][:, None] - 0.9 * x[t][None]) ** 2 / 0.7)  # [now, past]
        kernel = weights[t] * density
        kernel /= kernel.sum(axis=1, keepdims=True)
        law = kernel.T.reshape(4, 4, *[1] * (law.ndim - 1)) * law[None]
    return out, law


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("exact", {}),
        ("rejection", {"log_bound": LOG_BOUND}),
        ("rejection", {"log_bound": lambda t: LOG_BOUND + 0.5 * t, "num_trials": 1}),
        ("rejection", {"log_bound": LOG_BOUND + 50.0}),  # accepts nothing: exact draws
        ("mcmc", {"num_steps": 60}),
    ],
)
def test_frequencies_of_paths(small, method, options):
    out, law = small
    assert out.history is not None
    count = 2_000 if method == "rejection" else 20_000  # most of those end in exact draws, one at a time
    paths, info = backward_sample(jax.random.key(5), out, count, method, return_info=True, **options)
    assert np.all(np.asarray(info.status) == 0)
    slots = np.argmax(np.asarray(paths)[:, :, None] == np.asarray(out.history.particles)[:, None], axis=2)[..., 0]
    found = np.zeros((4, 4, 4))
    np.add.at(found, tuple(slots), 1 / count)
    # 64 cells, each a binomial count: 6 standard errors leave 1e-7, with 3 counts of slack where few are expected.
    # (60 Metropolis moves: proposals by the weights accept at least 0.2 of the time, 0.8^60 is 1e-6.)
    assert np.all(np.abs(found - law) < 6 * np.sqrt(law / count) + 6 / count)
    assert not np.all(np.abs(found - law.transpose(1, 0, 2)) < 6 * np.sqrt(law / count) + 6 / count)
    if options.get("log_bound") == LOG_BOUND + 50:
        assert np.all(np.asarray(info.num_exact) == count)


@pytest.mark.numpyro
def test_agrees_with_kalman():
    model, ys = linear_gaussian(12)
    exact = models.kalman_smoother(model, ys)

    @jax.jit
    def run(keys):
        def one(key):
            filter_key, path_key = jax.random.split(key)
            out = particle_filter(filter_key, model.state_space().bootstrap(ys), num_particles=400, history=True)
            return jnp.mean(backward_sample(path_key, out, 400), axis=1)

        return jax.lax.map(one, keys)

    means = np.asarray(run(jax.random.split(jax.random.key(0), 40)), np.float64)
    # Standard errors from 40 runs: 8 of them leave 1e-9 with 39 degrees; the bias of O(1 / 400) gets 4e-3.
    spread = means.std(axis=0, ddof=1) / np.sqrt(40)
    smoothed, filtered = np.asarray(exact.smoothed_mean), np.asarray(exact.filtered.filtered_mean)
    assert np.all(np.abs(means.mean(axis=0) - smoothed) < 8 * spread + 4e-3)
    assert not np.all(np.abs(means.mean(axis=0) - filtered) < 8 * spread + 4e-3)
    assert np.max(spread) < 0.02


@pytest.fixture(scope="module")
def long_run():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, ys = linear_gaussian(60)
        return particle_filter(jax.random.key(0), model.state_space().bootstrap(ys), num_particles=100, history=True)


@pytest.mark.numpyro
@pytest.mark.parametrize("method", slow_after(1, METHODS))
def test_early_states_do_not_degenerate(method, long_run):
    history = long_run.history
    assert history is not None
    traced = pb.trace_back(jax.random.key(1), history.log_weights[-1], history.particles, history.ancestors, 100)
    options = {"exact": {}, "rejection": {"log_bound": LOG_BOUND}, "mcmc": {"num_steps": 1}}[method]
    paths, info = backward_sample(jax.random.key(1), long_run, 100, method, return_info=True, **options)
    assert paths.shape == (60, 100, 1)
    assert np.unique(np.asarray(traced)[0]).size <= 5
    assert np.unique(np.asarray(paths)[0]).size >= 20
    assert info.acceptance_rate.shape == info.num_exact.shape == info.num_violations.shape == (59,)
    assert np.all(np.asarray(info.acceptance_rate) > 0.1)
    assert np.all(np.asarray(info.num_violations) == 0)
    if method == "rejection":
        assert np.mean(np.asarray(info.num_exact)) < 15


@pytest.mark.numpyro
def test_a_bound_that_is_none_is_flagged(long_run):
    with pytest.warns(pb.InferenceWarning, match=r"`log_bound` was below `model.log_backward` \(\d+ proposals"):
        backward_sample(jax.random.key(1), long_run, 100, "rejection", log_bound=LOG_BOUND - 1)


class NoDensity(Walk):
    log_transition = pb.FeynmanKac.log_transition


def filtered(model):
    return particle_filter(jax.random.key(0), model, num_particles=8, history=True, throw=False)


def states(out):
    assert out.history is not None
    return np.asarray(out.history.particles["x"])


def with_history_of(model, out):
    return eqx.tree_at(lambda o: o.history.model, out, model)


FORMS = [("exact", 0), ("mcmc", 1), *((m, 4) for m in METHODS)]


@pytest.mark.parametrize(("method", "num_steps"), slow_after(3, FORMS))
def test_particle_form_and_few_steps(method, num_steps):
    out = filtered(walk(num_steps=num_steps))
    paths, info = backward_sample(jax.random.key(1), out, 5, method, return_info=True, **METHODS[method])
    assert paths["x"].shape == paths["n"].shape == (num_steps, 5)
    assert paths["n"].dtype == jnp.int32
    np.testing.assert_array_equal(paths["n"], np.broadcast_to(np.arange(num_steps)[:, None], (num_steps, 5)))
    assert np.all(np.isin(np.asarray(paths["x"]), states(out)))
    assert info.num_exact.shape == (max(num_steps - 1, 0),)


def test_one_particle():
    out = particle_filter(jax.random.key(0), walk(num_steps=2), num_particles=1, history=True)
    paths = backward_sample(jax.random.key(1), out, 3)
    np.testing.assert_array_equal(paths["x"], np.broadcast_to(states(out), (2, 3)))


@pytest.mark.slow
def test_host_loop_gives_the_same_paths():
    out = particle_filter(jax.random.key(0), walk(num_steps=2), num_particles=3, history=True)
    compiled = backward_sample(jax.random.key(1), out, 2)
    hosted = backward_sample(jax.random.key(1), with_history_of(walk(HostWalk, num_steps=2), out), 2)
    np.testing.assert_array_equal(hosted["x"], compiled["x"])
    with pytest.raises(ValueError, match="can be traced"):
        backward_sample(jax.random.key(1), with_history_of(walk(HostWalk), out), 5, "rejection", log_bound=0.0)


def test_no_smoothing_law_raises():
    out = filtered(walk(ys=[0.0, np.inf, 0.0, 0.0]))
    assert int(out.status) == pb.Status.ALL_WEIGHTS_ZERO
    with pytest.raises(pb.InferenceError, match="every weight of the filter was zero") as caught:
        backward_sample(jax.random.key(1), out, 5)
    assert np.all(np.isnan(caught.value.result[0]["x"]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("transform", ["jit", pytest.param("vmap", marks=pytest.mark.slow)])
def test_faults_travel_through_transformations(method, transform):
    out = filtered(walk())

    def run(fault):
        spoilt = eqx.tree_at(lambda o: o.history.model.fault, out, fault)
        paths, info = backward_sample(jax.random.key(1), spoilt, 5, method, return_info=True, **METHODS[method])
        return paths["x"], info.status

    faults = jnp.array([0.0, jnp.nan, jnp.inf])
    rows = map(jax.jit(run), faults) if transform == "jit" else zip(*jax.jit(jax.vmap(run))(faults), strict=True)
    (good, fine), (nan, flagged), (infinite, fatal) = rows
    assert np.all(np.isfinite(good))
    assert np.all(np.asarray(fine) == 0)
    assert np.all(np.asarray(flagged) == pb.Status.NAN_LOG_WEIGHT | pb.Status.ALL_WEIGHTS_ZERO)
    assert np.all((np.asarray(fatal) & int(pb.Status.POSINF_LOG_WEIGHT)) != 0)
    assert np.all(np.isnan(nan))
    assert np.all(np.isnan(infinite))


@pytest.mark.parametrize(
    ("words", "arguments", "options"),
    [
        ("`num_paths` is 0", (0,), {}),
        ("`method` is 'best'", (3, "best"), {}),
        ("`log_bound` is None with method 'rejection'", (3, "rejection"), {}),
        ("`log_bound` is 0.0 with method 'exact'", (3, "exact"), {"log_bound": 0.0}),
        ("`num_steps` is -1", (3, "mcmc"), {"num_steps": -1}),
        ("`num_trials` is -1", (3, "rejection"), {"log_bound": 0.0, "num_trials": -1}),
    ],
)
def test_bad_arguments(words, arguments, options):
    with pytest.raises(ValueError, match=words):
        backward_sample(jax.random.key(1), filtered(walk()), *arguments, **options)


def test_what_cannot_be_smoothed():
    out = filtered(walk())
    with pytest.raises(ValueError, match=r"no history: run `particle_filter\(..., history=True\)`"):
        backward_sample(jax.random.key(1), eqx.tree_at(lambda o: o.history, out, None))
    several = eqx.tree_at(lambda o: o.replicate_log_evidence, out, jnp.zeros(2), is_leaf=lambda leaf: leaf is None)
    with pytest.raises(ValueError, match="holds 2 filters"):
        backward_sample(jax.random.key(1), several)
    with pytest.raises(TypeError):
        backward_sample(jax.random.key(1), "out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`NoDensity` does not define `log_transition`"):
        backward_sample(jax.random.key(2), with_history_of(walk(NoDensity), out))


def test_second_call_compiles_nothing():
    out, other = filtered(walk()), filtered(walk(ys=[0.1, 0.2, 0.3, 0.5]))
    options = [("exact", {}), ("mcmc", {"num_steps": 2}), ("rejection", {"log_bound": 0.5, "num_trials": 9})]
    for method, first in options:
        jax.block_until_ready(backward_sample(jax.random.key(1), out, 5, method, **first))
    counted = len(COMPILED)
    for method, second in [("exact", {}), ("mcmc", {"num_steps": 3}), ("rejection", {"log_bound": 0.7})]:
        jax.block_until_ready(backward_sample(jax.random.key(2), other, 5, method, **second))
    assert len(COMPILED) == counted
    backward_sample(jax.random.key(2), other, 6)  # the counter does count
    assert len(COMPILED) > counted


def test_x64_keeps_dtypes(x64):
    model = skewed_model(3)
    out = particle_filter(jax.random.key(0), model, num_particles=7, history=True)
    paths, info = backward_sample(jax.random.key(0), out, 3, "rejection", log_bound=1.0, return_info=True)
    assert paths.dtype == jnp.int32
    assert info.acceptance_rate.dtype == jnp.float64
