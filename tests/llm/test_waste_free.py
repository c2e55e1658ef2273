"""Waste-free SMC on texts: the expected mass of every text, by enumeration of everything that a run draws.

Planted bug, shown to be caught: a move that accepts every step that it proposes. And the reason why steps are renewed
always by default: where the ESS decides, the expected mass is another one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import categorical, choose, ess_below, extend, spawn, with_changes
from probinf.llm import _renew
from probinf.llm._renew import Cost, Remembering, acceptance, renew
from probinf.llm._waste_free import waste_free
from probinf.samplers import ALL_SCHEMES
from probinf.validity import enumerate_algorithm
from tests.llm._tables import num_nodes
from tests.llm._tiny import expected_measure, log_odds, measure, models, tiny_task


def unrolled(key, model, scheme, when):
    """`waste_free_run` with two rows, one of which is moved once, without the choices that it does not use."""
    keys = jax.random.split(key, 2 * model.max_steps)
    nothing = jnp.zeros((), jnp.int32)
    population = spawn(Remembering(model), 2, context=Cost(nothing, nothing, nothing, nothing))(keys[0])
    for t in range(1, model.max_steps + 1):
        step = jnp.asarray(t, jnp.int32)
        if t > 1:
            rule = renew(model, ALL_SCHEMES[scheme], when, 2)
            population, _ = rule(keys[2 * t - 2], population, step)
        population, _ = extend(Remembering(model))(keys[2 * t - 1], population, step)
    return with_changes(population, particles=population.particles.now)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_moves_keep_the_expected_measure_unless_they_always_accept(monkeypatch):
    lm, judge = models(2, 3, (1,))
    task = tiny_task(
        lm, scorer=judge, potential="odds", mask=llm.automaton(np.array([[1, 3], [2, 3], [-1, 3], [-1, -1]]))
    )

    def run(key):
        index_key, run_key = jax.random.split(key)
        index = choose(index_key, categorical, jnp.ones((1, 3)))[0]

        def planted(new, old):
            return jnp.where(index == 1, 1, acceptance(new, old))

        monkeypatch.setattr(_renew, "acceptance", planted)

        def when(population):
            return (index < 2) | ess_below(0.95)(population)

        found = unrolled(run_key, task.setup.model(task.prompt(0)), "multinomial", when)
        return jnp.zeros((3, num_nodes(2, 3))).at[index].set(3 * measure(found, 2))

    found = np.asarray(enumerate_algorithm(run).expectation(lambda value: value))
    expected = expected_measure(lm, 3, lambda text: -np.inf if text == (0, 0, 0) else log_odds(judge, text))
    error = np.max(np.abs(found - expected), axis=1) / np.max(expected)
    assert error[0] < 1e-12
    assert error[1] > 1e-3
    assert error[2] > 1e-3


def test_acceptance():
    new = jnp.asarray([0.5, -1.0, -jnp.inf, jnp.nan])
    np.testing.assert_allclose(acceptance(new, jnp.zeros(4)), [1, np.exp(-1), 0, 0], rtol=1e-6)


@pytest.mark.slow
def test_what_a_run_tells(key):
    """Every move's step is paid for: 2 chains of 4, so 6 more steps of one token at each of two resamplings."""
    lm, judge = models(2, 3)
    options = {"step": llm.block(1), "max_steps": 3}
    found = waste_free(key, lm, [[0], [1]], num_particles=8, scorer=judge, chain_length=4, **options)
    for one in found:
        assert one.tokens_used == 3 * 8 + 2 * 6
        assert one.scorer_tokens_used == one.tokens_used + 1
        assert 0 <= float(one.records["acceptance_rate"]) <= 1
        assert np.isfinite(one.log_evidence)
        assert len({*one.ancestors[0].tolist()}) <= 2
    assert found[0].log_evidence != found[1].log_evidence


def test_bad_arguments(key):
    lm, judge = models(2, 2)
    options = {"scorer": judge, "step": llm.block(1), "max_steps": 2}
    with pytest.raises(ValueError, match="`num_particles` is 6, not a multiple of `chain_length` = 4: take 8"):
        waste_free(key, lm, [0], num_particles=6, **options)
    with pytest.raises(ValueError, match="calls a function on the host"):
        waste_free(key, lm, [0], num_particles=8, step=llm.block(1), max_steps=2, scorer=lambda prompt, text: 0.5)
