"""Generalised and normal-inverse Gaussian: densities and moments against SciPy and mpmath, draws against their law.

Draws are compared with the distribution function by the bound of Dvoretzky, Kiefer, Wolfowitz and Massart,
P(sup |F_n - F| > e) <= 2 exp(-2 n e^2), at a false-alarm rate of 1e-6 a test; a law that is further than 2 e away is
caught with at least the same probability. That proposals cover the density everywhere, and how often they are
accepted, is checked without any draw.

Planted bugs, each shown to be caught: draws of the opposite order, of twice the concentration, the wrong root of the
inverse Gaussian's equation, a cover that is a little too narrow.
"""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.infer.util import log_density

from probinf.distributions import GeneralizedInverseGaussian, NormalInverseGaussian
from probinf.distributions import _generalized_inverse_gaussian as gig

NUM_DRAWS = 10_000
FALSE_ALARM = 1e-6
ALLOWED = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * NUM_DRAWS))
ORDERS = np.array([0.0, -0.5, 0.3, 1.0, -2.5, 8.0, -40.0, 200.0])
CONCENTRATIONS = np.array([1.0, 2.0, 0.01, 30.0, 0.5, 1e-3, 3.0, 100.0])


def farthest(draws, distribution_function):
    """The largest distance of the empirical distribution function."""
    u = distribution_function(np.sort(np.asarray(draws, float)))
    steps = np.arange(len(u) + 1) / len(u)
    return max(np.max(steps[1:] - u), np.max(u - steps[:-1]))


def by_quadrature(log_density, grid):
    """A distribution function from an unnormalised log density on a grid, also whether the grid is wide enough."""
    logs = log_density(grid)
    density = np.exp(logs - logs.max())
    assert max(density[0], density[-1]) < 1e-9
    total = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid)))
    return lambda x: np.interp(x, grid, total / total[-1])


def gig_function(order, concentration):
    """The distribution function of the logarithm."""
    centre, width = np.arcsinh(order / concentration), 1 / math.hypot(order, concentration) ** 0.5
    slow = 1 / max(abs(order), 0.3)
    reach = min(60 * slow, abs(np.log(concentration)) + 8) + 12 * width
    grid = np.linspace(centre - reach, centre + reach, 400_001)
    return by_quadrature(lambda t: order * t - concentration * np.cosh(t), grid)


@jax.jit
def gig_log_density(order, concentration, scale, x):
    """Log densities of the generalised inverse Gaussian distribution."""
    return GeneralizedInverseGaussian(order, concentration, scale, validate_args=False).log_prob(x)


@jax.jit
def gradient_of(*arguments):
    """Their derivatives in all arguments."""
    value, pull = jax.vjp(gig_log_density, *arguments)
    return pull(jnp.ones_like(value))


@jax.jit
def normal_log_density(*arguments):
    """Log densities of the normal-inverse Gaussian distribution."""
    return NormalInverseGaussian(*arguments[:4], validate_args=False).log_prob(arguments[4])


def evaluated(function, *arguments):
    """The function at any number of points, as one program of 64."""
    arguments = np.broadcast_arrays(*arguments)
    padded = [jnp.asarray(np.resize(a, 64), jnp.float64) for a in arguments]
    return jax.tree.map(lambda a: np.asarray(a)[: arguments[0].size].reshape(arguments[0].shape), function(*padded))


