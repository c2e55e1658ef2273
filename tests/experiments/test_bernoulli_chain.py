"""The Bernoulli chain: exact numbers to all digits given, simulations within their errors, and planted bugs.

Exact: the evidence and accuracy of three targets, the limits of their means, coverage and best-of-N; a second formula
(sum over lengths and over the place of the first error) for chains that end at random.

Planted bugs, each shown to be caught: weights by r instead of r / (1 - r) and the other way round, finished solutions
weighted again, finished solutions moved on, errors that are mended, a reward whose noise is not inherited, a beam that
keeps the worst, a ratio without its denominator.

A comparison with exact values has a false-alarm rate of 1e-7, and so has that with `REFERENCE` (largest of all cells,
Bonferroni); a test makes at most five.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.experiments import _particle_inference_measure as measure
from probinf.experiments import _particle_inference_toy as toy
from probinf.experiments._claims import compare, normal_bound
from tests._slow import slow_after

ALPHA = 1e-7
COUNT = 16
PROBLEMS = 4000


@functools.cache
def runs_of(name):
    return measure.simulate_all(jax.random.key(0), name, [COUNT], PROBLEMS)


def worst(columns, exact):
    """The largest standardised difference of the columns' means from exact values, and the bound on it."""
    found = compare(np.stack(columns, axis=1), np.asarray(exact, float))
    return found.worst, normal_bound(len(columns), alpha=ALPHA)


class TestExact:
    @pytest.mark.parametrize(
        ("p", "potential", "log_evidence", "probability"),
        [
            (0.5, "odds", 8.238744, 0.843483),
            (0.8, "odds", 12.808480, 0.960871),
            (0.95, "odds", 14.495339, 0.991762),
            (0.5, "prob", -9.286045, 0.283957),
            (0.8, "prob", -5.631336, 0.807667),
            (0.95, "prob", -4.085044, 0.959450),
            (0.5, "ratio", math.log(0.303650), 0.002241),
            (0.8, "ratio", math.log(0.345514), 0.216522),
            (0.95, "ratio", math.log(0.538850), 0.774169),
        ],
    )
    def test_targets(self, p, potential, log_evidence, probability):
        found = toy.exact_target(toy.INDEPENDENT, potential, np.array(p))
        digits = 2e-6 if potential == "ratio" else 6e-7  # the mass of "ratio" itself is given to six digits
        assert float(found.log_evidence) == pytest.approx(log_evidence, abs=digits)
        assert float(found.probability) == pytest.approx(probability, abs=6e-7)

    @pytest.mark.parametrize(("potential", "accuracy"), [("odds", 0.9333), ("prob", 0.6787), ("ratio", 0.1923)])
    def test_limits(self, potential, accuracy):
        assert toy.limit(toy.INDEPENDENT, potential) == pytest.approx(accuracy, abs=5e-5)

    def test_coverage(self):
        found = [toy.coverage(toy.INDEPENDENT, count) for count in (1, 2, 4, 8, 16, 32, 64)]
        np.testing.assert_allclose(found, [0.1148, 0.1936, 0.2949, 0.4046, 0.5128, 0.6156, 0.7113], atol=5e-5)

    def test_one_solution_in_closed_form(self):
        exact = (toy.HIGHEST**11 - toy.LOWEST**11) / 11 / (toy.HIGHEST - toy.LOWEST)
        for setting in (toy.INDEPENDENT, toy.PERSISTENT):
            assert toy.coverage(setting, 1) == pytest.approx(exact, abs=1e-13)
            assert toy.best_of_n(setting, 1) == pytest.approx(exact, abs=1e-13)

    def test_best_of_two_in_closed_form(self):
        """Two right ones, or one whose reward is the higher: q^2 + 2 q (1 - q) Phi(sqrt(2) mu / sigma)."""
        moments = [toy.mean_over_problems(toy.problem_nodes(200) ** (10 * power)) for power in (1, 2)]
        for setting in (toy.INDEPENDENT, toy.PERSISTENT):
            above = 0.5 * math.erfc(-setting.mu / setting.sigma)
            exact = moments[1] + 2 * (moments[0] - moments[1]) * above
            assert toy.best_of_n(setting, 2) == pytest.approx(exact, abs=1e-12)

    def test_a_reward_without_noise_finds_all_that_is_covered(self):
        clear = toy.Setting(sigma=0.02)
        assert toy.best_of_n(clear, 64) == pytest.approx(toy.coverage(clear, 64), abs=1e-12)

    def test_coverage_in_the_end_needs_no_more_nodes(self):
        """At N = 4096 the mean over p by a plain sum of a hundred thousand points."""
        p = toy.LOWEST + (toy.HIGHEST - toy.LOWEST) * (np.arange(100_000) + 0.5) / 100_000
        assert toy.coverage(toy.INDEPENDENT, 4096) == pytest.approx(np.mean(1 - (1 - p**10) ** 4096), abs=1e-9)

    @pytest.mark.parametrize("potential", list(toy.POTENTIALS))
    def test_random_lengths_against_a_sum_over_lengths_and_first_errors(self, potential):
        p, stop, steps = 0.7, toy.FINISHING.stop, toy.FINISHING.num_steps
        g1, g0 = toy._mean_weights(toy.FINISHING, potential)
        right = total = 0.0
        for length in range(1, steps + 1):
            chance = (1 - stop) ** (length - 1) * (stop if length < steps else 1.0)

            def weight(good, length=length):
                if potential == "ratio":
                    return g1 if good == length else g0
                return g1**good * g0 ** (length - good)

            right += chance * p**length * weight(length)
            total += chance * sum(p**good * (1 - p) * weight(good) for good in range(length))
        total += right
        found = toy.exact_target(toy.FINISHING, potential, np.array(p))
        assert float(found.log_evidence) == pytest.approx(math.log(total), abs=1e-12)
        assert float(found.probability) == pytest.approx(right / total, abs=1e-12)

    def test_chance_of_random_lengths(self):
        """A last reward that says nothing leaves the law of the solutions as it is."""
        p = np.array([0.7, 0.9])
        blind = toy.exact_target(toy.FINISHING._replace(mu=0.0), "ratio", p)
        np.testing.assert_allclose(toy._chance(toy.FINISHING, p), blind.probability, rtol=1e-12)
        np.testing.assert_allclose(toy._chance(toy.INDEPENDENT, p), p**10, rtol=1e-12)


