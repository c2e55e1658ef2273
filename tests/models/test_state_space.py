"""`StateSpaceModel`: conventions, laws of its draws, missing data, what it costs, and what it refuses.

Planted bugs, each seen to fail: a transition before the first observation; one noise shared by the population; a
missing observation read as zero; `t` off by one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax.scipy.special import logsumexp

from probinf.models import LinearGaussian, StateSpaceModel, kalman_filter
from tests._slow import slow_after


def local_level() -> StateSpaceModel:
    return StateSpaceModel(
        lambda: dist.Normal(0.0, 1.0), lambda t, x: dist.Normal(0.9 * x, 0.4), lambda t, x: dist.Normal(x, 0.5)
    )


def observing(observation, initial=lambda: dist.Normal(0.0, 1.0)) -> StateSpaceModel:
    return StateSpaceModel(initial, lambda t, x: dist.Normal(x, jnp.ones_like(x)), observation)


class Moved(eqx.Module):
    """A transition with a parameter, as a pytree."""

    rate: jax.Array

    def __call__(self, t, x):
        return dist.Normal(self.rate * x, 0.4)


# What a transition may return, given a scalar state in (-1, 1); each entry with its draws' shape.
LAWS = {
    "normal": lambda x: dist.Normal(2 * x, 0.3 + x**2),
    "skewed": lambda x: dist.LogNormal(x, 0.5),
    "gamma": lambda x: dist.Gamma(1.5 + x, 2.0),
    "student": lambda x: dist.StudentT(4.0, x, 0.5),
    "transformed": lambda x: dist.TransformedDistribution(
        dist.Normal(x, 1.0), [dist.transforms.AffineTransform(1.0 + x, 2.0), dist.transforms.ExpTransform()]
    ),
    "vector": lambda x: dist.Normal(jnp.stack([x, -x, 2 * x]), 0.5),
    "independent": lambda x: dist.Normal(jnp.stack([x, -x]), 0.5).to_event(1),
    "expanded": lambda x: dist.Normal(x, 0.5).expand((3,)).to_event(1),
    "multivariate": lambda x: dist.MultivariateNormal(
        jnp.stack([x, -x]), scale_tril=jnp.array([[1.0, 0.0], [0.5, 0.7]])
    ),
    "covariance by state": lambda x: dist.MultivariateNormal(
        jnp.zeros(2), covariance_matrix=jnp.eye(2) + 0.5 * x * jnp.array([[0.0, 1.0], [1.0, 0.0]])
    ),
    "dirichlet": lambda x: dist.Dirichlet(jnp.exp(jnp.stack([x, -x, 2 * x]))),
    "mixture": lambda x: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.stack([x, -x])), dist.Normal(jnp.stack([x, x + 3]), 0.5)
    ),
    "categorical": lambda x: dist.Categorical(logits=jnp.stack([x, 0 * x, -x])),
    "bernoulli": lambda x: dist.Bernoulli(logits=3 * x),
    "poisson": lambda x: dist.Poisson(jnp.exp(x)),
    "uniform": lambda x: dist.Uniform(x, x + 1.0),
    "truncated": lambda x: dist.TruncatedNormal(x, 1.0, low=0.0),
    "not by state": lambda x: dist.Normal(0.0, 1.0),
}


def by_law(name: str) -> StateSpaceModel:
    # The state is kept in (-1, 1) on the way in, so that any law can be iterated.
    def transition(t, x):
        return LAWS[name](jnp.tanh(jnp.sum(x).astype(jnp.float32)))

    return StateSpaceModel(lambda: LAWS[name](jnp.float32(0.3)), transition, lambda t, x: dist.Normal(jnp.sum(x), 1.0))


@pytest.mark.numpyro
@pytest.mark.parametrize("name", slow_after(8, LAWS))
def test_population_draws_follow_the_law_particle_by_particle(name, key):
    # Particles at two states in turn. Kolmogorov-Smirnov against NumPyro's own draws, 1e-7 a test, at most 6 tests a
    # law. n = 4000 a sample: detects a distance of 0.12 in distribution functions with a false-pass rate below 1e-6.
    n = 4000
    model = by_law(name)
    fk = model.bootstrap(np.zeros(3))
    key_init, key_move, key_exact = jax.random.split(key, 3)
    start = fk.init(key_init, 2)
    x = jnp.tile(start, (n,) + (1,) * (start.ndim - 1))
    moved = np.asarray(eqx.filter_jit(fk.mutate)(key_move, jnp.int32(1), x), np.float64)
    assert moved.shape == x.shape
    for which in range(2):
        ours = moved[which::2].reshape(n, -1)
        law = model.transition(jnp.int32(1), start[which])
        exact = np.asarray(law.sample(jax.random.fold_in(key_exact, which), (n,)), np.float64).reshape(n, -1)
        for i in range(ours.shape[1]):
            assert tuple(scipy.stats.ks_2samp(ours[:, i], exact[:, i]))[1] > 1e-7
        # Neighbours must be independent: six standard errors of a rank correlation.
        ranks = scipy.stats.rankdata(ours[:, 0])
        assert abs(np.corrcoef(ranks[1:], ranks[:-1])[0, 1]) < 6 / np.sqrt(n)


@pytest.mark.numpyro
@pytest.mark.parametrize("name", ["skewed", "vector", "independent", "multivariate", "mixture", "categorical"])
def test_densities_are_those_of_each_particle(name, key):
    model = by_law(name)
    fk = model.bootstrap(np.arange(3.0))
    key_init, key_move = jax.random.split(key)
    before = fk.init(key_init, 5)
    after = fk.mutate(key_move, jnp.int32(1), before)
    ours = fk.log_transition(jnp.int32(1), before, after)
    weights = fk.log_potential(jnp.int32(2), before, after)
    assert ours.shape == weights.shape == (5,)
    for i in range(5):
        exact = jnp.sum(model.transition(jnp.int32(1), before[i]).log_prob(after[i]))
        np.testing.assert_allclose(ours[i], exact, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(weights[i], dist.Normal(jnp.sum(after[i]), 1.0).log_prob(2.0), rtol=2e-5, atol=1e-5)


def test_shared_noise_would_be_caught(key):
    # The planted bug: `vmap` over the states with one key draws one noise for all.
    x = jnp.linspace(-1, 1, 100)
    shared = jax.vmap(lambda one: dist.Normal(one, 1.0).sample(key))(x) - x
    own = local_level().bootstrap(np.zeros(2)).mutate(jax.random.clone(key), jnp.int32(1), x) - 0.9 * x
    assert float(jnp.std(shared)) < 1e-6
    assert len(np.unique(np.asarray(own))) == 100


def test_first_observation_is_of_the_initial_state(key):
    # No randomness: x_0 = 1, x_t = x_{t-1} + t, y_t = 10 t + x_t.
    model = StateSpaceModel(
        lambda: dist.Delta(jnp.int32(1)), lambda t, x: dist.Delta(x + t), lambda t, x: dist.Delta(10 * t + x)
    )
    states, observations = model.simulate(key, 4)
    np.testing.assert_array_equal(states, [1, 2, 4, 7])
    np.testing.assert_array_equal(observations, [1, 12, 24, 37])


def sequential_importance(key, fk, num_particles) -> tuple[float, float]:
    """Log evidence by sequential importance sampling, and its standard error."""
    keys = jax.random.split(key, fk.num_steps)
    x = fk.init(keys[0], num_particles)
    log_weights = fk.log_potential(jnp.int32(0), None, x)
    for t in range(1, fk.num_steps):
        before, x = x, fk.mutate(keys[t], jnp.int32(t), x)
        log_weights = log_weights + fk.log_potential(jnp.int32(t), before, x)
    relative = np.exp(np.asarray(log_weights, np.float64) - float(log_weights.max()))
    error = relative.std() / relative.mean() / np.sqrt(num_particles)
    return float(logsumexp(log_weights)) - np.log(num_particles), float(error)


BENT = {
    "none": lambda fk: fk,
    "missing read as zero": lambda fk: eqx.tree_at(
        lambda m: (m.observations, m.observed),
        fk,
        (fk.observations.at[2].set(0), jnp.ones_like(fk.observed)),
    ),
    "t off by one": lambda fk: eqx.tree_at(lambda m: m.observations, fk, jnp.roll(fk.observations, 1, axis=0)),
}


@pytest.mark.numpyro
@pytest.mark.parametrize("bug", BENT)
@pytest.mark.parametrize("d", [1, 2])
def test_evidence_agrees_with_kalman(bug, d, key):
    # Importance sampling over 4 steps at n = 2e5; bound six standard errors, about 0.02: each bug moves it by more.
    matrix = np.array([[0.8, 0.3], [-0.2, 0.6]])[:d, :d]
    model = LinearGaussian(
        np.full(d, 0.5), np.eye(d), matrix, 0.3 * np.eye(d), np.eye(d), 0.4 * np.eye(d) + 0.1, np.ones(d), 0.2
    )
    ys = np.array([[0.3, -1.0], [2.5, 1.0], [np.nan, np.nan], [1.5, 2.0]])[:, :d]
    estimate, error = sequential_importance(key, BENT[bug](model.state_space().bootstrap(ys)), 200_000)
    distance = abs(estimate - float(kalman_filter(model, ys).log_evidence))
    assert (distance < 6 * error) == (bug == "none")


@pytest.mark.numpyro
def test_simulated_data_have_the_moments_of_the_model(key):
    # 20000 runs of 3 steps: mean and covariance of observations, six standard errors each.
    model = LinearGaussian(1.0, 0.5, 0.7, 0.3, 2.0, 0.4, 0.2, -1.0)
    simulate = jax.jit(jax.vmap(lambda k: model.state_space().simulate(k, 3)[1][:, 0]))
    draws = np.asarray(simulate(jax.random.split(key, 20_000)))
    no_data = kalman_filter(model, np.full((0, 1), np.nan)).forecast(3)
    variance = np.asarray(no_data.observation_cov[:, 0, 0])
    np.testing.assert_allclose(draws.mean(0), no_data.observation_mean[:, 0], atol=6 * np.sqrt(variance.max() / 20_000))
    np.testing.assert_allclose(draws.var(0), variance, rtol=6 * np.sqrt(2 / 20_000))


def test_a_missing_observation_weights_nothing():
    fk = local_level().bootstrap([0.5, np.nan, 1.0])
    x = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(fk.log_potential(jnp.int32(1), x, x), 0)
    assert float(fk.log_potential(jnp.int32(0), None, x)[0]) != 0
    assert not bool(jnp.isnan(fk.observations).any())


PARTLY = {
    "batch": lambda t, x: dist.Normal(jnp.stack([x, 2 * x]), 0.5),
    "independent": lambda t, x: dist.Normal(jnp.stack([x, 2 * x]), 0.5).to_event(1),
    "expanded": lambda t, x: dist.Normal(x, 0.5).expand((2,)).to_event(1),
    "skewed": lambda t, x: dist.LogNormal(jnp.stack([x, 2 * x]), 0.5).to_event(1),
}


@pytest.mark.numpyro
@pytest.mark.parametrize("name", PARTLY)
def test_a_missing_component_is_left_out(name):
    fk = observing(PARTLY[name]).bootstrap([[1.0, np.nan], [np.nan, np.nan], [0.5, 2.0]])
    x = jnp.array([0.3, -0.4])
    for i in range(2):
        law = PARTLY[name](0, x[i])
        base = law.base_dist if name != "batch" else law
        terms = base.log_prob(jnp.array([1.0, 1.0]))
        np.testing.assert_allclose(fk.log_potential(jnp.int32(0), None, x)[i], terms[0], rtol=1e-6)
        whole = jnp.sum(law.log_prob(jnp.array([0.5, 2.0])))
        np.testing.assert_allclose(fk.log_potential(jnp.int32(2), x, x)[i], whole, rtol=1e-6)
    np.testing.assert_array_equal(fk.log_potential(jnp.int32(1), x, x), 0)


def joint_observation(t, x):
    return dist.MultivariateNormal(jnp.stack([x, x]), jnp.array([[1.0, 0.5], [0.5, 1.0]]))


@pytest.mark.numpyro
def test_dependent_components_are_missing_as_a_whole():
    model = observing(joint_observation)
    x = jnp.zeros(3)
    whole = model.bootstrap([[1.0, 1.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(whole.log_potential(jnp.int32(1), x, x), 0)
    with pytest.raises(ValueError, match=r"`ys` is missing in part at \[1\]"):
        model.bootstrap([[1.0, 1.0], [np.nan, 0.0]])
    # Under `jit` it cannot be refused: it must not look like a number either.
    potential = jax.jit(lambda ys: model.bootstrap(ys).log_potential(jnp.int32(1), x, x))
    assert bool(jnp.isnan(potential(jnp.array([[1.0, 1.0], [np.nan, 0.0]]))).all())


@pytest.mark.numpyro
@pytest.mark.parametrize("ys", [[1.0, np.nan, 2.0], [np.nan, np.nan, np.nan]])
@pytest.mark.parametrize("traced", [False, True])
def test_gradients_pass_over_missing_observations(ys, traced):
    # Zero is outside the support of a log-normal, where its gradient is NaN: a filler of zero would fail.
    def total(scale, data):
        model = observing(lambda t, x: dist.LogNormal(scale * x, scale))
        fk = model.bootstrap(data if traced else np.asarray(ys))
        return sum(jnp.sum(fk.log_potential(jnp.int32(t), None, jnp.array([0.1, 0.7]))) for t in range(3))

    value, slope = jax.jit(jax.value_and_grad(total))(jnp.float32(0.8), jnp.asarray(ys))
    assert bool(jnp.isfinite(value) & jnp.isfinite(slope))
    exact = [y for y in ys if not np.isnan(y)]
    by_hand = sum(jnp.sum(dist.LogNormal(0.8 * jnp.array([0.1, 0.7]), 0.8).log_prob(y)) for y in exact)
    np.testing.assert_allclose(value, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.numpyro
def test_counts_may_be_missing():
    model = observing(lambda t, x: dist.Poisson(jnp.exp(x)))
    x = jnp.array([0.2, 0.5])
    fk = model.bootstrap([3.0, np.nan])
    assert jnp.issubdtype(fk.observations.dtype, jnp.integer)
    whole = model.bootstrap([3, 1])
    assert whole.observed is None
    np.testing.assert_array_equal(fk.log_potential(jnp.int32(0), None, x), whole.log_potential(jnp.int32(0), None, x))
    np.testing.assert_array_equal(fk.log_potential(jnp.int32(1), x, x), 0)
    with pytest.raises(ValueError, match="whole numbers"):
        model.bootstrap([3.0, 1.5])


def test_no_steps_and_one(key):
    model = local_level()
    states, observations = model.simulate(key, 0)
    assert states.shape == observations.shape == (0,)
    assert model.bootstrap(np.zeros(0)).num_steps == 0
    assert model.simulate(jax.random.clone(key), 1)[0].shape == (1,)
    assert model.bootstrap([np.nan]).num_steps == 1


def test_one_particle_and_none(key):
    fk = local_level().bootstrap(np.zeros(2))
    for n in (1, 0):
        x = fk.init(jax.random.clone(key), n)
        assert fk.mutate(jax.random.fold_in(key, n), jnp.int32(1), x).shape == (n,)
        assert fk.log_potential(jnp.int32(0), None, x).shape == (n,)


def test_double_precision(key, x64):
    model = StateSpaceModel(
        lambda: dist.Normal(jnp.float64(0), 1.0), lambda t, x: dist.Normal(x, 1.0), lambda t, x: dist.Normal(x, 1.0)
    )
    fk = model.bootstrap(np.zeros(2, np.float32))
    x = fk.mutate(key, jnp.int32(1), fk.init(jax.random.fold_in(key, 1), 4))
    assert x.dtype == fk.observations.dtype == fk.log_potential(jnp.int32(0), None, x).dtype == jnp.float64


def test_new_data_and_parameters_recompile_nothing(key):
    traces = []

    @jax.jit
    def weigh_all(k, fk):
        traces.append(fk)
        return jnp.sum(fk.log_potential(jnp.int32(0), None, fk.mutate(k, jnp.int32(1), jnp.zeros(10))))

    base = local_level()
    keys = jax.random.split(key, 3)
    for i, ys in enumerate(([0.0, 1.0], [2.0, np.nan], [np.nan, np.nan])):
        model = StateSpaceModel(base.initial, Moved(jnp.float32(0.5 + i)), base.observation)
        weigh_all(keys[i], model.bootstrap(np.asarray(ys)))
    assert len(traces) == 1


def test_parameters_have_gradients_and_map(key):
    base = local_level()

    def loss(rate):
        fk = StateSpaceModel(base.initial, Moved(rate), base.observation).bootstrap([0.0, 1.0])
        return jnp.sum(fk.mutate(jax.random.clone(key), jnp.int32(1), jnp.ones(10)))

    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(0.5)), 10, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(jnp.array([0.5, 0.7])), 10, rtol=1e-6)


@pytest.mark.numpyro
def test_one_generator_call_for_the_population(key):
    fk = local_level().bootstrap(np.zeros(3))
    text = jax.jit(lambda k, t, x: fk.mutate(k, t, x)).lower(key, jnp.int32(1), jnp.zeros(8)).as_text()
    assert text.count("tensor<8xui32>, tensor<8xui32>") == 0  # no call of JAX's own threefry on the population
    assert fk.own_generator
    assert not by_law("poisson").bootstrap(np.zeros(2)).own_generator


def test_lowers_for_every_platform(key):
    fk = local_level().bootstrap(np.zeros(3))

    def step(words, t, x):
        x = fk.mutate(words, t, x)
        return x, fk.log_potential(t, None, x)

    structs = (
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((8,), jnp.float32),
    )
    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(*structs)
    assert exported.platforms == ("cpu", "cuda", "tpu")


NORMAL = lambda: dist.Normal(0.0, 1.0)  # noqa: E731
MOVE = lambda t, x: dist.Normal(x, 1.0)  # noqa: E731


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("kind", "message", "functions"),
    [
        (
            TypeError,
            "`initial` is <numpyro",
            (dist.Normal(0.0, 1.0), MOVE, MOVE),
        ),
        (TypeError, "`initial` returned", (lambda: 0.0, MOVE, MOVE)),
        (TypeError, "`transition` returned", (NORMAL, lambda t, x: x, MOVE)),
        (TypeError, "`observation` returned", (NORMAL, MOVE, lambda t, x: None)),
        (TypeError, r"`transition` cannot be called as `transition\(t, x\)`", (NORMAL, lambda x: NORMAL(), MOVE)),
        (TypeError, r"`initial` cannot be called as `initial\(\)`", (MOVE, MOVE, MOVE)),
        (ValueError, r"draws states of shape \(3,\)", (NORMAL, lambda t, x: dist.Normal(jnp.zeros(3), 1.0), MOVE)),
        (TypeError, "draws dtype int32", (NORMAL, lambda t, x: dist.Bernoulli(0.5), MOVE)),
    ],
)
def test_bad_functions_are_named(kind, message, functions):
    with pytest.raises(kind, match=message):
        StateSpaceModel(*functions)


def test_bad_data_are_named(key):
    model = local_level()
    with pytest.raises(ValueError, match=r"`ys` has shape \(3, 1\)"):
        model.bootstrap(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"`ys` has shape \(\)"):
        model.bootstrap(0.0)
    with pytest.raises(ValueError, match=r"`ys` is inf at \[1\]"):
        model.bootstrap([0.0, np.inf])
    with pytest.raises(TypeError, match="`ys` has dtype"):
        model.bootstrap(["a", "b"])
    with pytest.raises(ValueError, match="`num_steps` is -1"):
        model.simulate(key, -1)
