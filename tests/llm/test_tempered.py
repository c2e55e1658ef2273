"""Filters that draw by flattened weights: the expected mass of every text, by enumeration of what they draw.

One program holds all rules: which of them is used is the first choice that is enumerated. Planted bugs, shown to be
caught: the entropic filter as published, whose drawn particles are equally weighted; and a bank of the mean weight
where the mean of what was drawn by belongs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import Population, categorical, choose, fresh_population, with_changes
from probinf.llm._flattening import at_temperatures, entropic, no_potentials, reach_ess, resample_flat
from probinf.llm._raised import Raised
from probinf.llm._run import run_steps
from probinf.llm._tempered import entropic_filter, tempered_filter
from probinf.samplers import ALL_SCHEMES
from probinf.validity import enumerate_algorithm
from tests.llm._tables import num_nodes
from tests.llm._tiny import expected_measure, log_odds, measure, models, tiny_task

NO_THREE_ZEROS = llm.automaton(np.array([[1, 3], [2, 3], [-1, 3], [-1, -1]]))  # token 1 ends a text


class Either(eqx.Module):
    """One of several rules."""

    rules: tuple
    index: jax.Array

    def __call__(self, step, population, log_total):
        flats = [rule(step, population, log_total) for rule in self.rules]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[self.index], *flats)


class Planted(resample_flat):
    """What is left of the weights is forgotten (published ePF), or banked is the wrong mean."""

    bug: jax.Array

    def __call__(self, key, population, step=None):
        drawn, info = super().__call__(key, population, step)
        forgets = info.resampled & (self.bug == 1)
        log_weights = jnp.where(forgets, 0, drawn.log_weights)
        wrong = population.log_scale + jax.nn.logsumexp(population.log_weights) - jnp.log(population.num_particles)
        log_scale = jnp.where(forgets | (info.resampled & (self.bug == 2)), wrong, drawn.log_scale)
        return with_changes(drawn, log_weights=log_weights, log_scale=log_scale), info


def rules(num_steps):
    always, often = jnp.asarray(1.0), jnp.asarray(0.9)
    return (
        at_temperatures(jnp.full(num_steps, 0.3), always),
        at_temperatures(jnp.linspace(0.0, 1.0, num_steps), often),
        reach_ess(often),
        entropic(always, always, num_steps, "ess"),
        entropic(always, always, num_steps, "entropy"),
        entropic(often, jnp.asarray(0.5), num_steps, "base"),
    )


@pytest.mark.usefixtures("x64")
def test_every_rule_keeps_the_expected_measure():
    lm, judge = models(2, 3, (1,))
    task = tiny_task(lm, scorer=judge, potential="odds", mask=NO_THREE_ZEROS)
    choices = rules(3)
    count = len(choices) + 2

    def run(key):
        index_key, run_key = jax.random.split(key)
        index = choose(index_key, categorical, jnp.ones((1, count)))[0]
        rule = Either(choices, jnp.where(index < len(choices), index, 0))
        planted = Planted(rule, ALL_SCHEMES["multinomial"], jnp.maximum(index - len(choices) + 1, 0))
        model = task.setup.model(task.prompt(0))
        found = run_steps(run_key, model, planted, num_particles=2, context=no_potentials(2))
        return jnp.zeros((count, num_nodes(2, 3))).at[index].set(count * measure(found.population, 2))

    found = np.asarray(enumerate_algorithm(run).expectation(lambda value: value))
    expected = expected_measure(lm, 3, lambda text: -np.inf if text == (0, 0, 0) else log_odds(judge, text))
    error = np.max(np.abs(found - expected), axis=1) / np.max(expected)
    assert np.all(error[: len(choices)] < 1e-12), error
    assert np.all(error[len(choices) :] > 1e-3), error


class HardPotential(llm.Potential):
    """The values of a table as log potentials; a text of two tokens 0 is impossible."""

    values: jax.Array

    def update(self, state, step):
        node = jnp.zeros_like(step.length)
        for place in range(step.all_tokens.shape[1]):
            node = jnp.where(place < step.length, 2 * node + step.all_tokens[:, place] + 1, node)
        value = jnp.where(node == 3, -jnp.inf, self.values[node])
        log_potential = jnp.where(step.active, value, 0)
        return state, llm.Scored(log_potential, log_potential, jnp.zeros_like(step.count))


@pytest.mark.usefixtures("x64")
def test_a_raised_potential_has_its_power_as_target():
    """At power 0 what is impossible weighs nothing at all; the sums that are kept are those at power 1."""
    lm, judge = models(2, 2)
    powers = jnp.asarray([0.0, 0.5, 1.0])
    potential = Raised(HardPotential(judge.model.values), jnp.ones(()))
    task = tiny_task(lm, potential=potential, max_steps=2)
    rule = resample_flat(at_temperatures(jnp.ones(2), jnp.ones(())), ALL_SCHEMES["multinomial"])

    def run(key):
        index_key, run_key = jax.random.split(key)
        index = choose(index_key, categorical, jnp.ones((1, 3)))[0]
        model = task.setup.model(task.prompt(0))
        model = eqx.tree_at(lambda m: m.potential.inverse_temperature, model, powers[index])
        found = run_steps(run_key, model, rule, num_particles=2, context=no_potentials(2)).population
        total = found.particles.potential_state.log_total
        # L is either that of the text or, with nothing kept, shows as a mass that no text has.
        weighted = measure(
            with_changes(found, log_weights=found.log_weights + jnp.where(total > -jnp.inf, total, -99)), 2
        )
        return jnp.zeros((3, 2, num_nodes(2, 2))).at[index].set(3 * jnp.stack([measure(found, 2), weighted]))

    def log_potential(text):
        return -np.inf if text == (0, 0) else log_odds(judge, text)

    found = np.asarray(enumerate_algorithm(run).expectation(lambda value: value))
    for power, (mass, weighted) in zip(np.asarray(powers), found, strict=True):

        def raised(text, power=power):
            return 0.0 if power == 0 else power * log_potential(text)

        np.testing.assert_allclose(mass, expected_measure(lm, 2, raised), rtol=1e-12)
        impossible = expected_measure(lm, 2, lambda text: raised(text) + max(log_potential(text), -99))
        np.testing.assert_allclose(weighted, impossible, rtol=1e-12)


def population(log_weights) -> Population:
    weights = jnp.asarray(log_weights)
    return with_changes(fresh_population(jnp.zeros(weights.shape)), log_weights=weights)


def test_temperatures_of_the_entropic_filter():
    """By hand: weights 1/2, 1/4, 1/4, 0 have ESS 8/3 and entropy 1.5 log 2 of log 4, after 1 of 4 steps."""
    log_weights = jnp.log(jnp.asarray([0.5, 0.25, 0.25, 0.0]))
    expected = {"ess": 4 / (8 / 3) * 0.75, "entropy": 1 / (0.75 + 0.25 * 0.25), "base": 1.75}
    for schedule, temperature in expected.items():
        rule = entropic(jnp.ones(()), jnp.asarray(0.5), 4, schedule)
        assert float(rule.temperature(jnp.asarray(1), population(log_weights))) == pytest.approx(temperature, rel=1e-6)
        assert float(rule.temperature(jnp.asarray(2), population(log_weights))) == 1
        flat = rule(jnp.asarray(1), population(log_weights), jnp.zeros(4))
        np.testing.assert_allclose(flat.log_psi[:3], (1 / temperature - 1) * log_weights[:3], rtol=1e-5)
        assert np.all(np.isfinite(flat.log_psi))


def test_the_adaptive_power_is_the_largest_that_reaches_the_ess():
    log_weights = jnp.asarray([3.0, 0.0, -1.0, -2.0])
    flat = reach_ess(jnp.asarray(0.6))(jnp.asarray(1), population(log_weights), log_weights)
    assert bool(flat.due)
    assert 0 < float(flat.power) < 1

    def ess(power):
        weights = np.exp(power * np.asarray(log_weights))
        return weights.sum() ** 2 / np.sum(weights**2)

    assert ess(float(flat.power)) >= 0.6 * 4 > ess(float(flat.power) + 1 / 32)


@pytest.mark.parametrize(
    ("method", "options", "name"),
    [
        (tempered_filter, {"inverse_temperature": -0.5}, "inverse_temperature"),
        (tempered_filter, {"inverse_temperature": "hot"}, "inverse_temperature"),
        (tempered_filter, {"ess_threshold": 2}, "ess_threshold"),
        (entropic_filter, {"schedule": "linear"}, "schedule"),
        (entropic_filter, {"until": -1}, "until"),
    ],
)
def test_bad_arguments(key, method, options, name):
    lm, judge = models(2, 2)
    with pytest.raises(ValueError, match=f"`{name}` is"):
        method(key, lm, [0], num_particles=4, scorer=judge, step=llm.block(1), max_steps=2, **options)


@pytest.mark.slow
def test_what_a_run_tells(key):
    lm, judge = models(2, 3)
    options = {"scorer": judge, "step": llm.block(1), "max_steps": 3, "ess_threshold": 1.0}
    found = tempered_filter(key, lm, [0], num_particles=8, inverse_temperature=(0.2, 0.8), **options)
    np.testing.assert_allclose(found.records["inverse_temperature"], [1, 0.2, 0.5], rtol=1e-6)
    assert found.method == "tempered_filter"
    assert found.tokens_used == 8 * 3
    assert np.isfinite(found.log_evidence)
