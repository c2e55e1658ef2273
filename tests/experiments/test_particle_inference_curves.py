"""Estimators of the experiment on particle inference, with known answers, and what it keeps on disk.

Best-of-k and coverage by enumeration of all ways to pick, votes by hand, costs, the scaling-rate factor of curves that
are shifted copies of each other, Wilson's interval by its defining equation. All numbers are made up, with fixed seeds.
"""

import itertools
import math

import jax
import numpy as np
import pytest

from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _particle_inference_curves as curves
from probinf.experiments import _particle_inference_kept as kept
from tests.experiments._made_up import curve_of, rising


def independent(size=6, problems=3, seed=0):
    """Made-up solutions: scores that tell right ones apart, imperfectly."""
    rng = np.random.default_rng(seed)
    whole = (rng.uniform(size=(problems, size)) < 0.4).astype(float)
    answers = [[str(int(digit)) for digit in row] for row in rng.integers(0, 3, (problems, size))]
    last = np.array([[float(own == "1") for own in row] for row in answers])
    scores = np.exp(-np.abs(rng.normal(size=(problems, size)))) * (0.5 + 0.5 * whole)
    ranked = {"prod": scores, "min": -scores}
    costs = np.full(problems, 24.0 * size), np.full(problems, 20.0 * size)
    return chains.Independent(whole, last, ranked, "prod", answers, *costs, {"prob": scores.mean(axis=1)})


