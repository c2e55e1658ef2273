"""Mixtures on the sphere: the steps of EM against their definitions, recovery, edges, and use in NumPyro and samplers.

Planted bugs, run every time in `test_planted_*`: an M step that forgets the weights of the components; a vector lifted
off the sphere without the density of its direction.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import Categorical, MixtureSameFamily
from numpyro.handlers import reparam

from probinf.core import Target
from probinf.distributions import PowerSpherical, SphereReparam, VonMisesFisher, fit_mixture
from probinf.distributions import _sphere_mixture as module


def unit(values):
    values = np.asarray(values, np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def drawn(key, components, weights, count):
    """Points of a mixture; NumPyro's own draw does not pass strict promotion."""
    label = np.random.default_rng(0).choice(len(weights), count, p=weights)
    return components.sample(key, (count,))[np.arange(count), label]


@pytest.fixture(scope="module")
def planted():
    """1,500 points of three components in 6 dimensions, and the mixture they come from."""
    means = unit(np.eye(3, 6) + 0.2)
    components = VonMisesFisher(jnp.asarray(means, jnp.float32), jnp.asarray([60.0, 20.0, 200.0]))
    mixture = MixtureSameFamily(Categorical(probs=jnp.asarray([0.5, 0.3, 0.2])), components)
    return mixture, components, drawn(jax.random.key(1), components, [0.5, 0.3, 0.2], 1500)


def matched(fit, true):
    """The order in which the components of `fit` are nearest to the true ones."""
    return np.argmax(np.asarray(fit.components.mean_direction @ true.mean_direction.T), axis=0)


@pytest.mark.numpyro
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_components_are_recovered(key, planted, kind):
    mixture, true, x = planted
    fit = fit_mixture(key, x, 3, kind=kind)
    assert bool(fit.converged)
    assert not np.any(fit.capped)
    order = matched(fit, true)
    assert sorted(order) == [0, 1, 2]
    found = fit.components
    # Standard errors are about 4 % for concentrations and 0.02 for directions.
    np.testing.assert_allclose(found.concentration[order], true.concentration, rtol=0.25)
    assert np.all(np.sum(np.asarray(found.mean_direction[order] * true.mean_direction), -1) > 0.995)
    np.testing.assert_allclose(fit.counts[order] / 1500, [0.5, 0.3, 0.2], atol=0.06)
    trace = np.asarray(fit.log_likelihood)
    made = int(fit.num_steps)
    assert np.all(np.isnan(trace[made + 1 :]))
    assert np.all(np.diff(trace[: made + 1]) > -2e-6)
    if kind == "soft":
        area = math.log(2 * math.pi**3 / math.gamma(3))
        np.testing.assert_allclose(jnp.mean(fit.mixture.log_prob(x)) + area, trace[made], atol=1e-5)
        assert trace[made] > float(jnp.mean(mixture.log_prob(x))) + area


def test_power_spherical_mixture(key, planted):
    _, true, x = planted
    fit = fit_mixture(key, x, 3, family=PowerSpherical)
    assert bool(fit.converged)
    assert isinstance(fit.components, PowerSpherical)
    trace = np.asarray(fit.log_likelihood)[: int(fit.num_steps) + 1]
    assert trace[-1] > trace[0]
    assert sorted(matched(fit, true)) == [0, 1, 2]


