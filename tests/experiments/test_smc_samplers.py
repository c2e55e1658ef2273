"""SMC samplers against exact answers: a small run from end to end, the oracles by other means, and planted bugs.

Planted bugs, each shown to be caught: evidences 10 % off, mode weights off by .05, a wrong exact value of one prefix,
chains that mix, a variance that falls like N^(-1/2), NaN. Each claim on random numbers has a false-alarm rate of 1e-6.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from probinf.experiments import _smc_samplers as smc
from probinf.experiments import _smc_samplers_claims as judged
from probinf.experiments import _smc_targets as targets
from probinf.experiments import _tour_smc as tour
from probinf.experiments import compare, find, run_experiment
from probinf.experiments._page import plain

SMALL = smc.Config(
    num_particles=512,
    num_replicates=16,
    num_chains=256,
    num_warmup=100,
    num_samples=100,
    counts_particles=256,
    num_data=8,
    path_particles=256,
    sizes=(64, 256),
    variance_replicates=80,
)


class TestOracles:
    def test_the_evidence_of_two_modes_and_their_weights(self):
        """Each mode by itself: the convolution of prior and likelihood at zero."""
        _, exact = targets.two_modes()
        sd = math.sqrt(targets.PRIOR_SD**2 + targets.MODE_VARIANCE)
        lower, upper = (targets.DIMENSION * scipy.stats.norm.logpdf(0, c, sd) for c in (-2, 2))
        assert exact == pytest.approx(np.logaddexp(math.log(0.3) + lower, math.log(0.7) + upper), abs=1e-9)
        assert lower == upper

    def test_the_densities(self):
        target, _ = targets.two_modes()
        x = np.linspace(-3, 2, targets.DIMENSION)
        normal = scipy.stats.norm.pdf
        likelihood = 0.3 * np.prod(normal(x, -2, 0.5)) + 0.7 * np.prod(normal(x, 2, 0.5))
        x32 = jnp.asarray(x, jnp.float32)
        assert float(target.log_likelihood(x32)) == pytest.approx(math.log(likelihood), rel=1e-5)
        assert float(target.log_prior(x32)) == pytest.approx(np.sum(scipy.stats.norm.logpdf(x, 0, 5)), rel=1e-5)

    def test_the_evidence_of_counts_one_by_one(self):
        """The joint law of all counts by quadrature over the rate."""
        path, exact = targets.one_by_one(6)
        rate = np.linspace(1e-6, 40, 400_001)
        density = scipy.stats.gamma.pdf(rate, 2.0)
        for t, count in enumerate(np.asarray(path.data)):
            density = density * scipy.stats.poisson.pmf(count, rate)
            assert exact[t + 1] == pytest.approx(math.log(np.trapezoid(density, rate)), abs=1e-6)

    def test_the_likelihood_of_the_regression(self, x64):
        data = tour.regression.problem()
        target = tour.target(data)
        scaled, log_variance = np.linspace(-0.5, 0.5, 11), 8.3
        beta = 10 * math.exp(log_variance / 2) * scaled
        direct = scipy.stats.norm.logpdf(data.response, data.design @ beta, math.exp(log_variance / 2)).sum()
        position = {"scaled": jnp.asarray(scaled), "log_variance": jnp.asarray(log_variance)}
        assert float(target.log_likelihood(position)) == pytest.approx(direct, rel=1e-9)
        variance = math.exp(log_variance)
        prior = scipy.stats.norm.logpdf(scaled).sum() + scipy.stats.invgamma.logpdf(variance, 2, scale=5000)
        assert float(target.log_prior(position)) == pytest.approx(prior + log_variance, rel=1e-9)


class TestSlope:
    @pytest.mark.parametrize(("power", "agrees"), [(1.0, True), (0.5, False)])
    def test_the_slope_of_made_up_runs(self, power, agrees):
        rng = np.random.default_rng(0)
        sizes = (256, 1024, 4096)
        rows = [smc.spread(rng.normal(size=400) * size ** (-power / 2)) for size in sizes]
        found = smc.slope(sizes, rows)
        assert found["agrees"] is agrees
        assert found["slope"] == pytest.approx(-power, abs=5 * found["error"])

    def test_the_error_of_a_log_variance_is_that_of_normal_theory(self):
        found = smc.spread(np.random.default_rng(1).normal(size=4000))
        assert found["variance"] == pytest.approx(1, abs=6 * math.sqrt(2 / 4000))
        assert found["log_error"] == pytest.approx(math.sqrt(2 / 4000), rel=0.1)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """The numbers of a small run, and its outcome."""
    patch = pytest.MonkeyPatch()
    patch.setattr(find("smc-samplers").load(), "SCALES", {"quick": SMALL})
    folder = tmp_path_factory.mktemp("smc") / "out"
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
        patch.context(),
    ):
        outcome = run_experiment("smc-samplers", out=folder)
    patch.undo()
    return json.loads((folder / "metrics.json").read_text())["metrics"], outcome


def verdicts(metrics, part, **changes):
    return [claim.holds for claim in judged.claims(metrics | {part: metrics[part] | plain(changes)})]


class TestRun:
    @pytest.mark.slow
    def test_from_end_to_end(self, metrics):
        _, outcome = metrics
        assert [claim.text for claim in outcome.claims if not claim.holds] == []
        assert len(outcome.claims) == 7
        assert outcome.report.read_text().count("<svg ") == 5

    @pytest.mark.slow
    def test_planted_bugs_are_caught(self, metrics):
        found, _ = metrics
        modes = found["modes"]
        rng = np.random.default_rng(0)
        off = smc.brief(compare(1.1 + 0.05 * rng.normal(size=(40, 1)), np.ones(1)))
        assert verdicts(found, "modes", evidence=off) == [False] + [True] * 6
        wrong = smc.brief(compare(0.75 + 0.03 * rng.normal(size=(40, 1)), np.full(1, 0.7)))
        assert verdicts(found, "modes", weight=wrong) == [True, False] + [True] * 5
        nan = smc.brief(compare(np.full((40, 2), np.nan), np.ones(2)))
        assert verdicts(found, "modes", frozen=nan) == [True, True, False] + [True] * 4
        assert verdicts(found, "chains", switching=200)[3] is False
        assert verdicts(found, "chains", r_hat=math.nan)[3] is False
        assert verdicts(found, "chains", share=modes["weight"])[3] is False
        rows = [row | {"holds": i != 1} for i, row in enumerate(found["counts"]["rows"])]
        assert verdicts(found, "counts", rows=rows)[4] is False
        assert verdicts(found, "variance", agrees=False)[6] is False

    def test_a_wrong_exact_value_is_not_accepted(self, monkeypatch):
        path, exact = targets.one_by_one(8)
        found, _, _ = smc._grouped(jax.random.key(0), 16, lambda keys: smc._along(keys, path, 256))
        right = compare(smc.ratios(found, exact)[:, 1:], np.ones(8))
        shifted = exact + 0.5 * (np.arange(9) == 5)
        assert right.holds
        assert not compare(smc.ratios(found, shifted)[:, 1:], np.ones(8)).holds

    test_a_wrong_exact_value_is_not_accepted = pytest.mark.no_key_reuse(test_a_wrong_exact_value_is_not_accepted)

    def test_the_number_of_runs_fills_groups(self):
        with pytest.raises(ValueError, match="multiple of 8"):
            smc.replicate(jax.random.key(0), targets.two_modes()[0], 12, num_particles=64)


class TestTour:
    def test_a_wrong_evidence_is_caught(self):
        logs = -2443.4 + 0.15 * np.random.default_rng(0).normal(size=16)
        assert tour.measure(logs, -2443.4)["holds"]
        for wrong in (-2444.1, -2442.6):
            found = tour.measure(logs, wrong)
            assert not found["holds"]
            assert not tour.claims(plain(found))[0].holds
        dead = tour.measure(np.where(np.arange(16) == 3, np.nan, logs), -2443.4)
        assert not tour.claims(plain(dead))[0].holds
