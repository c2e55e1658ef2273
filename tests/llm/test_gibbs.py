"""Particle Gibbs on texts: the matrix of one pass on all texts of a tiny model, by enumeration of everything it draws.

Models are tables over all prefixes, so that a future's probability and its scores depend on the whole text before it;
steps of different lengths, stops, masks and weights that correct for the temperature are among the cases.

Planted bugs, shown to be caught: a finished reference that stands beside the filter, weighed by its final score at each
step (its_hub); slot 0 that is led on but not pinned when rows are resampled; the reference weighed by the score of its
next step (the off-by-one of PIS); a future re-scored without its later potentials, or without its later words. Tried
once and caught: a future cut as if delimiters were looked for afresh behind the bound of a step.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import InferenceWarning, Status, ess_below, spawn, with_changes
from probinf.llm import _conditional, _passes
from probinf.llm._conditional import Led, condition, conditional_run, lead
from probinf.llm._reference import draw_reference
from probinf.samplers import ALL_SCHEMES
from tests.llm._tables import all_texts
from tests.llm._tiny import After, kernel_checks, log_odds, masses, models, references, tiny_task


def kernel(task, *, num_particles=2, scheme="multinomial", threshold=1.0, ancestor_sampling=True, unrolled=False):
    """One pass: `(key, reference, index) -> reference`."""

    scheme, when = ALL_SCHEMES[scheme], ess_below(threshold)

    def step(key, reference, index):
        del index
        run_key, draw_key = jax.random.split(key)
        model = task.setup.model(task.prompt(0))
        if unrolled:
            population = unrolled_run(run_key, model, reference, num_particles, scheme, when, ancestor_sampling)
        else:
            options = {"scheme": scheme, "when": when, "ancestor_sampling": ancestor_sampling}
            population = conditional_run(run_key, model, reference, num_particles=num_particles, **options).population
        return draw_reference(draw_key, population.particles, population.log_weights)[0]

    return step


def unrolled_run(key, model, reference, num_particles, scheme, when, ancestor_sampling):
    """`conditional_run` without the choices that it makes before the first step and does not use."""
    keys = jax.random.split(key, 2 * model.max_steps)
    nothing = jnp.zeros((), jnp.int32)
    population = spawn(model, num_particles, context=Led(reference, nothing, nothing))(keys[0])
    for t in range(1, model.max_steps + 1):
        if t > 1:
            resampling = condition(model, scheme, when, ancestor_sampling)
            population, _ = resampling(keys[2 * t - 2], population, jnp.asarray(t, jnp.int32))
        population, _ = lead(model)(keys[2 * t - 1], population, jnp.asarray(t, jnp.int32))
    return population


def problem(*, stop_ids=(), vocab_size=2, capacity=3):
    """Texts in steps of one token, weighed by odds: the task, its texts, and their masses."""
    lm, judge = models(vocab_size, capacity, stop_ids)
    task = tiny_task(lm, scorer=judge, potential="odds", max_steps=capacity)
    texts = all_texts(lm, capacity, stop_ids)
    return lm, judge, task, texts, masses(lm, texts, lambda text: log_odds(judge, text))


SLOW = pytest.mark.slow
CASES = [
    pytest.param({}, {}, id="ancestor sampling", marks=SLOW),
    pytest.param({"ancestor_sampling": False}, {}, id="plain", marks=SLOW),
    pytest.param({"threshold": 0.9}, {"stop_ids": (1,)}, id="adaptive, with stops", marks=SLOW),
    pytest.param({"threshold": 0.9, "ancestor_sampling": False}, {"stop_ids": (1,)}, id="plain, adaptive", marks=SLOW),
    pytest.param({"num_particles": 3, "unrolled": True}, {"capacity": 2}, id="three rows", marks=SLOW),
    pytest.param({"scheme": "systematic"}, {}, id="systematic", marks=SLOW),
    pytest.param(
        {"scheme": "stratified", "num_particles": 3, "unrolled": True}, {"capacity": 2}, id="stratified", marks=SLOW
    ),
    pytest.param(
        {"scheme": "residual", "num_particles": 3, "unrolled": True}, {"capacity": 2}, id="residual", marks=SLOW
    ),
    pytest.param({"unrolled": True}, {"vocab_size": 3, "stop_ids": (2,)}, id="three tokens", marks=SLOW),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("options", "which"), CASES)
def test_a_pass_leaves_the_target_invariant(options, which):
    lm, _, task, texts, target = problem(**which)
    states = references(texts, task, lm.stop_ids)
    reversible = not options.get("ancestor_sampling", True)
    report = kernel_checks(kernel(task, **options), states, texts, target, lm.vocab_size, reversible=reversible)
    assert report.passed, report


@pytest.mark.usefixtures("x64")
def test_steps_of_different_lengths_with_a_mask_and_corrected_weights():
    """A future fits only behind texts from which it is cut into the same steps; p is corrected for the temperature."""
    lm, judge = models(2, 4)
    mask = llm.automaton(np.array([[0, 1], [0, -1]]))  # no two tokens 1 in a row
    task = tiny_task(
        lm,
        scorer=judge,
        potential="odds",
        step=llm.delimiter(0, max_tokens=2),
        max_steps=2,
        temperature=0.7,
        mask=mask,
        base="model",
    )
    texts = [first + second for first in [(0,), (1, 0)] for second in [(0,), (1, 0)]]
    target = masses(lm, texts, lambda text: log_odds(judge, text, ends=(0,), max_tokens=2))
    states = references(texts, task, ends=(0,))
    report = kernel_checks(kernel(task), states, texts, target, 2)
    assert report.passed, report


@pytest.mark.usefixtures("x64")
def test_a_delimiter_that_the_bound_of_a_step_cuts_in_two():
    """Two tokens "b" end a step of at most two: behind "ab" a "b" is a step, behind "aa" the half of one.

    Every text begins with "a", to keep them few.
    """

    def cut(text):
        return text[:2], text[2:3] if text[1:3] == (1, 1) else text[2:4]

    def weigh(step):
        second, count = (values.astype(step.log_prob.dtype) for values in (step.tokens[:, 1], step.count))
        return 0.7 * second - 0.4 * count

    lm = llm.LM(models(2, 4)[0].model, Bits())
    lm = eqx.tree_at(lambda m: m.model.logits, lm, lm.model.logits.at[0, 1].set(-jnp.inf))
    task = tiny_task(lm, potential=llm.potential(weigh), step=llm.delimiter("bb", max_tokens=2), max_steps=2)
    texts = sorted({sum(cut((0, *text)), ()) for text in itertools.product((0, 1), repeat=3)})
    assert len(texts) == 7
    target = masses(lm, texts, lambda text: sum(0.7 * sum(step[1:]) - 0.4 * len(step) for step in cut(text)))
    report = kernel_checks(kernel(task, unrolled=True), references(texts, task, cut=cut), texts, target, 2)
    assert report.passed, report


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_stop_that_reaches_over_a_step_and_a_bound_on_tokens():
    """Two tokens 1 end a text: a future may end it too early behind another past, or not end it."""
    lm, judge = models(2, 3)
    lm, judge = (llm.LM(one.model, Bits()) for one in (lm, judge))
    task = tiny_task(lm, scorer=judge, potential="odds", stop="bb", max_steps=3, max_tokens=3)
    texts = [(1, 1), (0, 1, 1), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1)]
    target = masses(lm, texts, lambda text: log_odds(judge, text))
    states = references(texts, task)._replace(finished=jnp.ones(len(texts), bool))
    report = kernel_checks(kernel(task), states, texts, target, 2)
    assert report.passed, report


@pytest.mark.slow
def test_what_a_run_tells(key, monkeypatch):
    """Where rows were resampled, futures of two tokens or one are re-scored behind four rows, in each of 7 passes."""
    lm, judge = models(2, 3)
    first, second = jax.random.split(key)
    options: dict[str, Any] = {"num_particles": 4, "num_burn_in": 2, "num_iterations": 5, "ess_threshold": 1.0}
    options |= {"scorer": judge, "step": llm.block(1), "max_steps": 3}
    plain = llm.particle_gibbs(first, lm, [0], ancestor_sampling=False, **options)
    assert plain.tokens_used == (1 + 7) * 4 * 3
    found = llm.particle_gibbs(jax.random.clone(second), lm, [0], **options)
    rescored = found.tokens_used - plain.tokens_used
    assert 0 < rescored <= 7 * 4 * (2 + 1)  # equal weights are not resampled
    assert rescored % 4 == 0
    assert found.scorer_tokens_used == found.tokens_used + 1
    assert found.num_particles == 5 * 4
    np.testing.assert_allclose(found.weights.reshape(5, 4).sum(axis=1), 1 / 5, rtol=1e-6)
    np.testing.assert_array_equal(found.ancestors // 4, np.repeat(np.arange(5), 4)[None].repeat(2, axis=0))
    assert found.records["slot"].shape == (5,)
    assert np.isnan(found.log_evidence)
    own = {"num_particles": 4, "num_iterations": 5, "num_burn_in": 2, "ancestor_sampling": True}
    own |= {"resampling": "multinomial", "ess_threshold": 1.0, "scorer": "table", "potential": "odds"}
    assert {name: found.settings[name] for name in own} == own
    # Ctrl-C behind the fourth pass: the same program, of which two passes are kept.
    monkeypatch.setattr(_passes, "run_steps", functools.partial(_passes.run_steps, controls=[After(4)]))
    with pytest.warns(InferenceWarning, match="INTERRUPTED"):
        part = llm.particle_gibbs(jax.random.clone(second), lm, [0], **options)
    assert part.status == Status.INTERRUPTED
    assert part.texts == found.texts[: 2 * 4]
    np.testing.assert_array_equal(part.scores, found.scores[: 2 * 4])
    assert part.tokens_used < found.tokens_used


@pytest.mark.slow
def test_a_long_chain(key):
    """The exact posterior after 20,000 passes.

    Were every twentieth independent, the standard error would be below 0.5 / sqrt(1000) = 0.016; the bound is five.
    """
    lm, judge = models(3, 3, (2,))
    texts = all_texts(lm, 3, (2,))
    target = masses(lm, texts, lambda text: log_odds(judge, text))
    found = llm.particle_gibbs(
        key, lm, [0], num_particles=4, num_iterations=20_000, scorer=judge, step=llm.block(1), max_steps=3
    )
    posterior = found.posterior(unfinished=True)
    for text, mass in zip(texts, target / target.sum(), strict=True):
        assert posterior.get(" ".join(map(str, text)), 0) == pytest.approx(mass, abs=0.08)


def test_bad_arguments(key):
    lm, judge = models(2, 2)
    options: dict[str, Any] = {"scorer": judge, "step": llm.block(1), "max_steps": 2, "num_iterations": 1}
    on_host: dict[str, Any] = options | {"scorer": lambda prompt, text: 0.5}
    with pytest.raises(ValueError, match="`num_particles` is 1"):
        llm.particle_gibbs(key, lm, [0], num_particles=1, **options)
    with pytest.raises(ValueError, match="`ess_threshold` is 2"):
        llm.particle_gibbs(key, lm, [0], num_particles=2, ess_threshold=2, **options)
    with pytest.raises(ValueError, match="calls a function on the host"):
        llm.particle_gibbs(key, lm, [0], num_particles=2, **on_host)


@dataclass(frozen=True)
class Bits:
    """Token 0 is "a", token 1 is "b"."""

    vocab_size: int = 2

    def encode(self, text):
        return ["ab".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("ab"[i] for i in ids)


def beside_the_filter(task, judge):
    """Planted: its_hub. The reference is a finished row from the start, weighed by its final score at every step."""

    def step(key, reference, index):
        del index
        keys = jax.random.split(key, 2 * task.setup.max_steps + 1)
        model = task.setup.model(task.prompt(0))
        rows = model.empty_rows(2)
        node = 0
        for place in range(task.setup.capacity):
            node = 2 * node + reference.tokens[place] + 1
        final = judge.model.values[node]
        rows = eqx.tree_at(
            lambda r: (r.tokens, r.length, r.finished, r.boundaries, r.num_steps),
            rows,
            (
                rows.tokens.at[0].set(reference.tokens),
                rows.length.at[0].set(reference.length),
                rows.finished.at[0].set(True),
                rows.boundaries.at[0].set(reference.boundaries),
                rows.num_steps.at[0].set(reference.num_steps),
            ),
        )
        final = jnp.where(jnp.arange(2) == 0, final, 0)
        log_weights = jnp.zeros(2)
        for t in range(1, task.setup.max_steps + 1):
            rows = model.mutate(keys[2 * t - 2], jnp.asarray(t), rows)
            # Copies of the reference carry its final score with them.
            log_weights = jnp.where(rows.step_tokens == 0, final, rows.log_increment)
            if t < task.setup.max_steps:
                weights = jnp.exp(log_weights - jnp.max(log_weights))
                ancestors = ALL_SCHEMES["multinomial"](keys[2 * t - 1], weights, pinned=True)
                rows = jax.tree.map(lambda leaf, a=ancestors: leaf[a], rows)
                final = final[ancestors]
        return draw_reference(keys[-1], rows, log_weights)[0]

    return step


class Unpinned(condition):
    """Planted: slot 0 is led through the reference, but may have any ancestor."""

    def _kept(self, key, population, done):
        del done
        ancestors = self.scheme(key, population.weights, pinned=False)
        return jax.tree.map(lambda leaf: leaf[ancestors], population.particles), ancestors, population.context


class OffByOne(lead):
    """Planted: the reference's weight at step t is that of its step t + 1, as far as there is one."""

    def __call__(self, key, population, step=None):
        extended, info = super().__call__(key, population, step)
        rows, tokens = extended.particles, population.context.reference.tokens
        scores: Any = self.model.potential
        values = scores.scorer.lm.model.values
        node = jnp.zeros((), jnp.int32)
        for place in range(tokens.shape[0]):
            node = jnp.where(
                place < jnp.minimum(rows.length[0] + 1, tokens.shape[0]), 2 * node + tokens[place] + 1, node
            )
        shift = jnp.zeros_like(extended.log_weights).at[0].set(values[node] - rows.log_increment[0])
        return with_changes(extended, log_weights=extended.log_weights + shift), info


