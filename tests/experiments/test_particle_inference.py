"""Particle inference on chains: estimators with known answers, verdicts on made-up runs, and a run from end to end.

Known answers: best-of-k and coverage by enumeration of all ways to pick, votes by hand, the scaling-rate factor of
curves that are shifted copies of each other, Wilson's interval by its defining equation.

Planted bugs, each shown to be caught by a claim: a filter that is no better than best-of-N, one that needs as many
tokens, an evidence that is not 1, a filter of another target, finished solutions weighted again, a biased evidence of
the chain of coins, a NaN anywhere. Made-up runs have fixed seeds; nothing here is drawn anew.
"""

import dataclasses
import functools
import itertools
import json
import math

import jax
import numpy as np
import pytest

from probinf.experiments import _particle_inference as inference
from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _particle_inference_curves as curves
from probinf.experiments import compare, find, run_experiment
from probinf.experiments._page import plain
from tests.experiments._oracle import oracle

SMALL = inference.Config(toy_particles=(4, 8), num_problems=64, particles=(8,), evidence_problems=64)


def independent(size=6, problems=3, seed=0):
    """Made-up solutions: scores that tell right ones apart, imperfectly."""
    rng = np.random.default_rng(seed)
    whole = (rng.uniform(size=(problems, size)) < 0.4).astype(float)
    answers = [[str(int(digit)) for digit in row] for row in rng.integers(0, 3, (problems, size))]
    last = np.array([[float(own == "1") for own in row] for row in answers])
    scores = np.exp(-np.abs(rng.normal(size=(problems, size)))) * (0.5 + 0.5 * whole)
    return chains.Independent(
        whole, last, scores, answers, np.full(problems, 24.0 * size), np.full(problems, 20.0 * size), {}
    )


class TestIndependent:
    @pytest.mark.parametrize("count", [1, 2, 5, 6])
    def test_best_of_and_coverage_by_enumeration(self, count):
        found = independent()
        picks = list(itertools.combinations(range(6), count))
        best = [[row[max(pick, key=lambda i: s[i])] for pick in picks] for row, s in zip(*found[:3:2], strict=True)]
        np.testing.assert_allclose(chains.best_of(found, count).whole, np.mean(best, axis=1), rtol=1e-12)
        some = [[max(row[i] for i in pick) for pick in picks] for row in found.whole]
        np.testing.assert_allclose(chains.covered(found, count).whole, np.mean(some, axis=1), rtol=1e-12)

    def test_votes_by_hand(self):
        found = chains.Independent(
            np.array([[0.0, 1.0, 0.0, 0.0]]),
            np.array([[0.0, 1.0, 0.0, 1.0]]),
            np.array([[0.1, 0.9, 0.2, 0.3]]),
            [["5", "7", "5", "7"]],
            np.array([96.0]),
            np.array([80.0]),
            {},
        )
        # Two answers of two votes each: the first that was seen; by scores .3 against 1.2.
        assert chains.voted(found, 4, weighted=False).last.tolist() == [0.0]
        weighted = chains.voted(found, 4, weighted=True)
        assert (weighted.last.tolist(), weighted.whole.tolist()) == ([1.0], [1.0])
        # Of the groups (0, 1) and (2, 3) the scores choose 1 and 3.
        halves = chains.voted(found, 2, weighted=True)
        assert (halves.last.tolist(), halves.whole.tolist()) == ([1.0], [0.5])

    def test_solutions_without_an_answer_do_not_vote(self):
        found = independent(size=2, problems=1)._replace(answers=[[None, None]])
        assert chains.voted(found, 2, weighted=False).last.tolist() == [0.0]

    def test_cost_is_shared(self):
        found = chains.best_of(independent(), 2)
        np.testing.assert_array_equal(found.tokens, 48.0)
        np.testing.assert_allclose(found.scorer_tokens, 27 + (120 - 27) / 3)  # the problem is read once


