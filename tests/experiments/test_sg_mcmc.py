"""Stochastic gradient samplers against their exact bias: a small run, oracles by other means, planted bugs.

Planted bugs, each shown to be caught: a covariance that is 10 % off, a mean that is off, chains that are NaN, a bias
that vanishes where it should not. Each claim on random numbers has a false-alarm rate of 1e-6.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.experiments import _sg_mcmc as sg
from probinf.experiments import _sg_mcmc_claims as judged
from probinf.experiments import _sg_mcmc_exact as exact
from probinf.experiments import find, run_experiment
from probinf.experiments._page import plain

SMALL = sg.Config(num_chains=256, num_whole=256, num_times=8)
PROBLEM = exact.regression()


class TestOracles:
    def test_the_posterior_is_that_of_least_squares(self, x64):
        found = exact.conjugate(PROBLEM)
        np.testing.assert_allclose(found.mean, PROBLEM.mean, rtol=1e-9)
        np.testing.assert_allclose(found.cov, PROBLEM.covariance, rtol=1e-9)

    def test_the_gradient_is_that_of_the_posterior(self):
        here = np.array([0.3, -0.2, 0.5])
        found = jax.grad(exact.target(PROBLEM, 4).log_density)(jnp.asarray(here, jnp.float32))
        np.testing.assert_allclose(found, -PROBLEM.precision @ (here - PROBLEM.mean), rtol=1e-4)

    def test_all_data_have_the_closed_forms(self):
        rates, vectors = np.linalg.eigh(PROBLEM.precision)
        step, gamma = 0.2, 1.1
        left = 1 - step * gamma
        forms = {
            exact.langevin: 1 / (1 - step * rates / 2),
            exact.friction: 1 / (1 - step**2 * rates / (2 * (1 + left))),
        }
        for make, expected in forms.items():
            recursion = make(step) if make is exact.langevin else make(step, gamma)
            found = exact.stationary(PROBLEM, recursion)
            np.testing.assert_allclose(np.diag(vectors.T @ found @ vectors) * rates, expected, rtol=1e-9)
            cold = make(step, temperature=0.1) if make is exact.langevin else make(step, gamma, temperature=0.1)
            np.testing.assert_allclose(exact.stationary(PROBLEM, cold), 0.1 * found, rtol=1e-9)

    @pytest.mark.parametrize("size", [1, 4, 12])
    @pytest.mark.parametrize("control", [False, True])
    def test_batches_by_running_the_recursion_of_moments(self, size, control):
        """The covariance after each step as an average over all rows of every stretch, written out."""
        step = 0.05
        recursion = exact.langevin(step)
        found = exact.stationary(PROBLEM, recursion, size, control_variates=control)
        stretch = exact.NUM_ROWS // size
        after = 2 * step * np.eye(3)
        mean_map = np.eye(3) - step * PROBLEM.precision
        after = after + mean_map @ found @ mean_map
        for start in range(0, exact.NUM_ROWS, stretch):
            rows = slice(start, start + stretch)
            x, y = PROBLEM.features[rows], PROBLEM.response[rows]
            hessians = np.einsum("ni,nj->nij", x, x) / exact.NOISE_SD**2
            scores = x * ((y - x @ PROBLEM.mean) * (0 if control else 1))[:, None] / exact.NOISE_SD**2
            for hessian, score in zip(hessians - hessians.mean(0), scores - scores.mean(0), strict=True):
                added = hessian @ found @ hessian + np.outer(score, score)
                after = after + (step * stretch) ** 2 * added / stretch
        np.testing.assert_allclose(after, found, rtol=1e-9)

    def test_too_large_a_step_has_no_stationary_law(self):
        with pytest.raises(ValueError, match="smaller step"):
            exact.stationary(PROBLEM, exact.langevin(2.1 / PROBLEM.rates()[-1]))
        with pytest.raises(ValueError, match="divisor"):
            exact.stationary(PROBLEM, exact.langevin(0.01), 5)

    def test_the_limit_without_the_correction(self):
        """Variances at small steps approach the density times (1 + |x|)."""
        found = [exact.preconditioned_variance(step, 1.0) for step in (0.2, 0.1)]
        assert 2 * found[1] - found[0] == pytest.approx(exact.preconditioned_limit(1.0), abs=1e-3)
        grid = np.linspace(-12, 12, 100_001)
        density = np.exp(-0.5 * grid**2) * (1 + np.abs(grid))
        assert np.sum(density * grid**2) / density.sum() == pytest.approx(exact.preconditioned_limit(1.0), rel=1e-6)


def test_gradients_of_many_chains_are_right():
    """A sum over a short last axis was miscompiled for 1024 chains."""
    here = np.asarray(jax.random.normal(jax.random.key(0), (1024, 3)))
    target = exact.target(PROBLEM, exact.NUM_ROWS)
    found = jax.jit(jax.vmap(lambda x: samplers.gradient_estimate(jax.random.key(1), target, x)))(jnp.asarray(here))
    np.testing.assert_allclose(found, -(here - PROBLEM.mean) @ PROBLEM.precision, atol=1e-3)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """The numbers of a small run, and its outcome."""
    patch = pytest.MonkeyPatch()
    patch.setattr(find("sg-mcmc").load(), "SCALES", {"quick": SMALL})
    folder = tmp_path_factory.mktemp("sg") / "out"
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
        patch.context(),
    ):
        outcome = run_experiment("sg-mcmc", out=folder)
    patch.undo()
    return json.loads((folder / "metrics.json").read_text())["metrics"], outcome


def verdicts(metrics, part, kind, **changes):
    """The verdicts with one run of a part changed."""
    found = metrics[part]
    rows = found["rows"] if kind is None else found["rows"][kind]
    changed = [rows[0] | plain(changes), *rows[1:]]
    parts = changed if kind is None else found["rows"] | {kind: changed}
    return [claim.holds for claim in judged.claims(metrics | {part: found | {"rows": parts}})]


class TestRun:
    @pytest.mark.slow
    def test_from_end_to_end(self, metrics):
        _, outcome = metrics
        assert [claim.text for claim in outcome.claims if not claim.holds] == []
        assert len(outcome.claims) == 7
        assert outcome.report.read_text().count("<svg ") == 4

    @pytest.mark.slow
    def test_failed_comparisons_are_not_claimed(self, metrics):
        found, _ = metrics
        places = [
            ("steps", "sgld", 0),
            ("steps", "sghmc", 1),
            ("batches", "plain", 2),
            ("batches", "control variates", 3),
            ("cold", "all data", 4),
            ("cold", "batches", 5),
            ("preconditioned", None, 6),
        ]
        for part, kind, number in places:
            wrong = verdicts(found, part, kind, holds=False)
            assert wrong == [i != number for i in range(7)]
        assert not verdicts(found, "cold", "all data", ratio=[1.0, 1.0, 1.2], ratio_error=[0.01] * 3)[4]
        assert not verdicts(found, "cold", "all data", ratio=[1.0, None, 1.0])[4]
        assert not verdicts(found, "batches", "plain", ratio=[1.0, 1.0, 1.1])[2]
        assert not verdicts(found, "batches", "control variates", ratio=[1.0, 1.0, 2.2])[3]


class TestMeasure:
    @pytest.fixture
    def made_up(self):
        """Moments of chains of 50 independent draws."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((400, 50, 3)) @ np.linalg.cholesky(PROBLEM.covariance).T
        return np.concatenate([x.mean(1), np.einsum("ctd,cte->cde", x, x).reshape(400, 9) / 50], axis=1)

    def test_the_right_covariance_holds(self, made_up):
        found = sg.measure(made_up, PROBLEM.covariance, PROBLEM)
        assert found["holds"]
        assert np.all(np.abs(found["ratio"] - 1) < 6 * found["ratio_error"])
        np.testing.assert_allclose(found["exact"], 1)

    def test_planted_bugs_are_caught(self, made_up):
        assert not sg.measure(made_up, 1.1 * PROBLEM.covariance, PROBLEM)["holds"]
        assert not sg.measure(made_up + 0.05 * (np.arange(12) == 1), PROBLEM.covariance, PROBLEM)["holds"]
        dead = sg.measure(np.where(np.arange(12) == 7, math.nan, made_up), PROBLEM.covariance, PROBLEM)
        assert not dead["holds"]

    @pytest.mark.no_key_reuse
    def test_chains_against_the_wrong_temperature_are_caught(self):
        step = 0.25 / PROBLEM.rates()[-1]
        target = exact.target(PROBLEM, 12)
        for temperature, holds in ((1.0, True), (0.8, False)):
            kernel = samplers.sgld(step, temperature=temperature)
            found = sg.moments(jax.random.key(0), kernel, target, PROBLEM, step * PROBLEM.rates()[0], 256, 8)
            assert sg.measure(found, exact.stationary(PROBLEM, exact.langevin(step), 12), PROBLEM)["holds"] is holds
