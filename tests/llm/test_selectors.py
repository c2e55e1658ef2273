"""Rules of choice, aggregates, pass@k, best of k and the posterior from distinct paths, each against enumeration.

Planted bugs, each shown to be caught: pass@k by the biased plug-in 1 - (1 - c/n)^k; best of k that ignores ties; a
posterior that counts repeated paths; votes of texts of weight zero.
"""

import itertools
import math
from fractions import Fraction

import jax
import numpy as np
import pytest

from probinf.llm import aggregate_scores, answer_posterior, best_of_k, pass_at_k
from tests.llm._runs import extract, texts

NAN = float("nan")


class TestAggregates:
    scores = np.asarray([[0.5, 0.8, 0.25], [0.9, 0.1, NAN], [NAN, NAN, NAN], [0.3, NAN, NAN]])

    @pytest.mark.parametrize(
        ("aggregate", "expected"),
        [
            ("last", [0.25, 0.1, NAN, 0.3]),
            ("min", [0.25, 0.1, NAN, 0.3]),
            ("prod", [0.1, 0.09, NAN, 0.3]),
            ("mean", [1.55 / 3, 0.5, NAN, 0.3]),
        ],
    )
    def test_by_hand(self, aggregate, expected):
        np.testing.assert_allclose(aggregate_scores(self.scores, aggregate), expected, rtol=1e-12)

    def test_min_is_not_last(self):
        assert aggregate_scores(np.asarray([[0.2, 0.6]]), "min") == 0.2
        assert aggregate_scores(np.asarray([[0.2, 0.6]]), "last") == 0.6

    def test_no_steps(self):
        assert np.isnan(aggregate_scores(np.zeros((3, 0)), "last")).all()

    def test_bad_input(self):
        with pytest.raises(ValueError, match="`aggregate` must be one of"):
            aggregate_scores(self.scores, "max")
        with pytest.raises(ValueError, match="not negative"):
            aggregate_scores(-self.scores, "prod")


class TestArgmax:
    def test_the_best_score_wins_whatever_the_weights(self):
        found = texts(weights=[0.9, 0.1], scores=[0.2, 0.7], answers=["3", "4"]).select(extract=extract)
        assert (found.index, found.answer, found.text, found.value) == (1, "4", "4;", 0.7)

    def test_ties_go_to_the_lowest_index(self):
        assert texts(weights=[1, 1, 1], scores=[0.2, 0.7, 0.7]).select("argmax").index == 1

    def test_weight_zero_is_never_chosen(self):
        assert texts(weights=[1, 0], scores=[0.2, 0.7]).select("argmax").index == 0

    def test_finished_texts_come_first(self):
        table = {"weights": [1, 1], "scores": [0.2, 0.7]}
        assert texts(**table, finished=[True, False]).select().index == 0
        assert texts(**table, finished=[False, False]).select().index == 1
        assert texts(**table, finished=[True, False]).select(unfinished=True).index == 1

    def test_a_missing_score_loses(self):
        assert texts(weights=[1, 1], scores=[NAN, -3.0]).select().index == 1

    def test_long_products_do_not_underflow(self):
        scores = np.full((2, 400), 0.1)
        scores[1, 0] = 0.11
        assert aggregate_scores(scores, "prod")[1] == 0
        assert texts(weights=[1, 1], scores=scores).select(aggregate="prod").index == 1

    def test_a_product_with_zeros(self):
        assert texts(weights=[1, 1, 1], scores=[[0.0, 1], [0.1, 0.1], [0, 0]]).select(aggregate="prod").index == 1
        assert texts(weights=[1, 1], scores=[[0.0, 1], [0, 0]]).select(aggregate="prod").index == 0

    def test_no_score_is_an_error_that_names_the_way_out(self):
        with pytest.raises(ValueError, match="had no scorer: select by"):
            texts(weights=[1, 1]).select("argmax")


