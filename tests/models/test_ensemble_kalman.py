"""The ensemble Kalman filter: against Kalman where it is consistent, that it is not elsewhere, faults, arguments.

Planted bugs, each seen to fail: observations that are not perturbed; the observation of another time; a missing
observation read as zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probinf as pb
from probinf.models import LinearGaussian, StateSpaceModel, ensemble_kalman_filter, kalman_filter

LINEAR = LinearGaussian(
    [0.5, 0.0],
    np.eye(2),
    [[0.9, 0.2], [-0.1, 0.8]],
    0.3 * np.eye(2),
    [[1.0, 0.5], [0.0, 1.0]],
    [[0.2, 0.1], [0.1, 0.4]],
)
YS = np.array([[0.4, 1.0], [2.5, 0.5], [np.nan, np.nan], [-1.0, 0.0], [0.7, -1.2], [1.0, 0.2]], np.float32)
RUNS, SIZE = 40, 2000


def scalar(observation=lambda t, x: dist.Normal(x, 0.5)):
    return StateSpaceModel(lambda: dist.Normal(0.0, 1.0), lambda t, x: dist.Normal(0.9 * x, 0.4), observation)


def many(model, ys, num_particles=SIZE, seed=0, **options):
    """Independent filters, in one program."""
    run = jax.jit(
        jax.vmap(lambda k: ensemble_kalman_filter(k, model, ys, num_particles=num_particles, throw=False, **options))
    )
    return run(jax.random.split(jax.random.key(seed), RUNS))


def distances(out, ys=YS):
    """How far the means of 40 runs are from Kalman's answers, in their standard errors."""
    exact = kalman_filter(LINEAR, ys)
    variance = np.diagonal(np.asarray(exact.filtered_cov), axis1=1, axis2=2)
    pairs = [(out.mean, exact.filtered_mean), (out.variance, variance), (out.log_evidence, exact.log_evidence)]
    found = []
    for ours, expected in pairs:
        ours = np.asarray(ours, np.float64)
        # The bias of order 1/N is a few times 1/2000 of each quantity's size.
        slack = 5 / SIZE * (1 + np.abs(np.asarray(expected)))
        error = ours.std(axis=0, ddof=1) / np.sqrt(RUNS)
        found.append(np.max(np.maximum(np.abs(ours.mean(axis=0) - np.asarray(expected)) - slack, 0) / error))
    return found


@pytest.fixture(scope="module")
def linear_runs():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        return many(LINEAR.state_space(), YS)


@pytest.mark.numpyro
def test_agrees_with_kalman_on_a_linear_model(linear_runs):
    # 25 comparisons at 7 standard errors with 39 degrees of freedom: 6e-7 in all. Detects 0.02 in a mean.
    assert max(distances(linear_runs)) < 7
    assert int(np.max(linear_runs.status)) == 0


@pytest.mark.numpyro
@pytest.mark.parametrize("bug", ["another y", "missing is zero", "not perturbed"])
def test_planted_bugs_are_caught(bug, linear_runs, monkeypatch):
    if bug == "not perturbed":
        import probinf.models._ensemble_kalman as module

        def means(fk, key, at, ensemble, own_generator):
            return jax.vmap(lambda x: fk.model.observation(at.t, x).mean)(ensemble)

        monkeypatch.setattr(module, "_simulate", means)
        # Another size, so that nothing compiled before is taken again.
        assert max(distances(many(LINEAR.state_space(), YS, num_particles=SIZE + 1))) > 7
        return
    wrong = np.roll(YS, 1, axis=0) if bug == "another y" else np.nan_to_num(YS)
    assert max(distances(linear_runs, wrong)) > 7


@pytest.mark.numpyro
def test_missing_components_shift_nothing():
    # With its second component missing, an observation is that of a model with the first one only.
    ys = YS.copy()
    ys[:, 1] = np.nan
    parts = StateSpaceModel(
        LINEAR.state_space().initial,
        LINEAR.state_space().transition,
        lambda t, x: dist.Normal(jnp.stack([x[0] + 0.5 * x[1], x[1]]), jnp.array([0.45, 0.6])),
    )
    out = ensemble_kalman_filter(jax.random.key(1), parts, ys, num_particles=20_000)
    one = LinearGaussian(
        LINEAR.initial_mean,
        LINEAR.initial_cov,
        LINEAR.transition_matrix,
        LINEAR.transition_cov,
        [[1.0, 0.5]],
        [[0.45**2]],
    )
    exact = kalman_filter(one, ys[:, :1])
    assert float(out.log_increments[2]) == 0
    # One run of 20,000: errors are below 0.01 (six standard errors of a mean are 6 / sqrt(2e4) = 0.04 of a deviation).
    np.testing.assert_allclose(out.mean, exact.filtered_mean, atol=0.05)
    np.testing.assert_allclose(out.log_evidence, exact.log_evidence, atol=0.15)


