"""Guided and auxiliary models: q G = f g pointwise, draws from q, missing data, gradients, and what is refused.

What filters make of them is tested in test_guided_filters.py.

Planted bugs, each seen to fail: the density of the proposal forgotten; an observation of another time.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from probinf.models import LinearGaussian, StateSpaceModel
from probinf.models._optimal_proposal import moment_of
from probinf.samplers import particle_filter
from tests.models._guided_models import (
    MODELS,
    bent,
    local_level,
    user_proposal,
    vector,
    volatility_look_ahead,
)


@functools.cache
def built(name):
    make, ys, options, _ = MODELS[name]
    model = make()
    return model, model.guided(ys, **options), model.bootstrap(ys)


@jax.jit
def densities(fk, boot, t, before, x):
    """(log q, log G, log f, log g) and the backward density."""
    return (
        fk.log_transition(t, before, x),
        fk.log_potential(t, before, x),
        boot.log_transition(t, before, x),
        boot.log_potential(t, before, x),
        fk.log_backward(t, before, x),
    )


@jax.jit
def start_densities(fk, boot, x):
    at = moment_of(fk.prior, 0)
    prior = jax.vmap(lambda one: jnp.sum(boot.model.initial().log_prob(one)))(x)
    start = fk.start.log_density(fk.prior, at, None, x)
    return start, fk.log_potential(0, None, x), prior, boot.log_potential(0, None, x)


@jax.jit
def draw(key, fk, t, before):
    return fk.mutate(key, t, before)


@functools.partial(jax.jit, static_argnums=2)
def begin(key, fk, num_particles):
    return fk.init(key, num_particles)


@jax.jit
def weigh(fk, t, before, x):
    return fk.log_potential(t, before, x)


@jax.jit
def look_ahead(fk, t, x):
    return fk.look_ahead(t, x)


@functools.cache
def states(name):
    """Two populations of seven states that the model could be in."""
    boot, keys = built(name)[2], jax.random.split(jax.random.key(11))
    return tuple(jax.jit(lambda k: boot.init(k, 7))(k) for k in keys)


@pytest.mark.numpyro
@pytest.mark.parametrize("name", MODELS)
def test_proposal_times_weight_is_the_model(name):
    # At any x, so there is no Monte Carlo. Terms are below 1e3 in size, in float32.
    _, fk, boot = built(name)
    if MODELS[name][3] is not None:
        assert fk.moves.exact == MODELS[name][3]
    before, x = states(name)
    for t in range(1, 4):
        log_q, log_weight, log_f, log_g, backward = densities(fk, boot, jnp.int32(t), before, x)
        np.testing.assert_allclose(log_q + log_weight, log_f + log_g, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(backward, log_f, rtol=1e-6)
    start, log_weight, prior, log_g = start_densities(fk, boot, x)
    np.testing.assert_allclose(start + log_weight, prior + log_g, rtol=1e-4, atol=1e-4)


@pytest.mark.numpyro
@pytest.mark.parametrize("bug", ["proposal density forgotten", "another y"])
def test_the_identity_catches_planted_bugs(bug):
    _, fk, boot = built("local_level")
    before, x = states("local_level")
    if bug == "another y":
        fk = eqx.tree_at(lambda m: m.prior.observations, fk, jnp.roll(fk.prior.observations, 1))
    log_q, log_weight, log_f, log_g, _ = densities(fk, boot, jnp.int32(3), before, x)
    if bug == "proposal density forgotten":
        log_weight = log_f + log_g
    assert float(jnp.min(jnp.abs(log_q + log_weight - log_f - log_g))) > 0.1


@pytest.mark.numpyro
@pytest.mark.parametrize("name", ["local_level", "bent", "volatility"])
def test_scalar_draws_follow_the_proposal(name, key):
    # Kolmogorov-Smirnov against a numerical integral of exp(log_transition), 4,000 draws, 1e-7 a test (six here):
    # detects a distance of 0.06 in distribution functions.
    _, fk, boot = built(name)
    n, grid = 4000, np.linspace(-8, 8, 20_001)
    for t, k in zip((1, 3), jax.random.split(key), strict=True):
        draws = np.asarray(draw(k, fk, jnp.int32(t), jnp.full(n, 0.6)))
        at_grid = densities(fk, boot, jnp.int32(t), jnp.full(grid.size, 0.6), jnp.asarray(grid, jnp.float32))[0]
        sums = np.cumsum(np.exp(np.asarray(at_grid, np.float64))) * (grid[1] - grid[0])
        assert abs(sums[-1] - 1) < 1e-3  # q is normalised
        assert scipy.stats.kstest(draws, lambda v, sums=sums: np.interp(v, grid, sums))[1] > 1e-7


@pytest.mark.numpyro
@pytest.mark.parametrize("name", ["joint", "parts", "one", "expanded"])
def test_vector_draws_follow_the_proposal(name, key):
    # 20,000 draws of x_1 (x_3 for "one") against the conditional moments by textbook formulas, in standard errors.
    model, fk, _ = built(name)
    n, t = 20_000, 3 if name == "one" else 1
    start = states(name)[0][0]
    drawn = np.asarray(draw(key, fk, jnp.int32(t), jnp.broadcast_to(start, (n, *start.shape))), np.float64)
    drawn = drawn.reshape(n, -1)
    mean, cov = textbook_update(model, start, MODELS[name][1][t])
    scale = np.sqrt(np.diagonal(cov))
    assert np.all(np.abs(drawn.mean(axis=0) - mean) < 6 * scale / np.sqrt(n))
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=6 * np.sqrt(2 / n) * scale.max() ** 2)


def moments(law):
    """Mean and covariance, flat, in NumPy."""
    if isinstance(law, dist.MultivariateNormal):
        return np.asarray(law.loc), np.asarray(law.covariance_matrix)
    return np.asarray(law.mean).ravel(), np.diag(np.asarray(law.variance).ravel())


def textbook_update(model, x, y):
    """Mean and covariance of x_t given x_{t-1} = x and the components of y that are there, in NumPy."""
    mean, cov = moments(model.transition(jnp.int32(1), x))
    flat = jnp.asarray(mean, jnp.float32)
    predicted, noise = moments(model.observation(jnp.int32(1), flat.reshape(x.shape)))
    seen = jax.jit(jax.jacobian(lambda x_: model.observation(jnp.int32(1), x_.reshape(x.shape)).mean.reshape(-1)))
    there = ~np.isnan(y)
    slope, noise = np.asarray(seen(flat))[there], noise[np.ix_(there, there)]
    gain = cov @ slope.T @ np.linalg.inv(slope @ cov @ slope.T + noise)
    return mean + gain @ (y[there] - predicted[there]), cov - gain @ slope @ cov


@pytest.mark.numpyro
def test_a_transition_within_a_subspace_works(key):
    # Without a density of the transition there is still a weight: the density of y.
    fk = vector("joint", singular=True).guided(MODELS["joint"][1])
    before = jnp.tile(jnp.array([[0.4, -0.1]]), (5, 1))
    moved = np.asarray(draw(key, fk, jnp.int32(1), before))
    offset = moved - np.asarray(before) @ np.array([[0.9, 0.3], [-0.2, 0.7]]).T
    np.testing.assert_allclose(offset[:, 0] * 0.3, offset[:, 1] * 0.5, atol=1e-5)
    assert len(np.unique(offset[:, 0])) == 5
    assert bool(jnp.all(jnp.isfinite(weigh(fk, 1, before, jnp.asarray(moved)))))


@pytest.mark.numpyro
def test_where_the_slope_overflows_the_transition_is_used(key):
    # exp(0.5 x) overflows at x = 400: the weight is -inf there, not NaN, and the other particle is as it was.
    fk = bent().guided([0.4, 2.0])
    before = jnp.array([400.0, 0.5])
    moved = draw(key, fk, jnp.int32(1), before)
    assert bool(jnp.all(jnp.isfinite(moved)))
    log_weight = weigh(fk, 1, before, jnp.array([400.0, 0.5]))
    assert float(log_weight[0]) == -np.inf
    assert np.isfinite(log_weight[1])


@pytest.mark.numpyro
@pytest.mark.parametrize("name", MODELS)
def test_a_missing_observation_guides_nothing(name):
    _, fk, boot = built(name)
    (t,) = np.flatnonzero(np.isnan(MODELS[name][1]).reshape(4, -1).all(axis=1))
    log_q, log_weight, log_f, *_ = densities(fk, boot, jnp.int32(t), *states(name))
    np.testing.assert_allclose(log_weight, 0, atol=1e-5)
    np.testing.assert_allclose(log_q, log_f, rtol=1e-4, atol=1e-4)


@pytest.mark.numpyro
@pytest.mark.parametrize("own", [False, True])
def test_a_missing_observation_has_no_look_ahead(own):
    fk = local_level().auxiliary([0.4, np.nan, 2.5], look_ahead=(lambda t, x, y: -0.1 * (y - x) ** 2) if own else None)
    x = jnp.array([0.1, 1.0])
    np.testing.assert_array_equal(look_ahead(fk, 1, x), 0)
    y_law: Any = scipy.stats.norm(0.3 + 1.8 * np.asarray(x), np.sqrt(4 * 0.49 + 0.01))
    np.testing.assert_allclose(look_ahead(fk, 2, x), -0.1 * (2.5 - x) ** 2 if own else y_law.logpdf(2.5), rtol=1e-5)


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bent", "auxiliary"),
        pytest.param("volatility", "auxiliary", marks=pytest.mark.slow),
        pytest.param("parts", "guided", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_the_evidence_are_finite(name, method, key):
    # Also where an observation is missing, and where all of them are.
    make, ys, options, _ = MODELS[name]
    guess = {"look_ahead": volatility_look_ahead} if name == "volatility" else {}

    @jax.jit
    @jax.value_and_grad
    def evidence(noise, ys):
        fk = getattr(make(noise), method)(ys, **guess, **options)
        return particle_filter(key, fk, num_particles=16, throw=False, differentiable=True).log_evidence

    value, slope = evidence(jnp.float32(0.9), jnp.asarray(ys))
    assert np.isfinite(value)
    assert np.isfinite(slope)
    assert float(slope) != 0
    np.testing.assert_allclose(evidence(jnp.float32(0.9), jnp.full_like(ys, jnp.nan)), 0, atol=1e-5)


@pytest.mark.numpyro
def test_new_data_and_parameters_recompile_nothing(key):
    traces = []

    class Noise(eqx.Module):
        scale: jax.Array

        def __call__(self, t, x):
            traces.append(t)
            return dist.Normal(x, self.scale)

    base = local_level()
    for i, ys in enumerate(([0.0, 1.0], [2.0, np.nan], [np.nan, np.nan])):
        model = StateSpaceModel(base.initial, base.transition, Noise(jnp.float32(0.5 + i)))
        fk = model.auxiliary(np.asarray(ys))
        before = len(traces)
        particle_filter(jax.random.fold_in(key, i), fk, num_particles=8, throw=False)
        assert (len(traces) > before) == (i == 0)


@pytest.mark.parametrize("proposal", [None, user_proposal])
def test_strict_settings_hold(proposal, key):
    # No marker: promotion is strict and key reuse is checked, also under `vmap` and where observations are missing.
    fk = local_level().auxiliary([0.1, np.nan], proposal=proposal)

    @jax.jit
    def run(key):
        keys = jax.random.split(key)
        before = fk.init(keys[0], 4)
        x = fk.mutate(keys[1], 1, before)
        return fk.log_potential(0, None, before) + fk.log_potential(1, before, x) + fk.look_ahead(1, x)

    keys = jax.random.split(key)
    both = jax.vmap(run)(keys)
    assert both.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(both)))


def test_double_precision(key, x64):
    model = StateSpaceModel(
        lambda: dist.Normal(jnp.float64(0), 1.0), lambda t, x: dist.Normal(x, 1.0), lambda t, x: dist.Normal(x, 1.0)
    )
    fk = model.auxiliary(np.zeros(2, np.float32))
    x = jax.eval_shape(lambda k: fk.mutate(k, 1, fk.init(jax.random.fold_in(k, 1), 4)), key)
    weights = jax.eval_shape(lambda x: (fk.log_potential(1, x, x), fk.look_ahead(1, x)), x)
    assert {x.dtype, *(leaf.dtype for leaf in weights)} == {jnp.dtype(jnp.float64)}


def test_linear_gaussian_models_are_found_to_be_linear():
    for d in (1, 2):
        model = LinearGaussian(np.zeros(d), np.eye(d), 0.9 * np.eye(d), np.eye(d), np.ones((1, d)), 0.5)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            fk: Any = model.state_space().guided(np.zeros((3, 1)))
            assert fk.moves.exact


def test_no_steps_one_step_and_one_particle(key):
    model = local_level()
    assert model.auxiliary(np.zeros(0)).num_steps == 0
    assert begin(key, model.auxiliary(np.zeros(0)), 3).shape == (3,)
    fk = model.guided([0.7])
    x = begin(jax.random.fold_in(key, 1), fk, 1)
    law: Any = scipy.stats.norm(1.3, np.sqrt(4.01))  # the first weight is the evidence itself
    np.testing.assert_allclose(weigh(fk, 0, None, x), law.logpdf(0.7), rtol=1e-5)


def test_time_0_is_guided_only_where_it_can_be(key):
    keys = jax.random.split(key, 3)
    flat = StateSpaceModel(
        lambda: dist.Uniform(-1.0, 1.0), lambda t, x: dist.Normal(x, 1.0), lambda t, x: dist.Normal(x, 0.1)
    )
    assert float(begin(keys[0], flat.guided([0.9, 0.9]), 500).min()) < -0.5
    chosen = flat.guided([0.9, 0.9], initial_proposal=lambda y: dist.Uniform(y - 0.5, y + 0.1))
    assert float(begin(keys[1], chosen, 500).min()) > 0.39
    user = local_level().guided([3.0, 0.9], user_proposal)  # the prior, as no initial proposal is given
    assert float(begin(keys[2], user, 500).min()) < 0.5


@pytest.mark.numpyro
def test_counts_need_a_proposal_of_ones_own(key):
    # `jax.random.poisson` refuses particle keys: a proposal that uses it gets plain ones.
    model = StateSpaceModel(
        lambda: dist.Poisson(3.0), lambda t, x: dist.Poisson(1.0 + 0.5 * x), lambda t, x: dist.Poisson(0.5 + x)
    )
    ys = np.array([2, 5])
    fk: Any = model.guided(ys, lambda t, x, y: dist.Poisson(0.5 + 0.5 * (x + y)))
    assert not fk.moves.own_generator
    before = jnp.array([1, 4, 2])
    moved = draw(key, fk, jnp.int32(1), before)
    log_q, log_weight, log_f, log_g, _ = densities(fk, model.bootstrap(ys), jnp.int32(1), before, moved)
    np.testing.assert_allclose(log_q + log_weight, log_f + log_g, rtol=1e-4, atol=1e-4)


NORMAL = lambda: dist.Normal(0.0, 1.0)  # noqa: E731
MOVE = lambda t, x: dist.Normal(x, 1.0)  # noqa: E731
STUDENT = lambda t, x: dist.StudentT(4.0, x, 1.0)  # noqa: E731


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ((NORMAL, STUDENT, MOVE), "`transition` returns StudentT"),
        ((NORMAL, MOVE, STUDENT), "`observation` returns StudentT"),
    ],
)
def test_what_is_not_gaussian_is_named(functions, message):
    model = StateSpaceModel(*functions)
    with pytest.raises(TypeError, match=f"{message}.*pass `proposal=`"):
        model.guided([0.0])
    with pytest.raises(TypeError, match=f"{message}.*pass `look_ahead=`"):
        model.auxiliary([0.0], proposal=lambda t, x, y: dist.Normal(x, 1.0))
    assert model.auxiliary([0.0], lambda t, x, y: -jnp.abs(x - y), lambda t, x, y: dist.Normal(x, 1.0)).looks_ahead


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (TypeError, "proposal", {"proposal": 3}),  # in the tests the jaxtyping hook is there first
        (TypeError, r"`proposal` cannot be called as `proposal\(t, x, y\)`", {"proposal": MOVE}),
        (TypeError, "`proposal` returned", {"proposal": lambda t, x, y: x}),
        (
            ValueError,
            r"`proposal\(t, x, y\)` draws states of shape \(2,\)",
            {"proposal": lambda t, x, y: dist.Normal(jnp.zeros(2), 1.0)},
        ),
        (TypeError, "draws dtype int32", {"proposal": lambda t, x, y: dist.Bernoulli(0.5)}),
        (TypeError, r"`initial_proposal` cannot be called as `initial_proposal\(y\)`", {"initial_proposal": NORMAL}),
        (ValueError, r"`look_ahead\(t, x, y\)` returned", {"look_ahead": lambda t, x, y: jnp.zeros(3)}),
        (TypeError, r"`look_ahead` cannot be called as `look_ahead\(t, x, y\)`", {"look_ahead": MOVE}),
    ],
)
def test_bad_functions_are_named(kind, message, options):
    with pytest.raises(kind, match=message):
        local_level().auxiliary([0.0], **options)


def test_bad_data_are_named():
    with pytest.raises(ValueError, match=r"`ys` has shape \(3, 1\)"):
        local_level().guided(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"`ys` is inf"):
        local_level().auxiliary([np.inf])
