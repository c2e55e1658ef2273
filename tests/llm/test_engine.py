"""The loop of all methods: what a rule sees and moves, what is kept after a fault, and the parts of `core` it needs.

Planted bugs, shown to be caught: a rule whose moves the caches do not see (in `test_particle_filter.py`), rows that
change places although slots have a meaning.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import (
    FeynmanKac,
    ResampleInfo,
    Status,
    categorical,
    choose,
    ess_below,
    extend,
    fresh_population,
    place,
    repeat_while,
    resample,
    spawn,
    take,
    with_changes,
)
from probinf.core._population import freeze
from probinf.llm._gather import copy_rows, settle
from probinf.llm._rows import with_fields
from probinf.llm._run import _rearranged, run_steps
from probinf.llm._task import make_task, run_task
from probinf.samplers import multinomial, systematic
from probinf.validity import enumerate_algorithm
from tests.llm._tables import log_prob, table_lm


def task_of(max_steps=3, potential: Any = "odds", **options):
    lm, judge = (table_lm(seed, 4, 6, stop_ids=(3,)) for seed in (1, 2))
    scorer = judge if potential == "odds" else None
    return make_task(lm, [1], scorer=scorer, potential=potential, step=llm.block(2), max_steps=max_steps, **options)


@eqx.filter_jit
def run(key, setup, prompt, rule, num_particles=8, record=None, fixed_slots=False, context=None, reference=None):
    model = setup.model(prompt, reference=reference)
    return run_steps(
        key, model, rule, num_particles=num_particles, record=record, fixed_slots=fixed_slots, context=context
    )


def consistent(result, lm):
    """Whether every row has the log probability of its own tokens: it would not, had its cache stayed behind."""
    rows = result.population.particles
    exact = [log_prob(lm, row[:n]) for row, n in zip(np.asarray(rows.tokens), np.asarray(rows.length), strict=True)]
    return np.allclose(rows.log_prob, exact, atol=1e-4)


class turn_round(eqx.Module):
    """A rule that moves every row to the next slot, and counts its calls."""

    def __call__(self, key, population, step=None):
        count = population.num_particles
        ancestors = (jnp.arange(count, dtype=jnp.int32) - 1) % count
        particles, log_weights = take((population.particles, population.log_weights), ancestors)
        moved = with_changes(population, particles=particles, log_weights=log_weights, context=population.context + 1)
        return moved, ResampleInfo(population.ess, jnp.ones((), bool), ancestors)


def test_a_rule_is_asked_between_steps_only(key):
    """Not before the first, and not once all rows are finished."""
    task = task_of()
    counted = run(key, task.setup, task.prompt(0), turn_round(), context=jnp.zeros((), jnp.int32))
    finished = np.asarray(counted.records.finished).all(axis=1)
    calls = 1 + int(np.argmax(finished)) if finished.any() else 3
    assert int(counted.population.context) == calls - 1
    assert np.asarray(counted.records.resampled).tolist() == [False] + [t < calls for t in range(1, 3)]
    silent = eqx.tree_at(lambda s: s.network.logits, task.setup, task.setup.network.logits.at[:, 3].set(60.0))
    at_once = run(jax.random.clone(key), silent, task.prompt(0), turn_round(), context=jnp.zeros((), jnp.int32))
    assert int(at_once.population.context) == 0


@pytest.mark.slow
def test_rows_that_only_change_places_are_put_back(key):
    """A slot has no meaning, unless a rule says so; the caches follow either way."""
    task, start = task_of(), jnp.zeros((), jnp.int32)
    free, fixed = (
        run(jax.random.clone(key), task.setup, task.prompt(0), turn_round(), context=start, fixed_slots=flag)
        for flag in (False, True)
    )
    assert np.array_equal(free.records.ancestors, np.tile(np.arange(8), (3, 1)))
    assert np.array_equal(fixed.records.ancestors[1], np.roll(np.arange(8), 1))
    for result in (free, fixed):
        assert consistent(result, task.lm)
    first = free.population.particles.boundaries[:, 0]
    assert np.array_equal(fixed.population.particles.boundaries[:, 0], np.roll(first, int(fixed.population.context)))


def test_weights_move_with_their_rows(key):
    """Settling the slots changes no row and its weight, only where they stand."""
    task = task_of()
    rows = task.setup.model(task.prompt(0)).empty_rows(8)
    rng = np.random.default_rng(0)
    for _ in range(5):
        ancestors = jnp.asarray(rng.integers(0, 8, 8), jnp.int32)
        particles = with_fields(rows, slot=ancestors, length=ancestors + 10)
        before = with_changes(fresh_population(particles), log_weights=jnp.arange(8.0), eve=ancestors + 20)
        after = _rearranged(before)
        found, expected = (
            sorted(zip(*(np.asarray(x).tolist() for x in (p.particles.length, p.log_weights, p.eve)), strict=True))
            for p in (after, before)
        )
        assert found == expected
        slot = np.asarray(after.particles.slot)
        assert np.array_equal(slot[slot], slot)


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_settled_ancestors(count):
    rng, settling = np.random.default_rng(count), jax.jit(settle)
    for _ in range(30):
        ancestors = rng.integers(0, count, count)
        pinned = rng.random() < 0.5
        if pinned:
            ancestors[0] = 0
        order = np.asarray(settling(jnp.asarray(ancestors, jnp.int32)))
        settled = ancestors[order]
        assert np.array_equal(np.sort(order), np.arange(count))
        assert np.array_equal(settled[settled], settled)
        assert not pinned or settled[0] == 0
        assert np.array_equal(np.asarray(settling(jnp.asarray(settled, jnp.int32))), np.arange(count))


def test_groups_stay_groups():
    ancestors = jnp.asarray([1, 1, 1, 3, 6, 6, 7, 6], jnp.int32)
    settled = np.asarray(ancestors[settle(ancestors)])
    assert np.array_equal(settled, [1, 1, 1, 3, 6, 6, 6, 7])


@pytest.mark.parametrize("several", [False, True])
def test_rows_are_copied_as_by_a_gather(several):
    rng = np.random.default_rng(0)
    problems, count = 3, 16
    ancestors = []
    for moved in (0, 5, 15):
        row = np.arange(count)
        gone = rng.choice(count, moved, replace=False)
        row[gone] = rng.choice(np.setdiff1d(row, gone), moved)
        ancestors.append(row)
    ancestors = np.asarray(ancestors, np.int32)
    tree = {
        "large": rng.normal(size=(problems, count, 3, 4096)).astype(np.float32),
        "small": rng.integers(0, 9, size=(problems, count, 2)).astype(np.int32),
        "flag": rng.random((problems, count)) < 0.5,
    }
    moving = jax.jit(jax.vmap(lambda t, a: copy_rows(t, a, "problems"), axis_name="problems"))
    alone = jax.jit(copy_rows)
    if several:
        found = moving(tree, ancestors)
    else:
        parts = [alone(jax.tree.map(lambda leaf, i=i: leaf[i], tree), ancestors[i]) for i in range(problems)]
        found = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    for name, leaf in tree.items():
        expected = np.stack([leaf[i][ancestors[i]] for i in range(problems)])
        assert np.array_equal(found[name], expected), name


@pytest.mark.slow
def test_a_pinned_reference_stays_in_slot_zero(key):
    task = task_of()
    text = run(key, task.setup, task.prompt(0), resample(systematic, when=ess_below(0.0)))
    row = int(np.argmax(np.asarray(text.population.particles.length)))
    reference = text.population.particles.tokens[row]
    rule = resample(multinomial, pinned=True)
    led = run(jax.random.fold_in(jax.random.clone(key), 3), task.setup, task.prompt(0), rule, reference=reference)
    assert np.array_equal(led.population.particles.tokens[0], reference)
    assert np.all(np.asarray(led.records.ancestors)[:, 0] == 0)
    assert np.asarray(led.records.resampled).any()
    assert consistent(led, task.lm)


@pytest.mark.slow
def test_what_a_method_records_comes_back(key):
    found: Any = run_task(
        key,
        task_of(),
        resample(systematic),
        num_particles=4,
        method="own",
        record=longest,
        settings={"colour": "red"},
        has_evidence=False,
    )
    assert found.method == "own"
    assert found.settings["colour"] == "red"
    assert found.records["longest"].shape[0] == 3
    assert found.records["longest"][-1] == max(len(text) for text in found.token_ids)
    assert np.isnan(found.log_evidence)


def longest(population):
    return {"longest": jnp.max(population.particles.length)}


def no_info(key, population, step):
    return population, None


def test_a_rule_must_say_what_it_did(key):
    task = task_of()
    with pytest.raises(TypeError, match="the info of a rule must be a `ResampleInfo`, got NoneType"):
        run(key, task.setup, task.prompt(0), no_info)


@pytest.mark.slow
def test_texts_are_frozen_by_a_fatal_fault(key):
    potential = llm.potential(lambda step: jnp.where(step.length == 4, jnp.inf, 0.0))
    task = task_of(potential=potential)
    found = run(key, task.setup, task.prompt(0), resample(systematic))
    assert int(found.population.status) & Status.POSINF_LOG_WEIGHT
    assert np.isnan(found.population.log_evidence)
    assert int(found.population.particles.length.max()) == 4
    assert int(found.population.particles.num_steps.max()) == 2
    # What was done before the fault is counted once.
    assert int(jnp.sum(found.records.step_tokens)) == int(jnp.sum(found.population.particles.length))
    assert found.population.particles.finished.all()


class Walk(FeynmanKac):
    """A walk whose second part is not kept back after a fault."""

    @property
    def num_steps(self):
        return 3

    def init(self, key):
        return {"kept": jnp.zeros(()), "free": jnp.zeros(())}

    def mutate(self, key, t, x):
        return {"kept": x["kept"] + 1, "free": x["free"] + 1}

    def log_potential(self, t, x_prev, x):
        return jnp.where(t == 1, jnp.inf, 0.0)

    def freeze(self, status, old, new):
        return {"kept": freeze(status, old["kept"], new["kept"]), "free": new["free"]}


def test_a_model_chooses_what_a_fault_freezes(key):
    population = spawn(Walk(), 2)(key)
    for t in (1, 2):
        population, _ = extend(Walk())(jax.random.fold_in(jax.random.clone(key), t), population, jnp.asarray(t))
    assert population.particles["kept"].tolist() == [1.0, 1.0]
    assert population.particles["free"].tolist() == [2.0, 2.0]


def test_repeat_while_is_a_bounded_loop_that_can_be_enumerated(x64):
    def three(carry):
        return repeat_while(lambda x: x < 10, lambda i, x: jnp.where(x < 10, x + i + 1, x), carry, 3)

    assert int(three(jnp.asarray(0))) == 6
    assert int(three(jnp.asarray(8))) == 11
    assert int(repeat_while(lambda x: x < 2, lambda i, x: x + 1, jnp.asarray(0), 100)) == 2

    def doubled(x):
        return repeat_while(lambda x: x < 10, lambda i, x: 2 * x, x, 9)

    assert [float(value) for value in jax.jvp(doubled, (jnp.asarray(3.0),), (jnp.ones(()),))] == [12, 4]
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(doubled)(jnp.asarray(3.0))

    def until_a_one(key):
        def toss(i, state):
            drawn = choose(jax.random.fold_in(key, i), categorical, jnp.asarray([[0.7, 0.3]]))[0]
            return jnp.where(state[1], state[0], state[0] + 1), state[1] | (drawn == 1)

        return repeat_while(lambda state: ~state[1], toss, (jnp.zeros(()), jnp.zeros((), bool)), 4)[0]

    mean = enumerate_algorithm(until_a_one).expectation(lambda tosses: tosses)
    np.testing.assert_allclose(mean, sum(0.7**i for i in range(4)), rtol=1e-12)


@pytest.mark.slow
def test_it_lowers_for_every_platform(key):
    task = task_of()

    def evidence(data):
        key = jax.random.wrap_key_data(data)
        model = task.setup.model(task.prompt(0))
        rule = resample(systematic, when=ess_below(0.5))
        return run_steps(key, model, rule, num_particles=4, home=place(None)).population.log_evidence

    exported = jax.export.export(jax.jit(evidence), platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((2,), jnp.uint32)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