class TestWilson:
    @pytest.mark.parametrize(("mean", "count"), [(0.0, 10), (0.3, 10), (0.97, 256), (1.0, 4)])
    def test_its_ends_solve_the_equation(self, mean, count):
        low, high = curves.wilson(mean, count)
        assert 0 <= low <= mean + 1e-12
        assert mean - 1e-12 <= high <= 1
        for end in (low, high):
            error = curves.CONFIDENCE_Z**2 * end * (1 - end) / count
            assert (mean - end) ** 2 == pytest.approx(error, abs=1e-12)

    def test_it_covers(self):
        """Of 50 trials at .2 the interval holds the truth with probability at least .93, by the binomial law."""
        count, truth = 50, 0.2
        ends = [curves.wilson(right / count, count) for right in range(count + 1)]
        chance = [math.comb(count, k) * truth**k * (1 - truth) ** (count - k) for k in range(count + 1)]
        assert sum(c for c, (low, high) in zip(chance, ends, strict=True) if low <= truth <= high) > 0.93

    def test_fractions_have_a_smaller_error(self):
        coins = np.repeat([0.0, 1.0], [70, 30])
        assert curves.interval(coins) == pytest.approx(curves.wilson(0.3, 100))
        halves = np.repeat([0.15, 0.45], 50)  # the same mean, a deviation of .15
        low, high = curves.interval(halves)
        assert high - low == pytest.approx(2 * curves.CONFIDENCE_Z * 0.015, rel=0.01)
        assert curves.interval(np.ones(20)) == pytest.approx(curves.wilson(1.0, 20))


def curve_of(sizes, function, problems=400, tokens=24.0, seed=0):
    """Tallies whose accuracy at N is `function(N)`, problems in the order of their difficulty."""
    ranks = (np.random.default_rng(seed).permutation(problems) + 0.5) / problems
    rows = {}
    for size in sizes:
        solved = (ranks < function(size)).astype(float)
        cost = np.full(problems, tokens * size)
        rows[size] = chains.Tally(solved, solved, solved, cost, cost, np.zeros(problems))
    return rows


def rising(factor):
    """An accuracy that is linear in the logarithm of N, of a method `factor` times as fast as best-of-N."""
    return lambda size: min(1.0, 0.1 + 0.1 * math.log2(factor * size))


def factor_of(baseline, method):
    """The factor of two rows of tallies."""
    rows = (chains.curve(row, "whole") for row in (baseline, method))
    return curves.scaling_factor(*rows, seed=0, num_bootstrap=400)


class TestFactor:
    @pytest.mark.parametrize("factor", [1, 2, 4, 5.5, 16])
    def test_a_curve_that_is_shifted(self, factor):
        sizes = (1, 2, 4, 8, 16, 32)
        found = factor_of(curve_of(sizes, rising(1)), curve_of(sizes, rising(factor)))
        assert found.level == pytest.approx(0.6)
        assert found.estimate == pytest.approx(factor, rel=0.03)  # problems come in whole numbers
        assert found.low <= found.estimate <= found.high
        assert not found.at_least

    def test_a_curve_that_starts_above_and_one_that_never_gets_there(self):
        baseline = curve_of((1, 2, 4), rising(1))
        high = factor_of(baseline, curve_of((1, 2), lambda size: 0.9))
        assert (high.estimate, high.at_least) == (pytest.approx(4), True)
        low = factor_of(baseline, curve_of((1, 2), lambda size: 0.05))
        assert (low.estimate, low.at_least) == (0.0, False)

    def test_tokens_needed(self):
        tokens, accuracy = np.array([10.0, 20.0, 40.0]), np.array([[0.1, 0.5, 0.4], [0.1, 0.2, 0.3]])
        found = curves.tokens_needed(tokens, accuracy, np.array([0.3, 0.4]))
        assert found[0] == pytest.approx(10 * math.sqrt(2))
        assert found[1] == math.inf
        assert curves.tokens_needed(tokens, accuracy[:1], np.array([0.05]))[0] == pytest.approx(10, rel=1e-12)

    def test_the_same_curve_twice_has_no_error(self):
        """The same problems are drawn for both sides."""
        found = factor_of(curve_of((1, 2, 4), rising(1)), curve_of((1, 2, 4), rising(1)))
        assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)

    def test_the_interval_covers_a_known_factor(self):
        """Unrelated problems on both sides: of 20 made-up pairs with factor 4 at least 12 intervals hold it.

        With coverage .95 fewer than 12 of 20 have probability 3e-7, and the seeds are fixed.
        """
        rng = np.random.default_rng(0)
        sizes = (1, 2, 4, 8, 16, 32)
        hits = 0
        for _ in range(20):
            rows = [
                {n: row._replace(whole=rng.permutation(row.whole)) for n, row in curve_of(sizes, rising(f)).items()}
                for f in (1, 4)
            ]
            draws = [rng.integers(0, 400, 400) for _ in range(2)]
            rows = [
                {n: one._replace(whole=one.whole[draw]) for n, one in row.items()}
                for row, draw in zip(rows, draws, strict=True)
            ]
            found = factor_of(*rows)
            hits += found.low <= 4 <= found.high
        assert hits >= 12