class TestDensity:
    def test_against_scipy(self, x64):
        x = np.array([1e-3, 0.2, 1.0, 1.7, 4.0, 30.0, 300.0])
        ours = evaluated(gig_log_density, ORDERS[:, None], CONCENTRATIONS[:, None], 1.5, x)
        theirs = scipy.stats.geninvgauss.logpdf(x, ORDERS[:, None], CONCENTRATIONS[:, None], scale=1.5)
        finite = np.isfinite(theirs)
        assert finite.sum() > 40
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-10, atol=1e-11)

    def test_where_scipy_fails(self, x64):
        """A large order with a small concentration, and a concentration of 1e8."""
        cases = [(1000.0, 1e-3, 2.1e6, 1e-9), (-3.0, 1e8, 1.0001, 1e-6), (-200.0, 1e-30, 3e-33, 1e-9)]
        for order, concentration, x, allowed in cases:
            found = evaluated(gig_log_density, order, concentration, 1.0, x)
            with mp.workdps(60):
                p, w, y = map(mp.mpf, (order, concentration, x))
                direct = (p - 1) * mp.log(y) - w * (y + 1 / y) / 2 - mp.log(2) - mp.log(mp.besselk(p, w))
            assert float(found) == pytest.approx(float(direct), rel=1e-12, abs=allowed)

    @pytest.mark.slow
    def test_derivatives(self, x64):
        by_order, by_concentration, _, _ = evaluated(gradient_of, 2.3, 1.5, 1.0, 0.7)
        with mp.workdps(40):
            log_k = lambda p, w: mp.log(mp.besselk(p, w))  # noqa: E731
            direct = mp.log(mp.mpf(0.7)) - mp.diff(lambda p: log_k(p, 1.5), 2.3)
            other = -(mp.mpf(0.7) + 1 / mp.mpf(0.7)) / 2 - mp.diff(lambda w: log_k(2.3, w), 1.5)
        assert float(by_order) == pytest.approx(float(direct), rel=1e-12)
        assert float(by_concentration) == pytest.approx(float(other), rel=1e-12)
        for x in (0.0, np.inf):
            assert np.all(np.isfinite(evaluated(gradient_of, np.array([0.5, 2.0, -3.0]), 1.0, 1.0, x)))

    def test_order_minus_half_is_the_inverse_gaussian(self, x64):
        x = np.linspace(0.1, 5, 7)
        ours = evaluated(gig_log_density, -0.5, 2.0, 1.5, x)
        # Mean 1.5 and shape concentration * scale = 3.
        np.testing.assert_allclose(ours, scipy.stats.invgauss.logpdf(x, 1.5 / 3, scale=3), rtol=1e-12)

    def test_edges(self, x64):
        orders = np.array([0.5, 2.0, -3.0])
        for x in (0.0, np.inf):
            np.testing.assert_array_equal(evaluated(gig_log_density, orders, 1.0, 1.0, x), -np.inf)
        assert np.all(np.isnan(evaluated(gig_log_density, orders, 1.0, 1.0, np.nan)))

    def test_normal_inverse_gaussian_against_scipy(self, x64):
        a, b = np.array([0.1, 1.0, 2.0, 30.0]), np.array([0.05, 0.0, -1.9, 20.0])
        x = np.array([-300.0, -3.0, 0.0, 0.5, 1.0, 7.0])
        ours = evaluated(normal_log_density, a[:, None], b[:, None], 0.5, 2.0, x)
        theirs = scipy.stats.norminvgauss.logpdf(x, a[:, None], b[:, None], 0.5, 2.0)
        finite = np.isfinite(theirs)
        assert finite.sum() > 20
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-11, atol=1e-12)

    def test_normal_inverse_gaussian_of_large_tailweight(self, x64):
        a, b, x = 3e7, 1e7, 0.35356
        found = evaluated(normal_log_density, a, b, 0.0, 1.0, x)
        with mp.workdps(40):
            q = mp.sqrt(1 + mp.mpf(x) ** 2)
            log_k = mp.log(mp.pi / (2 * a * q)) / 2 + mp.log(1 + mp.mpf(3) / (8 * a * q))  # Hankel's, less a q
            direct = mp.log(a) - mp.log(mp.pi * q) + log_k - a * q + mp.sqrt(mp.mpf(a) ** 2 - mp.mpf(b) ** 2) + b * x
        assert float(found) == pytest.approx(float(direct), abs=1e-9)

    def test_beyond_its_arguments_there_is_no_law(self, x64):
        a, b = np.ones(3), np.array([1.0, -2.0, 0.5])
        found = evaluated(normal_log_density, a, b, 0.0, 1.0, 0.0)
        np.testing.assert_array_equal(np.isnan(found), [True, True, False])
        law = NormalInverseGaussian(a, b)
        np.testing.assert_array_equal(np.isnan(law.mean), [True, True, False])
        np.testing.assert_array_equal(np.isnan(law.sample(jax.random.key(0))), [True, True, False])
        np.testing.assert_array_equal(evaluated(normal_log_density, 1.0, 0.5, 0.0, 1.0, [np.inf, -np.inf]), -np.inf)
        with pytest.raises(ValueError, match="concentration"):
            GeneralizedInverseGaussian(1.0, -1.0, validate_args=True)

    def test_dtypes_and_shapes_that_do_not_fit(self):
        with pytest.raises(ValueError, match="shapes do not broadcast: `order`"):
            GeneralizedInverseGaussian(jnp.ones(3), jnp.ones(2))
        assert GeneralizedInverseGaussian(1, 2).order.dtype == jnp.float32


