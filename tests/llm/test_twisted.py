"""Twisted SMC on texts: the expected mass of every text, by enumeration, for a twist that is far from the best.

Planted bug, shown to be caught: the twist that ancestors were drawn by is left in the weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import categorical, choose, ess_below, resample, with_changes
from probinf.llm._run import run_steps
from probinf.llm._scorers import device_scorer
from probinf.llm._twisted import Twisted, last_log_psi, twisted_smc
from probinf.samplers import ALL_SCHEMES
from probinf.validity import enumerate_algorithm
from tests.llm._tables import num_nodes
from tests.llm._tiny import expected_measure, log_odds, measure, models, nodes, tiny_task, value_of

pytestmark = pytest.mark.usefixtures("x64")


class Values(eqx.Module):
    """A table over all prefixes, as log psi."""

    values: jax.Array

    def __call__(self, step):
        return self.values[nodes(step.all_tokens, step.length, 2)]


def rule(threshold=1.0):
    return resample(ALL_SCHEMES["multinomial"], when=ess_below(threshold), look_ahead=last_log_psi)


class Either(eqx.Module):
    """The rule, or the planted bug."""

    planted: jax.Array

    def __call__(self, key, population, step=None):
        drawn, info = rule()(key, population, step)
        forgets = self.planted & info.resampled
        return with_changes(drawn, log_weights=jnp.where(forgets, 0, drawn.log_weights)), info


def test_any_twist_keeps_the_target_and_one_left_in_the_weights_does_not():
    lm, judge = models(2, 3, (1,))
    twist = device_scorer(
        Values(jnp.asarray(np.random.default_rng(5).normal(size=num_nodes(2, 3)))), returns="log_weight"
    )
    scores = llm.process_reward(judge, "odds")
    task = tiny_task(lm, potential=Twisted(twist, scores))

    def run(key):
        index_key, run_key = jax.random.split(key)
        index = choose(index_key, categorical, jnp.ones((1, 2)))[0]
        found = run_steps(run_key, task.setup.model(task.prompt(0)), Either(index == 1), num_particles=2)
        return jnp.zeros((2, num_nodes(2, 3))).at[index].set(2 * measure(found.population, 2))

    found = np.asarray(enumerate_algorithm(run).expectation(lambda value: value))
    expected = expected_measure(lm, 3, lambda text: log_odds(judge, text))
    error = np.max(np.abs(found - expected), axis=1) / np.max(expected)
    assert error[0] < 1e-12
    assert error[1] > 1e-3


@pytest.mark.slow
def test_a_value_head_alone_is_twist_and_target():
    """The target is p(x) r(x), whether a text was stopped or cut off at the last step."""
    lm, judge = models(2, 3, (1,))
    task = tiny_task(lm, potential=Twisted(llm.lm_scorer(judge), None))
    model_rule = rule(0.9)

    def run(key):
        return measure(run_steps(key, task.setup.model(task.prompt(0)), model_rule, num_particles=2).population, 2)

    found = np.asarray(enumerate_algorithm(run).expectation(lambda value: value))
    expected = expected_measure(lm, 3, lambda text: -np.log1p(np.exp(-value_of(judge, text))))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_what_a_run_tells(key):
    lm, judge = models(2, 3, (1,))
    options = {"step": llm.block(1), "max_steps": 3, "ess_threshold": 1.0}
    found = twisted_smc(key, lm, [0], num_particles=8, twist=judge, **options)
    assert found.method == "twisted_smc"
    assert np.all(found.resampled[1:])
    texts = [tuple(int(token) for token in ids) for ids in found.token_ids]
    last = [scores[~np.isnan(scores)][-1] for scores in found.scores]
    np.testing.assert_allclose(last, [-np.log1p(np.exp(-value_of(judge, text))) for text in texts], rtol=1e-6)
    assert found.scorer_tokens_used == found.tokens_used + found.prompt_ids.size
    both = twisted_smc(jax.random.clone(key), lm, [0, 1], num_particles=8, twist=judge, scorer=judge, **options)
    assert both.scorer_tokens_used == 2 * (both.tokens_used + both.prompt_ids.size)


def test_it_needs_a_twist(key):
    lm, _ = models(2, 2)
    with pytest.raises(TypeError, match="`scorer` must be"):
        twisted_smc(key, lm, [0], num_particles=4, twist=None, step=llm.block(1), max_steps=2)