@pytest.mark.no_key_reuse
class TestSimulation:
    @pytest.mark.parametrize("name", slow_after(1, measure.SETTINGS))
    def test_against_the_reference(self, name):
        found = measure.against_reference(name, [COUNT], runs_of(name))
        assert found["count"] == len(measure.COLUMNS[name])
        assert found["worst"] < normal_bound(found["count"], alpha=ALPHA), found

    @pytest.mark.parametrize("name", list(measure.SETTINGS))
    def test_coverage_and_best_of_n(self, name):
        setting, found = measure.SETTINGS[name], runs_of(name)["best-of-n"][0]
        exact = [toy.coverage(setting, COUNT), toy.best_of_n(setting, COUNT)]
        value, bound = worst([found.covered, found.chosen], exact)
        assert value < bound

    def test_evidence_and_mass_of_right_solutions_are_unbiased(self):
        found = measure.against_target(
            toy.INDEPENDENT, {potential: runs_of("independent")[potential][0] for potential in toy.POTENTIALS}
        )
        assert found.worst < normal_bound(6, alpha=ALPHA), found

    def test_finished_solutions_are_absorbing(self):
        found = finishing()
        assert measure.against_target(toy.FINISHING, {"odds": found}).worst < normal_bound(2, alpha=ALPHA)
        assert abs(found.sampled.mean() - toy.limit(toy.FINISHING, "odds")) < 1 / COUNT

    def test_methods_see_the_same_problems_and_the_same_first_steps(self):
        runs = runs_of("independent")
        for method in toy.METHODS:
            np.testing.assert_array_equal(runs[method][0].p, runs["odds"][0].p)
        model = toy.bernoulli_chain(toy.INDEPENDENT, 0.8)
        few, many = (model.init(jax.random.key(3), count) for count in (4, 8))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:4]), few, many)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", list(measure.SETTINGS))
    def test_the_whole_table(self, name):
        particles = list(measure.REFERENCE[name])
        runs = measure.simulate_all(jax.random.key(1), name, particles, PROBLEMS)
        found = measure.measure_toy(name, particles, runs)
        assert found["reference"]["count"] == 6 * len(measure.COLUMNS[name])
        assert found["reference"]["worst"] < found["reference"]["bound"]
        assert found["closed"]["holds"]
        if name == "independent":
            assert found["evidence"]["holds"]


def finishing(absorbing=True):
    return toy.simulate(
        jax.random.key(0), toy.FINISHING, "odds", num_particles=COUNT, num_problems=PROBLEMS, absorbing=absorbing
    )


def solve(model, method="odds", setting=toy.INDEPENDENT):
    """`toy.simulate` with another model."""
    problem_key, run_key = jax.random.split(jax.random.key(0))
    p = jax.random.uniform(problem_key, (PROBLEMS,), minval=toy.LOWEST, maxval=toy.HIGHEST)
    keys = jax.random.split(run_key, PROBLEMS)
    threshold = jnp.asarray(float(toy.METHODS[method].resamples))
    found = toy._solve_all(keys, p, model, toy.METHODS[method].scheme, threshold, COUNT)
    return toy.Found(np.asarray(p, float), *(np.asarray(values, float) for values in found))


class Mended(toy.BernoulliChain):
    """A planted bug: an error is forgotten at the next step."""

    def _step(self, key, correct, noise, rho):
        return toy.BernoulliChain._step(self, key, jnp.ones_like(correct), noise, rho)


class KeepWorst(toy.KeepBest):
    """A planted bug: the beam goes on with those of the least weight."""

    def sample(self, key, weights, pinned):
        return toy.KeepBest.sample(self, key, -weights, pinned)


