"""The Matérn covariance against mpmath at 60 digits, closed forms and limits; derivatives in all arguments.

The tolerances are those of the docstring. Planted bugs, each shown to be caught: a smoothness that is fixed while its
derivative is taken, z without the factor sqrt(2), a gradient that leaves out Gamma's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density as joint_density

from probinf.distributions import matern, pairwise_distance
from probinf.distributions._matern import _near

COUNT = 64
CLOSED = {
    0.5: lambda s: np.exp(-s),
    1.5: lambda s: (1 + np.sqrt(3) * s) * np.exp(-np.sqrt(3) * s),
    2.5: lambda s: (1 + np.sqrt(5) * s + 5 * s * s / 3) * np.exp(-np.sqrt(5) * s),
}


def exact(s, v):
    """The correlation."""
    s, v = mp.mpf(s), mp.mpf(v)
    z = mp.sqrt(2 * v) * s
    return mp.mpf(2) ** (1 - v) / mp.gamma(v) * z**v * mp.besselk(v, z)


def slopes(s, v):
    """Its derivatives in s and v, by central differences."""
    h = mp.mpf(10) ** -20
    by_s = (exact(s * (1 + h), v) - exact(s * (1 - h), v)) / (2 * h * s)
    return by_s, (exact(s, v * (1 + h)) - exact(s, v * (1 - h))) / (2 * h * v)


@pytest.fixture(scope="module")
def points():
    """Random points, and what belongs there; numbers that float32 holds."""
    rng = np.random.default_rng(0)
    v, s = 10 ** rng.uniform(-1.5, 2.2, COUNT), 10 ** rng.uniform(-6, 1.1, COUNT)
    v[:8], s[:8] = (2.4999, 2.5001, 7.999, 8.001, 20.999, 21.001, 1.0, 2.0), (1e-4, 1e-4, 1e-3, 1, 1e-5, 2, 1e-5, 1e-4)
    v, s = (a.astype(np.float32).astype(float) for a in (v, s))
    with mp.workdps(60):
        values = [exact(mp.mpf(b), mp.mpf(a)) for a, b in zip(v, s, strict=True)]
        by_s, by_v = zip(*(slopes(mp.mpf(b), mp.mpf(a)) for a, b in zip(v, s, strict=True)), strict=True)
    return s, v, [np.array(column, float) for column in (values, by_s, by_v)]


@jax.jit
def with_gradient(*arguments):
    """Values, and derivatives in all four arguments; one program for a dtype."""
    value, pull = jax.vjp(matern, *arguments)
    return value, pull(jnp.ones_like(value))


def evaluated(s, v, *, length_scale: Any = 1.0, variance: Any = 1.0, dtype=jnp.float64):
    padded = [jnp.asarray(np.resize(a, COUNT), dtype) for a in (s, v, length_scale, variance)]
    value, gradient = with_gradient(*padded)
    count = np.size(s)
    return np.asarray(value, float)[:count], [np.asarray(part, float)[:count] for part in gradient]


class TestDouble:
    @pytest.mark.slow
    def test_values_and_derivatives(self, points, x64):
        s, v, (values, by_s, by_v) = points
        found, (d_s, d_v, d_scale, d_variance) = evaluated(s, v)
        assert np.max(np.abs(found - values)) < 1e-13
        assert np.max(np.abs(d_s - by_s) / (1 + np.abs(by_s))) < 1e-13
        assert np.max(np.abs(d_v - by_v)) < 1e-13
        np.testing.assert_allclose(d_scale, -s * by_s, atol=1e-13)
        np.testing.assert_allclose(d_variance, values, atol=1e-13)

    def test_planted_bugs_are_far_outside(self, points):
        s, v, (values, _, by_v) = points
        with mp.workdps(30):
            no_factor = [float(exact(b / mp.sqrt(2), a)) for a, b in zip(v, s, strict=True)]
            no_gamma = by_v + values * np.array([float(mp.digamma(a)) for a in v])
        assert np.max(np.abs(no_factor - values)) > 0.1
        assert np.max(np.abs(no_gamma - by_v)) > 0.1
        assert np.max(np.abs(by_v)) > 0.1  # that of a fixed smoothness would be 0

    @pytest.mark.parametrize("v", CLOSED)
    def test_half_integers(self, v, x64):
        s = np.linspace(0, 12, COUNT)
        np.testing.assert_allclose(evaluated(s, v)[0], CLOSED[v](s), rtol=1e-12, atol=1e-14)

    def test_scale_and_variance(self, x64):
        found, (_, _, _, by_variance) = evaluated([3.0], 1.5, length_scale=2.0, variance=5.0)
        np.testing.assert_allclose(found, 5 * CLOSED[1.5](1.5), rtol=1e-13)
        np.testing.assert_allclose(by_variance, CLOSED[1.5](1.5), rtol=1e-13)

    def test_the_squared_exponential_is_the_limit(self, x64):
        s = np.linspace(0, 6, COUNT)
        for v, allowed in ((1e4, 1e-4), (1e8, 1e-8), (1e12, 1e-12), (np.inf, 1e-15)):
            assert np.max(np.abs(evaluated(s, v)[0] - np.exp(-s * s / 2))) < allowed

    @pytest.mark.parametrize("v", [0.01, 0.3, 0.5, 1.0, 1.5, 2.0, 21.0, 300.0])
    def test_at_distance_zero(self, v, x64):
        found, gradient = evaluated([0.0], v, length_scale=2.0, variance=3.0)
        assert found == 3
        np.testing.assert_allclose([part[0] for part in gradient], [0, 0, 0, 1], atol=1e-15)

    def test_edges(self, x64):
        with np.errstate(invalid="ignore"):
            bad = np.array([[1, -1, 1], [1, 0, 1], [np.nan, 1, 1], [1, np.nan, 1], [1, 1, 0], [1, 1, -2]])
        assert np.all(np.isnan(evaluated(bad[:, 0], bad[:, 1], length_scale=bad[:, 2])[0]))
        far, gradient = evaluated([np.inf, 1e200, -1e200, 1e300], [0.3, 0.3, 30.0, 3.0])
        np.testing.assert_array_equal(far, 0)
        assert np.all(np.isfinite(gradient))
        near, gradient = evaluated([1e-310, 1e-200, 1e-300], [3.0, 3.0, 30.0])
        np.testing.assert_allclose(near, 1, rtol=1e-13)
        assert np.all(np.isfinite(gradient))

    def test_the_sign_of_the_distance_does_not_matter(self, x64):
        s = np.linspace(0.01, 3, 20)
        for v in (0.7, 3.2):
            forth, back = evaluated(s, v), evaluated(-s, v)
            np.testing.assert_array_equal(forth[0], back[0])
            np.testing.assert_array_equal(forth[1][0], -back[1][0])


class TestSingle:
    def test_values(self, points):
        s, v, (values, _, _) = points
        found = matern(jnp.asarray(s, jnp.float32), jnp.asarray(v, jnp.float32), 1.0)
        assert found.dtype == jnp.float32
        assert np.max(np.abs(np.asarray(found, float) - values)) < 1e-5

    @pytest.mark.slow
    def test_derivatives(self, points):
        s, v, (_, by_s, by_v) = points
        _, (d_s, d_v, _, _) = evaluated(s, v, dtype=jnp.float32)
        assert np.max(np.abs(d_s - by_s) / (1 + np.abs(by_s))) < 1e-5
        assert np.max(np.abs(d_v - by_v)) < 2e-5


class TestFurtherDerivatives:
    """Of the covariance as a function of the distance, at 0 and beside it."""

    def test_of_the_series_at_zero(self, x64):
        """Second and fourth: those of the spectral density's moments."""
        second = jax.grad(jax.grad(lambda s, v: jnp.exp(_near(v, s))))
        both = jax.jit(lambda v: (second(0.0, v), jax.grad(jax.grad(second))(0.0, v)))
        for v in (1.5, 2.6, 3.3, 12.0):
            found = both(v)
            assert float(found[0]) == pytest.approx(-v / (v - 1), rel=1e-13)
            if v > 2:
                assert float(found[1]) == pytest.approx(3 * v**2 / (v - 1) / (v - 2), rel=1e-13)

    @pytest.mark.slow
    def test_second_at_zero(self, x64):
        second = jax.jit(jax.grad(jax.grad(lambda d, v: matern(d, v, 2.0))))
        for v in (1.5, 2.6, 12.0, 40.0):
            assert float(second(0.0, v)) == pytest.approx(-v / (v - 1) / 4, rel=1e-12)
        assert float(second(0.0, 0.9)) == 0

    @pytest.mark.slow
    def test_second_along_a_line(self, x64):
        """In distance and smoothness at once: both second derivatives and the mixed one."""
        v, s, h = 1.7, 0.8, mp.mpf(10) ** -15

        def along(t):
            return matern(s + t, v + t, 1.0)

        def slope(t):
            return jax.jvp(along, (t,), (1.0,))[1]

        _, found = jax.jit(lambda t: jax.jvp(slope, (t,), (1.0,)))(0.0)
        with mp.workdps(60):
            expected = (exact(s + h, v + h) - 2 * exact(s, v) + exact(s - h, v - h)) / h**2
        assert float(found) == pytest.approx(float(expected), rel=1e-10)


