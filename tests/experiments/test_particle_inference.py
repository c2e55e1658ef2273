"""Particle inference on chains: verdicts on made-up runs, runs of models of known skill, and one from end to end.

Planted bugs, each shown to be caught by a claim: a filter that is no better than best-of-N, or than best-of-N ranked in
another way, one that needs as many tokens, an evidence that is not 1, or whose error is so large that it agrees with
anything, a filter of another target, finished solutions weighted again, a biased evidence of the chain of coins, a NaN
anywhere. Made-up runs have fixed seeds; nothing here is drawn anew.
"""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from probinf.experiments import _particle_inference as inference
from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _particle_inference_page as page
from probinf.experiments import _particle_inference_summary as summary
from probinf.experiments import compare, find, run_experiment
from probinf.experiments._page import plain
from probinf.experiments._particle_inference_methods import METHODS
from probinf.experiments._particle_inference_raters import RATINGS, Models
from tests.experiments._made_up import curve_of, rising
from tests.experiments._oracle import oracle

SMALL = inference.Config(
    toy_particles=(4, 8), num_problems=64, raters=("judge", "noisier-judge"), particles=(8,), evidence_problems=64
)


SIZES = (1, 2, 4, 8, 16, 32)
START = 0.46  # best-of-32 is right in .96


def made_up(factor=8.0, shift=1.0, spread=0.1):
    """Made-up runs: a filter `factor` times as fast as best-of-N, and evidences `shift` times the plain means of .3."""
    found = {name: curve_of(SIZES, rising(1, START)) for name in ("best-of-n", "majority", "weighted", "coverage")}
    noise = np.random.default_rng(0).normal(size=400)
    logs = math.log(0.3 * shift) + spread * noise - spread**2 / 2
    for name in ("odds", "rarely", "prob", "ratio"):
        found[name] = {
            n: one._replace(log_evidence=logs) for n, one in curve_of((2, 8, 16), rising(factor, START)).items()
        }
    return found


def solutions_of(row, other=None):
    """Solutions of which best-of-32 is that of a row of tallies, or, ranked by "min", of another one."""
    whole = np.repeat(row[32].whole[:, None], 32, axis=1)
    scores = {how: np.zeros(whole.shape) for how in chains.AGGREGATES}
    if other is not None:
        # The first solution is that of `other`, and first by "min" alone.
        whole[:, 0] = other
        scores = {how: values.copy() for how, values in scores.items()}
        for how, values in scores.items():
            values[:, 0] = 1.0 if how == "min" else -1.0
    costs = np.full(400, 24.0 * 32), np.full(400, 24.0 * 32)
    plain_means = {kind: 0.3 + 0.01 * np.random.default_rng(1).normal(size=400) for kind in ("prob", "ratio")}
    return chains.Independent(whole, whole, scores, "prod", [], *costs, plain_means)


def compared(mean, error=0.001, holds=True):
    """A comparison as it is stored."""
    return {"mean": mean, "standard_error": [error] * len(mean), "worst": 1.0, "bound": 5.0, "holds": holds}


def cell(value):
    return {reading: {"mean": value, "error": 0.004} for reading in ("covered", "sampled", "chosen")}


def made_up_toy():
    """Metrics of the chain of coins, those that claims look at, as a run that is right has them."""
    limits = {"odds": 0.9333, "prob": 0.6787, "ratio": 0.1923}
    both = {
        "num_problems": 4000,
        "particles": [4, 8, 64],
        "closed": compared([0.71, 0.56]),
        "reference": {"worst": 2.0, "bound": 5.0, "count": 10},
        "exact": {"covered": [0.29, 0.40, 0.71], "chosen": [0.26, 0.34, 0.56]},
    }
    versus = {"many": 64, "best_of_n": compared([0.14]), "beam_few": compared([-0.1]), "beam_many": compared([0.04])}
    finishing = {
        name: {"cells": cell(value), "evidence": compared([0.0, 0.0]), "median_log_ratio": ratio}
        for name, value, ratio in (("absorbing", 0.93, 0.0), ("weighted_again", 0.996, 12.0))
    }
    return {
        "independent": both
        | {
            "cells": {"best-of-n": [cell(0.56)]} | {name: [cell(value)] for name, value in limits.items()},
            "limits": limits,
            "sampled": {name: compared([-0.004]) for name in limits},
            "evidence": compared([0.0] * 6),
            "versus": versus | {"few": 4, "accuracy": 0.7, "exact": 0.56},
        },
        "persistent": both | {"versus": versus | {"few": 8}},
        "finishing": finishing | {"limit": 0.9333, "num_particles": 64, "num_problems": 4000},
    }