class TestSample:
    def test_it_draws_by_weight(self):
        found = texts(weights=[0.5, 0, 0.3, 0.2])
        keys = jax.random.split(jax.random.key(0), 400)
        counts = np.bincount([found.select("sample", key=key).index for key in keys], minlength=4)
        assert counts[1] == 0
        # Chi-square with 2 degrees of freedom; beyond 27.6 with probability 1e-6.
        expected = 400 * np.asarray([0.5, 0.3, 0.2])
        assert np.sum((counts[[0, 2, 3]] - expected) ** 2 / expected) < 27.6
        # Detects: uniform choice among the three (0.333 each) has expected statistic 400 * 0.127 + 2.

    def test_the_edges_of_the_uniform(self, monkeypatch):
        found = texts(weights=[0, 0.5, 0.5, 0])
        for uniform, index in ((0.0, 1), (np.nextafter(np.float32(1), np.float32(0)), 2)):
            with monkeypatch.context() as patch:
                patch.setattr(jax.random, "uniform", lambda key, u=uniform: u)
                assert found.select("sample", key=jax.random.key(0)).index == index

    @pytest.mark.parametrize(("rule", "key"), [("sample", None), ("argmax", 0)])
    def test_the_key_belongs_to_sampling(self, rule, key):
        found = texts(weights=[1], scores=[1.0])
        with pytest.raises(ValueError, match="`key` is"):
            found.select(rule, key=None if key is None else jax.random.key(key))


class TestVotes:
    def test_majority_counts_heads(self):
        found = texts(weights=[0.8, 0.1, 0.1], answers=["3", "4", "4"]).select("majority", extract=extract)
        assert (found.answer, found.index) == ("4", 1)
        assert found.value == pytest.approx(2 / 3)

    def test_weighted_counts_weights(self):
        found = texts(weights=[0.6, 0.3, 0.1], answers=["3", "4", "4"]).select("weighted", extract=extract)
        assert (found.answer, found.index) == ("3", 0)
        assert found.value == pytest.approx(0.6)

    def test_weighted_by_scores(self):
        """Snell's weighted best of N: scores 0.5 + 0.4 of one answer beat 0.8 of another; the weights are ignored."""
        run = texts(weights=[0.1, 0.8, 0.1], scores=[0.4, 0.8, 0.5], answers=["3", "4", "3"])
        found = run.select("weighted", extract=extract, aggregate="last")
        assert (found.answer, found.index) == ("3", 2)
        assert found.value == pytest.approx(0.9 / 1.7)

    def test_ties_go_to_the_larger_weight_then_to_the_first(self):
        assert texts(weights=[0.2, 0.8], answers=["3", "4"]).select("majority", extract=extract).answer == "4"
        assert texts(weights=[0.5, 0.5], answers=["4", "3"]).select("majority", extract=extract).answer == "4"
        assert texts(weights=[0.5, 0.5], answers=["4", "3"]).select("weighted", extract=extract).answer == "4"

    def test_texts_without_an_answer_do_not_vote(self):
        run = texts(weights=[0.4, 0.4, 0.2], answers=[None, None, "3"])
        assert run.select("majority", extract=extract).answer == "3"
        assert run.select("weighted", extract=extract).value == 1.0
        silent = texts(weights=[0.4, 0.6], answers=[None, None]).select("majority", extract=extract)
        assert (silent.answer, silent.index) == (None, 1)

    def test_unfinished_texts_do_not_vote(self):
        run = texts(weights=[0.4, 0.4, 0.2], answers=["3", "3", "4"], finished=[False, False, True])
        assert run.select("majority", extract=extract).answer == "4"
        assert run.select("majority", extract=extract, unfinished=True).answer == "3"

    def test_planted_votes_of_dead_texts(self):
        """Two of weight zero would win a vote that forgets the weights."""
        assert texts(weights=[0, 0, 1], answers=["3", "3", "4"]).select("majority", extract=extract).answer == "4"

    def test_scores_of_zero_leave_the_choice_to_the_weights(self):
        run = texts(weights=[0.3, 0.7], scores=[0, 0], answers=["3", "4"])
        found = run.select("weighted", extract=extract, aggregate="last")
        assert (found.answer, found.value) == ("4", 0.0)

    def test_bad_input(self):
        run = texts(weights=[1, 1], scores=[-1, 2])
        with pytest.raises(ValueError, match="`rule` must be one of"):
            run.select("best")
        with pytest.raises(ValueError, match="not negative"):
            run.select("weighted", aggregate="last")
        with pytest.raises(ValueError, match="has no meaning for rule 'majority'"):
            run.select("majority", aggregate="min")
        with pytest.raises(TypeError, match="cannot be hashed"):
            run.select("majority", extract=lambda text: [text])  # pyright: ignore[reportArgumentType]

    def test_all_weights_zero(self):
        with pytest.raises(ValueError, match="every weight is zero"):
            texts(weights=[0, 0]).select("majority")