class TestUse:
    def test_distances(self, key, x64):
        x = jax.random.normal(key, (5, 3))
        found, slope = jax.value_and_grad(lambda x: jnp.sum(pairwise_distance(x, x)))(x)
        assert float(found) == pytest.approx(sum(np.linalg.norm(a - b) for a in x for b in x), rel=1e-12)
        assert np.all(np.isfinite(slope))
        np.testing.assert_array_equal(np.diagonal(pairwise_distance(x, x)), 0)

    @pytest.mark.slow
    @pytest.mark.numpyro
    def test_a_gaussian_process_in_numpyro(self, x64):
        """The log density of a model at smoothness 1/2 against the covariance written out; its gradient is finite."""
        x, y = np.linspace(0, 2, 8), np.sin(np.linspace(0, 3, 8))
        distance = np.abs(x[:, None] - x)

        def model(y):
            smoothness = numpyro.sample("smoothness", dist.LogNormal(0.5, 1.0))
            matrix = matern(distance, smoothness, 0.7, 2.0) + 0.1 * jnp.eye(8)
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(8), matrix), obs=y)

        @jax.jit
        @jax.value_and_grad
        def log_density(smoothness):
            return joint_density(model, (y,), {}, {"smoothness": smoothness})[0]

        found, slope = log_density(0.5)
        matrix = 2 * np.exp(-distance / 0.7) + 0.1 * np.eye(8)
        direct = -0.5 * (y @ np.linalg.solve(matrix, y) + np.linalg.slogdet(2 * np.pi * matrix)[1])
        prior = dist.LogNormal(0.5, 1.0).log_prob(0.5)
        assert float(found) == pytest.approx(direct + float(prior), rel=1e-11)
        difference = (log_density(0.5 + 1e-5)[0] - log_density(0.5 - 1e-5)[0]) / 2e-5
        assert float(slope) == pytest.approx(float(difference), rel=1e-6)

    def test_it_is_positive_definite(self, x64):
        x = np.linspace(0, 1, 8)
        distance = np.abs(x[:, None] - x)
        for v in (0.2, 0.9, 3.0, 25.0):
            matrix = evaluated(distance.ravel(), v)[0].reshape(8, 8)
            assert np.linalg.eigvalsh(matrix)[0] > -1e-14

    @pytest.mark.parametrize("argument", ["smoothness", "length_scale"])
    @pytest.mark.parametrize("value", [0, -1.5, float("nan"), np.array([1.0, -1.0])])
    def test_numbers_that_are_not_positive(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}` is .* give a positive number"):
            matern(1.0, **{"smoothness": 1.0, "length_scale": 1.0, argument: value})

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(ValueError, match="shapes do not broadcast: `distance`"):
            matern(jnp.ones(3), jnp.ones(2), 1.0)
