"""Training of the chains models: parts with exact answers, planted bugs, and a tiny run from end to end.

Exact: the schedule at its corners, a grown model equal to the one it grew from, samples against the verifier of texts,
areas under the curve by counting pairs, frequencies of drawn tokens against their probabilities (false alarm 1e-6).

Planted bugs, each shown to be caught: a loss that is not a number, labels that forget earlier errors, a sampler that
ignores the temperature, a proposer as good as the judge, a reward that knows the number of the step only, a reward
that overstates, a missing number.
"""

import dataclasses
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from probinf.core import InferenceError, Run, run_steps
from probinf.experiments import _train_chains as train
from probinf.experiments import _train_chains_fit as fitting
from probinf.experiments import _train_chains_measure as measuring
from probinf.experiments import _train_chains_reward as rewarding
from probinf.experiments import _train_chains_samples as sampling
from probinf.experiments._page import plain
from probinf.experiments._workspace import open_workspace
from probinf.llm import _chains as chains
from probinf.models.lm import init_language_model

TINY = dataclasses.replace(train.SHAPE, dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8)


@pytest.fixture(scope="module")
def tiny():
    return init_language_model(jax.random.key(0), TINY)


@pytest.fixture(scope="module")
def made():
    """Made-up solutions, whose labels are of single steps."""
    return jax.jit(rewarding.corrupted, static_argnums=1)(jax.random.key(5), 500)


@pytest.fixture(scope="module")
def right(made):
    """Four problems and their solutions."""
    problem = made.problem[:4]
    return problem, jax.jit(lambda problem: chains.solution_tokens(chains.results(problem)))(problem)


keep = eqx.filter_jit(fitting._keep)
update = eqx.filter_jit(fitting.update)
prefixes_correct = jax.jit(sampling.prefixes_correct)


class TestSchedule:
    def test_corners(self):
        schedule = fitting.Schedule(1.0, 0.1, 10, 110)
        found = [float(schedule(jnp.asarray(step))) for step in (0, 4, 10, 60, 110, 500)]
        np.testing.assert_allclose(found, [0.1, 0.5, 1.0, 0.55, 0.1, 0.1], rtol=1e-6)