SIZES = (1, 2, 4, 8, 16, 32)


def made_up(factor=8.0, shift=1.0):
    """Made-up runs: a filter `factor` times as fast as best-of-N, and evidences `shift` times the plain means of .3."""
    found = {name: curve_of(SIZES, rising(1)) for name in ("best-of-n", "majority", "weighted", "coverage")}
    noise = np.random.default_rng(0).normal(size=400)
    logs = math.log(0.3 * shift) + 0.1 * noise - 0.005
    for name in ("odds", "prob", "ratio"):
        found[name] = {n: one._replace(log_evidence=logs) for n, one in curve_of((2, 8), rising(factor)).items()}
    return found


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
def rated_by_judge(**changes):
    """Metrics of the chains task for made-up runs."""
    config = dataclasses.replace(SMALL, methods=("odds", "prob", "ratio"))
    plain_means = {kind: 0.3 + 0.01 * np.random.default_rng(1).normal(size=400) for kind in ("prob", "ratio")}
    return inference.summarise(chains.RATINGS["judge"], made_up(**changes), plain_means, config)


def verdicts(toy=None, *, evidence=None, **changes):
    """The claims for made-up runs that are right, but for the changes."""
    rated = rated_by_judge(**changes)
    logs = np.random.default_rng(0).normal(-0.02, 0.2, 500) if evidence is None else evidence
    metrics = {
        "toy": made_up_toy() if toy is None else toy,
        "judge": rated,
        "reward": rated,
        "evidence": {"rows": [inference.measure_evidence(logs, np.ones(500), 32)]},
    }
    json.dumps(plain(metrics), allow_nan=False)
    return [claim.holds for claim in inference.claims(plain(metrics))]


