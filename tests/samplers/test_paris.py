"""PaRIS: its exact expectation by enumeration, known answers, faults.

The identity is E[Zhat_t sum_i W_t^i tau_t^i] = integral of sum_s h_s in the unnormalised smoothing measure, for every
t and every number of backward draws. Planted bugs, shown to break it: weights of the wrong time, transition arguments
swapped, the statistic gathered by the wrong slots.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf import models
from probinf.samplers import _paris, paris
from probinf.validity import enumerate_algorithm
from tests._finite import Ahead, Finite, Swapped, as_kind, skewed_model, tables
from tests._walks import LOG_BOUND, HostWalk, Walk, linear_gaussian, walk

TABLE = np.array([[0.3, -1.0], [2.0, 0.7]])
FIRST = np.array([0.4, -1.5])


def additive(t, x_prev, x):
    if x_prev is None:
        return jnp.asarray(FIRST)[x]
    return jnp.asarray(TABLE)[x_prev, x] * (t + 1).astype(jnp.float64)


def exact_sum(model):
    """The integral of the sum under the unnormalised measure of y_{0:T-1}, in NumPy."""
    initial, transition, potentials = tables(model)
    mass = initial * potentials[0, 0]
    total = mass * FIRST
    for t in range(1, potentials.shape[0]):
        step = transition * potentials[t]
        total = total @ step + mass @ (step * TABLE * (t + 1))
        mass = mass @ step
    return total.sum()


def expected_sum(model, num_particles, **options):
    def run(key):
        out = paris(key, model, additive, num_particles=num_particles, **options)
        return jnp.exp(out.log_evidence) * out.estimate[-1]

    return float(enumerate_algorithm(run).expectation(lambda value: value))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("num_particles", "num_steps", "options"),
    [
        (2, 1, {}),
        (2, 2, {"num_backward": 2, "ess_threshold": 0.8}),
        (2, 3, {"num_backward": 1, "ess_threshold": 1.0}),
        pytest.param(
            *(3, 2, {"num_backward": 1, "ess_threshold": 1.0, "resampling": "stratified"}), marks=pytest.mark.slow
        ),
    ],
)
def test_expected_sum(num_particles, num_steps, options):
    model = skewed_model(num_steps)
    np.testing.assert_allclose(expected_sum(model, num_particles, **options), exact_sum(model), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_expected_sum_of_an_auxiliary_filter():
    plain = skewed_model(2)
    model = as_kind(Ahead, plain)
    np.testing.assert_allclose(expected_sum(model, 2, num_backward=1), exact_sum(model), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bug", ["swapped", "weights", "slots"])
def test_planted_bugs_break_the_expectation(bug, monkeypatch):
    model = skewed_model(3 if bug == "slots" else 2)
    if bug == "swapped":
        model = as_kind(Swapped, model)
    if bug == "weights":  # those after resampling: equal ones

        def equal(step, population):
            past = _paris.Past(jnp.zeros_like(population.log_weights), population.particles)
            return _paris.Carried(past, population.context.values)

        monkeypatch.setattr(_paris, "_keep_past", equal)
    if bug == "slots":
        update = _paris.UpdateStatistic.__call__

        def rolled(self, key, population, step=None):
            past, values = population.context
            spoilt = eqx.tree_at(lambda p: p.context, population, _paris.Carried(past, jnp.roll(values, 1)))
            return update(self, key, spoilt, step)

        monkeypatch.setattr(_paris.UpdateStatistic, "__call__", rolled)
    found = expected_sum(model, 2, num_backward=1, ess_threshold=1.0)
    assert abs(found / exact_sum(model) - 1) > 1e-2


class Products(eqx.Module):
    """The sums that the EM algorithm for an autoregression needs."""

    scale: jax.Array

    def __call__(self, t, x_prev, x):
        if x_prev is None:
            return {"square": self.scale * x[0] ** 2, "product": jnp.zeros_like(x[0]), "count": jnp.ones((), bool)}
        return {"square": self.scale * x[0] ** 2, "product": x[0] * x_prev[0], "count": jnp.ones((), bool)}


def lag_one_moment(model, ys):
    """Sum of E[x_{t-1} x_t | all], by Kalman smoothing of the state (x_t, x_{t-1})."""
    pair = models.LinearGaussian(
        jnp.array([0.5, 0.0]),
        jnp.array([[2.0, 0.0], [0.0, 1.0]]),
        jnp.array([[0.9, 0.0], [1.0, 0.0]]),
        jnp.array([[0.7, 0.0], [0.0, 0.0]]),
        jnp.array([[1.0, 0.0]]),
        jnp.array([[0.5]]),
    )
    smoothed = models.kalman_smoother(pair, ys)
    mean, cov = np.asarray(smoothed.smoothed_mean, np.float64), np.asarray(smoothed.smoothed_cov, np.float64)
    return float(np.sum((mean[:, 0] * mean[:, 1] + cov[:, 0, 1])[1:]))


@pytest.mark.numpyro
@pytest.mark.parametrize(
    "options",
    [{"method": "exact"}, pytest.param({"method": "rejection", "log_bound": LOG_BOUND}, marks=pytest.mark.slow)],
)
def test_agrees_with_kalman(options):
    model, ys = linear_gaussian(8)
    smoothed = models.kalman_smoother(model, ys)
    mean, var = np.asarray(smoothed.smoothed_mean)[:, 0], np.asarray(smoothed.smoothed_cov)[:, 0, 0]
    first = float(smoothed.filtered.filtered_mean[0, 0] ** 2 + smoothed.filtered.filtered_cov[0, 0, 0])

    @jax.jit
    def run(keys):
        def one(key):
            return paris(
                key, model.state_space().bootstrap(ys), Products(jnp.float32(2.0)), num_particles=200, **options
            )

        return jax.lax.map(lambda key: one(key)[:6], keys)

    estimate, _, _, ess, status, _ = run(jax.random.split(jax.random.key(0), 40))
    assert ess.shape == (40, 8)
    assert not np.any(np.asarray(status))
    np.testing.assert_allclose(estimate["count"], np.broadcast_to(np.arange(1, 9), (40, 8)), rtol=1e-5)
    # Standard errors from 40 runs: 8 of them leave 1e-9 with 39 degrees; the bias of O(1 / 200) gets 1 %.
    for name, at, exact in [
        ("square", -1, 2 * np.sum(mean**2 + var)),
        ("square", 0, 2 * first),
        ("product", -1, lag_one_moment(model, ys)),
    ]:
        found = np.asarray(estimate[name], np.float64)[:, at]
        error = found.std(ddof=1) / np.sqrt(40)
        assert error < 0.03 * abs(exact)
        assert abs(found.mean() - exact) < 8 * error + 0.01 * abs(exact)


def total(t, x_prev, x):
    return x["x"] if x_prev is None else x["x"] - x_prev["x"]


@pytest.mark.parametrize("num_steps", [0, 1])
def test_few_steps(num_steps):
    out = paris(jax.random.key(0), walk(num_steps=num_steps), total, num_particles=4)
    assert out.estimate.shape == out.ess.shape == out.log_evidence_path.shape == (num_steps,)
    assert out.backward.num_exact.shape == (0,)


def test_the_filter_is_not_touched_and_one_draw_is_enough():
    # With N = 1 the sum of increments is the last state, whatever is drawn.
    out = paris(jax.random.key(0), walk(), total, num_particles=1, num_backward=1)
    np.testing.assert_allclose(out.estimate[-1], out.population.particles["x"][0], rtol=1e-5)
    assert out.population.context.values.shape == (1,)


@pytest.mark.slow
def test_host_loop_gives_the_same_estimate():
    compiled, hosted = (
        paris(jax.random.key(0), walk(kind, num_steps=2), total, num_particles=3, num_backward=1)
        for kind in (Walk, HostWalk)
    )
    np.testing.assert_allclose(hosted.estimate, compiled.estimate, rtol=1e-4)
    with pytest.raises(ValueError, match="can be traced"):
        paris(jax.random.key(0), walk(HostWalk), total, num_particles=3, method="rejection", log_bound=0.0)


def test_memory_does_not_depend_on_time():
    model = skewed_model(2, dtype=np.float32)
    long = Finite(model.initial, model.transition, jnp.repeat(model.potentials, 500, axis=0))

    def largest(model):
        jaxpr = jax.make_jaxpr(
            lambda key: paris(key, model, lambda t, x_prev, x: x, num_particles=64, throw=False).estimate
        )(jax.random.key(0))
        shapes = [v.aval.shape for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")]
        return max(s[1] if len(s) > 1 and s[0] in (999, 1000) else 0 for s in shapes)

    assert largest(long) <= 4  # stacked over time: scalars, and the key of each part of a step


def test_all_weights_zero_and_faults():
    options = {"num_particles": 6, "throw": False}
    out = paris(jax.random.key(0), walk(ys=[0.0, 0.0, np.inf, 0.0]), total, **options)
    assert int(out.status) == pb.Status.ALL_WEIGHTS_ZERO
    np.testing.assert_array_equal(np.isnan(out.estimate), [False, False, True, True])
    assert out.log_evidence == -np.inf
    spoilt = paris(jax.random.key(0), walk(fault=np.nan), total, **options)
    assert int(spoilt.status) == pb.Status.NAN_LOG_WEIGHT | pb.Status.ALL_WEIGHTS_ZERO
    np.testing.assert_array_equal(np.isnan(spoilt.estimate), [False, False, True, True])
    nowhere = paris(jax.random.key(0), walk(fault=-np.inf), total, **options)
    assert int(nowhere.status) == pb.Status.ALL_WEIGHTS_ZERO
    np.testing.assert_array_equal(np.isnan(nowhere.estimate), [False, False, True, True])
    with pytest.raises(pb.InferenceError, match="POSINF_LOG_WEIGHT") as caught:
        paris(jax.random.key(0), walk(fault=np.inf), total, num_particles=6)
    assert np.isnan(caught.value.result.log_evidence)


def test_a_bound_that_is_none_is_flagged():
    with pytest.warns(pb.InferenceWarning, match=r"`paris`: `log_bound` was below"):
        paris(jax.random.key(0), walk(), total, num_particles=6, method="rejection", log_bound=-3.0)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "`num_particles` is 0", {"num_particles": 0}),
        (ValueError, "`num_backward` is 0", {"num_backward": 0}),
        (ValueError, "`method` is 'mcmc'", {"method": "mcmc"}),
        (ValueError, "`resampling` is 'none'", {"resampling": "none"}),
        (ValueError, "`fraction` is 2", {"ess_threshold": 2.0}),
        (TypeError, None, {"additive": 3}),
        (TypeError, "FeynmanKac", {"model": 3}),
    ],
)
def test_bad_arguments(error, words, options):
    arguments = {"model": walk(), "additive": total, "num_particles": 3, **options}
    with pytest.raises(error, match=words):
        paris(jax.random.key(0), **arguments)