@pytest.mark.numpyro
def test_it_is_not_consistent_where_only_the_scale_tells():
    # y tells of the size of noise only: x and y are uncorrelated, so nothing is learnt however large the ensemble.
    model = scalar(lambda t, x: dist.Normal(0.0, jnp.exp(x / 2)))
    out = ensemble_kalman_filter(jax.random.key(1), model, [5.0], num_particles=20_000)
    points = np.linspace(-8, 8, 4001)
    weights = np.exp(-0.5 * points**2 - 0.5 * 25 * np.exp(-points) - 0.5 * points)
    exact = (weights * points).sum() / weights.sum()
    assert exact > 1
    assert abs(float(out.mean[0])) < 0.3


@pytest.mark.numpyro
def test_counts_are_simulated_and_inflation_spreads(key):
    model = scalar(lambda t, x: dist.Poisson(jnp.exp(0.5 * x) + 0.1))
    plain, spread = (
        ensemble_kalman_filter(key, model, np.array([2, 5, 1]), num_particles=200, inflation=f) for f in (1.0, 2.0)
    )
    assert plain.mean.shape == plain.variance.shape == (3,)
    assert bool(jnp.all(spread.variance > 1.5 * plain.variance))
    assert bool(jnp.isfinite(plain.log_evidence))


@pytest.mark.numpyro
def test_a_fault_is_flagged_and_nothing_after_it_is_a_number(key):
    model = StateSpaceModel(
        lambda: dist.Normal(0.0, 1.0),
        lambda t, x: dist.Normal(jnp.where(t == 2, jnp.nan, x), 1.0, validate_args=False),
        lambda t, x: dist.Normal(x, 1.0, validate_args=False),
    )
    out = ensemble_kalman_filter(key, model, np.zeros(4), num_particles=20, throw=False)
    assert int(out.status) == pb.Status.NAN_LOG_WEIGHT | pb.Status.ALL_WEIGHTS_ZERO
    assert int(out.first_bad_step) == 2
    assert np.isnan(out.log_evidence)
    assert np.isnan(np.asarray(out.mean)).tolist() == [False, False, True, True]
    assert bool(jnp.all(jnp.isfinite(out.log_increments[:2])))
    with pytest.raises(pb.InferenceError, match=r"ensemble_kalman_filter.*\n.*first at time step 2"):
        ensemble_kalman_filter(key, model, np.zeros(4), num_particles=20)


def test_strict_settings_no_steps_one_step_and_gradients(key):
    # No marker: promotion is strict and key reuse is checked.
    none = ensemble_kalman_filter(key, scalar(), np.zeros(0), num_particles=10)
    assert none.mean.shape == (0,)
    assert float(none.log_evidence) == 0
    ys = jnp.array([0.5, jnp.nan])

    def loss(scale):
        model = scalar(lambda t, x: dist.Normal(scale * x, 0.5))
        return ensemble_kalman_filter(jax.random.clone(key), model, ys, num_particles=10).log_evidence

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(1.2))
    assert np.isfinite(value)
    assert np.isfinite(slope)


@pytest.mark.numpyro
def test_new_data_recompile_nothing(key):
    traces = []

    def observation(t, x):
        traces.append(t)
        return dist.Normal(x, 0.5)

    model = scalar(observation)
    counts = []
    for i, ys in enumerate(([0.0, 1.0], [2.0, np.nan])):
        before = len(traces)
        ensemble_kalman_filter(jax.random.fold_in(key, i), model, ys, num_particles=10, inflation=1.0 + i)
        counts.append(len(traces) - before)
    assert counts[1] < counts[0]  # the checks at the door only


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "`num_particles` is 2; needed at least 3", {"num_particles": 2}),
        (ValueError, "`inflation` is 0", {"num_particles": 9, "inflation": 0.0}),
        (ValueError, r"`ys` has shape \(2, 2\)", {"num_particles": 9, "ys": np.zeros((2, 2))}),
    ],
)
def test_bad_arguments_are_named(kind, message, options, key):
    options = {"ys": np.zeros(2), **options}
    with pytest.raises(kind, match=message):
        ensemble_kalman_filter(key, scalar(), options.pop("ys"), **options)


@pytest.mark.numpyro
def test_discrete_states_are_refused(key):
    model = StateSpaceModel(
        lambda: dist.Bernoulli(0.5), lambda t, x: dist.Bernoulli(0.3 + 0.4 * x), lambda t, x: dist.Normal(x * 1.0, 1.0)
    )
    with pytest.raises(TypeError, match="dtype int32"):
        ensemble_kalman_filter(key, model, [0.0], num_particles=9)
