"""Fixed-lag smoothing: its law by enumeration, against Kalman with the later observations taken away.

Planted bugs, shown to be caught: means read at the wrong place of the window (off by one), a window that is not copied
with its particle.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf import models
from probinf.samplers import FixedLag, fixed_lag, fixed_lag_means, particle_filter
from probinf.validity import enumerate_algorithm
from tests._finite import Ahead, as_kind, skewed_model, tables
from tests._slow import slow_after
from tests._walks import Walk, linear_gaussian, walk


def window_measure(model, t, lag):
    """Unnormalised measure of (x_{t-lag}, .., x_t) given y_{0:t}, where times before 0 hold x_0."""
    initial, transition, potentials = tables(model)
    mass = initial * potentials[0, 0]
    for s in range(1, t + 1):
        mass = mass[..., None] * (transition * potentials[s])
    out = np.zeros([2] * (lag + 1))
    for path in np.ndindex(mass.shape):
        out[tuple(path[max(s, 0)] for s in range(t - lag, t + 1))] += mass[path]
    return out


def expected_windows(model, num_particles, lag, gather=True):
    wrapped = fixed_lag(model, lag)
    if not gather:
        wrapped = Stuck(wrapped.model, lag)

    def run(key):
        return particle_filter(key, wrapped, num_particles=num_particles, ess_threshold=1.0).population

    def mass(p):
        code = jnp.sum(p.particles * 2 ** jnp.arange(lag, -1, -1, dtype=jnp.int32)[None], axis=1)
        weights = jnp.exp(p.log_scale + p.log_weights) / num_particles
        return jnp.zeros(2 ** (lag + 1), weights.dtype).at[code].add(weights)

    return np.asarray(enumerate_algorithm(run).expectation(mass)).reshape([2] * (lag + 1))


class Stuck(FixedLag):
    """Copies the newest state only."""

    def gather(self, particles, ancestors):
        return particles.at[:, -1].set(particles[ancestors, -1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("num_particles", "num_steps", "lag"), slow_after(2, [(2, 3, 1), (3, 2, 0), (2, 2, 3), (2, 1, 2)])
)
def test_law_of_windows(num_particles, num_steps, lag):
    model = skewed_model(num_steps)
    found = expected_windows(model, num_particles, lag)
    np.testing.assert_allclose(found, window_measure(model, num_steps - 1, lag), rtol=1e-9, atol=1e-15)


@pytest.mark.usefixtures("x64")
def test_windows_that_stay_behind_are_caught():
    model = skewed_model(3)
    found = expected_windows(model, 2, 2, gather=False)
    assert np.max(np.abs(found - window_measure(model, 2, 2))) > 1e-3


@pytest.mark.usefixtures("x64")
def test_look_ahead_is_passed_on():
    plain = skewed_model(2)
    model = as_kind(Ahead, plain)
    assert fixed_lag(model, 2).looks_ahead
    assert not fixed_lag(plain, 2).looks_ahead
    np.testing.assert_allclose(expected_windows(model, 2, 1), window_measure(model, 1, 1), rtol=1e-9)
    windows = jnp.array([[0, 1], [1, 0]], jnp.int32)
    np.testing.assert_allclose(fixed_lag(model, 1).look_ahead(1, windows), np.log([1.9, 0.4]))


def test_densities_are_those_of_the_newest_states():
    model = skewed_model(2, dtype=np.float32)
    before, now = jnp.array([[0, 1], [1, 0]], jnp.int32), jnp.array([[1, 0], [0, 0]], jnp.int32)
    wrapped = fixed_lag(model, 1)
    np.testing.assert_allclose(wrapped.log_transition(1, before, now), np.log([0.35, 0.8]), rtol=1e-6)
    expected = np.log(np.asarray([0.35, 0.8]) * np.asarray(model.potentials)[1, [1, 0], 0])
    np.testing.assert_allclose(wrapped.log_backward(1, before, now), expected, rtol=1e-6)


@pytest.mark.numpyro
def test_agrees_with_kalman():
    lag = 2
    model, ys = linear_gaussian(8)
    expected = np.zeros((8, 1))
    for t in range(8):
        last = min(t + lag, 7)
        expected[t] = np.asarray(models.kalman_smoother(model, ys[: last + 1]).smoothed_mean)[t]
    fk = fixed_lag(model.state_space().bootstrap(ys), lag)
    out = particle_filter(jax.random.key(0), fk, num_particles=1000, num_replicates=40)
    means = np.asarray(fixed_lag_means(out), np.float64)
    assert means.shape == (40, 8, 1)
    # Standard errors from 40 runs: 8 of them leave 1e-9 with 39 degrees; the bias of O(1 / 1000) gets 2e-3.
    spread = means.std(axis=0, ddof=1) / np.sqrt(40)
    assert np.max(spread) < 0.02
    assert np.all(np.abs(means.mean(axis=0) - expected) < 8 * spread + 2e-3)
    late = np.asarray(out.mean)[:, :, -1 - lag + 1].mean(axis=0)  # a window read one place too late
    assert not np.all(np.abs(late - expected) < 8 * spread + 2e-3)
    exact = float(models.kalman_filter(model, ys).log_evidence)
    assert abs(float(out.log_evidence) - exact) < 6 * np.sqrt(float(out.log_evidence_variance))


class Looking(Walk):
    """A potential that looks at the state before; `gather` counts as the model's own in `OwnGather`."""

    def log_potential(self, t, x_prev, x):
        drift = 0.0 if x_prev is None else 0.1 * (x["x"] - x_prev["x"])
        return -0.5 * (x["x"] - self.ys[t] - drift) ** 2


