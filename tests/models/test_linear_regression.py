"""Conjugate regression against the product of predictive densities, dense Gaussian algebra and quadrature.

Planted bugs, each seen to miss the oracle: the evidence without the prior's determinant; without the prior's misfit;
the prior mean ignored.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from probinf.models import conjugate_regression, known_noise_regression

PRIOR_MEAN = np.array([0.3, -0.2, 1.0])
PRIOR_COV = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])


def gaussian(mean, cov) -> Any:
    return scipy.stats.multivariate_normal(mean, cov)


def data(num_rows=12, seed=3):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_rows, 3)) * [1.0, 2.0, 0.5] + 0.3
    # Skewed noise: the formulas must hold for any targets.
    return features, features @ [1.0, -0.5, 2.0] + rng.exponential(size=num_rows)


def fit(features, targets, **changes):
    prior = {"prior_mean": PRIOR_MEAN, "prior_cov": PRIOR_COV, "prior_shape": 2.5, "prior_rate": 1.7}
    return conjugate_regression(features, targets, **(prior | changes))


def test_evidence_is_the_product_of_predictive_densities(x64):
    features, targets = data()
    total = 0.0
    for i in range(len(targets)):
        before = fit(features[:i], targets[:i])
        location, scale = before.predict(jnp.asarray(features[i : i + 1]))
        total += scipy.stats.t.logpdf(targets[i], 2 * float(before.shape), float(location[0]), float(scale[0]))
    np.testing.assert_allclose(fit(features, targets).log_evidence, total, rtol=1e-12)


def test_evidence_and_moments_by_quadrature(x64):
    # Given the noise variance the targets are jointly Gaussian; what is left is one integral over that variance.
    features, targets = data()
    dense = np.eye(len(targets)) + features @ PRIOR_COV @ features.T
    law = gaussian(np.zeros(len(targets)), dense)
    residual = targets - features @ PRIOR_MEAN

    def joint(log_variance, power=0):
        variance = np.exp(log_variance)
        likelihood = law.pdf(residual / np.sqrt(variance)) * variance ** (-0.5 * len(targets))
        return likelihood * scipy.stats.invgamma.pdf(variance, 2.5, scale=1.7) * variance ** (1 + power)

    evidence, first, second = (
        scipy.integrate.quad(lambda v, p=p: joint(v, p), -6, 8, epsabs=0, epsrel=1e-11)[0] for p in (0, 1, 2)
    )
    out = fit(features, targets)
    np.testing.assert_allclose(out.log_evidence, np.log(evidence), rtol=1e-9)
    np.testing.assert_allclose(out.noise_variance_mean, first / evidence, rtol=1e-8)
    np.testing.assert_allclose(out.noise_variance_sd, np.sqrt(second / evidence - (first / evidence) ** 2), rtol=1e-5)
    precision = np.linalg.inv(PRIOR_COV) + features.T @ features
    mean = np.linalg.solve(precision, np.linalg.solve(PRIOR_COV, PRIOR_MEAN) + features.T @ targets)
    np.testing.assert_allclose(out.mean, mean, rtol=1e-11)
    np.testing.assert_allclose(out.cov, np.linalg.inv(precision) * first / evidence, rtol=1e-8)
    np.testing.assert_allclose(out.sd, np.sqrt(np.diagonal(out.cov)), rtol=1e-12)


def test_known_noise_equals_dense_gaussian_algebra(x64):
    features, targets = data()
    out = known_noise_regression(features, targets, noise_sd=0.7, prior_mean=PRIOR_MEAN, prior_cov=PRIOR_COV)
    cov = 0.49 * np.eye(len(targets)) + features @ PRIOR_COV @ features.T
    exact = gaussian(features @ PRIOR_MEAN, cov).logpdf(targets)
    np.testing.assert_allclose(out.log_evidence, exact, rtol=1e-12)
    gain = PRIOR_COV @ features.T @ np.linalg.inv(cov)
    np.testing.assert_allclose(out.mean, PRIOR_MEAN + gain @ (targets - features @ PRIOR_MEAN), rtol=1e-10)
    np.testing.assert_allclose(out.cov, PRIOR_COV - gain @ features @ PRIOR_COV, atol=1e-12)
    np.testing.assert_allclose(out.sd, np.sqrt(np.diagonal(out.cov)), rtol=1e-12)


def test_planted_bugs_are_caught(x64):
    # The oracle: at unit noise variance the evidence is that of dense algebra, which each bug must miss.
    features, targets = data()
    cov = np.eye(len(targets)) + features @ PRIOR_COV @ features.T
    exact = gaussian(features @ PRIOR_MEAN, cov).logpdf(targets)
    good = known_noise_regression(features, targets, noise_sd=1.0, prior_mean=PRIOR_MEAN, prior_cov=PRIOR_COV)
    np.testing.assert_allclose(good.log_evidence, exact, rtol=1e-12)
    step = np.asarray(good.mean) - PRIOR_MEAN
    planted = {
        "no determinant of the prior": good.log_evidence + 0.5 * np.linalg.slogdet(PRIOR_COV)[1],
        "no misfit of the prior": good.log_evidence + 0.5 * step @ np.linalg.solve(PRIOR_COV, step),
        "prior mean ignored": known_noise_regression(features, targets, noise_sd=1.0, prior_cov=PRIOR_COV).log_evidence,
    }
    for bug, value in planted.items():
        assert abs(float(value) - exact) > 1e-2, bug


def test_no_rows_give_the_prior(x64):
    out = fit(np.zeros((0, 3)), np.zeros(0))
    np.testing.assert_allclose(out.log_evidence, 0, atol=1e-14)
    np.testing.assert_allclose(out.mean, PRIOR_MEAN, rtol=1e-14)
    np.testing.assert_allclose(out.cov, PRIOR_COV * 1.7 / 1.5, atol=1e-12)
    known = known_noise_regression(np.zeros((0, 3)), np.zeros(0), noise_sd=2.0, prior_cov=PRIOR_COV)
    np.testing.assert_allclose(known.cov, PRIOR_COV, atol=1e-12)


def test_moments_that_do_not_exist_are_nan():
    out = fit(np.zeros((0, 3)), np.zeros(0), prior_shape=0.9)
    assert bool(jnp.isnan(out.cov).all())
    assert bool(jnp.isnan(out.sd).all())
    assert bool(jnp.isnan(out.noise_variance_mean))
    assert bool(jnp.isnan(fit(np.zeros((0, 3)), np.zeros(0), prior_shape=1.9).noise_variance_sd))


def test_float32_survives_nearly_collinear_features(x64):
    # Condition number 1e3: squared by the normal equations it would leave one digit.
    rng = np.random.default_rng(5)
    first = rng.normal(size=60)
    features = np.stack([first, first + 1e-3 * rng.normal(size=60)], axis=1)
    targets = features @ [1.0, 2.0] + 0.1 * rng.normal(size=60)
    exact = conjugate_regression(features, targets, prior_cov=100.0)
    single = conjugate_regression(features.astype(np.float32), targets.astype(np.float32), prior_cov=100.0)
    assert single.mean.dtype == jnp.float32
    np.testing.assert_allclose(single.mean, exact.mean, atol=0.02 * float(exact.sd.max()))
    np.testing.assert_allclose(single.sd, exact.sd, rtol=1e-2)
    np.testing.assert_allclose(single.log_evidence, exact.log_evidence, rtol=1e-3)


def test_draws_have_the_moments_they_claim(key):
    # Six standard errors a number, 13 numbers: false alarms below 1e-6 were the draws Gaussian means.
    features, targets = data(40)
    out = fit(features, targets)
    key_all, key_known = jax.random.split(key)
    coefficients, noise = out.sample(key_all, 40_000)
    np.testing.assert_allclose(coefficients.mean(0), out.mean, atol=6 * float(out.sd.max()) / 200)
    np.testing.assert_allclose(coefficients.std(0), out.sd, rtol=6 / np.sqrt(2 * 40_000) * 1.2)
    np.testing.assert_allclose(noise.mean(), out.noise_variance_mean, atol=6 * float(out.noise_variance_sd) / 200)
    np.testing.assert_allclose(noise.std(), out.noise_variance_sd, rtol=6 / np.sqrt(2 * 40_000) * 1.5)
    known = known_noise_regression(features, targets, noise_sd=0.7)
    draws = known.sample(key_known, 40_000)
    np.testing.assert_allclose(draws.mean(0), known.mean, atol=6 * float(known.sd.max()) / 200)
    np.testing.assert_allclose(np.cov(np.asarray(draws).T), known.cov, atol=6 * float(known.sd.max()) ** 2 * 1.5 / 200)


def test_jit_vmap_and_grad(x64):
    features, targets = map(jnp.asarray, data())
    eager = fit(features, targets)
    mapped = jax.jit(jax.vmap(lambda y: fit(features, y)))(jnp.stack([targets, 2 * targets]))
    np.testing.assert_allclose(mapped.mean[0], eager.mean, rtol=1e-10)

    def evidence(scale):
        return fit(features, targets, prior_cov=scale * PRIOR_COV).log_evidence

    step = 1e-6
    slope = (evidence(jnp.float64(1 + step)) - evidence(jnp.float64(1 - step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(evidence)(jnp.float64(1.0)), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("features", {"features": np.zeros(3)}),
        ("features", {"features": np.full((12, 3), np.nan)}),
        ("targets", {"targets": np.zeros((12, 1))}),
        ("targets", {"targets": np.full(12, np.inf)}),
        ("prior_mean", {"prior_mean": np.zeros(2)}),
        ("prior_cov", {"prior_cov": np.ones(3)}),
        ("prior_cov", {"prior_cov": -1.0}),
        ("prior_shape", {"prior_shape": 0.0}),
        ("prior_rate", {"prior_rate": np.nan}),
        ("prior_rate", {"prior_rate": np.ones(2)}),
    ],
)
def test_bad_input_is_named(name, changes):
    features, targets = data()
    with pytest.raises(ValueError, match=f"`{name}`"):
        fit(**({"features": features, "targets": targets} | changes))


def test_bad_noise_sd_is_named():
    with pytest.raises(ValueError, match="`noise_sd`"):
        known_noise_regression(*data(), noise_sd=-1.0)
