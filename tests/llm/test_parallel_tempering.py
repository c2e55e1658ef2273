"""Exchanges of texts between powers, by enumeration; bounds on the evidence from exact draws, by enumeration.

What moves each power by itself is the conditional pass that `test_gibbs` proves. Planted bugs, shown to be caught: the
ratio of an exchange upside down, and an exchange that leaves out the difference of the powers.
"""

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import Status, categorical, choose, ess_below
from probinf.llm import _passes
from probinf.llm._conditional import conditional_run
from probinf.llm._parallel_tempering import exchange, parallel_tempering
from probinf.llm._run import Run
from probinf.llm._upper_bound import _check_followed, _tokens, log_evidence_upper_bound
from probinf.samplers import ALL_SCHEMES
from probinf.validity import enumerate_algorithm
from probinf.validity._kernel_matrix import KernelMatrix, matrix_checks
from tests.llm._folders import BOS, CHARACTERS, EOS, character_tokenizer
from tests.llm._tables import all_texts, table_lm
from tests.llm._tiny import After, log_odds, masses, models, references, tiny_task

POWERS = np.array([1.0, 0.4, 0.0])
BASE = np.array([0.5, 0.3, 0.2])  # p of three texts
LOG_TOTAL = np.array([0.7, -1.3, 2.0])


def upside_down(key, log_totals, powers, parity):
    return exchange(key, -log_totals, powers, parity)


def without_powers(key, log_totals, powers, parity):
    return exchange(key, log_totals, -jnp.arange(3.0), parity)


def exchange_report(swap):
    """Both parities in turn, on all states of three rungs with three texts each."""
    states = jnp.asarray(list(itertools.product(range(3), repeat=3)), jnp.int32)

    def run(key):
        keys = jax.random.split(key, 3)
        index = choose(keys[0], categorical, jnp.ones((1, 27)))[0]
        texts = states[index]
        for parity in (0, 1):
            order, _ = swap(keys[1 + parity], jnp.asarray(LOG_TOTAL)[texts], jnp.asarray(POWERS), parity)
            texts = texts[order]
        return index, 9 * texts[0] + 3 * texts[1] + texts[2]

    law = enumerate_algorithm(run)
    start, end, chances = (np.asarray(leaf) for leaf in (*law.outcomes, law.probabilities))
    matrix = np.zeros((27, 27))
    np.add.at(matrix, (start, end), 27 * chances)
    laws = BASE[None] * np.exp(POWERS[:, None] * LOG_TOTAL[None])
    laws = laws / laws.sum(axis=1, keepdims=True)
    joint = np.prod(laws[np.arange(3)[None], np.asarray(states)], axis=1)
    return matrix_checks(KernelMatrix(jnp.asarray(matrix), jnp.asarray(joint)), reversible=False, subject="exchange")


@pytest.mark.usefixtures("x64")
def test_exchanges_leave_the_product_of_the_laws_invariant():
    assert exchange_report(exchange).passed
    for planted in (upside_down, without_powers):
        report = exchange_report(planted)
        assert {check.law for check in report.failures} == {"invariance"}
        assert report.failures[0].found > 1e-3


def test_a_text_that_is_impossible_never_rises(key):
    order, rates = exchange(key, jnp.asarray([0.3, 0.1, -jnp.inf]), jnp.asarray([1.0, 0.5, 0.0]), 1)
    assert rates[1] == 0
    np.testing.assert_array_equal(order, [0, 1, 2])


@pytest.mark.usefixtures("x64")
def test_a_pass_led_by_an_exact_draw_bounds_the_evidence():
    """E[1 / Z hat] = 1 / Z and E[log Z hat] >= log Z."""
    lm, judge = models(2, 2)
    task = tiny_task(lm, scorer=judge, potential="odds", max_steps=2)
    texts = all_texts(lm, 2)
    target = masses(lm, texts, lambda text: log_odds(judge, text))
    states = references(texts, task)

    def run(key):
        draw_key, run_key = jax.random.split(key)
        index = choose(draw_key, categorical, jnp.asarray(target)[None])[0]
        model, reference = task.setup.model(task.prompt(0)), jax.tree.map(lambda leaf: leaf[index], states)
        options = {"scheme": ALL_SCHEMES["multinomial"], "when": ess_below(1.0), "ancestor_sampling": False}
        return conditional_run(run_key, model, reference, num_particles=2, **options).population.log_evidence

    law = enumerate_algorithm(run)
    assert float(law.expectation(lambda log_z: jnp.exp(-log_z))) == pytest.approx(1 / target.sum(), rel=1e-12)
    gap = float(law.expectation(lambda log_z: log_z)) - np.log(target.sum())
    assert 1e-3 < gap < 1


@pytest.mark.slow
def test_the_judge_brackets_its_evidence(key):
    """Texts of the judge itself are exact draws of p times p_B / p, whose evidence is 1."""
    lm, judge = models(2, 3)
    options = {"scorer": judge, "potential": "judge", "step": llm.block(1), "max_steps": 3}
    draw_key, key, other_key = jax.random.split(key, 3)
    drawn = llm.particle_filter(draw_key, judge, [0], num_particles=64, step=llm.block(1), max_steps=3)
    bound = log_evidence_upper_bound(key, lm, [0], drawn.token_ids, num_particles=8, **options)
    # Five standard errors, one-sided: a false alarm below 1e-6. The bound is about half the variance of log Z hat.
    assert bound.log_evidence > -5 * bound.standard_error
    assert bound.log_evidence < 0.5
    harmonic = np.exp(-bound.log_estimates)
    assert abs(harmonic.mean() - 1) < 5 * harmonic.std(ddof=1) / 8
    assert bound.tokens_used == 64 * 8 * 3
    assert bound.scorer_tokens_used == 64 * 8 * 3 + 1
    with pytest.raises(ValueError, match=r"`draws\[0\]` has 2 tokens, but a run led by it ends after 3"):
        log_evidence_upper_bound(other_key, lm, [0], [[0, 1]], num_particles=2, **options)