def coverage_by_enumeration(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    return Fraction(sum(any(i < c for i in subset) for subset in subsets), len(subsets))


class TestPassAtK:
    @pytest.mark.parametrize("n", [1, 4, 7])
    def test_every_case_by_enumeration(self, n):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(n, c, k) == pytest.approx(float(coverage_by_enumeration(n, c, k)), abs=1e-14)

    @pytest.mark.parametrize("p", [0.1, 0.5])
    def test_it_is_unbiased(self, p):
        """Exactly: the mean over the binomial law of c is 1 - (1 - p)^k; the planted plug-in estimate is not."""
        n, k = 8, 3
        law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = np.dot(law, pass_at_k(np.full(n + 1, n), np.arange(n + 1), k))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-14)
        plug_in = np.dot(law, 1 - (1 - np.arange(n + 1) / n) ** k)
        assert abs(plug_in - (1 - (1 - p) ** k)) > 1e-3

    def test_counts_of_numpy_and_whole_tables(self):
        assert pass_at_k(np.int64(4), np.sum([True, False]), 2) == pytest.approx(0.5)
        assert pass_at_k(4, np.asarray([0, 1, 4]), 2).shape == (3,)

    def test_large_numbers_stay_right(self):
        n, c, k = 10_000, 37, 100
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12)

    def test_a_beta_law_of_problems(self):
        """Exact coverage 1 - B(a, b + k) / B(a, b) for success probabilities Beta(a, b): 0.4415 for Beta(0.3, 2)."""
        a, b, k, n = 0.3, 2.0, 10, 40
        log_beta = lambda x, y: math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)  # noqa: E731
        law = [math.comb(n, c) * math.exp(log_beta(a + c, b + n - c) - log_beta(a, b)) for c in range(n + 1)]
        mean = np.dot(law, pass_at_k(np.full(n + 1, n), np.arange(n + 1), k))
        assert mean == pytest.approx(1 - math.exp(log_beta(a, b + k) - log_beta(a, b)), abs=1e-12)
        assert mean == pytest.approx(0.4415, abs=5e-5)

    @pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
    def test_bad_input(self, n, c, k):
        with pytest.raises(ValueError, match="must lie in"):
            pass_at_k(n, c, k)


def best_by_enumeration(correct, scores, k):
    """The mean over subsets of the mean over the best of each: ties by a fair choice."""
    values = []
    for subset in itertools.combinations(range(len(correct)), k):
        top = max(scores[i] for i in subset)
        best = [correct[i] for i in subset if scores[i] == top]
        values.append(sum(best) / len(best))
    return sum(values) / len(values)


class TestBestOfK:
    @pytest.mark.parametrize("scores", [[5, 3, 4, 1, 2, 0], [1, 1, 2, 2, 2, 0], [0] * 6], ids=str)
    @pytest.mark.parametrize("correct", [[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]], ids=str)
    def test_every_k_by_enumeration(self, correct, scores):
        for k in range(1, 7):
            found = best_of_k(np.asarray(correct, bool), np.asarray(scores, float), k)
            assert found == pytest.approx(best_by_enumeration(correct, scores, k), abs=1e-14)

    def test_planted_ties_in_the_order_given(self):
        """Without care for ties a constant score would always find the first text."""
        assert best_of_k(np.asarray([True, False]), np.zeros(2), 2) == 0.5

    def test_a_perfect_score_has_the_coverage(self):
        correct = np.arange(200) < 13
        assert best_of_k(correct, correct.astype(float), 20) == pytest.approx(pass_at_k(200, 13, 20), abs=1e-13)

    def test_closed_form_of_independent_texts(self):
        """A score that ranks at random gives the mean, whatever k; large n does not overflow."""
        correct = np.tile([True, False, False, False], 5000)
        assert best_of_k(correct, np.zeros(20_000), 64) == pytest.approx(0.25, abs=1e-12)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="NaN"):
            best_of_k(np.ones(2, bool), np.asarray([1.0, NAN]), 1)
        with pytest.raises(ValueError, match="`k` must lie in"):
            best_of_k(np.ones(2, bool), np.ones(2), 3)
        with pytest.raises((ValueError, TypeError)):  # the type checker of the tests comes first
            best_of_k(np.ones(2, bool), np.ones(3), 1)