class TestMoments:
    def test_against_mpmath(self, x64):
        orders = np.array([0.0, -0.5, 0.3, -2.5, 8.0, -40.0, 20.0, 3.0, -2.3])
        concentrations = np.array([1.0, 2.0, 0.01, 0.5, 1e-3, 3.0, 100.0, 5000.0, 1e-4])
        law = GeneralizedInverseGaussian(orders, concentrations, 2.0)
        with mp.workdps(60):
            k = [[mp.besselk(mp.mpf(p) + j, w) for j in range(3)] for p, w in zip(orders, concentrations, strict=True)]
            means = [2 * a[1] / a[0] for a in k]
            variances = [4 * (a[2] / a[0] - (a[1] / a[0]) ** 2) for a in k]
        np.testing.assert_allclose(law.mean, np.array(means, float), rtol=1e-13)
        np.testing.assert_allclose(law.variance, np.array(variances, float), rtol=1e-11)

    def test_of_the_normal_inverse_gaussian(self, x64):
        law = NormalInverseGaussian(2.0, -1.2, 0.5, 3.0)
        mean, variance = scipy.stats.norminvgauss.stats(2.0, -1.2, 0.5, 3.0)
        np.testing.assert_allclose([law.mean, law.variance], [mean, variance], rtol=1e-12)

    def test_the_mode(self, x64):
        orders = np.array([-3.0, 0.0, 1.0, 5.0])
        mode = GeneralizedInverseGaussian(orders, 2.0, 1.5).mode
        x = np.asarray(mode) * np.array([1 - 1e-4, 1, 1 + 1e-4])[:, None]
        left, middle, right = evaluated(gig_log_density, orders, 2.0, 1.5, x)
        # Equal on both sides but for the third derivative, and lower than in the middle.
        assert np.all(np.minimum(middle - left, middle - right) > 0)
        np.testing.assert_allclose(left, right, atol=1e-10)


class TestCover:
    """Of the density of log x, by Devroye's three pieces."""

    @staticmethod
    def grid():
        order, concentration = np.meshgrid(np.append(0, np.logspace(-4, 6, 21)), np.logspace(-8, 6, 29))
        return gig.pieces(jnp.asarray(order.ravel()), jnp.asarray(concentration.ravel()))

    @staticmethod
    def heights(cover, t):
        left = (cover.left[:, None] - t) / cover.left_width[:, None]
        right = (t - cover.right[:, None]) / cover.right_width[:, None]
        return -np.maximum(np.maximum(left, right), 0)

    def test_it_covers_and_is_not_much_larger(self, x64):
        cover = jax.tree.map(np.asarray, self.grid())
        assert np.all(np.isfinite(cover))
        u = np.linspace(-1, 1, 401)
        reach = np.where(
            u < 0, (cover.left - 30 * cover.left_width)[:, None], (cover.right + 30 * cover.right_width)[:, None]
        )
        t = np.abs(u) ** 3 * reach
        psi = np.asarray(gig._log_cover(cover.alpha[:, None], cover.order[:, None], jnp.asarray(t)))
        heights = self.heights(cover, t)
        assert np.max((psi - heights) / (1 + np.abs(heights))) < 1e-10
        narrow = cover._replace(right_width=0.9 * cover.right_width)
        assert np.max((psi - self.heights(narrow, t)) / (1 + np.abs(heights))) > 1e-3
        area = np.trapezoid(np.exp(psi), t, axis=1)
        total = cover.left_width + cover.right_width + cover.right - cover.left
        assert 1 < np.max(total / area) < 2.9
        assert (1 - 1 / 2.9) ** gig.MAX_PROPOSALS < 1e-14

    @pytest.mark.parametrize(
        ("order", "alpha", "t"), [(1e6, 3.0, 1e-3), (0.1, 1e-6, -20.0), (5.0, 2.0, 0.9), (0, 1e-30, 60.0)]
    )
    def test_the_exponent_in_single_precision(self, order, alpha, t):
        found = gig._log_cover(*(jnp.asarray(a, jnp.float32) for a in (alpha, order, t)))
        order, alpha, t = (mp.mpf(float(np.float32(a))) for a in (order, alpha, t))
        direct = -alpha * (mp.cosh(t) - 1) - order * (mp.exp(t) - t - 1)
        assert float(found) == pytest.approx(float(direct), rel=2e-6)


