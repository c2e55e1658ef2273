"""Reversible jump against exact answers: the answers by other means, small runs, and planted bugs.

Planted bugs, each shown to be caught: moves whose probability is left out of the ratio, splits without the density of
their noise, a split without its determinant, numbers of components that two methods see differently, NaN. Each
comparison of random numbers has a false-alarm rate of 1e-6.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from probinf import samplers
from probinf.experiments import _reversible_jump as rj
from probinf.experiments import _reversible_jump_changes as changes
from probinf.experiments import _reversible_jump_claims as judged
from probinf.experiments import _reversible_jump_mixture as mixture
from probinf.experiments import _reversible_jump_selection as selection
from probinf.experiments import _reversible_jump_speed as rj_speed
from probinf.experiments._page import plain
from probinf.experiments._workspace import open_workspace
from probinf.samplers import TransDimensional, _split_merge
from probinf.samplers._trans_dimensional import JumpProposal

SMALL = rj.Config(
    num_chains=8,
    selection_steps=400,
    changes_steps=200,
    mixture_steps=100,
    num_particles=32,
    num_replicates=2,
    speed_steps=3,
    speed_rounds=1,
)
_RNG = np.random.default_rng(3)
_DESIGN = _RNG.normal(size=(14, 3)) @ np.array([[1, 0.7, 0], [0, 1, 0.2], [0, 0, 1.0]])
FEW = selection.Regression(("a", "b", "c"), _DESIGN, _DESIGN @ np.array([0.6, 0.0, -0.3]) + _RNG.normal(size=14))
SHORT = np.array([5, 4, 6, 0, 1, 0, 3, 2, 4.0])
SHORT_CHANGES, SHORT_YEARS = 3, (0, 4, 8)


def segment_moments(counts):
    """The probability of a segment's counts, and its mean rate, by quadrature over the rate; factorials left out."""
    rate = np.linspace(1e-9, 40, 100_001)
    prior = scipy.stats.gamma.pdf(rate, changes.RATE_SHAPE, scale=1 / changes.RATE_RATE)
    density = prior * rate ** counts.sum() * np.exp(-rate * counts.size)
    mass = np.trapezoid(density, rate)
    return mass, np.trapezoid(rate * density, rate) / mass


