"""`Target` and `target_from_numpyro`: densities by hand, Jacobians, what is refused.

Planted bugs that must be caught: a missing log-Jacobian, a factor counted as prior, a Jacobian scaled by a handler
(`test_law_...` and `test_handlers_...` compare with densities written out by hand).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.infer import Predictive, util

from probinf.core import _numpyro
from probinf.core._numpyro import target_from_numpyro
from probinf.core._target import Target

X = np.array([[1.0, 0.5], [0.3, -1.0], [2.0, 0.1]], np.float32)
Y = np.array([0.7, -0.4, 1.9], np.float32)


def regression(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.Gamma(2.0, 3.0))
    mean = numpyro.deterministic("mean", x @ beta)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


POSITION = {"beta": jnp.array([0.4, -0.2]), "sigma": jnp.asarray(-0.3)}


@pytest.mark.numpyro
def test_law_of_target_prior_and_likelihood_apart() -> None:
    target = target_from_numpyro(regression, X, Y)
    sigma = np.exp(-0.3)
    prior = dist.Normal(0, 2).log_prob(POSITION["beta"]).sum() + dist.Gamma(2.0, 3.0).log_prob(sigma) + np.log(sigma)
    likelihood = dist.Normal(X @ POSITION["beta"], sigma).log_prob(Y).sum()
    np.testing.assert_allclose(target.log_prior(POSITION), prior, rtol=1e-5)
    np.testing.assert_allclose(target.log_likelihood(POSITION), likelihood, rtol=1e-5)
    np.testing.assert_allclose(target.log_density(POSITION), prior + likelihood, rtol=1e-5)
    np.testing.assert_allclose(target.at_temperature(0.25).log_density(POSITION), prior + 0.25 * likelihood, rtol=1e-5)


@pytest.mark.numpyro
def test_missing_jacobian_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = target_from_numpyro(regression, X, Y).log_prior(POSITION)
    transform = _numpyro._transform
    monkeypatch.setattr(_numpyro, "_transform", lambda msg, u: (transform(msg, u)[0], jnp.zeros(())))
    assert abs(float(target_from_numpyro(regression, X, Y).log_prior(POSITION) - right)) > 0.1


def hierarchical(y: Any) -> None:
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    edge = numpyro.sample("edge", dist.Uniform(0.0, scale))  # a support that depends on another site
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    cholesky = numpyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("groups", 4), numpyro.handlers.reparam(config={"z": numpyro.infer.reparam.LocScaleReparam(0.0)}):
        z = jnp.asarray(numpyro.sample("z", dist.Normal(edge, scale)))
    numpyro.factor("penalty", -0.1 * jnp.sum(cholesky**2))
    numpyro.sample("y", dist.MultivariateNormal(z[:3] * weights, scale_tril=cholesky), obs=y)


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("model", "args"), [(regression, (X, Y)), (hierarchical, (np.array([0.1, 1.0, 2.0], np.float32),))]
)
def test_density_is_the_one_numpyro_computes(model: Any, args: Any, key: Any) -> None:
    target = target_from_numpyro(model, *args)
    assert target.sample_prior is not None
    for k in jax.random.split(key, 3):
        position = target.draw_prior(k)
        expected = -util.potential_energy(model, args, {}, position)
        np.testing.assert_allclose(target.log_density(position), expected, rtol=2e-4, atol=2e-4)
        constrained = util.constrain_fn(model, args, {}, position, return_deterministic=True)
        found = target.constrain(position)
        assert set(found) == set(constrained)
        for name, value in found.items():
            np.testing.assert_allclose(value, constrained[name], rtol=1e-4, atol=1e-5)


def series(y: Any) -> None:
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))

    def transition(level: Any, observed: Any) -> Any:
        step = numpyro.sample("step", dist.Exponential(1.0))
        numpyro.sample("y", dist.Normal(level + step, noise), obs=observed)
        return level + step, level

    numpyro_scan(transition, jnp.zeros(()), y)


@pytest.mark.numpyro
def test_scanned_sites_by_hand() -> None:
    y = np.array([0.5, 1.0, 2.5, 2.0], np.float32)
    target = target_from_numpyro(series, y)
    position = {"noise": jnp.asarray(0.2), "step": jnp.array([-0.3, 0.1, -1.0, 0.4])}
    steps = jnp.exp(position["step"])
    prior = dist.Exponential(1.0).log_prob(steps).sum() + position["step"].sum()
    prior += dist.HalfNormal(1.0).log_prob(jnp.exp(0.2)) + 0.2
    likelihood = dist.Normal(jnp.cumsum(steps), jnp.exp(0.2)).log_prob(y).sum()
    np.testing.assert_allclose(target.log_prior(position), prior, rtol=1e-5)
    np.testing.assert_allclose(target.log_likelihood(position), likelihood, rtol=1e-5)
    assert jax.tree.map(jnp.shape, target.draw_prior(jax.random.key(0))) == {"noise": (), "step": (4,)}


@pytest.mark.numpyro
def test_handlers_act_on_densities_and_not_on_jacobians() -> None:
    def model(y: Any) -> None:
        with numpyro.handlers.scale(scale=0.5):
            a = numpyro.sample("a", dist.HalfNormal(1.0))
        with numpyro.handlers.mask(mask=False):
            numpyro.sample("b", dist.HalfNormal(1.0))
        with numpyro.handlers.scale(scale=3.0):
            numpyro.sample("y", dist.Normal(0.0, a), obs=y)

    target = target_from_numpyro(model, jnp.asarray(0.4))
    position = {"a": jnp.asarray(0.3), "b": jnp.asarray(-0.6)}
    prior = 0.5 * dist.HalfNormal(1.0).log_prob(jnp.exp(0.3)) + 0.3 - 0.6
    np.testing.assert_allclose(target.log_prior(position), prior, rtol=1e-5)
    np.testing.assert_allclose(
        target.log_likelihood(position), 3 * dist.Normal(0.0, jnp.exp(0.3)).log_prob(0.4), rtol=1e-5
    )


@pytest.mark.numpyro
def test_prior_draws_have_the_law_of_the_model(key: Any) -> None:
    target = target_from_numpyro(regression, X, Y)
    draws = jax.jit(jax.vmap(target.draw_prior))(jax.random.split(key, 20_000))
    sigma = np.exp(np.asarray(draws["sigma"], np.float64))
    # Gamma(2, 3): mean 2/3, sd sqrt(2)/3; 6 standard errors.
    assert abs(sigma.mean() - 2 / 3) < 6 * np.sqrt(2) / 3 / np.sqrt(20_000)
    assert Predictive(regression, num_samples=2)(jax.random.key(0), X, None)["y"].shape == (2, 3)


@pytest.mark.numpyro
def test_new_data_of_the_same_shape_does_not_retrace() -> None:
    traced: list[int] = []

    @eqx.filter_jit
    def density(target: Target, position: Any) -> Any:
        traced.append(1)
        return target.log_density(position)

    values = [float(density(target_from_numpyro(regression, X, Y + i), POSITION)) for i in range(3)]
    assert len(traced) == 1
    assert len(set(values)) == 3


@pytest.mark.numpyro
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_density_has_the_dtype_of_the_position(dtype: Any, x64: None) -> None:
    target = target_from_numpyro(regression, X.astype(dtype), Y.astype(dtype))
    position = jax.tree.map(lambda a: a.astype(dtype), POSITION)
    assert target.log_prior(position).dtype == dtype
    assert target.log_likelihood(position).dtype == dtype


@pytest.mark.numpyro
def test_improper_prior_has_a_density_but_no_draws() -> None:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        numpyro.sample("y", dist.Normal(0.0, a), obs=y)

    target = target_from_numpyro(model, jnp.zeros(2))
    np.testing.assert_allclose(target.log_prior({"a": jnp.array([0.1, 0.3])}), 0.4, rtol=1e-5)
    assert target.sample_prior is None
    with pytest.raises(ValueError, match="sample_prior"):
        target.draw_prior(jax.random.key(0))


@pytest.mark.numpyro
def test_nan_in_the_data_reaches_the_density() -> None:
    target = target_from_numpyro(regression, X, np.array([0.7, np.nan, 1.0], np.float32))
    assert not np.isfinite(eqx.filter_jit(target.log_likelihood)(POSITION))  # outside jit NumPyro warns too
    assert np.isfinite(target.log_prior(POSITION))


@pytest.mark.numpyro
def test_discrete_sites_are_integers_in_positions() -> None:
    def model(y: Any) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(2.0))
        with numpyro.plate("rows", 3):
            k = numpyro.sample("k", dist.Bernoulli(0.2))
            numpyro.sample("y", dist.Normal(jnp.asarray(k, float), scale), obs=y)

    target = target_from_numpyro(model, jnp.asarray(Y))
    position = {"scale": jnp.asarray(0.2), "k": jnp.asarray([0, 1, 0])}
    prior = np.log(0.8 * 0.2 * 0.8) + dist.HalfNormal(2.0).log_prob(jnp.exp(0.2)) + 0.2
    likelihood = dist.Normal(jnp.asarray([0.0, 1.0, 0.0]), jnp.exp(0.2)).log_prob(Y).sum()
    np.testing.assert_allclose(target.log_prior(position), prior, rtol=1e-5)
    np.testing.assert_allclose(target.log_likelihood(position), likelihood, rtol=1e-5)
    np.testing.assert_array_equal(target.constrain(position)["k"], position["k"])
    assert target.at_temperature(0.5).supports["k"].num_values == 2


def _subsampled(y: Any) -> None:
    mean = numpyro.sample("mean", dist.Normal())
    with numpyro.plate("rows", 10, subsample_size=3):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def _observed(y: Any) -> None:
    numpyro.sample("y", dist.Normal(), obs=y)


def _with_param(y: Any) -> None:
    numpyro.sample("y", dist.Normal(numpyro.param("loc", 0.0), 1.0), obs=y)


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_subsampled, "plate 'rows' takes 3 of 10 items"),
        (_observed, "no latent site"),
        (_with_param, "site 'loc' is a `numpyro.param`"),
    ],
)
def test_models_without_a_continuous_posterior_are_refused(model: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        target_from_numpyro(model, jnp.zeros(3))


def test_model_must_be_callable() -> None:
    with pytest.raises(TypeError, match="model"):
        target_from_numpyro(3)  # pyright: ignore[reportArgumentType]


def test_target_defaults() -> None:
    target = Target(lambda x: -jnp.sum(x**2))
    x = jnp.array([1.0, 2.0])
    assert float(target.log_density(x)) == -5.0
    assert target.constrain(x) is x
    assert float(target.log_prior(x)) == 0.0