@functools.cache
def rated_by_judge(other=None, **changes):
    """Metrics of the chains task for made-up runs."""
    runs = made_up(**changes)
    better = None if other is None else runs["odds"][8].whole
    return summary.summarise(RATINGS["judge"], runs, solutions_of(runs["best-of-n"], better), 0)


def verdicts(toy=None, *, evidence=None, **changes):
    """The claims for made-up runs that are right, but for the changes."""
    rated = rated_by_judge(**changes)
    logs = np.random.default_rng(0).normal(-0.02, 0.2, 500) if evidence is None else evidence
    metrics = {
        "toy": made_up_toy() if toy is None else toy,
        "judge": rated,
        "reward": rated,
        "evidence": {"rows": [summary.measure_evidence(logs, np.ones(len(logs)), 32)]},
    }
    json.dumps(plain(metrics), allow_nan=False)
    return [claim.holds for claim in inference.claims(plain(metrics))]


HEADLINES, FACTORS, FOURFOLDS, TARGETS, EVIDENCE = slice(7, 9), slice(9, 11), slice(11, 13), slice(13, 15), 15


class TestClaims:
    def test_they_hold_for_runs_that_are_right(self):
        assert verdicts() == [True] * 16

    def test_a_filter_that_is_no_better(self):
        found = verdicts(factor=0.5)
        assert (found[HEADLINES], found[FACTORS]) == ([False] * 2, [False] * 2)

    def test_best_of_n_is_ranked_in_its_best_way(self):
        """As good as the filter by "min": then there is no difference, and the verdict goes by the other numbers."""
        rated = rated_by_judge(other="min")
        assert rated["versus"]["ranked_by"] == "min"
        assert rated["versus"]["baselines"]["min"] > rated["versus"]["baselines"]["prod"]
        assert rated["versus"]["differences"]["odds"]["mean"] == [0.0]
        assert rated_by_judge()["versus"]["differences"]["odds"]["mean"][0] > 0.03

    def test_a_filter_that_needs_a_third_of_the_tokens(self):
        found = verdicts(factor=3.0)
        assert (found[FACTORS], found[FOURFOLDS]) == ([True] * 2, [False] * 2)

    def test_a_filter_that_gets_nowhere(self):
        """A curve below all levels: no factor, which upholds nothing; and nothing of 4 is claimed."""
        runs = made_up() | {"odds": curve_of((2, 8), lambda size: 0.2)}
        rated = summary.summarise(RATINGS["judge"], runs, solutions_of(runs["best-of-n"]), 0)
        assert rated["factors"]["odds"]["all"]["highest"] is None
        metrics = plain({"toy": made_up_toy(), "judge": rated})
        found = inference.claims(metrics)[7:]
        assert [claim.holds for claim in found[:2]] == [False, False]
        assert "no accuracy" in found[1].ours
        assert not any("at least 4 times" in claim.text for claim in found)
        assert page._factor_text(metrics["judge"]) == ()
        cells = page.factors_table(metrics["judge"], "generated").rows[0]
        assert set(cells[1:]) == {"not reached"}

    def test_one_size_is_no_curve(self):
        runs = {name: {8: row[8]} if name in METHODS else row for name, row in made_up().items()}
        rated = plain(summary.summarise(RATINGS["judge"], runs, solutions_of(runs["best-of-n"]), 0))
        assert rated["factors"] == {}
        assert page._factor_text(rated) == ()
        texts = [claim.text for claim in inference.claims({"toy": made_up_toy(), "judge": rated})]
        assert not any("fewer tokens" in text for text in texts)

    def test_every_step_and_rarely_are_named(self):
        metrics = plain({"toy": made_up_toy(), "judge": rated_by_judge()})
        headline = inference.claims(metrics)[7]
        assert "resamples at every step" in headline.text
        assert "rarely" in headline.ours
        assert ["every step" in page.CHAINS[name][0] for name in ("odds", "rarely")] == [True, False]

    def test_a_filter_of_another_target(self):
        assert verdicts(shift=1.05)[TARGETS] == [False] * 2

    def test_evidences_that_agree_with_anything(self):
        """Errors so large that no deviation shows: |z| is small, and nothing is claimed."""
        assert verdicts(spread=3.0)[TARGETS] == [False] * 2
        assert verdicts(evidence=np.random.default_rng(0).normal(-4.5, 3.0, 500))[EVIDENCE] is False
        few = np.random.default_rng(0).normal(-0.045, 0.3, 12)  # of standard error .09
        assert verdicts(evidence=few)[EVIDENCE] is False

    def test_an_evidence_that_is_not_one(self):
        biased = np.random.default_rng(0).normal(0.15, 0.2, 500)
        assert verdicts(evidence=biased)[EVIDENCE] is False
        assert verdicts(evidence=np.where(np.arange(500) == 3, np.nan, 0.0))[EVIDENCE] is False

    @pytest.mark.parametrize(
        ("place", "value", "claim"),
        [
            (("independent", "closed", "holds"), False, 0),
            (("independent", "evidence", "holds"), False, 1),
            (("independent", "evidence", "standard_error"), [0.2] * 6, 1),
            (("independent", "evidence", "standard_error"), [0.001] * 5 + [None], 1),
            (("independent", "sampled", "prob", "standard_error"), [0.2], 2),
            (("finishing", "absorbing", "evidence", "standard_error"), [0.2, 0.2], 6),
            (("independent", "sampled", "prob", "mean"), [0.4], 2),
            (("persistent", "reference", "worst"), 9.0, 3),
            (("persistent", "versus", "beam_many"), compared([0.0]), 5),
            (("persistent", "versus", "beam_few"), compared([0.1]), 5),
            (("independent", "versus", "best_of_n", "mean"), [0.001], 4),
            (("finishing", "absorbing", "evidence", "holds"), False, 6),
            (("finishing", "absorbing", "cells"), cell(None), 6),
            (("finishing", "weighted_again", "cells"), cell(0.93), 6),
        ],
    )
    def test_what_is_wrong_with_the_coins(self, place, value, claim):
        changed = inner = made_up_toy()
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        assert verdicts(changed)[claim] is False


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"methods": ("odds", "rarely", "luck")}, "needed some of"),
            ({"more_methods": {"judge": ("luck",)}}, "needed some of"),
            ({"raters": ("judge", "nobody")}, "holds 'nobody'"),
            ({"more_methods": {"nobody": ("beam",)}}, "holds 'nobody'"),
            ({"methods": ("odds",)}, r"needed \['odds', 'rarely'\] among them"),
            ({"particles": (4, 16)}, r"needed \[8\] among them"),
            ({"toy_particles": (8, 16)}, r"needed \[4, 8\] among them"),
            ({"most": 16}, "needed 32 or a larger multiple of 32"),
            ({"most": 40}, "needed 32 or a larger multiple of 32"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, changes, words):
        with pytest.raises(ValueError, match=words):
            inference.checked(dataclasses.replace(SMALL, **changes))

    def test_the_scales_are_accepted(self):
        for config in inference.SCALES.values():
            assert inference.checked(config) is config

    def test_full_runs_every_method(self):
        config = inference.SCALES["full"]
        run = {name: inference.methods_for(config, name) for name in config.raters}
        assert set().union(*run.values()) == set(METHODS)
        assert all(len(sizes) > 2 for methods in run.values() for sizes in methods.values())

    def test_methods_are_run_with_raters_that_they_can_use(self):
        config = dataclasses.replace(
            SMALL, more_methods={name: tuple(METHODS) for name in RATINGS}, more_particles=(4,)
        )
        for rater, missing in (("judge", {"twisted"}), ("noisy-judge", {"twisted", "judge"}), ("reward", {"judge"})):
            assert set(METHODS) - set(inference.methods_for(config, rater)) == missing


