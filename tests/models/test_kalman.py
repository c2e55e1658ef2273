"""Kalman filter and smoother against conditioning of the joint Gaussian of all states and observations.

Planted bugs, each seen to miss the oracle: a transition before the first observation; a missing observation read as
zero; the observation noise forgotten; time-varying arrays shifted by one; missing components counted in the constant.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.models import LinearGaussian, kalman_filter, kalman_smoother


class Joint(NamedTuple):
    """Mean and covariance of states and observations stacked, from the definition of the model."""

    state_mean: np.ndarray
    state_cov: np.ndarray
    observation_mean: np.ndarray
    observation_cov: np.ndarray
    cross: np.ndarray  # states by observations


def joint_law(model: LinearGaussian, num_steps: int) -> Joint:
    d, p = model.num_states, model.num_observed

    def at(name, t):
        return np.asarray(model.at(name, t), np.float64)

    # Every state is a linear map of (x_0 - m_0, noises): column block s of `maps` belongs to noise s.
    maps = np.zeros((num_steps, d, num_steps, d))
    mean = np.zeros((num_steps, d))
    noise = [np.asarray(model.initial_cov)] + [at("transition_cov", t) for t in range(1, num_steps)]
    for t in range(num_steps):
        if t == 0:
            mean[0] = model.initial_mean
        else:
            mean[t] = at("transition_matrix", t) @ mean[t - 1] + at("transition_offset", t)
            maps[t] = np.einsum("ij,jsk->isk", at("transition_matrix", t), maps[t - 1])
        maps[t, :, t] = np.eye(d)
    state_cov = np.einsum("aisk,skl,bjsl->aibj", maps, np.array(noise), maps).reshape(num_steps * d, num_steps * d)
    look = np.zeros((num_steps, p, num_steps, d))
    observation_noise = np.zeros((num_steps, p, num_steps, p))
    for t in range(num_steps):
        look[t, :, t] = at("observation_matrix", t)
        observation_noise[t, :, t] = at("observation_cov", t)
    look = look.reshape(num_steps * p, num_steps * d)
    offset = np.concatenate([at("observation_offset", t) for t in range(num_steps)])
    return Joint(
        mean.ravel(),
        state_cov,
        look @ mean.ravel() + offset,
        look @ state_cov @ look.T + observation_noise.reshape(num_steps * p, num_steps * p),
        state_cov @ look.T,
    )


def condition(joint: Joint, ys: np.ndarray, upto: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of all states, and the log density, given the observations before time `upto`."""
    there = ~np.isnan(ys)
    there[upto:] = False
    there = there.ravel()
    if not there.any():
        return joint.state_mean, joint.state_cov, 0.0
    residual = ys.ravel()[there] - joint.observation_mean[there]
    cov = joint.observation_cov[np.ix_(there, there)]
    gain = np.linalg.solve(cov, joint.cross[:, there].T).T
    log_density = -0.5 * (residual @ np.linalg.solve(cov, residual) + np.linalg.slogdet(2 * np.pi * cov)[1])
    return joint.state_mean + gain @ residual, joint.state_cov - gain @ joint.cross[:, there].T, log_density


def spd(rng, k):
    root = rng.normal(size=(k, k))
    return root @ root.T + 0.3 * np.eye(k)


def build(d=2, p=2, length=None, seed=0, **changes):
    rng = np.random.default_rng(seed)
    lead = () if length is None else (length,)

    def covs(k):
        return spd(rng, k) if length is None else np.stack([spd(rng, k) for _ in range(length)])

    arrays = {
        "initial_mean": rng.normal(size=d),
        "initial_cov": spd(rng, d),
        "transition_matrix": 0.6 * rng.normal(size=(*lead, d, d)),
        "transition_cov": covs(d),
        "observation_matrix": rng.normal(size=(*lead, p, d)),
        "observation_cov": covs(p),
        "transition_offset": rng.normal(size=(*lead, d)),
        "observation_offset": rng.normal(size=(*lead, p)),
    }
    return LinearGaussian(**(arrays | changes))


def observations(num_steps, p, seed=1):
    return np.random.default_rng(seed).normal(size=(num_steps, p)) * 2


def with_gaps(ys):
    ys = ys.copy()
    ys[0] = np.nan
    ys[2, 0] = np.nan
    ys[-1, -1] = np.nan
    return ys