# All paths of two tokens: token 1 has probability 0.7, 2 has 0.2, 3 has 0.1; the answer is their sum.
LAW = {1: 0.7, 2: 0.2, 3: 0.1}
PATHS = {(a, b): LAW[a] * LAW[b] for a in LAW for b in LAW}
EXACT = {total: sum(p for path, p in PATHS.items() if sum(path) == total) for total in range(2, 7)}


class TestAnswerPosterior:
    def found(self, paths):
        return answer_posterior(paths, np.log([PATHS[path] for path in paths]), [sum(path) for path in paths])

    def test_all_paths_give_the_exact_posterior(self):
        found = self.found(list(PATHS))
        assert found.seen == pytest.approx(1, abs=1e-14)
        assert found.probability == pytest.approx(EXACT, abs=1e-14)
        assert list(found.probability) == sorted(EXACT, key=lambda answer: -EXACT[answer])

    def test_planted_repeats_change_nothing(self):
        once, often = self.found(list(PATHS)), self.found([*PATHS, *[(3, 3)] * 20])
        assert often == once
        counts = np.exp(-math.log(29)) * 21  # what counting repeated paths would give the answer 6
        assert abs(counts - EXACT[6]) > 0.5

    def test_mass_is_a_lower_bound(self):
        found = self.found([(1, 1), (1, 2)])
        assert found.mass == pytest.approx({2: 0.49, 3: 0.14})
        assert found.seen == pytest.approx(0.63)
        assert all(found.mass[answer] <= EXACT[answer] + 1e-15 for answer in (2, 3))
        assert found.probability == pytest.approx({2: 0.49 / 0.63, 3: 0.14 / 0.63})

    def test_its_error_falls_faster_than_that_of_counting(self):
        """Exact mean squared errors of P(answer 2): worse than counting at 6 draws, 20 times better at 100."""
        exact = EXACT[2] * (1 - EXACT[2])
        assert self.squared_error(6) > exact / 6
        assert self.squared_error(30) < exact / 30 / 1.5
        assert self.squared_error(100) < exact / 100 / 20

    def squared_error(self, num_draws):
        """The sum over the sets of paths that can be seen; the chance of a set by inclusion and exclusion."""
        names, probs = list(PATHS), np.asarray(list(PATHS.values()))
        members = (np.arange(2**9)[:, None] >> np.arange(9)) & 1
        chances = (members @ probs) ** num_draws
        for bit in range(9):  # Moebius inversion: from "within the set" to "exactly the set"
            has = np.flatnonzero(members[:, bit])
            chances[has] -= chances[has - 2**bit]
        assert chances.sum() == pytest.approx(1)
        error = 0.0
        for chosen, chance in zip(members[1:], chances[1:], strict=True):
            seen = [name for name, here in zip(names, chosen, strict=True) if here]
            error += chance * (self.found(seen).probability.get(2, 0.0) - EXACT[2]) ** 2
        return error

    def test_arrays_and_texts_are_paths_too(self):
        arrays = [np.asarray([1, 2]), np.asarray([1, 2]), np.asarray([1])]
        found = answer_posterior(arrays, np.log([0.25, 0.25, 0.5]), ["a", "a", None])
        assert found.probability == pytest.approx({None: 2 / 3, "a": 1 / 3})
        assert answer_posterior(["x", "x"], np.log([0.5, 0.5]), ["a", "a"]).seen == pytest.approx(0.5)

    def test_impossible_paths(self):
        assert answer_posterior(["x", "y"], np.asarray([-np.inf, -1.0]), ["a", "b"]).probability == {"b": 1.0}
        assert answer_posterior(["x"], np.asarray([-np.inf]), ["a"]).probability == {}

    def test_bad_input(self):
        with pytest.raises(ValueError, match="equal, but"):
            answer_posterior(["x", "x"], np.asarray([-1.0, -2.0]), ["a", "a"])
        with pytest.raises(ValueError, match="equal, but"):
            answer_posterior(["x", "x"], np.asarray([-1.0, -1.0]), ["a", "b"])
        with pytest.raises(ValueError, match="NaN"):
            answer_posterior(["x"], np.asarray([NAN]), ["a"])
        with pytest.raises(ValueError, match="got 1 paths"):
            answer_posterior(["x"], np.asarray([-1.0, -1.0]), ["a", "a"])
