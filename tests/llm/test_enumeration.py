"""The law of the particle filter on texts, by enumeration of everything that it draws: no Monte Carlo error.

The expected mass that a run puts on each text is p(text) prod_t G_t, so that its evidence is unbiased and its weighted
texts have the target as their law. Models are tables over all prefixes; the expected masses are computed in NumPy from
the definition.

Planted bugs, shown to be caught: a finished text weighed again by its last score at each later step (its_hub), a mask
without its weight, rows rearranged without their weights, a resampling that banks no evidence, a temperature that the
weights are to correct for and do not.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import ess_below, resample, with_changes
from probinf.llm._model import LanguageSteps
from probinf.llm._run import run_steps
from probinf.llm._task import make_task
from probinf.samplers import ALL_SCHEMES
from probinf.validity import measure_law
from tests.llm._tables import all_texts, log_prob, node_of, num_nodes, steps_of, table_lm

pytestmark = pytest.mark.usefixtures("x64")

# Behind a token 1 no token 0 may follow; behind two of them nothing may, so that a text can have no way on.
GRAMMAR = np.array([[0, 1, 0], [-1, 2, 0], [-1, -1, -1]])


def models(vocab_size=3, depth=3):
    """A proposer and a judge; the last token ends a text of three."""
    stop_ids = (vocab_size - 1,) if vocab_size == 3 else ()
    return tuple(table_lm(seed, vocab_size, depth, stop_ids=stop_ids, scale=1.5) for seed in (1, 2))


def task_of(lm, **options):
    return make_task(lm, [0], **({"step": llm.block(1), "max_steps": 3} | options))


def masses(lm, capacity, log_potential):
    """p(text) prod_t G_t of every text, by its node in the tree of all texts."""
    found = np.zeros(num_nodes(lm.vocab_size, capacity))
    for text in all_texts(lm, capacity, lm.stop_ids):
        found[node_of(text, lm.vocab_size)] = np.exp(log_prob(lm, text) + log_potential(text))
    return found


def measure(population, lm):
    """The mass that a population puts on every text, by its node."""
    rows = population.particles
    node = jnp.zeros(rows.length.shape, jnp.int32)
    for place in range(rows.tokens.shape[1]):
        node = jnp.where(place < rows.length, lm.vocab_size * node + rows.tokens[:, place] + 1, node)
    mass = jnp.exp(population.log_scale + population.log_scale_low + population.log_weights) / rows.num_rows
    return jnp.zeros(num_nodes(lm.vocab_size, rows.tokens.shape[1])).at[node].add(mass)


def law(lm, task, expected, *, num_particles=2, rule=None, kind=LanguageSteps):
    """Whether the expected measure of a run is `expected`; `kind` may be a `LanguageSteps` with a bug."""
    rule = resample(ALL_SCHEMES["multinomial"]) if rule is None else rule

    def run(key):
        model = task.setup.model(task.prompt(0))
        model = kind(model.decoder, model.first_logits, model.potential, model.max_steps, model.capacity)
        return measure(run_steps(key, model, rule, num_particles=num_particles).population, lm)

    return measure_law(run, expected, subject="particle_filter")


def value_of(judge, text):
    return float(judge.model.values[node_of(text, judge.vocab_size)])


def prefixes(steps):
    return [sum(steps[: t + 1], ()) for t in range(len(steps))]


def log_odds(judge, steps):
    return sum(value_of(judge, prefix) for prefix in prefixes(steps))


def legal(text):
    """0 for texts of the grammar, else -inf."""
    state = 0
    for token in text:
        state = GRAMMAR[state, token]
        if state < 0:
            return -np.inf
    return 0.0


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


TWO_OR_THREE_STEPS = pytest.mark.parametrize("steps", [2, slow(3)])


@pytest.mark.parametrize(("scheme", "steps"), [("systematic", 2), *(slow(name, 3) for name in sorted(ALL_SCHEMES))])
def test_odds(scheme, steps):
    lm, judge = models(3, steps)
    expected = masses(lm, steps, lambda text: log_odds(judge, steps_of(text, (), 1)))
    task = task_of(lm, scorer=judge, potential="odds", max_steps=steps)
    check = law(lm, task, expected, rule=resample(ALL_SCHEMES[scheme]))
    assert check.passed, check


class WeighsFinishedAgain(LanguageSteps):
    """Planted: finished rows get the logit of their last score again, as in its_hub."""

    def log_potential(self, t, x_prev, x):
        last = jnp.take_along_axis(x.scores, jnp.maximum(x.num_steps - 1, 0)[:, None], axis=1)[:, 0]
        again = jnp.where(jnp.isnan(last), 0, jnp.log(last) - jnp.log1p(-last))
        return jnp.where((x.step_tokens == 0) & x.finished, again, x.log_increment)


def no_evidence(key, population, step):
    """Planted: a resampling that banks nothing."""
    resampled, info = resample(ALL_SCHEMES["multinomial"])(key, population, step)
    return with_changes(resampled, log_scale=population.log_scale), info


def only_weights_move(key, population, step):
    """Planted: rows change places, and their weights stay."""
    swapped = with_changes(population, log_weights=population.log_weights[::-1])
    return resample(ALL_SCHEMES["multinomial"])(key, swapped, step)


@pytest.mark.parametrize(
    "bug", [{"kind": WeighsFinishedAgain}, slow({"rule": no_evidence}), slow({"rule": only_weights_move})]
)
def test_planted_bugs_are_caught(bug):
    lm, judge = models(3, 2)
    expected = masses(lm, 2, lambda text: log_odds(judge, steps_of(text, (), 1)))
    task = task_of(lm, scorer=judge, potential="odds", max_steps=2)
    assert not law(lm, task, expected, **bug).passed  # it passes in `test_odds` without


@TWO_OR_THREE_STEPS
def test_the_judge_has_evidence_one(steps):
    """E[Z hat] = 1 exactly, and the weighted texts are those of the strong model."""
    lm, judge = models(3, steps)
    expected = masses(lm, steps, lambda text: log_prob(judge, text) - log_prob(lm, text))
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    task = task_of(lm, scorer=judge, potential="judge", max_steps=steps)
    check = law(lm, task, expected, rule=resample(ALL_SCHEMES["multinomial"], when=ess_below(0.9)))
    assert check.passed, check


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prob", "ratio", "final"])
def test_rewards(name):
    lm, judge = models()

    def log_potential(text):
        logs = [-np.log1p(np.exp(-value_of(judge, prefix))) for prefix in prefixes(steps_of(text, (), 1))]
        return sum(logs) if name == "prob" else logs[-1]

    task = task_of(lm, scorer=judge, potential=name)
    check = law(lm, task, masses(lm, 3, log_potential))
    assert check.passed, check


class ForgetsTheMask(LanguageSteps):
    """Planted: tokens are masked, and only dead ends weigh anything."""

    def weigh(self, t, rows, view, made, scored):
        free = made._replace(correction=jnp.where(made.correction > -jnp.inf, 0, made.correction))
        return super().weigh(t, rows, view, free, scored)


@TWO_OR_THREE_STEPS
def test_a_mask_weighs_what_it_forbids(steps):
    lm, _ = models(3, steps)
    expected = masses(lm, steps, legal)
    assert 0 < expected.sum() < 1
    task = task_of(lm, mask=llm.automaton(GRAMMAR), max_steps=steps)
    rule = resample(ALL_SCHEMES["systematic"], when=ess_below(0.9))
    check = law(lm, task, expected, rule=rule)
    assert check.passed, check
    assert not law(lm, task, expected, rule=rule, kind=ForgetsTheMask).passed


class ForgetsTheTemperature(LanguageSteps):
    """Planted: the weights leave out what corrects for temperature and filters."""

    def weigh(self, t, rows, view, made, scored):
        return super().weigh(t, rows, view, made._replace(correction=jnp.zeros_like(made.correction)), scored)


@pytest.mark.slow
def test_steps_of_different_lengths_and_weights_that_correct_for_the_temperature():
    lm, judge = models(2, 4)
    mask = llm.automaton(np.array([[0, 1], [0, -1]]))  # no two tokens 1 in a row
    task = task_of(
        lm,
        scorer=judge,
        potential="odds",
        step=llm.delimiter(0, max_tokens=2),
        max_steps=2,
        temperature=0.7,
        mask=mask,
        base="model",
    )
    expected = np.zeros(num_nodes(2, 4))
    for first in [(0,), (1, 0)]:
        for second in [(0,), (1, 0)]:
            log_mass = log_prob(lm, first + second) + log_odds(judge, (first, second))
            expected[node_of(first + second, 2)] = np.exp(log_mass)
    rule = resample(ALL_SCHEMES["stratified"])
    check = law(lm, task, expected, rule=rule)
    assert check.passed, check
    assert not law(lm, task, expected, rule=rule, kind=ForgetsTheTemperature).passed


@pytest.mark.slow
@pytest.mark.parametrize("scheme", sorted(ALL_SCHEMES))
def test_three_rows(scheme):
    lm, judge = models(2, 2)
    expected = masses(lm, 2, lambda text: log_odds(judge, steps_of(text, (), 1)))
    task = task_of(lm, scorer=judge, potential="odds", max_steps=2)
    check = law(lm, task, expected, num_particles=3, rule=resample(ALL_SCHEMES[scheme]))
    assert check.passed, check