@pytest.mark.usefixtures("x64")
def test_one_component_is_the_fit_and_weights_count(key):
    x = jnp.asarray(unit(np.random.default_rng(0).normal(size=(30, 4)) + np.array([2, 0, 0, 0])))
    weights = jnp.asarray(np.random.default_rng(1).uniform(size=30))
    fit = fit_mixture(key, x, 1, weights=weights, bias_corrected=True)
    one = VonMisesFisher.fit(x, weights, bias_corrected=True)
    np.testing.assert_allclose(fit.components.concentration[0], one.concentration, rtol=1e-10)
    np.testing.assert_allclose(fit.components.mean_direction[0], one.mean_direction, rtol=1e-10)
    np.testing.assert_allclose(fit.counts, [30])


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_steps_are_those_of_the_definition():
    """One E and M step of two components, point by point; the planted step without component weights differs."""
    rng = np.random.default_rng(3)
    x, means = unit(rng.normal(size=(7, 3))), unit(rng.normal(size=(2, 3)))
    weights, k, shares_of = np.full(7, 1 / 7), np.array([2.0, 9.0]), np.array([0.2, 0.8])
    densities = np.exp(np.asarray(VonMisesFisher(jnp.asarray(means), jnp.asarray(k)).log_prob(jnp.asarray(x[:, None]))))
    joint = shares_of * densities
    expected = joint / joint.sum(1, keepdims=True)
    start = module.Components(jnp.asarray(shares_of), jnp.asarray(means), jnp.asarray(k))
    given = jnp.asarray(x), jnp.asarray(weights)
    assigned = module._assign(VonMisesFisher, False, *given, start)
    np.testing.assert_allclose(assigned.shares, expected, rtol=1e-11)
    value = np.mean(np.log(joint.sum(1))) + math.log(4 * math.pi)
    np.testing.assert_allclose(assigned.log_likelihood, value, rtol=1e-12)
    planted = densities / densities.sum(1, keepdims=True)
    assert np.max(np.abs(planted - expected)) > 1e-3
    after = module._improve(VonMisesFisher, False, *given, jnp.asarray(1e9), start, assigned)
    sums = expected.T @ x
    np.testing.assert_allclose(after.directions, unit(sums), rtol=1e-11)
    np.testing.assert_allclose(after.weights, expected.mean(0), rtol=1e-11)
    length, found = np.linalg.norm(sums, axis=1) / expected.sum(0), np.asarray(after.concentrations)
    np.testing.assert_allclose(1 / np.tanh(found) - 1 / found, length, rtol=1e-11)


def test_more_components_than_clusters_are_capped_and_flagged(key):
    x = jnp.asarray([[1.0, 0, 0]] * 5 + [[0, 1.0, 0]] * 5)
    fit = fit_mixture(key, x, 3, kind="hard", num_steps=5)
    assert np.any(fit.capped)
    assert np.all(np.isfinite(fit.components.concentration))
    assert np.all(np.isfinite(fit.log_likelihood[0]))
    assert float(jnp.sum(fit.counts)) == pytest.approx(10)


def test_bad_arguments_raise(key):
    x = jnp.asarray(np.eye(3, dtype=np.float32))
    for error, message, given in (
        (ValueError, "`kind` is 'firm'", {"kind": "firm"}),
        (TypeError, "`family` is", {"family": Categorical}),
        (ValueError, "`num_components` is 4, with 3 points", {"num_components": 4}),
        (ValueError, "`num_components` is 0", {"num_components": 0}),
        (ValueError, "`tolerance` is -1", {"tolerance": -1.0}),
        (ValueError, "`max_concentration` is 0", {"max_concentration": 0.0}),
        (ValueError, "`bias_corrected` is True", {"bias_corrected": True, "family": PowerSpherical}),
        (ValueError, "`weights` are all 0", {"weights": jnp.zeros(3)}),
        (ValueError, r"`x`\[0\] has norm 2 ", {"x": 2 * x}),
    ):
        with pytest.raises((error, TypeError), match=message if error is ValueError else None):
            fit_mixture(key, **{"x": x, "num_components": 2, **given})


# --- in NumPyro models and samplers ---


def model(prior, x):
    direction = numpyro.sample("direction", VonMisesFisher(prior, 2.0))
    numpyro.sample("x", VonMisesFisher(direction, 8.0).expand([x.shape[0]]).to_event(1), obs=x)


@pytest.mark.numpyro
def test_reparametrised_density_is_the_posterior(key):
    """The posterior direction is von Mises-Fisher with natural parameter 2 prior + 8 sum x; the length is chi."""
    prior = jnp.asarray(unit([1, 1, 0, 0]), jnp.float32)
    x = VonMisesFisher(prior, 8.0).sample(key, (4,))
    lifted = reparam(model, config={"direction": SphereReparam()})
    target = Target.from_numpyro(lifted, prior, x)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    found = [
        float(target.log_prior({"direction_vector": v}) + target.log_likelihood({"direction_vector": v})) for v in z
    ]
    natural = 2 * prior + 8 * jnp.sum(x, 0)
    z = np.asarray(z, np.float64)
    expected = unit(z) @ np.asarray(natural, np.float64) - 0.5 * np.sum(z * z, 1)
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-4, atol=1e-4)
    without = expected - unit(z) @ np.asarray(2 * prior, np.float64)  # the planted bug
    assert np.max(np.abs(np.diff(without) - np.diff(expected))) > 0.1
    assert target.constrain is not None
    assert target.sample_prior is not None
    shown = target.constrain({"direction_vector": jnp.asarray(z[0], jnp.float32)})["direction"]
    np.testing.assert_allclose(shown, unit(z[0]), atol=1e-6)
    drawn = target.sample_prior(jax.random.key(2))["direction_vector"]
    assert drawn.shape == (4,)