CASES = {
    "plain": lambda: (build(), observations(5, 2)),
    "univariate": lambda: (build(1, 1), observations(5, 1)),
    "more observed than states": lambda: (build(2, 3), observations(4, 3)),
    "varying": lambda: (build(2, 2, length=5), observations(5, 2)),
    "varying, longer than the data": lambda: (build(2, 2, length=8), observations(5, 2)),
    "gaps": lambda: (build(2, 2, length=5), with_gaps(observations(5, 2))),
    "nothing observed": lambda: (build(), np.full((3, 2), np.nan)),
    "known start": lambda: (build(initial_cov=np.zeros((2, 2))), observations(5, 2)),
    "noise-free component": lambda: (build(transition_cov=np.diag([1.0, 0.0])), observations(5, 2)),
    "no noise at all in the states": lambda: (build(transition_cov=np.zeros((2, 2))), observations(5, 2)),
    "one step": lambda: (build(), observations(1, 2)),
}


def blocks(cov, num_steps, d):
    return np.stack([cov.reshape(num_steps, d, num_steps, d)[t, :, t] for t in range(num_steps)])


@pytest.mark.parametrize("case", CASES)
def test_equals_joint_conditioning(case, x64):
    model, ys = CASES[case]()
    num_steps, d = len(ys), model.num_states
    joint = joint_law(model, num_steps)
    smoothed = kalman_smoother(model, ys)
    filtered = smoothed.filtered
    mean, cov, log_evidence = condition(joint, ys, num_steps)
    np.testing.assert_allclose(smoothed.log_evidence, log_evidence, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(smoothed.smoothed_mean, mean.reshape(num_steps, d), atol=1e-10)
    np.testing.assert_allclose(smoothed.smoothed_cov, blocks(cov, num_steps, d), atol=1e-10)
    for t in range(num_steps):
        for upto, ours_mean, ours_cov in (
            (t, filtered.predicted_mean, filtered.predicted_cov),
            (t + 1, filtered.filtered_mean, filtered.filtered_cov),
        ):
            mean, cov, log_density = condition(joint, ys, upto)
            np.testing.assert_allclose(ours_mean[t], mean.reshape(num_steps, d)[t], atol=1e-10)
            np.testing.assert_allclose(ours_cov[t], blocks(cov, num_steps, d)[t], atol=1e-10)
        np.testing.assert_allclose(jnp.sum(filtered.log_increments[: t + 1]), log_density, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["plain", "varying, longer than the data", "gaps"])
def test_forecast_equals_filtering_on_missing_data(case, x64):
    model, ys = CASES[case]()
    ys = ys[:3]
    ahead = kalman_filter(model, ys).forecast(2)
    padded = kalman_filter(model, np.concatenate([ys, np.full((2, ys.shape[1]), np.nan)]))
    np.testing.assert_allclose(ahead.state_mean, padded.predicted_mean[3:], rtol=1e-12)
    np.testing.assert_allclose(ahead.state_cov, padded.predicted_cov[3:], rtol=1e-12)
    joint = joint_law(model, 5)
    full = np.concatenate([ys, np.full((2, ys.shape[1]), np.nan)])
    there = ~np.isnan(full).ravel()
    gain = np.linalg.solve(joint.observation_cov[np.ix_(there, there)], joint.observation_cov[there]).T
    mean = joint.observation_mean + gain @ (full.ravel()[there] - joint.observation_mean[there])
    cov = joint.observation_cov - gain @ joint.observation_cov[there]
    np.testing.assert_allclose(ahead.observation_mean, mean.reshape(5, -1)[3:], atol=1e-11)
    np.testing.assert_allclose(ahead.observation_cov, blocks(cov, 5, ys.shape[1])[3:], atol=1e-11)


def _start_moved(model, ys):
    matrix, cov = model.at("transition_matrix", 0), model.initial_cov
    mean = matrix @ model.initial_mean + model.at("transition_offset", 0)
    moved = matrix @ cov @ matrix.T + model.at("transition_cov", 0)
    return eqx.tree_at(lambda m: (m.initial_mean, m.initial_cov), model, (mean, moved)), ys


def _shifted(model, ys):
    return eqx.tree_at(lambda m: m.transition_matrix, model, jnp.roll(model.transition_matrix, 1, axis=0)), ys


PLANTED = {
    "transition before the first observation": _start_moved,
    "missing read as zero": lambda model, ys: (model, np.nan_to_num(ys)),
    "time shifted by one": _shifted,
    "noise forgotten": lambda model, ys: (
        eqx.tree_at(lambda m: m.observation_cov, model, 1e-3 * model.observation_cov),
        ys,
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(bug, x64):
    model, ys = CASES["gaps"]()
    exact = condition(joint_law(model, len(ys)), ys, len(ys))[2]
    assert abs(float(kalman_filter(*PLANTED[bug](model, ys)).log_evidence) - exact) > 1e-3


def test_planted_constant_of_missing_components_is_caught(x64):
    model, ys = CASES["gaps"]()
    exact = condition(joint_law(model, len(ys)), ys, len(ys))[2]
    wrong = kalman_filter(model, ys).log_evidence - 0.5 * np.log(2 * np.pi) * np.isnan(ys).sum()
    assert abs(float(wrong) - exact) > 1e-3


def test_no_steps():
    model = build()
    out = kalman_smoother(model, np.zeros((0, 2)))
    assert float(out.log_evidence) == 0
    assert out.smoothed_mean.shape == (0, 2)
    np.testing.assert_allclose(out.filtered.forecast(1).state_mean[0], model.initial_mean)


def test_float32_agrees_with_float64_over_a_long_run(x64):
    # A nearly diffuse start and a precise observation: the plain covariance update loses its sign here.
    ys = np.cumsum(np.random.default_rng(2).normal(size=1000)) * 40 + 900
    wide = LinearGaussian(0.0, 1e7, 1.0, 1469.0, 1.0, 15099.0)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wide)
    exact, single = kalman_smoother(wide, ys), kalman_smoother(narrow, ys.astype(np.float32))
    assert single.log_evidence.dtype == jnp.float32
    np.testing.assert_allclose(single.log_evidence, exact.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(single.smoothed_mean, exact.smoothed_mean, rtol=1e-4)
    np.testing.assert_allclose(single.smoothed_cov, exact.smoothed_cov, rtol=2e-3)
    np.testing.assert_allclose(single.filtered.filtered_cov, exact.filtered.filtered_cov, rtol=1e-4)


def test_gradient_of_the_evidence_with_missing_data(x64):
    _, ys = CASES["gaps"]()
    model = build(2, 2, length=5)

    def evidence(scale):
        scaled = eqx.tree_at(lambda m: m.transition_cov, model, scale * model.transition_cov)
        return kalman_filter(scaled, ys).log_evidence

    slope = (evidence(jnp.float64(1 + 1e-6)) - evidence(jnp.float64(1 - 1e-6))) / 2e-6
    np.testing.assert_allclose(jax.grad(evidence)(jnp.float64(1.0)), slope, rtol=1e-6)
    whole = jax.grad(lambda m: kalman_filter(m, ys).log_evidence)(model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(whole))


def test_jit_and_vmap_agree_with_eager(x64):
    model, ys = CASES["gaps"]()
    eager = kalman_filter(model, ys).log_evidence
    many = jax.jit(jax.vmap(lambda y: kalman_smoother(model, y).log_evidence))(jnp.stack([ys, ys + 1]))
    np.testing.assert_allclose(many[0], eager, rtol=1e-12)
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), model)
    by_model = jax.vmap(lambda m: kalman_filter(m, ys).log_evidence)(models)
    np.testing.assert_allclose(by_model[0], eager, rtol=1e-12)


def test_flat_observations_of_a_univariate_model():
    model, ys = CASES["univariate"]()
    assert float(kalman_filter(model, ys[:, 0]).log_evidence) == float(kalman_filter(model, ys).log_evidence)
    assert float(kalman_filter(model, ys[:, 0].tolist()).log_evidence) == float(kalman_filter(model, ys).log_evidence)


def test_scalars_keep_the_default_dtype(x64):
    assert LinearGaussian(0, 1, 0.9, 1, 1, 1).initial_mean.dtype == jnp.float64
    assert LinearGaussian(np.float32(0), 1, 0.9, 1, 1, 1).transition_matrix.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("transition_matrix", {"transition_matrix": np.eye(3)}),
        ("initial_mean", {"initial_mean": np.zeros((3, 2))}),
        ("initial_cov", {"initial_cov": np.zeros((3, 2, 2))}),
        ("observation_matrix", {"observation_matrix": np.eye(3)}),
        ("transition_offset", {"transition_offset": np.zeros(3)}),
        ("initial_cov", {"initial_cov": np.array([[1.0, 2.0], [0.0, 1.0]])}),
        ("transition_cov", {"transition_cov": np.diag([1.0, -1.0])}),
        ("observation_cov", {"observation_cov": np.full((2, 2), np.nan)}),
        ("time-varying", {"transition_matrix": np.zeros((4, 2, 2)), "observation_offset": np.zeros((5, 2))}),
    ],
)
def test_bad_parameters_are_named(name, changes):
    with pytest.raises(ValueError, match=name):
        build(**changes)


def test_bad_data_are_named():
    model = build()
    with pytest.raises(ValueError, match="`ys` has shape"):
        kalman_filter(model, np.zeros(4))
    with pytest.raises(ValueError, match="`ys` has shape"):
        kalman_filter(model, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"`ys` is infinite at \[1, 0\]"):
        kalman_smoother(model, [[0.0, 0.0], [np.inf, 0.0]])
    with pytest.raises(ValueError, match="make it longer"):
        kalman_filter(build(length=3), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="make it longer"):
        kalman_filter(build(length=3), np.zeros((3, 2))).forecast(1)
    with pytest.raises(ValueError, match="`num_steps`"):
        kalman_filter(model, np.zeros((3, 2))).forecast(-1)
