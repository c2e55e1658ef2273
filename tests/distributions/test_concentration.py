"""The concentration of a mean resultant length against mpmath, and the fit of von Mises-Fisher built on it.

Planted bugs, run every time in `test_planted_*`: one Newton step; a complement taken as 1 - R where points nearly
agree; a bias correction by n in place of n - 1.
"""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from probinf.distributions import VonMisesFisher, concentration_from_resultant
from probinf.distributions import _concentration as solver


def unit(values):
    values = np.asarray(values, np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def exact_pairs(dimension, sizes):
    """R of the concentrations `sizes` p, rounded, with the concentration of the rounded R and A' there."""
    lengths, roots, slopes = [], [], []
    with mpmath.workdps(40):
        b = mpmath.mpf(dimension) / 2
        for size in sizes:
            k = mpmath.mpf(size * dimension)
            terms = [mpmath.hyp0f1(b + i, k * k / 4, maxterms=10**7) for i in (0, 1)]
            a = k / (2 * b) * terms[1] / terms[0]
            slope = 1 - a * a - (dimension - 1) * a / k
            length = float(a)
            # A first-order step from R to its rounded value: the second order is of the order of 1e-32.
            lengths.append(length)
            roots.append(float(k + (mpmath.mpf(length) - a) / slope))
            slopes.append(float(slope))
    return np.array(lengths), np.array(roots), np.array(slopes)


SLOW = [pytest.param(p, marks=pytest.mark.slow) for p in (2, 3, 10, 100, 8192, 32768, 100_000)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dimension", [2048, *SLOW])
def test_concentration_is_right_to_1e12(dimension):
    sizes = [0.02, 0.3, 0.9, 3.0] if dimension < 30_000 else [0.02, 0.3, 0.9]
    lengths, roots, slopes = exact_pairs(dimension, sizes)
    found = concentration_from_resultant(dimension, jnp.asarray(lengths))
    np.testing.assert_allclose(found, roots, rtol=1e-12)
    rates = jax.grad(lambda r: jnp.sum(concentration_from_resultant(dimension, r)))(jnp.asarray(lengths))
    np.testing.assert_allclose(rates, 1 / slopes, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_exact_pairs_of_the_literature():
    """At p = 3, R = coth kappa - 1 / kappa."""
    k = np.array([0.03000180017, 0.3018171492, 1.796755985, 9.999999588, 100.0])
    found = concentration_from_resultant(3, jnp.asarray([0.01, 0.1, 0.5, 0.9, 0.99]))
    np.testing.assert_allclose(found, k, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_second_derivative_against_differences():
    r = jnp.asarray([0.3, 0.8])
    rate = jax.grad(lambda r: jnp.sum(concentration_from_resultant(60, r)))
    second = jax.grad(lambda r: jnp.sum(rate(r)))(r)
    step = 1e-5
    np.testing.assert_allclose(second, (rate(r + step) - rate(r - step)) / (2 * step), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_planted_single_newton_step_is_caught(monkeypatch):
    lengths, roots, _ = exact_pairs(2048, [0.9])
    monkeypatch.setattr(solver, "NUM_STEPS", 1)
    found = solver.solve(2048, jnp.asarray(lengths), jnp.asarray(1 - lengths))
    assert abs(float(found[0]) / roots[0] - 1) > 1e-12


def test_limits_and_bad_lengths():
    assert np.array_equal(concentration_from_resultant(7, jnp.asarray([0.0, 1.0])), [0, np.inf])
    found = jax.jit(lambda r: concentration_from_resultant(7, r))(jnp.asarray([-0.1, 1.1, math.nan]))
    assert np.all(np.isnan(found))
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="`length` is"):
            concentration_from_resultant(7, bad)
    with pytest.raises(ValueError, match="`dimension` is 1; needed at least 2"):
        concentration_from_resultant(1, 0.5)
    with pytest.raises(ValueError, match="`complement`"):
        concentration_from_resultant(7, jnp.ones(2), jnp.ones(3))


def test_a_known_complement_keeps_the_digits():
    """Far out 1 - R is (p - 1) / (2 kappa), far below the rounding of R."""
    found = concentration_from_resultant(5, jnp.ones(1), jnp.asarray([2e-12]))
    np.testing.assert_allclose(found, 1e12, rtol=1e-6)


# --- fit ---


@pytest.mark.usefixtures("x64")
def test_fit_of_two_points_and_of_weights():
    angle = 0.4
    x = jnp.asarray([[math.cos(angle), math.sin(angle), 0], [math.cos(angle), -math.sin(angle), 0]])
    fit = VonMisesFisher.fit(x)
    np.testing.assert_allclose(fit.mean_direction, [1, 0, 0], atol=1e-15)
    r, k = math.cos(angle), float(fit.concentration)
    np.testing.assert_allclose(1 / math.tanh(k) - 1 / k, r, rtol=1e-13)
    points = jnp.asarray(unit(np.random.default_rng(0).normal(size=(4, 3)) + np.array([2, 0, 0])))
    twice = VonMisesFisher.fit(jnp.concatenate([points, points[:2]]))
    weighted = VonMisesFisher.fit(points, jnp.asarray([2.0, 2.0, 1.0, 1.0]) * 1e-200)
    np.testing.assert_allclose(weighted.concentration, twice.concentration, rtol=1e-13)
    np.testing.assert_allclose(weighted.mean_direction, twice.mean_direction, rtol=1e-13)
    batch = VonMisesFisher.fit(jnp.stack([points, points[::-1]]))
    assert batch.batch_shape == (2,)
    np.testing.assert_allclose(batch.concentration, [VonMisesFisher.fit(points).concentration] * 2, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_fit_maximises_the_likelihood_and_has_its_implicit_derivative():
    x = jnp.asarray(unit(np.random.default_rng(1).normal(size=(6, 3)) + np.array([1, 1, 0])))
    weights = jnp.asarray([1.0, 2.0, 0.5, 1.0, 1.0, 0.0])
    fit = VonMisesFisher.fit(x, weights)

    def likelihood(turn, k):
        mean = fit.mean_direction + turn
        return jnp.sum(weights * VonMisesFisher(mean / jnp.linalg.norm(mean), k).log_prob(x))

    slopes = jax.jit(jax.grad(likelihood, (0, 1)))(jnp.zeros(3), fit.concentration)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-12)
    np.testing.assert_allclose(slopes[1], 0, atol=1e-12)

    def fitted(w):
        return VonMisesFisher.fit(x, w).concentration

    rate = jax.jit(jax.grad(fitted))(weights)
    step = 1e-6
    for i in range(3):
        up, down = (float(fitted(weights.at[i].add(sign * step))) for sign in (1, -1))
        np.testing.assert_allclose(rate[i], (up - down) / (2 * step), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_bias_correction():
    x = jnp.asarray(unit(np.random.default_rng(2).normal(size=(5, 3)) + np.array([1, 0, 0])))
    r = float(jnp.linalg.norm(jnp.mean(x, 0)))
    expected = concentration_from_resultant(3, math.sqrt((5 * r * r - 1) / 4))
    wrong = concentration_from_resultant(3, math.sqrt((5 * r * r - 1) / 5))
    found = VonMisesFisher.fit(x, bias_corrected=True).concentration
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(float(found) / float(wrong) - 1) > 1e-2  # the planted bug
    spread = jnp.asarray([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]])
    assert VonMisesFisher.fit(spread, bias_corrected=True).concentration == 0


def test_points_that_nearly_agree_have_a_right_concentration():
    """Tangents of size 1e-5 in float32: kappa is 2 n / sum |tangent|^2 at p = 3. A planted 1 - R gives inf or noise."""
    tangents = np.random.default_rng(3).normal(size=(500, 2)) * 1e-5
    x = jnp.asarray(unit(np.concatenate([np.ones((500, 1)), tangents], 1)), jnp.float32)
    about = np.asarray(x[:, 1:], np.float64)
    expected = 2 * 500 / np.sum((about - about.mean(0)) ** 2)
    np.testing.assert_allclose(VonMisesFisher.fit(x).concentration, expected, rtol=1e-5)
    r = jnp.minimum(jnp.linalg.norm(jnp.mean(x, 0)), 1)
    planted = float(concentration_from_resultant(3, r))
    assert not abs(planted / expected - 1) < 0.1


def test_limits_of_the_fit():
    x = jnp.asarray([[0.6, 0.8], [-0.6, -0.8]])
    none = VonMisesFisher.fit(x)
    assert none.concentration == 0
    assert np.array_equal(none.mean_direction, [1, 0])

    def fit(x, w):
        return VonMisesFisher.fit(x, w).concentration

    compiled = jax.jit(fit)
    same, ones = jnp.asarray([[0.6, 0.8], [0.6, 0.8]]), jnp.ones(2)
    assert compiled(same, ones) == np.inf
    for points, weights in ((x, -ones), (x, 0 * ones), (2 * x, ones), (x * math.nan, ones), (x, math.nan * ones)):
        assert np.isnan(compiled(points, weights))


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (np.zeros((0, 3)), None, "no points"),
        ([[0.6, 0.8]], None, r"agree to rounding \(n = 1\)"),
        ([[0.6, 0.8]] * 3, None, r"agree to rounding \(n = 3\)"),
        ([[0.6, 0.8], [1, 0]], [1.0, 0.0], "agree to rounding"),
        ([[0.6, 0.9], [1, 0]], None, r"`x`\[0\] has norm 1\.08"),
        ([[math.nan, 0.9], [1, 0]], None, "norm nan"),
        ([[0.6, 0.8], [1, 0]], [1.0, -1.0], "`weights` holds -1; needed"),
        ([[0.6, 0.8], [1, 0]], [1.0, math.nan], "`weights` holds nan"),
        ([[0.6, 0.8], [1, 0]], [0.0, 0.0], "`weights` are all 0"),
    ],
)
def test_bad_data_raise(x, weights, message):
    points = jnp.asarray(np.asarray(x, np.float32))
    with pytest.raises(ValueError, match=message):
        VonMisesFisher.fit(points, None if weights is None else jnp.asarray(np.asarray(weights, np.float32)))