def test_draws_that_no_run_makes_are_refused():
    def followed(lengths, log_probs, log_weights):
        rows = SimpleNamespace(length=np.asarray(lengths)[:, None], log_prob=np.asarray(log_probs)[:, None])
        records: Any = SimpleNamespace(log_weights=np.asarray(log_weights)[:, :, None])
        population: Any = SimpleNamespace(particles=rows)
        _check_followed(Run(population, records), [np.zeros(3, np.int32)] * 2)

    followed([3, 3], [-1.0, -2.0], [[0.0, 0.5], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"`draws\[1\]` has 3 tokens, but a run led by it ends after 2"):
        followed([3, 2], [-1.0, -2.0], [[0.0, 0.5], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"`draws\[0\]` has probability zero"):
        followed([3, 3], [-np.inf, -2.0], [[0.0, 0.5], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"`draws\[1\]` has probability zero"):
        followed([3, 3], [-1.0, -2.0], [[0.0, 0.5], [-np.inf, 0.0]])


def test_draws_given_as_texts(key):
    """Without what the tokenizer puts before a prompt; a single text is no list of draws."""
    lm = llm.LM(table_lm(0, 17, 1).model, character_tokenizer(), (EOS,), "characters")
    assert _tokens(lm, "7;<eos>", "draws[0]").tolist() == [CHARACTERS.index("7"), CHARACTERS.index(";"), EOS]
    assert _tokens(lm, [BOS, 7], "draws[0]").tolist() == [BOS, 7]
    draws: Any = "7;"
    with pytest.raises(TypeError, match="draws"):
        log_evidence_upper_bound(key, lm, "1>", draws, num_particles=2, step=llm.block(1), max_steps=2)


@pytest.mark.slow
def test_what_a_ladder_tells(key, monkeypatch):
    """Three powers, of which a filter and six passes each write 4 texts of 3 tokens; Ctrl-C keeps two of the five."""
    lm, judge = models(2, 3)
    options: dict[str, Any] = {"num_particles": 4, "num_burn_in": 1, "num_iterations": 5, "ess_threshold": 1.0}
    options |= {"scorer": judge, "step": llm.block(1), "max_steps": 3, "inverse_temperatures": (1.0, 0.5, 0.0)}
    found = parallel_tempering(jax.random.clone(key), lm, [0], **options)
    assert found.tokens_used == 3 * (1 + 6) * 4 * 3
    assert found.scorer_tokens_used == found.tokens_used + 1
    assert found.num_particles == 5 * 4
    assert found.records["swap_rate"].shape == (2,)
    assert np.isfinite(found.log_evidence)
    own = {"num_particles": 4, "num_iterations": 5, "num_burn_in": 1, "ancestor_sampling": False}
    own |= {"resampling": "multinomial", "ess_threshold": 1.0, "inverse_temperatures": [1.0, 0.5, 0.0]}
    assert {name: found.settings[name] for name in own} == own
    monkeypatch.setattr(_passes, "run_steps", functools.partial(_passes.run_steps, controls=[After(3)]))
    part = parallel_tempering(jax.random.clone(key), lm, [0], throw=False, **options)
    assert part.status == Status.INTERRUPTED
    assert part.texts == found.texts[: 2 * 4]


@pytest.mark.slow
def test_a_ladder_on_texts(key):
    """20,000 iterations against the exact posterior and evidence.

    Passes at power 0 are fresh draws, so that the chain forgets fast: with every tenth iteration independent, the
    standard error is below 0.5 / sqrt(2000) = 0.011; the bound is five of them.
    """
    lm, judge = models(3, 3, (2,))
    texts = all_texts(lm, 3, (2,))
    target = masses(lm, texts, lambda text: log_odds(judge, text))
    options = {"scorer": judge, "step": llm.block(1), "max_steps": 3}
    found = parallel_tempering(key, lm, [0], num_particles=4, num_iterations=20_000, num_burn_in=100, **options)
    posterior = found.posterior(unfinished=True)
    for text, mass in zip(texts, target / target.sum(), strict=True):
        assert posterior.get(" ".join(map(str, text)), 0) == pytest.approx(mass, abs=0.055)
    assert found.log_evidence == pytest.approx(np.log(target.sum()), abs=0.055)
    assert np.all(found.records["swap_rate"] > 0.1)
    assert found.num_particles == 4 * 20_000


@pytest.mark.parametrize("powers", [(1.0,), (1.0, 1.0), (0.9, 0.1), (1.0, -0.1)])
def test_bad_powers(key, powers):
    lm, judge = models(2, 2)
    options = {"num_particles": 2, "num_iterations": 1, "scorer": judge, "step": llm.block(1), "max_steps": 2}
    with pytest.raises(ValueError, match="`inverse_temperatures` is"):
        parallel_tempering(key, lm, [0], inverse_temperatures=powers, **options)