class TestIndependent:
    @pytest.mark.parametrize("count", [1, 2, 5, 6])
    def test_best_of_and_coverage_by_enumeration(self, count):
        found = independent()
        picks = list(itertools.combinations(range(6), count))
        for how, best in (("prod", max), ("min", min)):  # made up so that "min" ranks the other way round
            pairs = zip(found.whole, found.scores["prod"], strict=True)
            exact = [np.mean([row[best(pick, key=lambda i: s[i])] for pick in picks]) for row, s in pairs]
            np.testing.assert_allclose(chains.best_of(found, count, how).whole, exact, rtol=1e-12)
        np.testing.assert_array_equal(chains.best_of(found, count)[0], chains.best_of(found, count, "prod")[0])
        some = [[max(row[i] for i in pick) for pick in picks] for row in found.whole]
        np.testing.assert_allclose(chains.covered(found, count).whole, np.mean(some, axis=1), rtol=1e-12)

    def test_votes_by_hand(self):
        found = chains.Independent(
            np.array([[0.0, 1.0, 0.0, 0.0]]),
            np.array([[0.0, 1.0, 0.0, 1.0]]),
            {"last": np.array([[0.1, 0.9, 0.2, 0.3]])},
            "last",
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
        for found in (chains.best_of(independent(), 2), chains.voted(independent(), 2, weighted=True)):
            np.testing.assert_array_equal(found.tokens, 48.0)
            np.testing.assert_allclose(found.scorer_tokens, 27 + (120 - 27) / 3)  # the problem is read once

    def test_who_asks_no_rater_pays_for_none(self):
        for found in (chains.covered(independent(), 2), chains.voted(independent(), 2, weighted=False)):
            np.testing.assert_array_equal(found.tokens, 48.0)
            np.testing.assert_array_equal(found.scorer_tokens, 0.0)

    def test_curves_count_what_they_are_told_to(self):
        row = {count: chains.best_of(independent(), count) for count in (2, 6)}
        np.testing.assert_allclose(chains.curve(row).tokens, [48, 144])
        np.testing.assert_allclose(chains.curve(row, all_tokens=True).tokens, [48 + 27 + 31, 144 + 120])


class TestGroups:
    """Which key and which place each problem gets."""

    def places(self, problems, monkeypatch, group=4):
        monkeypatch.setattr(chains, "GROUP", group)
        task = chains.Task(tuple(map(str, range(problems))), ("",) * problems)

        def run(key, prompts):
            return [(tuple(jax.random.key_data(key).tolist()), place, text) for place, text in enumerate(prompts)]

        return chains.in_groups(jax.random.key(0), task, run)

    def test_they_do_not_depend_on_what_fills_the_last_one(self, monkeypatch):
        seven = self.places(7, monkeypatch)
        assert [text for _, _, text in seven] == list("0123456")
        assert [place for _, place, _ in seven] == [0, 1, 2, 3, 0, 1, 2]
        assert len({key for key, _, _ in seven}) == 2
        for fewer in (6, 4, 2):
            assert self.places(fewer, monkeypatch) == seven[:fewer]


class TestKept:
    def test_what_is_there_is_not_computed_again(self, tmp_path):
        calls = []

        def compute():
            calls.append(1)
            return chains.best_of(independent(), 2)

        first, second = (kept.kept_tally(tmp_path / "judge", "odds-2", compute) for _ in range(2))
        assert len(calls) == 1
        for name, values in first._asdict().items():
            np.testing.assert_array_equal(values, getattr(second, name))
            np.testing.assert_array_equal(values, getattr(chains.best_of(independent(), 2), name))

    def test_solutions(self, tmp_path):
        found = independent()._replace(answers=[["1", None, "2", "3", "4", "5"]] * 3)
        for _ in range(2):
            back = kept.kept_solutions(tmp_path, "solutions", lambda: found)
            assert (back.answers, back.aggregate) == (found.answers, "prod")
            for name in ("whole", "last", "tokens", "scorer_tokens"):
                np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
            assert set(back.scores) == {"prod", "min"}
            np.testing.assert_array_equal(back.scores["min"], found.scores["min"])
            np.testing.assert_array_equal(back.evidence["prob"], found.evidence["prob"])

    def test_a_file_that_was_cut_is_refused(self, tmp_path):
        kept.kept_tally(tmp_path, "odds-2", lambda: chains.best_of(independent(), 2))
        file = tmp_path / "odds-2.npz"
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(ValueError, match="odds-2"):
            kept.kept_tally(tmp_path, "odds-2", lambda: chains.best_of(independent(), 2))


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


def factors_of(baseline, method, levels):
    """The factors of two rows of tallies."""
    both = (chains.curve(row) for row in (baseline, method))
    return curves.scaling_factors(*both, seed=0, levels=levels, num_bootstrap=400)


class TestFactor:
    @pytest.mark.parametrize("factor", [1, 2, 4, 5.5, 16])
    def test_a_curve_that_is_shifted(self, factor):
        sizes = (1, 2, 4, 8, 16, 32)
        levels = (0.52, 0.55)
        for found in factors_of(curve_of(sizes, rising(1)), curve_of(sizes, rising(factor)), levels):
            assert found.estimate == pytest.approx(factor, rel=0.03)  # problems come in whole numbers
            assert found.low <= found.estimate <= found.high
            assert (found.baseline, found.method) == (True, True)
            assert found.at_least == (factor == 16 and found.level <= 0.5)

    def test_a_curve_that_starts_above(self):
        baseline = curve_of((1, 2, 4), rising(1))
        (found,) = factors_of(baseline, curve_of((1, 2), lambda size: 0.9), (0.2,))
        assert (found.estimate, found.at_least, found.sure) == (pytest.approx(2), True, True)

    def test_who_never_gets_there(self):
        """The filter, best-of-N, and both; at .3 best-of-N gets there in half of the samples."""
        baseline, method = curve_of((1, 2, 4), rising(1)), curve_of((1, 2), lambda size: 0.25)
        found = factors_of(baseline, method, (0.15, 0.28, 0.9))
        assert [(one.baseline, one.method) for one in found] == [(True, True), (True, False), (False, False)]
        assert [math.isnan(one.estimate) for one in found] == [False, True, True]
        assert [one.sure for one in found] == [True, False, False]
        (best,) = factors_of(baseline, curve_of((1, 2), lambda size: 0.9), (0.299,))
        assert (best.baseline, best.sure, best.high) == (True, False, math.inf)
        assert best.low < best.estimate == pytest.approx(4, rel=0.02)
        (none,) = factors_of(baseline, curve_of((1, 2), lambda size: 0.9), (0.5,))
        assert (none.baseline, none.method, none.sure) == (False, True, False)

    def test_the_highest_that_is_sure(self):
        found = factors_of(curve_of((1, 2, 4), rising(1)), curve_of((1, 2), lambda size: 0.9), (0.15, 0.2, 0.3, 0.9))
        best = curves.highest_sure(found)
        assert best is not None
        assert best.level == 0.2
        assert curves.highest_sure(found[2:]) is None

    def test_tokens_needed(self):
        tokens, accuracy = np.array([10.0, 20.0, 40.0]), np.array([[0.1, 0.5, 0.4], [0.1, 0.2, 0.3]])
        found = curves.tokens_needed(tokens, accuracy, np.array([0.3, 0.4]))
        assert found[0] == pytest.approx(10 * math.sqrt(2))
        assert found[1] == math.inf
        assert curves.tokens_needed(tokens, accuracy[:1], np.array([0.05]))[0] == pytest.approx(10, rel=1e-12)

    def test_the_same_curve_twice_has_no_error(self):
        """The same problems are drawn for both sides."""
        (found,) = factors_of(curve_of((1, 2, 4), rising(1)), curve_of((1, 2, 4), rising(1)), (0.2,))
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
            (found,) = factors_of(rows[0], rows[1], (0.5,))
            hits += found.low <= 4 <= found.high
        assert hits >= 12