def without_potentials(rescore):
    """Planted: the future weighs what the model says of it, and no later potential."""

    def planted(model, rows, reference, num_steps):
        found = rescore(model, rows, reference, num_steps)
        bare = eqx.tree_at(lambda m: m.potential, model, llm.no_potential())
        bare_rows = eqx.tree_at(
            lambda r: r.potential_state, rows, None, is_leaf=lambda leaf: leaf is rows.potential_state
        )
        return found._replace(log_mass=rescore(bare, bare_rows, reference, num_steps).log_mass)

    return planted


def next_step_only(rescore):
    """Planted: ancestors are drawn as if texts were Markov: by the future's next step alone."""

    def planted(model, rows, reference, num_steps):
        cut = jnp.minimum(reference.num_steps, num_steps + 1)
        finished = reference.finished & (cut == reference.num_steps)
        return rescore(model, rows, reference._replace(num_steps=cut, finished=finished), num_steps)

    return planted


WRONG_FUTURES = {"no later potentials": without_potentials, "next step only": next_step_only}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "bug",
    ["beside", *(pytest.param(bug, marks=SLOW) for bug in ("unpinned", "off by one", *WRONG_FUTURES))],
)
def test_planted_bugs_are_caught(bug, monkeypatch):
    _, judge, task, texts, target = problem()
    step = kernel(task, ancestor_sampling=bug in WRONG_FUTURES)
    if bug == "beside":
        step = beside_the_filter(task, judge)
    elif bug == "unpinned":
        monkeypatch.setattr(_conditional, "condition", Unpinned)
    elif bug == "off by one":
        monkeypatch.setattr(_conditional, "lead", OffByOne)
    else:
        monkeypatch.setattr(_conditional, "rescore", WRONG_FUTURES[bug](_conditional.rescore))
    report = kernel_checks(step, references(texts, task), texts, target, 2)
    failed = {check.law: check for check in report.checks if not check.passed}
    assert set(failed) == {"invariance"}, report
    assert failed["invariance"].found > 1e-3, report