@pytest.mark.numpyro
def test_reparam_refuses_other_sites():
    with pytest.raises(ValueError, match="site 'x' is observed"):
        SphereReparam()("x", VonMisesFisher(jnp.asarray([1.0, 0.0]), 1.0), jnp.asarray([1.0, 0.0]))
    with pytest.raises(TypeError, match="site 'x' is a Categorical"):
        SphereReparam()("x", Categorical(probs=jnp.ones(2) / 2), None)


@pytest.mark.slow
@pytest.mark.numpyro
def test_nuts_and_our_sampler_find_the_posterior(key):
    """Means of the direction against the exact ones, within 6 standard errors from effective sample sizes."""
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import MCMC, NUTS

    from probinf.samplers import nuts, sample

    prior = jnp.asarray(unit([1, 1, 0, 0]), jnp.float32)
    data_key, nuts_key, own_key = jax.random.split(key, 3)
    x = VonMisesFisher(prior, 8.0).sample(data_key, (4,))
    natural = np.asarray(2 * prior + 8 * jnp.sum(x, 0), np.float64)
    size = float(np.linalg.norm(natural))
    exact = VonMisesFisher(jnp.asarray(natural / size, jnp.float32), size)
    lifted = reparam(model, config={"direction": SphereReparam()})
    chain = MCMC(
        NUTS(lifted), num_warmup=300, num_samples=1000, num_chains=2, chain_method="sequential", progress_bar=False
    )
    chain.run(nuts_key, prior, x)
    runs = [np.asarray(chain.get_samples(group_by_chain=True)["direction"])]
    draws = sample(
        own_key, nuts(), Target.from_numpyro(lifted, prior, x), num_samples=1000, num_chains=2, num_warmup=300
    )
    runs.append(np.asarray(draws.samples["direction"]))
    for run in runs:
        flat = run.reshape(-1, 4)
        error = flat.std(0) / np.sqrt(effective_sample_size(run))
        assert np.all(np.abs(flat.mean(0) - np.asarray(exact.mean)) < 6 * error)


@pytest.mark.slow
@pytest.mark.numpyro
def test_mixture_beats_spherical_k_means_on_new_data(key):
    """20 components with different weights and concentrations in 64 dimensions; k-means of the same start.

    Spherical k-means is a mixture of equal weights and one shared concentration, fitted hard; the stronger peer takes
    its clusters and fits a component to each.
    """
    rng = np.random.default_rng(5)
    means = unit(rng.normal(size=(20, 64)) + 0.7)
    components = VonMisesFisher(jnp.asarray(means, jnp.float32), jnp.asarray(rng.uniform(30, 300, 20), jnp.float32))
    weights = rng.dirichlet(np.full(20, 3.0))
    data_key, fit_key = jax.random.split(key)
    x = drawn(data_key, components, weights, 12_000)
    train, test = x[:8000], x[8000:]
    fit = fit_mixture(fit_key, train, 20)
    assert bool(fit.converged)
    centres = k_means(fit_key, train)
    label = np.argmax(np.asarray(train @ centres.T), 1)
    lengths = [np.linalg.norm(np.asarray(train)[label == h].sum(0)) for h in range(20)]
    shared = module.solve(64, jnp.asarray(sum(lengths) / 8000), jnp.asarray(1 - sum(lengths) / 8000))
    plain = MixtureSameFamily(Categorical(probs=jnp.ones(20) / 20), VonMisesFisher(centres, jnp.full(20, shared)))
    parts = [VonMisesFisher.fit(train[label == h]) for h in range(20)]
    each = VonMisesFisher(
        jnp.stack([part.mean_direction for part in parts]), jnp.stack([part.concentration for part in parts])
    )
    strong = MixtureSameFamily(Categorical(probs=jnp.asarray(np.bincount(label, minlength=20) / 8000)), each)
    ours, theirs, stronger = (float(jnp.mean(one.log_prob(test))) for one in (fit.mixture, plain, strong))
    assert ours > theirs + 0.1
    assert ours > stronger


def k_means(key, x):
    """Spherical k-means from the start that `fit_mixture` has."""
    weights = jnp.full(x.shape[:1], 1 / x.shape[0])
    centres = module._start(key, x, weights, 20, jnp.asarray(1e6)).directions
    for _ in range(50):
        nearest = jax.nn.one_hot(jnp.argmax(x @ centres.T, 1), 20, dtype=x.dtype)
        centres = module.unit_or(nearest.T @ x, centres)
    return centres
