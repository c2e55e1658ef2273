"""`marginalise`, `draw_marginalised`, and the supports of NumPyro's discrete sites: sums and laws written out.

Planted bugs that must be caught (`test_planted_bugs_are_caught`): values outside a narrower support counted; the prior
left out of the mean of the likelihood; only the likelihood in the law of the draws.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan as numpyro_scan

from probinf.core import IntegerInterval, _marginalise, draw_marginalised, marginalise
from probinf.core._numpyro import target_from_numpyro
from probinf.core._target import Target
from probinf.validity import enumerate_algorithm

# Two elements of 2 and 3 values, and a site of 4.
SUPPORTS = {"k": IntegerInterval(-1, 2), "z": IntegerInterval([0, 1], [1, 3])}
VALUES = [(k, (a, b)) for k in range(-1, 3) for a in range(2) for b in range(1, 4)]
X = np.array([0.3, -0.8])


class LogPrior(eqx.Module):
    table: Any

    def __call__(self, p: Any) -> Any:
        z, x = p["z"].astype(float), p["x"]
        skewed = jnp.sum(x - jnp.exp(x - 0.3 * z))
        return skewed + self.table[p["k"] + 1, p["z"][0], p["z"][1]] * jnp.cos(x[0])


def log_likelihood(p: Any) -> Any:
    k, z = p["k"].astype(float), p["z"].astype(float)
    return -0.5 * (p["x"][0] - k) ** 2 + jnp.sin(jnp.sum(z * p["x"]))


def make(inverse_temperature: float = 1.0) -> Target:
    # No number where k is 2 and the first element is 2, which it never is.
    table = np.random.default_rng(1).normal(size=(4, 3, 4))
    return Target(
        log_likelihood,
        LogPrior(jnp.asarray(table)),
        sample_prior=lambda key: {"x": jnp.zeros(2), "k": jnp.asarray(0), "z": jnp.asarray([0, 1])},
        inverse_temperature=jnp.asarray(inverse_temperature),
        supports=SUPPORTS,
    )


@jax.jit
def by_hand(x: Any, inverse_temperature: Any = 1.0) -> tuple[Any, Any, Any]:
    """Marginal log prior, log likelihood and the law of the values at an inverse temperature."""
    target = make()
    ks, zs = jnp.asarray([k for k, _ in VALUES]), jnp.asarray([z for _, z in VALUES])
    priors = jax.vmap(lambda k, z: target.log_prior({"x": x, "k": k, "z": z}))(ks, zs)
    likelihoods = jax.vmap(lambda k, z: target.log_likelihood({"x": x, "k": k, "z": z}))(ks, zs)
    prior = jnp.log(jnp.sum(jnp.exp(priors)))
    likelihood = jnp.log(jnp.sum(jnp.exp(priors + likelihoods))) - prior
    return prior, likelihood, jax.nn.softmax(priors + inverse_temperature * likelihoods)


def test_law_of_marginal_densities_and_gradients(x64: None) -> None:
    marginal = marginalise(make(0.4), ["k", "z"])
    both = lambda p: (marginal.log_prior(p), marginal.log_likelihood(p))  # noqa: E731
    x = jnp.asarray(X)
    values, gradients = jax.jit(lambda x: (both({"x": x}), jax.jacrev(lambda x: both({"x": x}))(x)))(x)
    expected, slopes = jax.jit(lambda x: (by_hand(x)[:2], jax.jacrev(lambda x: by_hand(x)[:2])(x)))(x)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(gradients, slopes, rtol=1e-10)
    np.testing.assert_allclose(marginal.log_density({"x": x}), expected[0] + 0.4 * expected[1], rtol=1e-12)
    assert marginal.supports == {}
    assert jax.tree.map(jnp.shape, marginal.draw_prior(jax.random.key(0))) == {"x": (2,)}


def test_sums_can_be_taken_in_turn(x64: None) -> None:
    inner = marginalise(make(), ["z"])
    assert set(inner.supports) == {"k"}
    both, turns = marginalise(make(), ["z", "k"]), marginalise(inner, ["k"])
    one, other = jax.jit(lambda p: (turns.log_density(p), both.log_density(p)))({"x": jnp.asarray(X)})
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_law_of_the_draws(x64: None) -> None:
    assert largest_error() < 1e-12
    law = enumerate_algorithm(
        lambda key: draw_marginalised(key, make(), ["k"], {"x": jnp.asarray(X), "z": jnp.asarray([1, 2])})
    )
    np.testing.assert_array_equal(law.outcomes["z"], np.broadcast_to([1, 2], (4, 2)))


def largest_error() -> float:
    law = enumerate_algorithm(lambda key: draw_marginalised(key, make(0.4), ["k", "z"], {"x": jnp.asarray(X)}))
    found = np.zeros(len(VALUES))
    for k, z, p in zip(law.outcomes["k"], law.outcomes["z"], np.asarray(law.probabilities), strict=True):
        if p > 0:
            found[VALUES.index((int(k), tuple(np.asarray(z).tolist())))] += p
    return float(np.abs(found - by_hand(jnp.asarray(X), 0.4)[2]).max())


def _plant_outside(patch: pytest.MonkeyPatch) -> None:
    values = _marginalise._Combinations.values
    patch.setattr(_marginalise._Combinations, "values", lambda self, i: (values(self, i)[0], jnp.ones((), bool)))


def _plant_no_prior(patch: pytest.MonkeyPatch) -> None:
    def likelihood(self: Any, position: Any) -> Any:
        return jax.nn.logsumexp(self.terms(position)[1]) - math.log(len(VALUES))

    patch.setattr(_marginalise._MarginalLikelihood, "__call__", likelihood)


def _plant_likelihood_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_marginalise, "point_log_density", lambda target, point: point.log_likelihood)


@pytest.mark.parametrize("plant", [_plant_outside, _plant_no_prior, _plant_likelihood_alone])
def test_planted_bugs_are_caught(plant: Any, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    marginal = marginalise(make(), ["k", "z"])
    prior, likelihood, _ = by_hand(jnp.asarray(X))
    errors = (
        abs(marginal.log_prior({"x": jnp.asarray(X)}) - prior),
        abs(marginal.log_likelihood({"x": jnp.asarray(X)}) - likelihood),
    )
    assert max(*map(float, errors), 0.0 if plant is _plant_no_prior else largest_error()) > 1e-3


def test_impossible_combinations_and_places() -> None:
    def log_prior(p: Any) -> Any:
        return jnp.where((p["z"] == 1) | (p["x"] < 0), -jnp.inf, -p["x"])

    target = Target(lambda p: 0.5 * p["z"].astype(float), log_prior, supports={"z": IntegerInterval(0, 1)})
    marginal = marginalise(target, ["z"])
    both = jax.jit(jax.vmap(lambda x: (marginal.log_likelihood({"x": x}), marginal.log_density({"x": x}))))
    log_likelihood, log_density = both(jnp.asarray([1.0, -1.0]))
    assert log_likelihood[0] == 0.0
    assert log_density[1] == -jnp.inf
    broken = Target(lambda p: jnp.where(p["z"] == 1, jnp.nan, p["x"]), supports={"z": IntegerInterval(0, 1)})
    assert np.isnan(jax.jit(lambda p: marginalise(broken, ["z"]).log_density(p))({"x": jnp.asarray(1.0)}))


def test_draws_work_under_vmap_and_never_give_what_is_impossible(key: Any) -> None:
    target = Target(lambda p: jnp.where(p["z"] == 1, jnp.nan, p["x"]), supports={"z": IntegerInterval(0, 2)})
    draw = jax.jit(jax.vmap(lambda k, x: draw_marginalised(k, target, ["z"], {"x": x})))
    drawn = draw(jax.random.split(key, 500), jnp.linspace(-1, 1, 500))
    counts = np.bincount(drawn["z"], minlength=3)
    assert counts[1] == 0
    assert min(counts[0], counts[2]) > 150  # binomial(500, 1/2): below 1e-18


def test_what_cannot_be_summed_is_named() -> None:
    target = make()
    for sites, error, words in (
        ("z", TypeError, r"write `\['z'\]`"),
        ([], ValueError, "`sites` is empty"),
        (["x", "q"], ValueError, r"has \['q', 'x'\], but the target tells the supports of \['k', 'z'\]"),
    ):
        with pytest.raises(error, match=words):
            marginalise(target, sites)
    many = Target(log_likelihood, supports={"z": IntegerInterval(0, 1, (1000,))})
    with pytest.raises(ValueError, match=r"z: 2 values, shape \(1000,\)\) have about 10\^301 .* with `gibbs`"):
        marginalise(many, ["z"])
    with pytest.raises(ValueError, match=r"`position` has the sites \['k'\]"):
        draw_marginalised(jax.random.key(0), target, ["k"], {"x": X, "k": jnp.asarray(0)})
    with pytest.raises(TypeError, match="must be a dict"):
        draw_marginalised(jax.random.key(0), target, ["k"], X)


# NumPyro.

TOTALS = np.array([2, 4])


def discrete_sites() -> None:
    numpyro.sample("bernoulli", dist.Bernoulli(0.3))
    numpyro.sample("logits", dist.Bernoulli(logits=jnp.zeros(3)).to_event(1))
    numpyro.sample("uniform", dist.DiscreteUniform(2, 5))
    numpyro.sample("masked", dist.CategoricalProbs(jnp.ones(3) / 3).mask(True))
    with numpyro.plate("rows", 4):
        numpyro.sample("categorical", dist.CategoricalProbs(jnp.ones(5) / 5))
    with numpyro.plate("totals", 2):
        numpyro.sample("binomial", dist.Binomial(TOTALS, 0.4))
    numpyro.sample("real", dist.Normal())


@pytest.mark.numpyro
def test_supports_of_numpyro_sites() -> None:
    target = target_from_numpyro(discrete_sites)
    found = {name: (s.lower.tolist(), s.upper.tolist(), s.num_values) for name, s in target.supports.items()}
    assert found == {
        "bernoulli": (0, 1, 2),
        "logits": ([0, 0, 0], [1, 1, 1], 2),
        "uniform": (2, 5, 4),
        "masked": (0, 2, 3),
        "categorical": ([0] * 4, [4] * 4, 5),
        "binomial": ([0, 0], [2, 4], 5),
    }
    position = jax.jit(lambda key: target.draw_prior(key))(jax.random.key(3))
    for name, support in target.supports.items():
        assert jnp.issubdtype(position[name].dtype, jnp.integer)
        assert position[name].shape == support.shape
    assert jax.eval_shape(target.log_prior, position).dtype == jnp.float32


def scanned(y: Any) -> None:
    step = numpyro.sample("step", dist.HalfNormal(1.0))

    def transition(state: Any, observed: Any) -> Any:
        state = numpyro.sample("state", dist.CategoricalProbs(jnp.array([[0.9, 0.1], [0.3, 0.7]])[state]))
        numpyro.sample("y", dist.Normal(step * jnp.asarray(state, float), 1.0), obs=observed)
        return state, None

    numpyro_scan(transition, jnp.asarray(0), y)


@pytest.mark.numpyro
def test_a_hidden_markov_chain_is_summed_out() -> None:
    y = np.array([0.2, 1.7, 1.1], np.float32)
    target = target_from_numpyro(scanned, y)
    assert target.supports["state"].shape == (3,)
    marginal = marginalise(target, ["state"])
    x, step = {"step": jnp.asarray(0.4)}, np.exp(0.4)
    matrix = np.array([[0.9, 0.1], [0.3, 0.7]])
    forward = np.array([1.0, 0.0])
    for value in y:
        forward = (forward @ matrix) * np.exp(-0.5 * (value - step * np.arange(2)) ** 2) / np.sqrt(2 * np.pi)
    log_prior, log_likelihood = jax.jit(lambda x: (marginal.log_prior(x), marginal.log_likelihood(x)))(x)
    np.testing.assert_allclose(log_likelihood, np.log(forward.sum()), rtol=1e-5)
    prior = dist.HalfNormal(1.0).log_prob(jnp.exp(0.4)) + 0.4
    np.testing.assert_allclose(log_prior, prior, rtol=1e-5)


def _poisson(y: Any) -> None:
    numpyro.sample("y", dist.Normal(numpyro.sample("k", dist.Poisson(2.0)), 1.0), obs=y)


def _multinomial(y: Any) -> None:
    numpyro.sample("k", dist.Multinomial(3, jnp.ones(2) / 2))
    numpyro.sample("y", dist.Normal(), obs=y)


def _dependent(y: Any) -> None:
    n = numpyro.sample("n", dist.DiscreteUniform(1, 3))
    numpyro.sample("k", dist.Binomial(n, 0.5))
    numpyro.sample("y", dist.Normal(), obs=y)


def _dependent_on_a_real(y: Any) -> None:
    n = jnp.floor(numpyro.sample("n", dist.Uniform(1.0, 4.0))).astype(int)
    numpyro.sample("k", dist.DiscreteUniform(0, n))
    numpyro.sample("y", dist.Normal(), obs=y)


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_poisson, r"latent site 'k' is discrete \(Poisson\), .* a kernel of your own"),
        (_multinomial, r"latent site 'k' is discrete \(Multinomial"),
        (_dependent, "bounds of latent site 'k' .* depend on another site"),
        (_dependent_on_a_real, "bounds of latent site 'k' .* depend on another site"),
    ],
)
def test_sites_without_a_fixed_finite_support_are_refused(model: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        target_from_numpyro(model, jnp.zeros(()))
