"""Densities, draws and fits of the power spherical distribution against beta laws and mpmath.

Monte Carlo tests have fixed seeds and a false-alarm rate of at most 1e-6 each (Kolmogorov-Smirnov p-values above 1e-7,
z-scores below 6).

Planted bugs, run every time in `test_planted_*`: beta shapes exchanged; a constant without the factor 2^kappa.
"""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats

from probinf.distributions import PowerSpherical, VonMisesFisher
from probinf.distributions import _power_spherical as module
from probinf.distributions import _power_spherical_normaliser as constant


def unit(values):
    values = np.asarray(values, np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def exact_normaliser(dimension, concentration):
    """log E (1 + t)^kappa over the uniform distribution, and its derivative."""
    with mpmath.workdps(40):
        b, k = mpmath.mpf(dimension - 1) / 2, mpmath.mpf(concentration)
        value = k * mpmath.log(2) + mpmath.loggamma(b + k) - mpmath.loggamma(b)
        value -= mpmath.loggamma(2 * b + k) - mpmath.loggamma(2 * b)
        slope = mpmath.log(2) + mpmath.psi(0, b + k) - mpmath.psi(0, 2 * b + k)
        return value, slope


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dimension", [2, 5, 40, 32768])
def test_normaliser_against_mpmath(dimension):
    k = np.array([0.01, 0.8, 1.2, 30.0, 1e4]) * dimension
    large = k > max(dimension - 1, 16)
    value, kl = [], []
    with mpmath.workdps(40):
        for one, far in zip(k, large, strict=True):
            exact, slope = exact_normaliser(dimension, one)
            value.append(float(exact - one * mpmath.log(2) if far else exact))
            kl.append(float(one * slope - exact))
    scale = np.maximum(1, np.minimum(k, dimension))
    for dtype, unit_of_rounding in (("float64", 2.0**-53), ("float32", 2.0**-24)):
        given = jnp.asarray(k, dtype)
        found = np.asarray(constant.log_normaliser(dimension, given), np.float64)
        assert np.all(np.abs(found - value) < 60 * scale * unit_of_rounding)
        divergence = np.asarray(constant.kl_to_uniform(dimension, given), np.float64)
        assert np.all(np.abs(divergence - kl) < 80 * scale * unit_of_rounding)


@pytest.mark.usefixtures("x64")
def test_density_mean_variance_and_entropy():
    """Against the density written out, and quadrature over the cosine."""
    mean, k, p = unit([1, 2, -2]), np.array([0.0, 3.0, 50.0]), 3
    d = PowerSpherical(jnp.asarray(mean), jnp.asarray(k))
    x = unit(np.random.default_rng(0).normal(size=(4, 1, 3)))
    log_constant = np.log((k + 1) / (2 * math.pi)) - (k + 1) * math.log(2)  # p = 3: 2 pi int (1 + t)^k dt
    expected = log_constant + k * np.log1p(x @ mean)
    np.testing.assert_allclose(d.log_prob(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-13)
    beta = scipy.stats.beta(1 + k, 1)
    along = 4 * beta.var()
    across = (1 - along - (2 * beta.mean() - 1) ** 2) / 2
    np.testing.assert_allclose(d.mean, (2 * beta.mean() - 1)[:, None] * mean, atol=1e-14)
    np.testing.assert_allclose(d.variance, along[:, None] * mean**2 + across[:, None] * (1 - mean**2), rtol=1e-12)
    # E log(1 + t) = log 2 - 1 / (k + 1)
    np.testing.assert_allclose(d.entropy(), -log_constant - k * (math.log(2) - 1 / (k + 1)), rtol=1e-12)
    other = VonMisesFisher(jnp.asarray(unit([0, 1, 0])), 4.0)
    cross = math.log(4 / (4 * math.pi * math.sinh(4))) + 4 * np.asarray(d.mean)[:, 1]
    np.testing.assert_allclose(d.kl_divergence(other), -np.asarray(d.entropy()) - cross, rtol=1e-11)
    assert p == d.dimension


def test_limits():
    mean = jnp.asarray([1.0, 0.0, 0.0])
    d = PowerSpherical(mean, jnp.asarray([0.0, 2.0, jnp.inf]))
    np.testing.assert_allclose(d.log_prob_relative(-mean), [0, -np.inf, -np.inf], atol=1e-6)
    assert d.log_prob_relative(mean)[2] == np.inf
    np.testing.assert_allclose(d.kl_to_uniform()[::2], [0, np.inf], atol=1e-6)
    assert np.array_equal(d.mean[2], mean)
    np.testing.assert_allclose(d.sample(jax.random.key(0))[2], mean, atol=1e-7)
    far = float(PowerSpherical(mean, 1e12).log_prob(jnp.asarray([1.0, 1e-6, 0.0])))
    assert abs(far - (math.log(1e12) - math.log(4 * math.pi) - 0.25)) < 1e-5
    with pytest.raises(ValueError, match="`concentration` is -1"):
        PowerSpherical(mean, -1.0)
    with pytest.raises(ValueError, match="has norm 2"):
        PowerSpherical(2 * mean, 1.0)


def p_value(key, dimension, concentration):
    drawn = module.draw_angle(key, dimension, jnp.full((4000,), concentration))
    half = (dimension - 1) / 2
    return scipy.stats.kstest(0.5 + 0.5 * np.cos(drawn), scipy.stats.beta(half + concentration, half).cdf).pvalue


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dimension", "concentration"), [(2, 0.5), (10, 20.0)])
def test_angles_follow_their_law(key, dimension, concentration):
    assert p_value(key, dimension, concentration) > 1e-7


@pytest.mark.usefixtures("x64")
def test_planted_bugs_are_caught(key, monkeypatch):
    drawn = jax.random.gamma
    monkeypatch.setattr(jax.random, "gamma", lambda key, a, **given: drawn(key, jnp.max(a) - a + 4.5, **given))
    assert p_value(key, 10, 20.0) < 1e-7
    wrong = float(constant.log_normaliser(5, jnp.asarray(3.0))) - 3 * math.log(2)
    assert abs(wrong - float(exact_normaliser(5, 3.0)[0])) > 1


def test_derivatives_of_draws_have_the_derivatives_of_the_mean(key):
    """Over 4,000 draws: E d(x.mu)/dkappa = (p - 1) / (kappa + p - 1)^2."""
    mean = jnp.asarray(unit([1, 2, 2, 4, 5]), jnp.float32)
    change = jax.jvp(
        lambda k: PowerSpherical(mean, k).sample(key, (4000,)) @ mean, (jnp.asarray(3.0),), (jnp.ones(()),)
    )[1]
    change = np.asarray(change, np.float64)
    assert abs(change.mean() - 4 / 49) < 6 * change.std() / 4000**0.5


@pytest.mark.usefixtures("x64")
def test_fit_maximises_the_likelihood():
    x = jnp.asarray(unit(np.random.default_rng(1).normal(size=(12, 4)) + np.array([2, 1, 0, 0])))
    weights = jnp.asarray(np.random.default_rng(2).uniform(size=12))
    fit = PowerSpherical.fit(x, weights)

    def likelihood(turn, k):
        mean = fit.mean_direction + turn
        return jnp.sum(weights * PowerSpherical(mean / jnp.linalg.norm(mean), k).log_prob(x))

    slopes = jax.jit(jax.grad(likelihood, (0, 1)))(jnp.zeros(4), fit.concentration)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-10)
    np.testing.assert_allclose(slopes[1], 0, atol=1e-10)
    assert float(fit.concentration) > 1
    with pytest.raises(ValueError, match="agree to rounding"):
        PowerSpherical.fit(x[:1])
    spread = PowerSpherical.fit(jnp.concatenate([x, -x]))
    assert float(spread.concentration) == 0
