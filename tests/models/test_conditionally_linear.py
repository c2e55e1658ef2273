"""Rao-Blackwellised filters: exact moments given a path, evidence and means against all paths, faults and arguments.

Planted bugs, each seen to fail: predicted moments reported for filtered ones; the regime of the step before; the
observation of another time; a missing observation read as zero.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from probinf.core import trace_back
from probinf.models import ConditionallyLinear, LinearGaussian, RaoBlackwellised, kalman_filter
from probinf.samplers import particle_filter

FIRST = np.array([0.7, 0.3])
JUMPS = np.array([[0.8, 0.2], [0.45, 0.55]])


class Dynamics(eqx.Module):
    """Two regimes of d states and p observations; regime 1 is noisier and drifts."""

    d: int = eqx.field(static=True)
    p: int = eqx.field(static=True)
    noise: jax.Array

    def __call__(self, t, u):
        d, p = self.d, self.p
        pick = lambda a, b: jnp.where(u == 1, b, a)  # noqa: E731
        turn = jnp.array([[0.9, 0.3], [-0.2, 0.7]])[:d, :d]
        seen = jnp.array([[1.0, 0.5], [0.3, -1.0], [0.2, 0.4]])[:p, :d]
        correlated = 0.2 * jnp.eye(p) + 0.1
        return LinearGaussian(
            pick(jnp.full(d, 0.3), jnp.full(d, -1.0)),
            pick(1.0, 2.0) * jnp.eye(d),
            pick(1.0, -0.5) * turn,
            pick(0.2, 1.0) * jnp.eye(d),
            seen,
            self.noise * pick(1.0, 4.0) * correlated,
            pick(jnp.zeros(d), jnp.full(d, 0.4)),
            0.1,
        )


def switching(d=1, p=1, noise=1.0):
    return ConditionallyLinear(
        lambda: dist.Categorical(jnp.asarray(FIRST, jnp.float32)),
        lambda t, u: dist.Categorical(jnp.asarray(JUMPS, jnp.float32)[u]),
        Dynamics(d, p, jnp.float32(noise)),
    )


YS = {
    (1, 1): np.array([[0.4], [-2.0], [np.nan], [1.5]], np.float32),
    (2, 3): np.array([[0.4, 1.0, np.nan], [-1.0, np.nan, 0.3], [np.nan] * 3, [2.0, 0.3, -1.0]], np.float32),
}
SIZES = list(YS)


@eqx.filter_jit
def along(model, times, path):
    return jax.vmap(model.dynamics)(times, path)


def of_path(model, path):
    """The `LinearGaussian` that a path of regimes makes, time-varying."""
    times = jnp.arange(len(path), dtype=jnp.int32)
    linear = along(model, times, jnp.asarray(path, jnp.int32))
    names = [f"{part}_{name}" for part in ("transition", "observation") for name in ("matrix", "cov", "offset")]
    first = (np.asarray(linear.initial_mean)[0], np.asarray(linear.initial_cov)[0])
    return LinearGaussian(*first, **{name: np.asarray(getattr(linear, name)) for name in names})


@functools.cache
def all_paths(size):
    """(log evidence, filtered means [T, d], regime probabilities [T]) by enumeration of the regimes up to each time."""
    model, ys = switching(*size), YS[size]
    filters = {}
    for path in itertools.product(range(2), repeat=len(ys)):
        prior = FIRST[path[0]] * np.prod([JUMPS[a, b] for a, b in itertools.pairwise(path)])
        filters[path] = (prior, kalman_filter(of_path(model, path), ys))
    mean, second, total = [], [], 0.0
    for t in range(len(ys)):
        # The evidence up to t of a whole path, weighted by its prior: later regimes sum out.
        increments = [np.asarray(k.log_increments, np.float64)[: t + 1] for _, k in filters.values()]
        weights = np.array([p * np.exp(sum(i)) for (p, _), i in zip(filters.values(), increments, strict=True)])
        total = weights.sum()
        mean.append(
            sum(w * np.asarray(k.filtered_mean[t]) for w, (_, k) in zip(weights, filters.values(), strict=True))
        )
        mean[-1] = mean[-1] / total
        second.append(sum(w * path[t] for w, path in zip(weights, filters, strict=True)) / total)
    return np.log(total), np.array(mean), np.array(second)


@functools.cache
def filtered(size):
    model = switching(*size)
    key = jax.random.key(2)
    return particle_filter(key, model.rao_blackwellised(YS[size]), num_particles=200, num_replicates=50)


@pytest.mark.numpyro
@pytest.mark.parametrize("size", [SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.slow)])
def test_evidence_and_means_agree_with_all_paths(size):
    # Standard errors from 50 runs; 6 with 49 degrees of freedom is 2e-7. Means: 8, and a bias of order 1/N = 5e-3.
    out = filtered(size)
    log_evidence, mean, regime = all_paths(size)
    error = float(np.sqrt(out.log_evidence_variance))
    assert error < 0.02
    assert abs(float(out.log_evidence) - log_evidence) < 6 * error
    for ours, exact in ((np.asarray(out.mean.mean), mean), (np.asarray(out.mean.state), regime)):
        spread = ours.std(axis=0, ddof=1) / np.sqrt(50)
        assert np.all(np.abs(ours.mean(axis=0) - exact) < 8 * spread + 5e-3)


@pytest.mark.numpyro
@pytest.mark.parametrize("bug", ["predicted", "regime before", "another y", "missing is zero"])
def test_planted_bugs_are_caught(bug):
    out, (log_evidence, mean, _), model = filtered((1, 1)), all_paths((1, 1)), switching()
    fk = model.rao_blackwellised(YS[1, 1])
    if bug == "predicted":  # the mean before the observation, from the filtered mean of the step before
        before = np.asarray(out.mean.mean)[:, 0].mean()
        assert abs(0.9 * before - mean[1, 0]) > 0.1
        return
    if bug == "regime before":
        late = eqx.tree_at(lambda m: m.dynamics, model, lambda t, u: model.dynamics(t, 1 - u))
        fk = late.rao_blackwellised(YS[1, 1])
    elif bug == "another y":
        fk = eqx.tree_at(lambda m: m.observations, fk, jnp.roll(fk.observations, 1, axis=0))
    else:
        fk = eqx.tree_at(
            lambda m: (m.observations, m.observed), fk, (fk.observations.at[2].set(0), jnp.ones_like(fk.observed))
        )
    wrong = particle_filter(jax.random.key(2), fk, num_particles=200, num_replicates=50)
    assert abs(float(wrong.log_evidence) - log_evidence) > 6 * float(np.sqrt(wrong.log_evidence_variance))


@pytest.mark.numpyro
@pytest.mark.parametrize("size", SIZES)
def test_moments_of_each_particle_are_those_of_its_path(size, key):
    # No Monte Carlo: the Kalman filter of the very path that a particle took.
    model = switching(*size)
    keys = jax.random.split(key)
    out = particle_filter(keys[0], model.rao_blackwellised(YS[size]), num_particles=6, history=True)
    history = out.history
    assert history is not None
    paths = trace_back(keys[1], history.log_weights[-1], history.particles, history.ancestors, num_paths=3)
    assert isinstance(paths, RaoBlackwellised)
    for i in range(3):
        exact = kalman_filter(of_path(model, np.asarray(paths.state[:, i])), YS[size])
        np.testing.assert_allclose(paths.mean[:, i], exact.filtered_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(paths.cov[:, i], exact.filtered_cov, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(paths.log_predictive[:, i], exact.log_increments, rtol=1e-4, atol=1e-5)
        # Predicted moments are not filtered ones: the planted bug would be seen.
        assert float(jnp.max(jnp.abs(exact.predicted_mean - exact.filtered_mean))) > 0.1


@pytest.mark.slow
@pytest.mark.numpyro
def test_a_continuous_part(key):
    # u is a random walk, y reads z + u: jointly linear and Gaussian, so Kalman on (u, z) is exact. Six errors.
    def dynamics(t, u):
        return LinearGaussian(0.0, 1.0, 0.8, 0.3, 1.0, 0.5, 0.0, u)

    model = ConditionallyLinear(lambda: dist.Normal(0.5, 1.0), lambda t, u: dist.Normal(0.9 * u, 0.6), dynamics)
    joint = LinearGaussian([0.5, 0.0], np.eye(2), np.diag([0.9, 0.8]), np.diag([0.36, 0.3]), [[1.0, 1.0]], [[0.5]])
    ys = np.array([0.4, -2.0, np.nan, 3.0, 1.0], np.float32)
    exact = kalman_filter(joint, ys[:, None])
    out = particle_filter(key, model.rao_blackwellised(ys), num_particles=300, num_replicates=50)
    error = float(np.sqrt(out.log_evidence_variance))
    assert error < 0.05
    assert abs(float(out.log_evidence) - float(exact.log_evidence)) < 6 * error
    for ours, which in ((out.mean.state, 0), (out.mean.mean[..., 0], 1)):
        spread = np.asarray(ours).std(axis=0, ddof=1) / np.sqrt(50)
        distance = np.asarray(ours).mean(axis=0) - np.asarray(exact.filtered_mean)[:, which]
        assert np.all(np.abs(distance) < 8 * spread + 5e-3)


@pytest.mark.numpyro
def test_simulated_data_have_the_moments_of_the_model():
    # 20,000 runs of 2 steps: the probability of the second regime, and the moments of y_0, six standard errors each.
    model, n = switching(), 20_000
    u, z, y = jax.jit(jax.vmap(lambda k: model.simulate(k, 2)))(jax.random.split(jax.random.key(4), n))
    u, z, y = (np.asarray(leaf, np.float64) for leaf in (u, z, y))
    p = (FIRST @ JUMPS)[1]
    assert abs(u[:, 1].mean() - p) < 6 * np.sqrt(p * (1 - p) / n)
    mean = 0.7 * 0.3 - 0.3 * 1.0
    variance = 0.7 * 1.0 + 0.3 * 2.0 + 0.7 * 0.3 * 1.3**2
    assert abs(z[:, 0, 0].mean() - mean) < 6 * np.sqrt(variance / n)
    noise = 0.7 * 0.3 + 0.3 * 1.2
    assert abs(y[:, 0, 0].mean() - mean - 0.1) < 6 * np.sqrt((variance + noise) / n)
    np.testing.assert_allclose((y - z)[:, 0, 0].var(), noise, rtol=6 * np.sqrt(6 / n))


@pytest.mark.numpyro
def test_gradient_and_data_do_not_recompile(key):
    traces = []

    @jax.jit
    @jax.value_and_grad
    def evidence(noise, ys):
        traces.append(noise)
        fk = switching(noise=noise).rao_blackwellised(ys)
        return particle_filter(key, fk, num_particles=8, throw=False, differentiable=True).log_evidence

    for ys in (YS[1, 1], np.full_like(YS[1, 1], np.nan)):
        value, slope = evidence(jnp.float32(0.8), jnp.asarray(ys))
        assert np.isfinite(value)
        assert np.isfinite(slope)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert len(traces) == 1


def test_no_steps_vectors_of_scalars_and_integers(key):
    model = switching()
    fk = model.rao_blackwellised(np.zeros(0))
    assert fk.num_steps == 0
    assert jax.eval_shape(lambda k: fk.init(k, 3), key).mean.shape == (3, 1)
    np.testing.assert_array_equal(model.rao_blackwellised([1.0, np.nan]).observed, [[True], [False]])
    assert model.rao_blackwellised([1, 2]).observations.dtype == jnp.float32


@pytest.mark.parametrize("size", SIZES)
def test_strict_settings_hold(size, key):
    # No marker: promotion is strict and key reuse is checked. NumPyro's own categorical does not pass.
    def regime(t=None, u=None):
        return dist.Uniform(-1.0, 1.0)

    dynamics = Dynamics(size[0], size[1], jnp.float32(1.0))
    model = ConditionallyLinear(lambda: regime(), regime, lambda t, u: dynamics(t, (u > 0).astype(jnp.int32)))
    fk = model.rao_blackwellised(YS[size])

    @jax.jit
    def run(key):
        keys = jax.random.split(key)
        return fk.mutate(keys[0], 1, fk.init(keys[1], 3))

    assert bool(jnp.all(jnp.isfinite(run(key).log_predictive)))


NORMAL = lambda: dist.Normal(0.0, 1.0)  # noqa: E731
MOVE = lambda t, u: dist.Normal(u, 1.0)  # noqa: E731


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("kind", "message", "functions"),
    [
        (TypeError, "`dynamics` returned", (NORMAL, MOVE, lambda t, u: u)),
        (TypeError, r"`dynamics` cannot be called as `dynamics\(t, u\)`", (NORMAL, MOVE, lambda u: u)),
        (TypeError, "`initial` returned", (lambda: 0.0, MOVE, MOVE)),
        (ValueError, r"draws shape \(2,\)", (NORMAL, lambda t, u: dist.Normal(jnp.zeros(2), 1.0), MOVE)),
        (TypeError, "draws dtype int32", (NORMAL, lambda t, u: dist.Bernoulli(0.5), MOVE)),
        (ValueError, "`transition_matrix`", (NORMAL, MOVE, lambda t, u: LinearGaussian(0, 1, jnp.eye(2), 1, 1, 1))),
    ],
)
def test_bad_functions_are_named(kind, message, functions):
    with pytest.raises(kind, match=message):
        ConditionallyLinear(*functions)


def test_bad_data_are_named(key):
    with pytest.raises(ValueError, match=r"`ys` has shape \(3, 2\)"):
        switching().rao_blackwellised(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="`ys` is inf"):
        switching().rao_blackwellised([0.0, np.inf])
    with pytest.raises(ValueError, match="`num_steps` is 0"):
        switching().simulate(key, 0)
