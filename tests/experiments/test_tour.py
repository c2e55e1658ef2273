"""The tour's parts: exact answers against other code, claims that hold, and planted bugs that break them.

Planted bugs: an observation noise that is 10 % too small in the particle filter, the full series in place of the one
with missing years, a log evidence that is 0.8 too small, posterior draws shifted by half a standard deviation or 15 %
too wide, a chain that is stuck or elsewhere, a stop rule that did not hold, NaN. Each claim on random numbers has a
false-alarm rate of 1e-6.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Draws
from probinf.experiments import _tour_mcmc as stopping
from probinf.experiments import _tour_nile as nile
from probinf.experiments import _tour_regression as regression
from probinf.experiments import find, load, run_experiment
from probinf.experiments._page import plain
from probinf.experiments._tour import Config

SMALL = Config(num_warmup=600, num_samples=1500, num_leapfrog=16, num_particles=1000, num_replicates=16)
FITTED = {"observation": 15099.0, "level": 1469.1, "log_likelihood": -632.5}


@pytest.fixture(scope="module")
def series():
    """The full and the broken series, filtered once for all tests of this file."""
    flow = load("nile").values[:, 1]
    broken = flow.copy()
    for gap in nile.GAPS:
        broken[gap] = np.nan
    future = np.full(nile.HORIZON, np.nan)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        keys = jax.random.split(jax.random.key(0))
        return [nile.filtered(k, np.concatenate([y, future]), SMALL) for k, y in zip(keys, (flow, broken), strict=True)]


def nile_claims(full, holes):
    return [claim.holds for claim in nile.claims(plain(nile.measure(FITTED, full, holes)))]


class TestNileExact:
    @pytest.mark.numpyro
    def test_the_published_variances_maximise_the_likelihood(self):
        found = nile.maximum_likelihood(load("nile").values[:, 1])
        assert found["observation"] == pytest.approx(15099, abs=1)
        assert found["level"] == pytest.approx(1469.1, abs=0.2)
        # The diffuse log-likelihood that statsmodels and KFAS give.
        assert found["log_likelihood"] == pytest.approx(-632.5456, abs=1e-3)

    def test_the_oracle_is_a_multivariate_normal(self, series):
        """Conditioning the joint law of level and flow, with no recursion."""
        ys = load("nile").values[:, 1]
        steps = np.minimum.outer(np.arange(100), np.arange(100)) * nile.PUBLISHED["level"]
        level = nile.INITIAL_VARIANCE + steps
        cov = level + nile.PUBLISHED["observation"] * np.eye(100)
        factor = np.linalg.cholesky(cov)
        white = np.linalg.solve(factor, ys)
        log_density = -np.sum(white**2) / 2 - np.sum(np.log(np.diag(factor))) - 50 * np.log(2 * np.pi)
        assert series[0].log_evidence == pytest.approx(log_density, abs=1e-6)
        gain = np.linalg.solve(cov, level[:, -1])
        assert series[0].mean[99] == pytest.approx(gain @ ys, rel=1e-6)
        assert series[0].sd[99] ** 2 == pytest.approx(level[-1, -1] - gain @ level[:, -1], rel=1e-6)

    def test_the_forecast_is_flat_and_widens_linearly(self, series):
        tail = slice(-nile.HORIZON - 1, None)
        np.testing.assert_allclose(series[0].mean[tail], series[0].mean[99], rtol=1e-9)
        np.testing.assert_allclose(np.diff(series[0].sd[tail] ** 2), nile.PUBLISHED["level"], rtol=1e-6)


class TestNileClaims:
    def test_they_hold(self, series):
        assert nile_claims(*series) == [True] * 5

    def test_another_variance_is_told_from_the_published_one(self, series):
        metrics = plain(nile.measure(FITTED | {"level": 1475.0}, *series))
        assert [claim.holds for claim in nile.claims(metrics)] == [False, True, True, True, True]

    @pytest.mark.numpyro
    def test_a_wrong_observation_noise_is_caught(self, series, monkeypatch):
        exact = dataclasses.replace(SMALL, seed=1)
        model = nile.particle_model()
        noisy = jax.tree_util.Partial(nile._around, jnp.sqrt(0.9 * nile.PUBLISHED["observation"]))
        monkeypatch.setattr(nile, "particle_model", lambda: type(model)(model.initial, model.transition, noisy))
        wrong = nile.filtered(jax.random.key(0), series[0].ys, exact)
        holds = nile_claims(wrong, series[1])
        assert not holds[1] or not holds[2]

    def test_a_shifted_evidence_is_caught(self, series):
        full, holes = series
        shifted = full._replace(log_evidence=full.log_evidence + 0.8)
        assert nile_claims(shifted, holes) == [True, True, False, True, True]

    def test_missing_years_that_were_not_skipped_are_caught(self, series):
        full, holes = series
        assert nile_claims(full, holes._replace(found=full.found)) == [True, True, True, True, False]

    def test_a_nan_anywhere_upholds_nothing(self, series):
        full, holes = series
        broken = dataclasses.replace(full.found, mean=jnp.full_like(full.found.mean, jnp.nan))
        metrics = plain(nile.measure(FITTED, full._replace(found=broken), holes))
        json.dumps(metrics, allow_nan=False)
        found = nile.claims(metrics)
        assert [claim.holds for claim in found] == [True, False, True, False, True]
        assert "nan" in found[1].ours


def exact_draws(num=2000):
    """Independent draws of the posterior, as [chains, draws, 12]: what a perfect sampler would give."""
    data = regression.problem()
    shape = regression.PRIOR_SHAPE + data.response.size / 2
    precision = data.design.T @ data.design + np.eye(11) / regression.PRIOR_VARIANCE
    mean = np.linalg.solve(precision, data.design.T @ data.response)
    misfit = data.response @ data.response - mean @ precision @ mean
    rng = np.random.default_rng(0)
    variance = (regression.PRIOR_RATE + misfit / 2) / rng.gamma(shape, size=(4, num, 1))
    noise = rng.normal(size=(4, num, 11)) @ np.linalg.cholesky(np.linalg.inv(precision)).T
    return np.concatenate([mean + np.sqrt(variance) * noise, variance], axis=-1)


def both_hold(columns):
    return [found.holds for found in regression.compare_moments(columns, regression.solve(regression.problem()))]


class TestRegression:
    def test_the_oracle_agrees_with_normal_equations_and_student_marginals(self):
        exact = regression.solve(regression.problem())
        draws = exact_draws(200_000).reshape(-1, 12)
        # Five standard errors of 800 000 independent draws.
        np.testing.assert_array_less(np.abs(draws.mean(axis=0) - exact.mean) / exact.sd, 5 / math.sqrt(800_000))
        np.testing.assert_allclose(draws.std(axis=0), exact.sd, rtol=5 / math.sqrt(800_000))

    def test_perfect_draws_pass(self):
        assert both_hold(exact_draws()) == [True, True]

    def test_shifted_draws_are_caught(self):
        exact = regression.solve(regression.problem())
        columns = exact_draws()
        columns[..., 5] += 0.5 * exact.sd[5]
        assert both_hold(columns)[0] is False

    def test_wide_draws_are_caught(self):
        exact = regression.solve(regression.problem())
        columns = exact_draws()
        columns[..., 5] = exact.mean[5] + 1.15 * (columns[..., 5] - exact.mean[5])
        assert both_hold(columns) == [True, False]

    @pytest.mark.parametrize("fault", ["stuck", "elsewhere"])
    def test_a_chain_that_has_not_mixed_is_caught(self, fault):
        columns = exact_draws(500)
        columns[2] = columns[2, 0] if fault == "stuck" else columns[2] + 2 * columns[2].std(axis=0)
        info = {"divergent": np.zeros((4, 500), bool), "acceptance_rate": np.ones((4, 500))}
        found = regression.diagnose(Draws({"x": columns}, info, np.zeros(4, np.uint32)))
        moments = {"worst": 1.0, "bound": 6.9, "holds": True, "error": 0.01}
        metrics = plain({"diagnostics": found, "means": moments, "sds": moments, "names": ["a"], "num_draws": 10})
        assert [claim.holds for claim in regression.claims(metrics)] == [True, True, False]

    def test_batches_cover_each_chain_in_order(self):
        columns = np.arange(2 * 17, dtype=float).reshape(2, 17, 1)
        found = regression.batch_means(columns)
        assert found.shape == (2 * regression.BATCHES, 1)
        np.testing.assert_array_equal(found[:2, 0], [0.5, 2.5])
        with pytest.raises(ValueError, match="at least 8"):
            regression.batch_means(columns[:, :7])

    def test_claims_follow_the_diagnostics(self):
        good = {"r_hat_largest": 1.001, "ess_smallest": 900.0, "divergences": 0}
        moments = {"worst": 1.0, "bound": 6.9, "holds": True, "error": 0.01}
        metrics = {"diagnostics": good, "means": moments, "sds": moments, "names": ["a"], "num_draws": 10}

        def holds(**changes):
            return [c.holds for c in regression.claims(metrics | {"diagnostics": good | changes})]

        assert holds() == [True, True, True]
        assert holds(r_hat_largest=1.02) == [True, True, False]
        assert holds(r_hat_largest=None) == [True, True, False]
        assert holds(ess_smallest=300.0) == [True, True, False]
        assert holds(ess_smallest=None) == [True, True, False]
        assert holds(divergences=1) == [True, True, False]


class TestStopping:
    @staticmethod
    def measured(columns):
        """The measurements of draws [16, n, 12]."""
        samples = {"coefficients": columns[..., :-1], "variance": columns[..., -1]}
        info = {"num_steps": np.full(columns.shape[:2], 7)}
        draws = Draws(samples, info, np.zeros(16, np.uint32))
        return plain(stopping.measure(draws, regression.solve(regression.problem())))

    def test_claims_follow_the_draws(self):
        columns = exact_draws(1000).reshape(16, 250, 12)
        good = self.measured(columns)
        metrics = {"stopped": {"reached": True}, "num_chains": 16, "compilations": 0, "first": good, "extended": good}

        def holds(**changes):
            return [claim.holds for claim in stopping.claims(metrics | changes)]

        assert holds() == [True, True]
        assert holds(stopped={"reached": False}) == [False, True]
        assert holds(compilations=1) == [True, False]
        assert holds(first=good | {"ess": 1999.0}) == [False, True]
        assert holds(first=good | {"r_hat": None}) == [False, True]
        exact = regression.solve(regression.problem())
        shifted = self.measured(columns + 0.3 * exact.sd * (np.arange(12) == 5))
        assert holds(first=shifted) == [False, True]
        assert holds(extended=shifted) == [True, False]
        dead = self.measured(np.where(np.arange(12) == 3, np.nan, columns))
        assert holds(extended=dead) == [True, False]


@pytest.mark.numpyro
@pytest.mark.slow
def test_a_small_tour_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(find("tour").load(), "SCALES", {"quick": SMALL})
    said = []
    outcome = run_experiment("tour", out=tmp_path / "tour", say=said.append)
    broken = [claim.text for claim in outcome.claims if not claim.holds]
    assert not broken
    assert len(outcome.claims) == 17
    page = outcome.report.read_text()
    assert page.count("<svg ") == 9
    assert "s1" in page
    assert (tmp_path / "tour" / "draws" / "regression.nc").is_file()
    assert any("HMC" in text for text in said)