SKILL, JUDGE = 0.9, 0.97


def oracles():
    """Models of known skill in the place of the trained ones."""
    return Models(oracle(SKILL), oracle(JUDGE), oracle(0.5, value=2.0))


@pytest.fixture(scope="module")
def solutions():
    """Eight independent solutions of 256 problems, rated by the judge."""
    models = oracles()
    task = chains.draw_task(jax.random.key(0), 256)
    return chains.independent(jax.random.key(1), models, task, RATINGS["judge"], 8)


@pytest.mark.slow
@pytest.mark.no_key_reuse
class TestChains:
    def test_independent_solutions_are_right_as_often_as_the_model_is(self, solutions):
        exact = SKILL**12
        found = compare(solutions.whole.mean(axis=1)[:, None], np.array([exact]))
        assert found.holds, found
        # An error is never forgotten: the last result is right by chance once errors were made, or not at all.
        assert np.all(solutions.last >= solutions.whole)
        assert solutions.last.mean() < exact + 0.1

    def test_coverage(self, solutions):
        for count in (2, 8):
            exact = 1 - (1 - SKILL**12) ** count
            assert compare(chains.covered(solutions, count).whole[:, None], np.array([exact])).holds

    def test_a_judge_that_knows_finds_what_is_covered(self, solutions):
        """Its probability of a right step is higher than of any wrong one, so the best of k is right where one is."""
        np.testing.assert_allclose(
            chains.best_of(solutions, 4).whole, chains.covered(solutions, 4).whole, rtol=0, atol=1e-12
        )

    def test_scores_are_the_judge_s_probabilities(self, solutions):
        right = solutions.scores["prod"][solutions.whole > 0]
        np.testing.assert_allclose(right, JUDGE**12, rtol=1e-4)

    def test_cost(self, solutions):
        np.testing.assert_array_equal(solutions.tokens, 8 * 24)
        np.testing.assert_array_equal(solutions.scorer_tokens, 8 * 24 + 27)

    def test_batches_add_up(self, monkeypatch):
        """Eight solutions in two batches of four: the first four are those of one batch; the problem is read once."""
        monkeypatch.setattr(chains, "BATCH", 4)
        models, task = oracles(), chains.draw_task(jax.random.key(0), 7)
        four, eight = (
            chains.independent(jax.random.key(1), models, task, RATINGS["noisier-judge"], count) for count in (4, 8)
        )
        assert [row[:4] for row in eight.answers] == four.answers
        assert [row[4:] for row in eight.answers] != four.answers
        np.testing.assert_array_equal(eight.scores["min"][:, :4], four.scores["min"])
        np.testing.assert_array_equal(eight.tokens, 8 * 24)
        np.testing.assert_array_equal(eight.scorer_tokens, 8 * 24 + 27)
        with pytest.raises(ValueError, match="a multiple"):
            chains.independent(jax.random.key(1), models, task, RATINGS["judge"], 6)

    def test_noise_makes_rates_worse(self, solutions):
        """The same solutions, rated with noise: still right more often than one of them, less than without."""
        models, task = oracles(), chains.draw_task(jax.random.key(0), 256)
        noisier = chains.independent(jax.random.key(1), models, task, RATINGS["noisier-judge"], 8)
        np.testing.assert_array_equal(noisier.whole, solutions.whole)
        best = [chains.best_of(found, 8).whole.mean() for found in (solutions, noisier)]
        assert solutions.whole.mean() + 0.05 < best[1] < best[0] - 0.02

    @pytest.mark.parametrize("kind", ["prob", "ratio"])
    def test_filters_have_the_evidence_of_plain_means(self, kind):
        """Evidence and plain mean, paired by problem; one that is off by a third is seen."""
        models, rating = oracles(), RATINGS["reward"]
        task = chains.draw_task(jax.random.key(0), 256)
        solutions = chains.independent(jax.random.key(1), models, task, rating, 8)
        found = chains.run_method(jax.random.key(2), kind, models, task, rating, 8)
        apart = np.exp(found.log_evidence) - solutions.evidence[kind]
        assert compare(apart[:, None], np.zeros(1)).holds
        assert not compare((apart + 0.3 * solutions.evidence[kind])[:, None], np.zeros(1)).holds

    def test_from_end_to_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(inference.raters, "load_models", oracles)
        monkeypatch.setattr(find("particle-inference").load(), "SCALES", {"quick": SMALL})
        outcome = run_experiment("particle-inference", out=tmp_path / "run")
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
        assert outcome.report.read_text().count("<svg ") == 3
        holds = {claim.text: claim.holds for claim in outcome.claims}
        assert holds["Weights p_strong / p_weak give an evidence of exactly one."]
        versus = metrics["judge"]["versus"]
        # Both are right in nearly all of the 64 problems: one of 32 solutions is right with probability .99998.
        assert min(versus["filters"]["odds"], versus["baselines"]["prod"]) > 0.8
        assert metrics["judge"]["pass_at_1"] == pytest.approx(SKILL**12, abs=0.05)
        assert metrics["noisier-judge"]["versus"]["baselines"]["prod"] < versus["baselines"]["prod"]
        again = run_experiment("particle-inference", out=tmp_path / "run")
        assert len(again.reused) == 4