class OwnGather(Looking):
    def gather(self, particles, ancestors):
        return jax.tree.map(lambda leaf: leaf[ancestors], particles)


class OnHost(Looking):
    traceable: ClassVar[bool] = False


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OwnGather, OnHost])
def test_forms_agree(kind):
    plain, other = (
        particle_filter(jax.random.key(0), fixed_lag(walk(kind, ys=[0.3, 1.0]), 1), num_particles=4)
        for kind in (Looking, kind)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), plain.mean, other.mean)


@pytest.mark.parametrize(("num_steps", "lag"), slow_after(1, [(3, 1), (3, 4), (1, 4)]))
def test_order_of_time(num_steps, lag):
    # `n` counts the steps: entry t of the smoothed means must be t, however short the run.
    out = particle_filter(jax.random.key(0), fixed_lag(walk(Looking, ys=np.zeros(num_steps)), lag), num_particles=4)
    np.testing.assert_allclose(fixed_lag_means(out)["n"], np.arange(num_steps), atol=1e-6)
    assert out.mean["n"].shape == (num_steps, lag + 1)
    np.testing.assert_allclose(out.mean["n"][0], 0, atol=1e-6)


def test_bad_arguments():
    model = skewed_model(2, dtype=np.float32)
    with pytest.raises(ValueError, match="`lag` is -1"):
        fixed_lag(model, -1)
    with pytest.raises(TypeError, match="`lag` must be an integer, got True"):
        fixed_lag(model, True)
    with pytest.raises(TypeError, match="FeynmanKac"):
        fixed_lag(lambda: 0, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="without windows"):
        fixed_lag_means(particle_filter(jax.random.key(0), model, num_particles=3))
    with pytest.raises(TypeError):
        fixed_lag_means(3)  # pyright: ignore[reportArgumentType]


def test_all_weights_zero_gives_nan():
    model = skewed_model(2, dtype=np.float32)
    dead = eqx.tree_at(lambda m: m.potentials, model, model.potentials.at[1].set(0))
    out = particle_filter(jax.random.key(0), fixed_lag(dead, 1), num_particles=4, throw=False)
    assert int(out.status) == pb.Status.ALL_WEIGHTS_ZERO
    np.testing.assert_array_equal(np.isnan(fixed_lag_means(out)), [True, True])