class TestOracles:
    def test_the_probabilities_of_sets_by_quadrature_over_the_noise(self):
        """Coefficients and intercept as one normal law of the response, for each noise variance."""
        n, g = len(FEW.response), len(FEW.response)
        x, y = FEW.design - FEW.design.mean(axis=0), FEW.response - FEW.response.mean()
        variance = np.exp(np.linspace(-8, 8, 4001))
        sets, found = selection.enumerate_sets(FEW)
        masses = []
        for inside in sets:
            columns = x[:, inside]
            # The intercept takes one dimension out of n; the rest has this covariance over the variance.
            precision = np.eye(n) - g / (1 + g) * columns @ np.linalg.pinv(columns)
            log_density = -0.5 * (n - 1) * np.log(variance) - 0.5 * inside.sum() * math.log1p(g)
            log_density -= 0.5 * (y @ precision @ y) / variance
            prior = 1 / (4 * math.comb(3, int(inside.sum())))
            # The measure d(variance) / variance is that of the grid.
            masses.append(prior * np.sum(np.exp(log_density)))
        np.testing.assert_allclose(found, np.array(masses) / sum(masses), rtol=1e-6)

    def test_the_target_of_sets_has_the_enumerated_probabilities(self):
        data = selection.diabetes()
        target = selection.selection_target(data)
        sets, exact = selection.enumerate_sets(data)
        logs = jax.vmap(lambda model: target.log_density(TransDimensional(model, ())))(jnp.asarray(sets))
        np.testing.assert_allclose(scipy.special.softmax(np.asarray(logs, np.float64)), exact, rtol=1e-3, atol=1e-7)

    def test_the_recursion_over_segments_by_all_segmentations(self):
        n, mass, rate = SHORT.size, np.zeros(SHORT_CHANGES + 1), np.zeros(SHORT.size)
        for k in range(SHORT_CHANGES + 1):
            prior = changes.EXPECTED_CHANGES**k / math.factorial(k) / math.comb(n - 1, k)
            for cut in itertools.combinations(range(1, n), k):
                parts = [segment_moments(part) for part in np.split(SHORT, cut)]
                weight = prior * math.prod(mass for mass, _ in parts)
                lengths = np.diff([0, *cut, n])
                mass[k] += weight
                rate += weight * np.repeat([mean for _, mean in parts], lengths)
        exact = changes.exact_changes(SHORT, SHORT_CHANGES)
        np.testing.assert_allclose(exact.number, mass / mass.sum(), rtol=1e-6)
        np.testing.assert_allclose(exact.rate, rate / mass.sum(), rtol=1e-6)

    def test_the_density_of_segments(self, x64):
        target = changes.changes_target(SHORT, SHORT_YEARS, SHORT_CHANGES)
        parameters = {"length": jnp.asarray([3, 6, 0, 0], jnp.int32), "rate": jnp.asarray([4.5, 1.5, 7.0, 0.0])}
        position = TransDimensional(jnp.asarray(2, jnp.int32), parameters)
        rates = np.repeat([4.5, 1.5], [3, 6])
        likelihood = np.sum(scipy.stats.poisson.logpmf(SHORT, rates) + scipy.special.gammaln(SHORT + 1))
        prior = scipy.stats.gamma.logpdf([4.5, 1.5], changes.RATE_SHAPE, scale=1 / changes.RATE_RATE).sum()
        prior += math.log(changes.EXPECTED_CHANGES / (SHORT.size - 1))
        assert float(target.log_density(position)) == pytest.approx(likelihood + prior, rel=1e-9)
        np.testing.assert_allclose(target.constrain(position)["rate"], [4.5, 1.5, 1.5])
        bad = parameters | {"length": jnp.asarray([9, 0, 0, 0], jnp.int32)}
        assert float(target.log_density(TransDimensional(position.model, bad))) == -math.inf

    def test_the_density_of_a_mixture(self, x64):
        components = {
            "mean": jnp.asarray([9.0, 20.0, 23.0, 1.0, 2.0, 3.0]),
            "log_scale": jnp.asarray([-0.5, 0.2, 0.9, 0.0, 0.0, 0.0]),
            "log_weight": jnp.asarray([-1.0, 0.3, 0.1, 5.0, 0.0, 0.0]),
        }
        mean, scale, weight = (np.asarray(components[name])[:3] for name in ("mean", "log_scale", "log_weight"))
        data = mixture.galaxies()
        shares = np.exp(weight) / np.exp(weight).sum()
        likelihood = np.log(scipy.stats.norm.pdf(data[:, None], mean, np.exp(scale)) @ shares).sum()
        prior = scipy.stats.norm.logpdf(mean, mixture.MEAN, mixture.MEAN_SD).sum()
        prior += scipy.stats.norm.logpdf(scale, mixture.LOG_SCALE, mixture.LOG_SCALE_SD).sum()
        prior += (scipy.stats.expon.logpdf(np.exp(weight)) + weight).sum()
        position = TransDimensional(jnp.asarray(3, jnp.int32), components)
        assert float(mixture.mixture_target(data).log_density(position)) == pytest.approx(likelihood + prior, rel=1e-9)
        fixed = mixture.fixed_target(data, 3)
        assert float(fixed.log_likelihood(components)) == pytest.approx(likelihood, rel=1e-9)

    @pytest.mark.slow
    @pytest.mark.no_key_reuse
    def test_the_evidence_of_one_component_by_quadrature(self):
        data = mixture.galaxies()
        mean, scale = np.linspace(18, 24, 601)[:, None, None], np.linspace(0.8, 2.2, 401)[None, :, None]
        logs = scipy.stats.norm.logpdf(data, mean, np.exp(scale)).sum(axis=-1)
        logs += np.asarray(scipy.stats.norm.logpdf(mean, mixture.MEAN, mixture.MEAN_SD))[..., 0]
        logs += np.asarray(scipy.stats.norm.logpdf(scale, mixture.LOG_SCALE, mixture.LOG_SCALE_SD))[..., 0]
        exact = float(np.logaddexp.reduce(logs, axis=None)) + math.log(6 / 600) + math.log(1.4 / 400)
        keys = jax.random.split(jax.random.key(4), 16)
        found = np.asarray(rj._evidence(keys, mixture.fixed_target(data, 1), 256), np.float64)
        assert rj.compare(np.exp(found - exact)[:, None], np.ones(1)).holds