@pytest.mark.no_key_reuse
class TestPlantedBugs:
    @pytest.mark.parametrize(("stated", "used"), [("odds", "prob"), ("prob", "odds"), ("ratio", "prob")])
    def test_weights_of_another_potential(self, stated, used):
        found = runs_of("independent")[used][0]
        assert measure.against_target(toy.INDEPENDENT, {stated: found}).worst > 10
        wrong = dict(runs_of("independent")) | {stated: runs_of("independent")[used]}
        assert measure.against_reference("independent", [COUNT], wrong)["worst"] > 10

    def test_finished_solutions_weighted_again(self):
        found, right = finishing(absorbing=False), finishing()
        exact = toy.exact_target(toy.FINISHING, "odds", found.p)
        assert right.sampled.mean() < exact.probability.mean() < found.sampled.mean() - 0.04
        assert np.median(found.log_evidence - exact.log_evidence) > 5

    def test_noise_that_is_not_inherited(self):
        setting = toy.PERSISTENT._replace(rho=0.0)
        found = toy.simulate(jax.random.key(0), setting, "odds", num_particles=COUNT, num_problems=PROBLEMS)
        wrong = dict(runs_of("persistent")) | {"odds": [found]}
        assert measure.against_reference("persistent", [COUNT], wrong)["worst"] > 5

    @pytest.mark.slow
    def test_errors_that_are_mended(self):
        model = toy.bernoulli_chain(toy.INDEPENDENT, 0.0)
        found = solve(Mended(*(getattr(model, name) for name in model.__dataclass_fields__)))
        assert measure.against_target(toy.INDEPENDENT, {"odds": found}).worst > 10

    @pytest.mark.slow
    def test_a_beam_that_keeps_the_worst(self, monkeypatch):
        monkeypatch.setattr(toy, "METHODS", {**toy.METHODS, "beam": toy.Method(scheme=KeepWorst())})
        found = toy.simulate(jax.random.key(0), toy.INDEPENDENT, "beam", num_particles=COUNT, num_problems=PROBLEMS)
        wrong = dict(runs_of("independent")) | {"beam": [found]}
        assert measure.against_reference("independent", [COUNT], wrong)["worst"] > 10


class TestModel:
    def particles(self, finished):
        return toy.Solutions(
            jnp.array([True, False]), jnp.array(finished), jnp.array([0.3, -0.2]), jnp.array([1.3, -1.2])
        )

    def test_finished_solutions_do_not_move(self, key):
        model = toy.bernoulli_chain(toy.FINISHING, 0.6)
        x = self.particles([True, False])
        moved = model.mutate(key, 3, x)
        for before, after in zip(x, moved, strict=True):
            assert before[0] == after[0]
        assert moved.logit[1] != x.logit[1]
        assert not moved.correct[1]

    def test_potentials_by_hand(self):
        before, after = self.particles([False, True]), self.particles([True, True])
        r = 1 / (1 + np.exp(-np.array([1.3, -1.2])))
        for potential, log_g in {"odds": np.log(r / (1 - r)), "prob": np.log(r), "ratio": np.zeros(2)}.items():
            model = toy.bernoulli_chain(toy.INDEPENDENT, 0.6, potential=potential)
            first = np.log(r) if potential == "ratio" else log_g
            np.testing.assert_allclose(model.log_potential(0, None, after), first, rtol=1e-5)
            found = np.asarray(model.log_potential(1, before, after))
            assert found[0] == pytest.approx(log_g[0], rel=1e-5, abs=1e-7)
            assert found[1] == 0  # it was finished before

    def test_temperature_divides(self):
        x = self.particles([False, False])
        cold = toy.bernoulli_chain(toy.INDEPENDENT, 0.6, temperature=0.5).log_potential(0, None, x)
        np.testing.assert_allclose(cold, 2 * x.logit, rtol=1e-6)

    def test_both_precisions(self, x64, key):
        model = toy.bernoulli_chain(toy.INDEPENDENT, 0.6)
        assert {leaf.dtype for leaf in (model.p, model.init(key, 3).logit)} == {jnp.dtype(jnp.float64)}

    def test_the_beam_keeps_the_best(self, key):
        weights = jnp.array([0.1, 0.5, 0.2, 0.4, 0.0, 0.3, 0.15, 0.05])
        assert sorted(np.asarray(toy.KeepBest()(key, weights)).tolist()) == [1] * 4 + [3] * 4
        outcomes, chances = toy.KeepBest().law(weights[:3], False)
        np.testing.assert_array_equal(outcomes, [[1, 1, 1]])
        np.testing.assert_array_equal(chances, [1])

    def test_bad_input(self):
        with pytest.raises(ValueError, match="'odds', 'prob', 'ratio'"):
            toy.bernoulli_chain(toy.INDEPENDENT, 0.6, potential="logit")
        with pytest.raises(ValueError, match="independent rewards only"):
            toy.exact_target(toy.PERSISTENT, "odds", np.array(0.6))
        assert np.isfinite(toy.exact_target(toy.PERSISTENT, "ratio", np.array(0.6)).log_evidence)