class TestClaims:
    def test_they_hold_for_runs_that_are_right(self):
        assert verdicts() == [True] * 14

    def test_a_filter_that_is_no_better(self):
        assert verdicts(factor=0.5)[7:11] == [False] * 4

    def test_a_filter_that_needs_a_third_of_the_tokens(self):
        assert verdicts(factor=3.0)[9] is False

    def test_a_filter_of_another_target(self):
        assert verdicts(shift=1.05)[11:13] == [False] * 2

    def test_an_evidence_that_is_not_one(self):
        biased = np.random.default_rng(0).normal(0.15, 0.2, 500)
        assert verdicts(evidence=biased)[13] is False
        assert verdicts(evidence=np.where(np.arange(500) == 3, np.nan, 0.0))[13] is False

    @pytest.mark.parametrize(
        ("place", "value", "claim"),
        [
            (("independent", "closed", "holds"), False, 0),
            (("independent", "evidence", "holds"), False, 1),
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
            ({"methods": ("odds", "luck")}, "needed some of"),
            ({"methods": ("prob",)}, "'odds' among them"),
            ({"particles": (4, 16)}, r"needed \[8\] among them"),
            ({"toy_particles": (8, 16)}, r"needed \[4, 8\] among them"),
            ({"most": 16}, "at least 32"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, changes, words):
        with pytest.raises(ValueError, match=words):
            inference.checked(dataclasses.replace(SMALL, **changes))

    def test_the_scales_are_accepted(self):
        for config in inference.SCALES.values():
            assert inference.checked(config) is config

    def test_methods_are_run_with_raters_that_they_can_use(self):
        config = dataclasses.replace(SMALL, methods=tuple(chains.METHODS))
        for rater, missing in (("judge", {"twisted"}), ("reward", {"judge"})):
            assert set(config.methods) - set(inference.methods_for(config, rater)) == missing


SKILL, JUDGE = 0.9, 0.97


def oracles():
    """Models of known skill in the place of the trained ones."""
    return chains.Models(oracle(SKILL), oracle(JUDGE), oracle(0.5, value=2.0))


@pytest.fixture(scope="module")
def solutions():
    """Eight independent solutions of 256 problems, rated by the judge."""
    models = oracles()
    task = chains.draw_task(jax.random.key(0), 256)
    return chains.independent(jax.random.key(1), models.proposer, models.judge, task, 8)


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
        right = solutions.scores[solutions.whole > 0]
        np.testing.assert_allclose(right, JUDGE**12, rtol=1e-4)

    def test_cost(self, solutions):
        np.testing.assert_array_equal(solutions.tokens, 8 * 24)
        np.testing.assert_array_equal(solutions.scorer_tokens, 8 * 24 + 27)

    def test_groups_do_not_depend_on_what_fills_the_last_one(self, monkeypatch):
        """Seven problems in groups of four, and the first four of them alone."""
        monkeypatch.setattr(chains, "ROWS", 16)
        models, task = oracles(), chains.draw_task(jax.random.key(0), 7)
        few = chains.Task(task.prompts[:4], task.answers[:4])
        run = [chains.independent(jax.random.key(1), models.proposer, None, one, 4) for one in (task, few)]
        assert run[0].answers[:4] == run[1].answers

    @pytest.mark.parametrize("kind", ["prob", "ratio"])
    def test_filters_have_the_evidence_of_plain_means(self, kind):
        """Evidence and plain mean, paired by problem; one that is off by a third is seen."""
        models, rating = oracles(), chains.RATINGS["reward"]
        task = chains.draw_task(jax.random.key(0), 256)
        solutions = chains.independent(jax.random.key(1), models.proposer, models.reward, task, 8, rating.aggregate)
        found = chains.run_method(jax.random.key(2), kind, models, task, rating, 8)
        apart = np.exp(found.log_evidence) - solutions.evidence[kind]
        assert compare(apart[:, None], np.zeros(1)).holds
        assert not compare((apart + 0.3 * solutions.evidence[kind])[:, None], np.zeros(1)).holds

    def test_from_end_to_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(chains, "load_models", oracles)
        monkeypatch.setattr(find("particle-inference").load(), "SCALES", {"quick": SMALL})
        outcome = run_experiment("particle-inference", out=tmp_path / "run")
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
        assert outcome.report.read_text().count("<svg ") == 3
        holds = {claim.text: claim.holds for claim in outcome.claims}
        assert holds["Weights p_strong / p_weak give an evidence of exactly one."]
        assert metrics["judge"]["versus"]["filter"] >= metrics["judge"]["versus"]["baseline"]
        assert metrics["judge"]["pass_at_1"] == pytest.approx(SKILL**12, abs=0.05)
        assert metrics["judge"]["factors"]["odds"]["whole"]["estimate"] > 2
        again = run_experiment("particle-inference", out=tmp_path / "run")
        assert len(again.reused) == 4