def as_arrays(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


class TestFit:
    def test_a_step_changes_every_weight(self, tiny):
        fit = fitting.start_fit(tiny)
        gradient = jax.tree.map(jnp.ones_like, tiny)
        moved = update(fit, jnp.asarray(1.0), gradient, jnp.asarray(0.1))
        for new, old in zip(as_arrays(moved.model), as_arrays(tiny), strict=True):
            assert np.any(new != old)
        # Uphill is wrong: embeddings move against their gradient.
        assert np.all(np.asarray(moved.model.embed) < np.asarray(tiny.embed))

    @pytest.mark.parametrize("bad", ["loss", "gradient"])
    def test_what_is_not_finite_stops_everything(self, tiny, bad):
        fit = fitting.start_fit(tiny)
        gradient = jax.tree.map(jnp.ones_like, tiny)
        loss = jnp.asarray(math.nan if bad == "loss" else 1.0)
        if bad == "gradient":
            gradient = eqx.tree_at(lambda model: model.norm, gradient, gradient.norm.at[0].set(jnp.inf))
        failed = update(fit, loss, gradient, jnp.asarray(0.1))
        later = update(failed, jnp.asarray(1.0), jax.tree.map(jnp.ones_like, tiny), jnp.asarray(0.1))
        assert bool(later.failed)
        for new, old in zip(as_arrays(later.model), as_arrays(tiny), strict=True):
            np.testing.assert_array_equal(new, old)

    def test_snapshots(self, tiny):
        kept = fitting.start_snapshots(tiny, 2)
        targets = jnp.array([0.3, 0.9])
        other = jax.tree.map(lambda leaf: leaf + 1, tiny)
        kept = keep(kept, tiny, jnp.asarray(1.0), targets, jnp.asarray(5))  # the average is 0.25
        assert not kept.found.any()
        kept = keep(kept, other, jnp.asarray(1.0), targets, jnp.asarray(6))  # 0.4375
        kept = keep(kept, tiny, jnp.asarray(1.0), targets, jnp.asarray(7))
        np.testing.assert_array_equal(kept.found, [True, False])
        assert int(kept.steps[0]) == 6
        for found, wanted in zip(as_arrays(fitting.snapshot(kept, 0)), as_arrays(other), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def language_step():
    return fitting.LanguageStep(fitting.Schedule(1e-2, 1e-3, 2, 30), jnp.array([0.0, 2.0]), 8)


@pytest.mark.no_key_reuse
class TestLanguageStep:
    def test_it_learns_and_keeps(self, tiny, language_step, tmp_path):
        start = (fitting.start_fit(tiny), fitting.start_snapshots(tiny, 2))
        done = run_steps(jax.random.key(1), language_step, start, 30, controls=(fitting.StopAtNaN(),))
        loss = np.asarray(done.records.loss)
        assert loss[0] == pytest.approx(math.log(17), rel=0.05)
        assert loss[-5:].mean() < 2.4
        np.testing.assert_array_equal(done.state[1].found, [True, False])
        for found, wanted in zip(as_arrays(fitting.snapshot(done.state[1], 0)), as_arrays(tiny), strict=True):
            np.testing.assert_array_equal(found, wanted)

    def test_nan_ends_the_run(self, tiny, language_step, tmp_path):
        broken = eqx.tree_at(lambda model: model.norm, tiny, tiny.norm.at[0].set(jnp.nan))
        start = (fitting.start_fit(broken), fitting.start_snapshots(tiny, 2))
        with (
            open_workspace(tmp_path / "run", {}) as workspace,
            pytest.raises(InferenceError, match=r"TRAIN_NAN.*language model.*step 0.*learning rate") as caught,
        ):
            train._trained(jax.random.key(1), language_step, start, 60, "language model", workspace)
        assert caught.value.result.num_done == fitting.BORDER

    def test_probabilities_of_solutions(self, tiny):
        """`language_accuracies` on logits made by hand."""
        solution = jnp.array([[3, chains.END_STEP, 4, chains.EOS]] * 2)
        right = jax.nn.one_hot(solution, 17)
        probability = jnp.where(right == 1, 0.5, 0.5 / 16).at[1, 2].set(jnp.full(17, 0.1).at[5].set(0.6))
        found = fitting.language_accuracies(jnp.log(probability), solution)
        np.testing.assert_allclose(found, [0.75, 0.5, (0.5**4 + 0.1 * 0.5**3) / 2], rtol=1e-5)
        del tiny


class TestGrow:
    def test_the_model_says_the_same(self, tiny, right, key):
        grown = rewarding.grow(key, tiny, 2)
        apply = eqx.filter_jit(lambda model, tokens: model(tokens))
        old, new = apply(tiny, right[0]), apply(grown, right[0])
        np.testing.assert_array_equal(new.logits, old.logits)
        np.testing.assert_array_equal(new.values, 0)
        assert len(grown.layers) == grown.config.num_layers == 2

    def test_a_model_does_not_shrink(self, tiny, key):
        deep = dataclasses.replace(tiny, config=dataclasses.replace(TINY, num_layers=2))
        with pytest.raises(ValueError, match="`num_layers` is 1"):
            rewarding.grow(key, deep, 1)

    def test_a_model_without_a_second_head(self, tiny, right):
        with pytest.raises(ValueError, match="no value head"):
            jax.eval_shape(lambda: rewarding.solution_values(tiny, *right))


def text_of(tokens):
    return "".join(chains.VOCABULARY[token] for token in tokens)


def by_texts(problem, solution):
    """Labels of prefixes by the verifier of texts."""
    flags = chains.verify(text_of(problem[1:]), text_of(solution))
    return np.logical_and.accumulate(flags)


class TestSamples:
    def test_labels_are_those_of_texts(self, made):
        found = prefixes_correct(made.problem, made.solution)
        forgetful = 0
        for problem, solution, prefix, single in zip(
            *(np.asarray(part)[:100] for part in (made.problem, made.solution, found, made.labels)), strict=True
        ):
            np.testing.assert_array_equal(prefix, by_texts(problem, solution))
            np.testing.assert_array_equal(single, chains.verify(text_of(problem[1:]), text_of(solution)))
            forgetful += np.any(single != prefix)
        assert forgetful > 50  # labels that forget earlier errors would be told from these

    def test_half_the_made_up_results_are_blind(self, made):
        labels = np.asarray(made.labels)
        error = math.sqrt(0.55 * 0.45 / labels.size)
        assert labels.mean() == pytest.approx(0.55, abs=5 * error)

    def test_a_step_that_does_not_end_is_wrong(self, right):
        problem, solution = right
        changed = np.array(solution)
        places = [5, 23, 3, 0]
        for row, (place, token) in enumerate(zip(places, (3, chains.END_STEP, chains.EOS, chains.BOS), strict=True)):
            changed[row, place] = token
        labels = prefixes_correct(problem, jnp.asarray(changed))
        np.testing.assert_array_equal(np.sum(labels, axis=1), [place // 2 for place in places])
        assert np.all(prefixes_correct(problem, solution))

    @pytest.mark.no_key_reuse
    @pytest.mark.parametrize("temperature", [1.0, 0.25])
    def test_tokens_have_their_probabilities(self, tiny, temperature):
        """First and third token of 2000 solutions: sum of squares over their variance, tokens as given by the model."""
        sharp = eqx.tree_at(lambda model: model.embed, tiny, 20 * tiny.embed)
        found = sampling.draw_samples(jax.random.key(9), sharp, jnp.asarray(temperature), 2000)
        texts = jnp.concatenate([found.problem, found.solution], axis=1)
        logits = np.asarray(eqx.filter_jit(lambda model, texts: model(texts).logits)(sharp, texts), np.float64)
        logits = logits[:, chains.PROMPT_LENGTH - 1 :]
        for place in (0, 2):
            worst = {}
            for assumed in (1.0, 0.25):
                probability = scipy.special.softmax(logits[:, place] / assumed, axis=-1)
                drawn = np.eye(17)[np.asarray(found.solution[:, place])]
                variance = (probability * (1 - probability)).sum(axis=0)
                worst[assumed] = np.max(np.abs((drawn - probability).sum(axis=0)) / np.sqrt(variance + 1e-9))
            bound = scipy.stats.norm.isf(1e-6 / (2 * 17 * 4)) + 0.5  # sums of 2000 are normal nearly, not quite
            assert worst[temperature] < bound
            assert worst[1.25 - temperature] > 2 * bound


class TestMeasures:
    def test_area_under_the_curve_counts_pairs(self):
        rng = np.random.default_rng(0)
        values, labels = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
        pairs = [(a > b) + 0.5 * (a == b) for a in values[labels] for b in values[~labels]]
        assert measuring.area_under_curve(values, labels) == pytest.approx(np.mean(pairs))
        assert math.isnan(measuring.area_under_curve(values, np.ones(40, bool)))

    def test_calibration(self):
        bins = measuring.calibration(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
        np.testing.assert_allclose(bins[0], [0.05, 0.5, 0.5])
        np.testing.assert_allclose(bins[9], [0.975, 1.0, 0.5])
        np.testing.assert_array_equal(bins[1:9], 0)

    def test_language(self, tiny, monkeypatch):
        """Groups change nothing, and coverage is that of probabilities computed here."""
        monkeypatch.setattr(measuring, "GROUP_SIZE", 8)
        found = measuring.measure_language(jax.random.key(2), tiny, 16)
        problem = chains.problem_tokens(jax.random.key(2), 16)
        solution = jax.jit(lambda problem: chains.solution_tokens(chains.results(problem)))(problem)
        log_probs = np.asarray(eqx.filter_jit(fitting.solution_log_probs)(tiny, problem), np.float64)
        right = np.exp(np.take_along_axis(log_probs, np.asarray(solution)[..., None], axis=-1).sum(axis=(1, 2)))
        np.testing.assert_allclose(found["coverage"][0], right.mean(), rtol=1e-4)
        np.testing.assert_allclose(found["coverage"][-1], 32 * right.mean(), rtol=1e-4)
        hits = log_probs.argmax(axis=-1) == np.asarray(solution)
        assert found["greedy_steps"] == pytest.approx(hits[:, ::2].mean())


def made_up(**changes):
    """Metrics of models that are as claimed, but for the changes, as `part__name=value`."""
    steps = np.linspace(1, 0, 400)
    coverage = {"coverage": [0.14, 0.25, 0.4, 0.6, 0.75, 0.85], "coverage_error": [0.002] * 6}
    weak = {"num_problems": 8000, "drawn": 0.141, "drawn_error": 0.004, **coverage}
    strong = {"num_problems": 8000, "greedy_chains": 0.999, "greedy_chains_error": 3e-4, "coverage": [0.998]}
    reward = {
        "num_solutions": 8000,
        "auc": [0.99] * 12,
        "auc_mean": 0.99,
        "auc_mean_error": 1e-3,
        "brier": 0.01,
        "prior_brier": 0.2,
        "calibration_error": 0.01,
    }
    metrics = {
        "language": {"loss": 2.8 * steps, "step_accuracy": 1 - 0.9 * steps},
        "reward": {"loss": 0.7 * steps, "sums": 2.3 * steps**2, "prior_loss": 0.55, "labels_end": 300},
        "weak": weak,
        "strong": strong,
        "reward_model": reward,
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        metrics[part][field] = value
    models = {"chains": weak, "chains-strong": strong, "chains-reward": reward}
    return plain({"language": metrics["language"], "reward": metrics["reward"], "shipped": models})


class TestClaims:
    def test_they_hold_for_models_that_are_as_claimed(self):
        found = train.claims(made_up())
        assert [claim.holds for claim in found] == [True] * 8
        json.dumps([claim._asdict() for claim in found])

    @pytest.mark.parametrize(
        ("place", "change"),
        [
            (0, {"language__loss": [1.3] * 400}),
            (0, {"language__step_accuracy": [0.1] * 400}),
            (1, {"reward__sums": [1.0] * 400}),
            (2, {"reward__loss": [0.5] * 400}),
            (3, {"weak__coverage": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], "weak__drawn": 0.5}),
            (3, {"weak__coverage": [0.14, 0.15, 0.16, 0.17, 0.18, 0.2]}),
            (4, {"weak__drawn": 0.2}),
            (5, {"strong__greedy_chains": 0.95}),
            (6, {"reward_model__auc_mean": 0.5}),
            (6, {"reward_model__auc_mean": math.nan}),
            (7, {"reward_model__calibration_error": 0.2}),
            (7, {"reward_model__calibration_error": math.nan}),
        ],
    )
    def test_what_is_not_as_claimed_is_caught(self, place, change):
        holds = [claim.holds for claim in train.claims(made_up(**change))]
        assert holds == [index != place for index in range(8)]

    def test_a_short_run_claims_nothing_on_the_judgement(self):
        assert len(train.claims(made_up(reward__labels_end=390))) == 7


@pytest.mark.no_key_reuse
class TestRun:
    @pytest.mark.slow
    def test_from_end_to_end(self, tmp_path, monkeypatch):
        """A tiny model, which learns nothing: what is written can be read, and a second run does nothing again."""
        monkeypatch.setattr(train, "SHAPE", TINY)
        monkeypatch.setattr(train, "TARGETS", (0.0, 0.0, 0.0))
        config = train.Config(
            language_steps=3, reward_steps=3, num_samples=12, num_problems=32, reward_layers=2, complete=True
        )
        identity = dataclasses.asdict(config)
        with open_workspace(tmp_path / "run", identity) as workspace:
            parts = train.run(config, workspace)
            assert list(parts) == ["language", "reward", "shipped", "trained"]
            claims = train.claims({name: part.metrics for name, part in parts.items()})
            by_shipped = [claim.holds for claim in claims if claim.text.startswith("The shipped")]
            assert len(claims) == 12
            assert len(by_shipped) == 5
            story = json.loads((train.model_folder(workspace, "chains-reward") / "training.json").read_text())
            assert story["config"]["language_steps"] == 3
            assert "chains-reward" in parts["trained"].section.paragraphs[-1]
        with open_workspace(tmp_path / "run", identity) as workspace:
            train.run(config, workspace)
            assert len(workspace.reused) == 4

    def test_an_interrupted_training_ends_the_experiment(self, tmp_path, monkeypatch):
        monkeypatch.setattr(train, "run_steps", lambda *args, **kwargs: Run(None, None, None, 3, interrupted=True))
        with open_workspace(tmp_path / "run", {}) as workspace, pytest.raises(KeyboardInterrupt):
            train._trained(jax.random.key(1), None, None, 60, "language model", workspace)

    def test_a_proposer_that_was_never_reached(self, tmp_path):
        with pytest.raises(InferenceError, match=r"pass@1 of 0.1 within 150 steps"):
            train._check_found(jnp.array([True, False, True]), train.Config())