class TestMoves:
    def test_a_split_keeps_weight_mean_and_variance(self, x64):
        component = {"mean": jnp.asarray(20.0), "log_scale": jnp.asarray(0.4), "log_weight": jnp.asarray(-0.3)}
        noise = {"shares": jnp.asarray(0.8), "distance": jnp.asarray(-0.6), "spreads": jnp.asarray(0.5)}
        parts = mixture.split(component, noise)
        weight, mean, scale = (
            np.array([float(part[name]) for part in parts]) for name in ("log_weight", "mean", "log_scale")
        )
        share = np.exp(weight + 0.3)
        assert share.sum() == pytest.approx(1)
        assert share @ mean == pytest.approx(20)
        assert share @ (np.exp(2 * scale) + mean**2) - 400 == pytest.approx(math.exp(0.8))
        merged, back = mixture.merge(*parts)
        for name, value in (component | noise).items():
            assert float((merged | back)[name]) == pytest.approx(float(value), rel=1e-9)

    @pytest.mark.slow
    @pytest.mark.no_key_reuse
    def test_every_move_is_its_own_inverse_with_the_determinant_of_its_derivative(self, x64):
        short = changes.changes_target(SHORT, SHORT_YEARS, SHORT_CHANGES)
        kernel = changes.changes_kernel(SHORT, SHORT_CHANGES, check=True)
        start = changes.one_segment(SHORT, 32, SHORT_CHANGES)
        numbers, rates = rj.run_chains(jax.random.key(0), kernel, short, start, 200)
        assert rates.min() > 0.05
        assert set(np.unique(numbers["changes"])) == {0, 1, 2, 3}
        target = mixture.mixture_target(mixture.galaxies())
        starts = mixture.starts(jax.random.key(1), 32)
        numbers, rates = rj.run_chains(jax.random.key(2), mixture.mixture_kernel(check=True), target, starts, 100)
        assert rates.min() > 0.01
        assert np.unique(numbers).size > 1


def few_sets(num_chains):
    start = TransDimensional(jnp.zeros((num_chains, 3), bool), ())
    target = selection.selection_target(FEW)
    models, _ = rj.run_chains(jax.random.key(5), selection.selection_kernel(3), target, start, 1500)
    return rj.measure_selection(models, *selection.enumerate_sets(FEW))


def short_changes(num_chains, seed=6):
    target = changes.changes_target(SHORT, SHORT_YEARS, SHORT_CHANGES)
    start = changes.one_segment(SHORT, num_chains, SHORT_CHANGES)
    kernel = changes.changes_kernel(SHORT, SHORT_CHANGES)
    draws, _ = rj.run_chains(jax.random.key(seed), kernel, target, start, 2500)
    return rj.measure_changes(draws, changes.exact_changes(SHORT, SHORT_CHANGES), SHORT_YEARS)


@pytest.mark.slow
@pytest.mark.no_key_reuse
class TestPlantedBugs:
    """Chains in other numbers are other programs: what is planted is compiled."""

    def test_the_chains_are_right(self):
        assert few_sets(64)["holds"]
        assert short_changes(64)["holds"]

    def test_moves_whose_probability_is_left_out(self, monkeypatch):
        monkeypatch.setattr(
            JumpProposal,
            "log_prob",
            lambda self, target, state, v: self.moves.log_prob_noise(state.point.position, v),
        )
        assert not few_sets(60)["holds"]

    def test_splits_without_the_density_of_their_noise(self, monkeypatch):
        monkeypatch.setattr(changes.Halves, "log_prob", lambda self, noise: jnp.zeros(()))
        assert not short_changes(60)["holds"]

    def test_splits_without_their_determinant(self, monkeypatch):
        exact = _split_merge._with_log_det
        monkeypatch.setattr(_split_merge, "_with_log_det", lambda *args: (exact(*args)[0], jnp.zeros(())))
        assert not short_changes(62)["holds"]


