"""Densities, divergences, draws and their derivatives of von Mises-Fisher against closed forms, SciPy and mpmath.

Monte Carlo tests have fixed seeds and a false-alarm rate of at most 1e-6 each: Kolmogorov-Smirnov p-values above
1e-7 for up to 10 samples, z-scores below 6 (2e-9) for up to 100 numbers. With 4,000 draws the former see a
shift of the distribution function by 0.045, with a false-pass rate below 1e-3.

Planted bugs, run every time in `test_planted_*`: a proposal that is always accepted; the integral of the
pathwise derivative over the wrong side; a proposal without the square root of b.
"""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats
from numpyro.distributions import kl_divergence

from probinf.distributions import VonMisesFisher
from probinf.distributions import _von_mises_fisher_angle as angles
from tests._slow import slow_after

CONCENTRATIONS = np.array([0.3, 5.0, 40.0, 900.0])


def unit(values):
    values = np.asarray(values, np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def log_0f1(dimension, concentration):
    return mpmath.log(mpmath.hyp0f1(mpmath.mpf(dimension) / 2, mpmath.mpf(concentration) ** 2 / 4, maxterms=10**7))


def resultant(dimension, concentration) -> mpmath.mpf:
    b, k = mpmath.mpf(dimension) / 2, mpmath.mpf(concentration)
    up, down = (mpmath.hyp0f1(b + i, k * k / 4, maxterms=10**7) for i in (1, 0))
    return k / (2 * b) * up / down


# --- densities ---


@pytest.mark.usefixtures("x64")
def test_log_prob_is_that_of_von_mises_in_two_dimensions():
    centre, at = 0.7, np.linspace(-3, 3, 7)
    x = jnp.asarray(np.stack([np.cos(at), np.sin(at)], -1))
    d = VonMisesFisher(jnp.asarray([math.cos(centre), math.sin(centre)]), jnp.asarray(CONCENTRATIONS))
    expected = scipy.stats.vonmises.logpdf(at[:, None], CONCENTRATIONS, loc=centre)
    np.testing.assert_allclose(d.log_prob(x[:, None]), expected, rtol=1e-13, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_closed_forms_in_three_dimensions():
    mean = unit([1, -2, 2])
    k = CONCENTRATIONS
    d = VonMisesFisher(jnp.asarray(mean), jnp.asarray(k))
    x = unit(np.random.default_rng(0).normal(size=(5, 1, 3)))
    log_constant = np.log(k) - math.log(2 * math.pi) - k - np.log(-np.expm1(-2 * k))
    a = 1 / np.tanh(k) - 1 / k
    np.testing.assert_allclose(d.log_prob(jnp.asarray(x)), log_constant + k * (x @ mean), rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(d.entropy(), -log_constant - k * a, rtol=1e-13)
    np.testing.assert_allclose(d.kl_to_uniform(), log_constant + k * a + math.log(4 * math.pi), rtol=1e-12)
    np.testing.assert_allclose(d.mean, a[:, None] * mean, rtol=1e-14)
    # cos^2 has mean 1 - 2 a / k
    along, across = 1 - 2 * a / k - a * a, a / k
    np.testing.assert_allclose(d.variance, along[:, None] * mean**2 + across[:, None] * (1 - mean**2), rtol=1e-10)
    other = VonMisesFisher(jnp.asarray(unit([1, 1, 0])), 7.0)
    constant = math.log(7) - math.log(4 * math.pi) - math.log(math.sinh(7))
    expected = log_constant + k * a - constant - 7 * a * float(mean @ np.asarray(other.mean_direction))
    np.testing.assert_allclose(kl_divergence(d, other), expected, rtol=1e-12)
    np.testing.assert_allclose(d.kl_divergence(d), 0, atol=1e-13)
    np.testing.assert_allclose(d.kl_divergence(VonMisesFisher(jnp.asarray(mean), 0.0)), d.kl_to_uniform(), rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", slow_after(1, ["float64", "float32"]))
def test_log_prob_in_32768_dimensions(dtype):
    p = 32768
    rng = np.random.default_rng(1)
    mean = jnp.asarray(unit(rng.normal(size=p)), dtype)
    k = np.array([328.0, 8192.0, 32768.0, 98304.0])
    a = k / (0.5 * p + np.hypot(0.5 * p, k))  # about the mean cosine
    x = a[:, None] * np.asarray(mean, np.float64)
    x = jnp.asarray(unit(x + np.sqrt(1 - a * a)[:, None] * unit(rng.normal(size=(4, p)))), dtype)
    cosines = [math.fsum(row) for row in np.asarray(x, np.float64) * np.asarray(mean, np.float64)]
    with mpmath.workdps(30):
        relative = np.array(
            [float(mpmath.mpf(float(one)) * t - log_0f1(p, one)) for one, t in zip(k, cosines, strict=True)]
        )
        area = float(mpmath.log(2) + mpmath.mpf(p) / 2 * mpmath.log(mpmath.pi) - mpmath.loggamma(mpmath.mpf(p) / 2))
    d = VonMisesFisher(mean, jnp.asarray(k, dtype))
    errors = np.abs(np.asarray(d.log_prob_relative(x), np.float64) - relative)
    if dtype == "float64":
        assert np.max(np.abs(np.asarray(d.log_prob(x)) - (relative - area))) <= 1e-9
        assert np.max(errors) <= 1e-10
    else:
        assert np.max(errors[:2]) <= 1e-3
        # Beyond, a few rounding units of the concentration.
        assert np.all(errors <= 4 * k * 2.0**-24)


def test_huge_concentrations_keep_their_digits():
    """At 1e12 in float32, near the mean direction, where concentration times 1 - cosine is of order 1."""
    mean = jnp.asarray([0.6, 0.0, 0.8])
    x = jnp.asarray(unit(np.asarray(mean) + np.array([0, 1e-6, 0])), jnp.float32)
    found = float(VonMisesFisher(mean, 1e12).log_prob(x))
    assert abs(found - (math.log(1e12) - math.log(2 * math.pi) - 0.5)) < 1e-5


def test_limits_in_the_concentration():
    mean = jnp.asarray(np.eye(1, 50, dtype=np.float32))
    d = VonMisesFisher(mean, jnp.asarray([0.0, jnp.inf]))
    assert np.array_equal(d.log_prob_relative(mean), [0, np.inf])
    assert np.array_equal(d.log_prob_relative(-mean), [0, -np.inf])
    assert np.array_equal(d.mean[1], mean[0])
    np.testing.assert_allclose(d.variance, [[0.02] * 50, [0.0] * 50], atol=1e-8)
    assert np.array_equal(d.kl_to_uniform(), [0, np.inf])
    assert np.array_equal(d.kl_divergence(VonMisesFisher(mean, jnp.inf)), [np.inf, np.inf])


@pytest.mark.usefixtures("x64")
def test_derivatives_of_the_density():
    """In the concentration, cosine - A and -A'; in the mean direction, kappa x."""
    # Above 44 dimensions, where there is one formula for A and little to compile.
    mean, x = (jnp.asarray(unit(row)) for row in np.random.default_rng(4).normal(size=(2, 60)) + 0.5)
    log_prob = jax.jit(lambda m, k: VonMisesFisher(m, k).log_prob(x))
    for k in (0.5, 30.0, 200.0):
        a = float(resultant(60, k))
        first = jax.grad(log_prob, 1)(mean, k)
        second = jax.grad(jax.grad(log_prob, 1), 1)(mean, k)
        np.testing.assert_allclose(first, float(mean @ x) - a, rtol=1e-12)
        np.testing.assert_allclose(second, -(1 - a * a - 59 * a / k), rtol=1e-9)
        np.testing.assert_allclose(jax.grad(log_prob)(mean, k), k * np.asarray(x), rtol=1e-13)


# --- draws ---


def cosine_cdf(dimension, concentration):
    """The distribution function of the angle, by the trapezium rule on 40,001 points (error below 1e-7)."""
    grid = np.linspace(0, np.pi, 40_001)
    if dimension > 2 or concentration > 50:
        mode = math.acos(float(resultant(dimension, concentration)))
        width = 14 / math.sqrt(concentration * math.cos(mode) + max(dimension - 2, 1) / math.sin(mode) ** 2)
        grid = np.linspace(max(mode - width, 0), min(mode + width, np.pi), 40_001)
    inner = grid[1:-1]
    log_density = concentration * np.cos(inner) + (dimension - 2) * np.log(np.sin(inner))
    density = np.concatenate([[0], np.exp(log_density - log_density.max()), [0]])
    if dimension == 2:
        density[[0, -1]] = np.exp(concentration * np.cos(grid[[0, -1]]) - log_density.max())
    mass = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    return lambda angle: np.interp(angle, grid, mass / mass[-1])


def ks_p_values(key, dimension, concentrations, count=4000):
    drawn = angles.draw_angle(key, dimension, jnp.broadcast_to(jnp.asarray(concentrations)[:, None], (3, count)))
    rows = zip(np.asarray(drawn), concentrations, strict=True)
    return [scipy.stats.kstest(row, cosine_cdf(dimension, k)).pvalue for row, k in rows]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dimension", [2, 3, 10, 1000])
def test_angles_follow_their_law(key, dimension):
    assert min(ks_p_values(key, dimension, dimension * np.array([0.2, 2.0, 100.0]))) > 1e-7


@pytest.mark.parametrize("bug", ["_log_acceptance", "sqrt_b"])
@pytest.mark.usefixtures("x64")
def test_planted_bugs_of_the_sampler_are_caught(key, monkeypatch, bug):
    if bug == "_log_acceptance":
        monkeypatch.setattr(angles, "_log_acceptance", jnp.zeros_like)
    else:
        right = angles._propose
        monkeypatch.setattr(angles, "_propose", lambda *given: (0.9 * right(*given)[0], right(*given)[1]))
    assert min(ks_p_values(key, 10, 10 * np.array([0.2, 2.0, 100.0]))) < 1e-7


def test_draws_have_the_mean_the_variance_and_the_norm(key):
    """20,000 draws of three distributions: large enough for XLA to share the loops between threads."""
    mean = jnp.asarray(unit([[0.6, 0, -0.8, 0, 0], [-1, 1, 1, 1, 1], [0, 0, 0, 0, -1]]), jnp.float32)
    d = VonMisesFisher(mean, jnp.asarray([0.0, 3.0, 1e5]))
    x = np.asarray(d.sample(key, (20_000,)), np.float64)
    assert x.shape == (20_000, 3, 5)
    assert np.max(np.abs(np.linalg.norm(x, axis=-1) - 1)) < 1e-6
    error = np.sqrt(np.asarray(d.variance) / 20_000)
    # float32 rounds coordinates by 3e-8.
    assert np.all(np.abs(x.mean(0) - np.asarray(d.mean)) < 6 * error + 1e-7)
    squares = (x - np.asarray(d.mean)) ** 2
    assert np.all(np.abs(squares.mean(0) - np.asarray(d.variance)) < 6 * squares.std(0) / 20_000**0.5 + 1e-12)


def test_infinite_concentration_draws_the_mean_direction(key):
    mean = jnp.asarray(unit([3, 4, 0]), jnp.float32)
    drawn = VonMisesFisher(mean, jnp.inf).sample(key, (3,))
    np.testing.assert_allclose(drawn, np.tile(mean, (3, 1)), atol=1e-7)


# --- pathwise derivatives ---


@pytest.mark.usefixtures("x64")
def test_pathwise_derivative_in_three_dimensions_is_the_closed_form():
    """There u + (1 - u) e^(-2k) = e^(-k d), d = 1 - cos, gives dd/dk = -(d - 2 expm1(k d) / expm1(2 k)) / k."""
    k = np.repeat([0.5, 5.0, 60.0], 40)
    angle = np.tile(np.linspace(0.05, 3.1, 40), 3)
    angle = np.where(k > 10, angle / 4, angle)
    d = 1 - np.cos(angle)
    by_cosine = (d - 2 * np.expm1(k * d) / np.expm1(2 * k)) / k
    found = angles.angle_slope(3, jnp.asarray(angle), jnp.asarray(k))
    np.testing.assert_allclose(found, -by_cosine / np.sin(angle), rtol=1e-11)


def slope_by_quadrature(dimension, angle, concentration):
    """-dF/dkappa / F' from mpmath's integral over the lower side."""
    a, k, theta = resultant(dimension, concentration), mpmath.mpf(concentration), mpmath.mpf(angle)

    def integrand(s):
        power = (mpmath.sin(s) / mpmath.sin(theta)) ** (dimension - 2)
        return (mpmath.cos(s) - a) * mpmath.exp(k * (mpmath.cos(s) - mpmath.cos(theta))) * power

    return -float(mpmath.quad(integrand, mpmath.linspace(0, theta, 5)))  # pyright: ignore[reportArgumentType]


CASES = {2: [(0.4, 2.0), (2.5, 2.0), (0.01, 300.0)], 10: [(1.0, 5.0), (2.0, 5.0), (0.1, 1000.0)]}
CASES |= {200: [(1.5, 20.0), (0.8, 200.0), (1.0, 200.0)]}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dimension", CASES)
def test_pathwise_derivative_against_quadrature(dimension):
    angle, k = (jnp.asarray(column) for column in zip(*CASES[dimension], strict=True))
    with mpmath.workdps(40):
        expected = [slope_by_quadrature(dimension, *case) for case in CASES[dimension]]
    np.testing.assert_allclose(angles.angle_slope(dimension, angle, k), expected, rtol=1e-11)
    single = angles.angle_slope(dimension, angle.astype("float32"), k.astype("float32"))
    np.testing.assert_allclose(single, expected, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_planted_integral_over_the_wrong_side_is_caught():
    expected = slope_by_quadrature(10, 1.0, 5.0)
    wrong = angles.angle_slope(10, jnp.asarray(math.pi - 1.0), jnp.asarray(5.0))
    assert abs(float(wrong) / expected - 1) > 1e-2


def test_derivatives_of_draws_have_the_derivatives_of_the_mean(key):
    """Over 4,000 draws: E d(a.x)/dkappa = A' a.mu, and E d(a.x)/dmu along v is A a.v."""
    mean, a = jnp.asarray(unit([1, 2, 2, 4, 5]), jnp.float32), jnp.asarray([0.3, -1.0, 0.5, 2.0, 1.0])
    turn = jnp.asarray(unit([2, -1, 0, 0, 0]), jnp.float32)
    k = jnp.asarray(4.0)

    def project(mean, k, key):
        return VonMisesFisher(mean, k).sample(key, (4000,)) @ a

    length = float(resultant(5, 4.0))
    slope = 1 - length**2 - 4 * length / 4.0
    cases = (
        ((jnp.zeros(5), jnp.ones(())), slope * float(mean @ a)),
        ((turn, jnp.zeros(())), length * float(turn @ a)),
    )
    for one, (tangents, expected) in zip(jax.random.split(key), cases, strict=True):
        change = np.asarray(jax.jvp(lambda m, k, key=one: project(m, k, key), (mean, k), tangents)[1], np.float64)
        assert abs(change.mean() - expected) < 6 * change.std() / 4000**0.5


# --- as a distribution of NumPyro ---


def test_shapes_and_transformations(key):
    means = jnp.asarray(unit(np.random.default_rng(0).normal(size=(3, 1, 50))), jnp.float32)
    d = VonMisesFisher(means, jnp.asarray([1.0, 20.0]))
    assert d.batch_shape == (3, 2)
    assert d.event_shape == (50,)
    assert d.has_rsample
    assert VonMisesFisher.infer_shapes((3, 1, 4), (2,)) == ((3, 2), (4,))
    x = d.sample(key, (5,))
    assert x.shape == (5, 3, 2, 50)
    assert d.log_prob(x).shape == (5, 3, 2)
    assert d.entropy().shape == d.kl_to_uniform().shape == (3, 2)
    assert d.mean.shape == d.variance.shape == (3, 2, 50)
    wide = d.expand((6, 3, 2))
    assert wide.batch_shape == (6, 3, 2)
    assert wide.log_prob(x[:1]).shape == (6, 3, 2)
    again = jax.jit(lambda d: d.log_prob(x))(d)  # a pytree
    np.testing.assert_allclose(again, d.log_prob(x), rtol=1e-5)
    rows = jax.vmap(lambda m, x: VonMisesFisher(m, 20.0).log_prob(x))(means[:, 0], x[0, :, 1])
    np.testing.assert_allclose(rows, d.log_prob(x)[0, :, 1], rtol=1e-5)


def test_bad_values_under_jit_give_nan():
    x = jnp.asarray(np.eye(50, dtype=np.float32)[0])
    log_prob = jax.jit(lambda m, k: VonMisesFisher(m, k, validate_args=False).log_prob(x))
    for factor, k in ((1.0, -1.0), (1.0, math.nan), (1.5, 1.0), (math.nan, 1.0)):
        assert np.isnan(log_prob(factor * x, jnp.asarray(k)))
    sample = jax.jit(lambda key, k: VonMisesFisher(x, k).sample(key))
    assert np.all(np.isnan(sample(jax.random.key(0), jnp.asarray(-1.0))))


@pytest.mark.parametrize(
    ("mean", "concentration", "message"),
    [
        ([1.0, 1.0], 1.0, r"`mean_direction` has norm 1\.41421356"),
        ([[1.0, 0.0], [0.0, 2.0]], 1.0, r"`mean_direction`\[1\] has norm 2 "),
        ([math.nan, 0.0], 1.0, "norm nan"),
        ([1.0], 1.0, "p of at least 2"),
        ([1.0, 0.0], -1.0, "`concentration` is -1 somewhere"),
        ([1.0, 0.0], math.nan, "`concentration` is nan"),
        ([[1.0, 0.0]] * 3, [1.0, 2.0], "do not broadcast"),
    ],
)
def test_bad_arguments_raise(mean, concentration, message):
    with pytest.raises(ValueError, match=message):
        VonMisesFisher(jnp.asarray(mean), jnp.asarray(concentration))


def test_mixed_dtypes_raise(x64):
    with pytest.raises(TypeError, match="`mean_direction` float32, `concentration` float64"):
        VonMisesFisher(jnp.asarray([1.0, 0.0], "float32"), jnp.ones(2))


@pytest.mark.slow
def test_a_thousand_draws_in_32768_dimensions(key):
    d = VonMisesFisher(jnp.zeros(32768).at[5].set(1.0), 8192.0)
    x = d.sample(key, (1000,))
    cosines = np.asarray(x[:, 5], np.float64)
    length = float(resultant(32768, 8192.0))
    deviation = math.sqrt(1 - length**2 - 32767 * length / 8192)
    assert abs(cosines.mean() - length) < 6 * deviation / 1000**0.5
    assert np.max(np.abs(np.linalg.norm(np.asarray(x, np.float64), axis=1) - 1)) < 1e-5
