"""Filters of guided and auxiliary models: evidence and means against Kalman, and against numerical integration.

Planted bugs, each seen to fail: the density of the proposal forgotten; the observation of another time; draws beside
the proposal.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from probinf.models import LinearGaussian, kalman_filter
from probinf.samplers import particle_filter
from tests.models._guided_models import (
    MODELS,
    local_level,
    user_proposal,
    volatility_look_ahead,
    volatility_proposal,
)

# --- An informative linear Gaussian model, against Kalman ---

LOCAL_LEVEL = LinearGaussian(0.5, 1.0, 0.9, 0.49, 2.0, 0.01, 0.0, 0.3)
RUNS = 60
HEAVY: dict[str, Any] = {"look_ahead": lambda t, x, y: dist.StudentT(5.0, 1.8 * x + 0.3, 1.5).log_prob(y)}


@pytest.fixture(scope="module")
def observations():
    ys = np.array(local_level().simulate(jax.random.key(3), 30)[1])
    ys[7] = np.nan
    return jnp.asarray(ys)


@pytest.fixture(scope="module")
def exact(observations):
    return kalman_filter(LOCAL_LEVEL, observations)


def replicated(fk, seed, num_particles=100, **options):
    """The result of 60 filters and the standard error of the log evidence of their mean."""
    key = jax.random.key(seed)
    out = particle_filter(key, fk, num_particles=num_particles, num_replicates=RUNS, **options)
    return out, float(np.sqrt(out.log_evidence_variance))


@pytest.fixture(scope="module")
def run(observations):
    """A function of a name; each filter is compiled and run once."""
    model = local_level()

    @functools.cache
    def one(name):
        if name == "bootstrap":
            return replicated(model.bootstrap(observations), 1)
        if name == "guided":
            return replicated(model.guided(observations), 2)
        if name == "auxiliary":
            return replicated(model.auxiliary(observations), 3, ess_threshold=1.0)
        if name == "own look-ahead":
            return replicated(model.auxiliary(observations, **HEAVY), 4)
        return replicated(model.guided(observations, user_proposal), 5)

    return one


@pytest.mark.numpyro
@pytest.mark.parametrize(
    "name", ["guided", "auxiliary", "own proposal", pytest.param("own look-ahead", marks=pytest.mark.slow)]
)
def test_evidence_and_means_agree_with_kalman(run, exact, name):
    # The mean of 60 evidences, in standard errors estimated from them: 6 with 59 degrees of freedom is 1e-7.
    # Means: 30 comparisons at 8 estimated standard errors (their weights are not independent of them), plus bias 1e-3.
    out, error = run(name)
    assert error < 0.1
    assert abs(float(out.log_evidence) - float(exact.log_evidence)) < 6 * error
    spread = np.asarray(out.mean).std(axis=0, ddof=1) / np.sqrt(RUNS)
    means = np.asarray(out.mean).mean(axis=0)
    assert np.all(np.abs(means - np.asarray(exact.filtered_mean)[:, 0]) < 8 * spread + 1e-3)


@pytest.mark.numpyro
@pytest.mark.parametrize("name", ["guided", "auxiliary"])
def test_variance_is_far_below_the_bootstrap_filters(run, name):
    # Measured: a factor of over 100; each variance is known within a factor of 2.5 at 1e-6 from 60 runs.
    boot, ours = (np.var(np.asarray(run(which)[0].replicate_log_evidence)) for which in ("bootstrap", name))
    assert ours < boot / 20


@pytest.mark.slow
@pytest.mark.numpyro
@pytest.mark.no_key_reuse
@pytest.mark.parametrize("ahead", [False, True], ids=["guided", "auxiliary"])
def test_single_run_variance_is_that_of_replicates(ahead):
    # E[Zhat^2 V] = Var(Zhat) for multinomial resampling at every step (Lee, Whiteley 2018), here on a skewed model.
    # Standard errors of both sides from 4,000 runs; 6 of them is 1e-8.
    ys = jnp.array([0.3, -1.1, 0.2, 0.9])
    kept = {"proposal": volatility_proposal, "initial_proposal": lambda y: dist.Normal(-0.3, 0.9)}
    model = MODELS["volatility"][0]()
    fk = model.auxiliary(ys, volatility_look_ahead, **kept) if ahead else model.guided(ys, **kept)

    def one(key):
        out = particle_filter(key, fk, num_particles=1000, resampling="multinomial", ess_threshold=1.0, throw=False)
        return out.log_evidence, out.log_evidence_variance

    keys = jax.random.split(jax.random.key(11), 4000)
    logs, v = (np.asarray(a, np.float64) for a in jax.jit(lambda k: jax.lax.map(one, k, batch_size=200))(keys))
    assert np.all(np.isfinite(v))
    z = np.exp(logs - logs.max())
    spread, estimate = (z - z.mean()) ** 2, z**2 * v
    error = np.sqrt(spread.var() / z.size + estimate.var() / z.size)
    assert abs(spread.mean() - estimate.mean()) < 6 * error
    assert 6 * error < 0.25 * spread.mean()  # a variance off by a quarter would be seen


@pytest.mark.numpyro
def test_fully_adapted_weights_are_equal(run):
    out, _ = run("auxiliary")
    ess, resampled = (np.asarray(leaf)[:, 1:] for leaf in (out.ess, out.resampled))
    assert resampled.mean() > 0.9
    np.testing.assert_allclose(ess[resampled], 100, rtol=1e-3)


@pytest.mark.numpyro
def test_the_observation_of_another_time_is_caught(observations, exact):
    fk: Any = local_level().guided(observations)
    wrong = eqx.tree_at(lambda m: m.prior.observations, fk, jnp.roll(fk.prior.observations, 1))
    out, error = replicated(wrong, 2, throw=False)
    assert abs(float(out.log_evidence) - float(exact.log_evidence)) > 6 * error


class _Beside(eqx.Module):
    """Draws beside the proposal that it says it draws from."""

    proposal: Any

    def draw(self, fk, key, at, x_prev, num_particles):
        return self.proposal.draw(fk, key, at, x_prev, num_particles) + 0.03

    def log_density(self, fk, at, x_prev, x):
        return self.proposal.log_density(fk, at, x_prev, x)

    def log_weight(self, fk, at, x_prev, x):
        return self.proposal.log_weight(fk, at, x_prev, x)


class _Forgets(eqx.Module):
    """Forgets the density of the proposal."""

    proposal: Any

    def draw(self, fk, key, at, x_prev, num_particles):
        return self.proposal.draw(fk, key, at, x_prev, num_particles)

    def log_density(self, fk, at, x_prev, x):
        return self.proposal.log_density(fk, at, x_prev, x)

    def log_weight(self, fk, at, x_prev, x):
        return self.proposal.log_weight(fk, at, x_prev, x) + self.proposal.log_density(fk, at, x_prev, x)


@pytest.mark.slow
@pytest.mark.numpyro
@pytest.mark.parametrize("bug", [_Beside, _Forgets])
def test_planted_bugs_of_the_proposal_are_caught(observations, exact, bug):
    fk: Any = local_level().guided(observations, user_proposal)
    wrong = eqx.tree_at(lambda m: m.moves, fk, bug(fk.moves), is_leaf=lambda leaf: leaf is fk.moves)
    out, error = replicated(wrong, 5, throw=False)
    assert abs(float(out.log_evidence) - float(exact.log_evidence)) > 6 * error


# --- Nonlinear models, against numerical integration ---


def on_a_grid(model, ys):
    """The log evidence by integration over [-9, 9] in NumPy; NaN in `ys` is missing."""
    points = np.linspace(-9, 9, 1501)
    step, x = points[1] - points[0], jnp.asarray(points, jnp.float32)

    def density(law):
        return np.exp(np.asarray(law.log_prob(x), np.float64))

    alpha, log_evidence = density(model.initial()), 0.0
    kernel = np.exp(np.asarray(jax.vmap(lambda before: model.transition(1, before).log_prob(x))(x), np.float64))
    for t, y in enumerate(ys):
        alpha = alpha if t == 0 else alpha @ kernel * step
        if not np.isnan(y):
            alpha = alpha * np.exp(np.asarray(model.observation(t, x).log_prob(y), np.float64))
        total = alpha.sum() * step
        log_evidence, alpha = log_evidence + np.log(total), alpha / total
    return log_evidence


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("volatility", "guided"),
        pytest.param("bent", "guided", marks=pytest.mark.slow),
        pytest.param("volatility", "auxiliary", marks=pytest.mark.slow),
        pytest.param("bent", "auxiliary", marks=pytest.mark.slow),
    ],
)
def test_nonlinear_models_against_integration(name, method):
    # The integral is right to 1e-4 (an eighth as many points agree); six standard errors, from 60 runs.
    model = MODELS[name][0]()
    ys = np.array([0.4, 2.2, np.nan, 0.05, 1.5, 3.0, 1.2, 0.8], np.float32)
    options = {"proposal": volatility_proposal} if name == "volatility" else {}
    if name == "volatility" and method == "auxiliary":
        options["look_ahead"] = volatility_look_ahead
    out, error = replicated(getattr(model, method)(ys, **options), 6, num_particles=400)
    assert error < 0.06
    assert abs(float(out.log_evidence) - on_a_grid(model, ys)) < 6 * error