class TestDraws:
    @pytest.fixture(scope="class")
    @classmethod
    def draws(cls):
        """Of all laws at once, in float32."""
        law = GeneralizedInverseGaussian(jnp.asarray(ORDERS, jnp.float32), jnp.asarray(CONCENTRATIONS, jnp.float32))
        return np.asarray(law.sample(jax.random.key(1), (NUM_DRAWS,)), float)

    @pytest.mark.parametrize("index", range(len(ORDERS)))
    def test_law(self, draws, index):
        logs = np.log(draws[:, index])
        assert farthest(logs, gig_function(ORDERS[index], CONCENTRATIONS[index])) < ALLOWED

    def test_other_laws_are_caught(self, draws):
        logs = np.log(draws)
        assert farthest(-logs[:, 4], gig_function(ORDERS[4], CONCENTRATIONS[4])) > 2 * ALLOWED
        assert farthest(logs[:, 0], gig_function(ORDERS[0], 2 * CONCENTRATIONS[0])) > 2 * ALLOWED

    @pytest.mark.parametrize(("tailweight", "skewness"), [(1.0, 0.5), (5.0, -4.5)])
    def test_of_the_normal_inverse_gaussian(self, tailweight, skewness):
        law = NormalInverseGaussian(jnp.float32(tailweight), jnp.float32(skewness), 1.0, 2.0)
        z = (np.asarray(law.sample(jax.random.key(2), (NUM_DRAWS,)), float) - 1) / 2
        # In sinh, which reaches the tails.
        grid = np.linspace(-6, 6, 200_001)
        function = by_quadrature(
            lambda t: scipy.stats.norminvgauss.logpdf(np.sinh(t), tailweight, skewness) + np.log(np.cosh(t)), grid
        )
        assert farthest(np.arcsinh(z), function) < ALLOWED
        assert farthest(np.arcsinh(-z), function) > 2 * ALLOWED

    def test_the_wrong_root_is_caught(self):
        """The smaller root alone is no inverse Gaussian variable."""
        rng = np.random.default_rng(0)
        half = 0.5 * rng.normal(size=NUM_DRAWS) ** 2
        found = 1 / (1 + half + np.sqrt(half * (2 + half)))
        assert farthest(found, lambda x: scipy.stats.invgauss.cdf(x, 1.0)) > 2 * ALLOWED

    def test_bad_arguments_give_nan(self):
        law = GeneralizedInverseGaussian(
            jnp.array([1.0, np.nan, 1.0]), jnp.array([-1.0, 1.0, 1.0]), validate_args=False
        )
        np.testing.assert_array_equal(np.isnan(law.sample(jax.random.key(0))), [True, True, False])

    def test_only_the_scale_has_a_gradient(self, key):
        def total(order, concentration, scale):
            return jnp.sum(GeneralizedInverseGaussian(order, concentration, scale).sample(key, (3,)))

        value, gradient = jax.value_and_grad(total, argnums=(0, 1, 2))(1.5, 2.0, 4.0)
        assert gradient[:2] == (0, 0)
        assert float(gradient[2]) == pytest.approx(float(value) / 4, rel=1e-5)


@pytest.mark.numpyro
class TestModels:
    @staticmethod
    def model(y=None):
        order = numpyro.sample("order", dist.Normal(0.0, 2.0))
        with numpyro.plate("data", 3):
            variance = numpyro.sample("variance", GeneralizedInverseGaussian(order, 1.5))
            numpyro.sample("y", NormalInverseGaussian(2.0, 0.5, 0.0, variance), obs=y)

    @pytest.mark.slow
    def test_the_log_density(self, x64):
        values = {"order": jnp.asarray(0.7), "variance": jnp.array([0.5, 1.0, 2.0])}
        y = jnp.array([-1.0, 0.0, 2.0])
        found, _ = log_density(self.model, (y,), {}, values)
        direct = scipy.stats.norm.logpdf(0.7, 0, 2)
        direct += np.sum(scipy.stats.geninvgauss.logpdf(values["variance"], 0.7, 1.5))
        direct += np.sum(scipy.stats.norminvgauss.logpdf(y, 2.0, 0.5, 0.0, values["variance"]))
        assert float(found) == pytest.approx(direct, rel=1e-10)

    def test_predictive_draws(self, key):
        found = numpyro.infer.Predictive(self.model, num_samples=4)(key)
        assert found["y"].shape == (4, 3)
        assert np.all(np.isfinite(found["y"]))

    @pytest.mark.slow
    def test_a_map_over_laws(self):
        laws = jax.vmap(GeneralizedInverseGaussian)(jnp.array([0.5, 1.5]), jnp.array([1.0, 2.0]))
        logs = jax.jit(jax.vmap(lambda law, x: law.log_prob(x)))(laws, jnp.array([1.0, 2.0]))
        np.testing.assert_allclose(logs, scipy.stats.geninvgauss.logpdf([1, 2], [0.5, 1.5], [1, 2]), rtol=1e-5)

    @pytest.mark.slow
    def test_nuts(self, key):
        """The order from 200 data: within five posterior standard deviations of the truth."""
        data = GeneralizedInverseGaussian(1.5, 2.0).sample(jax.random.key(5), (200,))

        def model():
            order = numpyro.sample("order", dist.Normal(0.0, 3.0))
            with numpyro.plate("data", 200):
                numpyro.sample("x", GeneralizedInverseGaussian(order, 2.0), obs=data)

        chain = numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=200, num_samples=300, progress_bar=False)
        chain.run(key)
        order = np.asarray(chain.get_samples()["order"])
        assert abs(order.mean() - 1.5) < 5 * order.std()