class TestMeasures:
    def test_probabilities_all_but_zero_or_one_are_not_judged(self):
        exact = np.array([1e-9, 0.3, 0.7])
        means = np.column_stack([np.zeros(64), exact[1:] + 0.01 * np.random.default_rng(0).normal(size=(64, 2))])
        found = rj.judge(means, exact)
        assert list(found["judged"]) == [False, True, True]
        assert found["holds"]
        assert not rj.judge(means + 0.02, exact)["holds"]
        assert not rj.judge(np.full((64, 3), np.nan), exact)["holds"]

    def test_two_estimates_of_a_number_of_components(self):
        rng = np.random.default_rng(1)
        log_evidences = np.log([0.2, 0.5, 0.3])[:, None] + 0.1 * rng.normal(size=(3, 16)) - 300
        truth = rng.choice(3, p=[0.2, 0.5, 0.3], size=(64, 1000)) + 1
        found = rj.measure_mixture(truth, log_evidences)
        assert found["holds"]
        np.testing.assert_allclose(found["exact"], [0.2, 0.5, 0.3], atol=0.06)
        other = rng.choice(3, p=[0.5, 0.2, 0.3], size=(64, 1000)) + 1
        assert not rj.measure_mixture(other, log_evidences)["holds"]
        assert not rj.measure_mixture(truth, np.full((3, 16), np.nan))["holds"]

    def test_the_delta_method_of_a_probability(self):
        """Against the spread of the probabilities themselves."""
        rng = np.random.default_rng(2)
        log_evidences = np.log([0.2, 0.5, 0.3])[:, None, None] + 0.05 * rng.normal(size=(3, 16, 4000))
        evidence = np.exp(log_evidences).mean(axis=1)
        spread = (evidence / evidence.sum(axis=0)).std(axis=1)
        found = rj.measure_mixture(np.ones((4, 10), int), log_evidences.reshape(3, -1))["exact_error"]
        np.testing.assert_allclose(found * math.sqrt(4000), spread, rtol=0.1)


def brief(num, **more):
    found = {"exact": [0.1, 0.6, 0.3], "mean": [0.1, 0.61, 0.29], "standard_error": [0.01] * 3, "judged": [True] * 3}
    found |= {"worst": 1.2, "bound": 6.1, "holds": True, "num_chains": 64, "num_steps": num}
    return found | more


def made_up():
    rows = [{"name": name, "ratio": ratio} for name, ratio in (("variables", 120.0), ("mixture", 60.0))]
    return {
        "selection": brief(10, names=["a", "b"], num_models=4, best=[[0]]),
        "changes": brief(10, years=[1900]),
        "mixture": brief(10, exact_error=[0.02] * 3, num_replicates=16, num_particles=512),
        "speed": {"rows": rows, "num_chains": 64, "num_rounds": 5, "num_steps": 500, "num_devices": 2},
    }


class TestClaims:
    def test_good_numbers_hold(self):
        found = judged.claims(plain(made_up()))
        assert [claim.holds for claim in found] == [True] * 4
        assert "0.6100 ± 0.0100" in found[1].ours
        assert "variables 120, mixture 60" in found[3].ours

    @pytest.mark.parametrize(
        ("part", "change", "which"),
        [
            ("selection", {"holds": False}, 0),
            ("changes", {"holds": False, "worst": math.nan}, 1),
            ("mixture", {"holds": False}, 2),
            ("speed", {"rows": [{"name": "variables", "ratio": 49.0}]}, 3),
            ("speed", {"rows": [{"name": "variables", "ratio": math.nan}]}, 3),
        ],
    )
    def test_bad_numbers_do_not(self, part, change, which):
        metrics = made_up()
        found = judged.claims(plain(metrics | {part: metrics[part] | change}))
        assert [claim.holds for claim in found] == [i != which for i in range(4)]


@pytest.mark.slow
@pytest.mark.no_key_reuse
def test_a_small_run_from_end_to_end(tmp_path, monkeypatch):
    # Programs of the other showcases take a minute to compile in three ways, and are the same code.
    monkeypatch.setattr(rj_speed, "SHOWCASES", ("variables",))
    with open_workspace(tmp_path / "rj", {"experiment": "reversible-jump"}) as workspace:
        parts = rj.run(SMALL, workspace)
        again = rj.run(SMALL, workspace)
    assert list(parts) == ["selection", "changes", "mixture", "speed"]
    assert workspace.reused == list(parts)
    assert again == parts
    found = judged.claims({name: part.metrics for name, part in parts.items()})
    assert len(found) == 4
    assert sorted(file.name for file in (tmp_path / "rj" / "figures").iterdir()) == [
        "rj-changes.svg",
        "rj-inclusion.svg",
        "rj-mixture.svg",
    ]
    assert sum(parts["mixture"].metrics["exact"]) == pytest.approx(1)
    assert [row["name"] for row in parts["speed"].metrics["rows"]] == ["variables"]


def test_draws_of_a_fixed_number_come_from_its_prior(key):
    target = mixture.fixed_target(mixture.galaxies(), 2)
    position = target.draw_prior(key)
    assert {name: leaf.shape for name, leaf in position.items()} == dict.fromkeys(position, (mixture.MAX_COMPONENTS,))
    assert np.isfinite(float(target.log_density(position)))
    assert isinstance(selection.selection_kernel(3), samplers.MHG)
