"""`run_on_host`: the loop of `run_steps` in Python, for potentials that read texts and for those who want to watch.

The same verbs with the same keys, each part compiled by itself, so that the results are those of one compiled loop. The
loop ends once all rows are finished, and at Ctrl-C with what there is.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from probinf.core import (
    Population,
    PRNGKey,
    ResampleInfo,
    Status,
    WeightInfo,
    compiled,
    fast_key,
    place,
    plain_key,
    sequence,
    spawn,
    with_changes,
)
from probinf.core._spawn import absorb
from probinf.llm._decode import Made
from probinf.llm._model import LanguageSteps, Setup, check_scored, idle
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView
from probinf.llm._rows import Rows, with_fields
from probinf.llm._run import Recorder, Rule, Run, StepRecord, loop_of


class State(NamedTuple):
    """Where a loop on the host stands.

    Attributes:
        population: after the steps that are done.
        records: theirs.
    """

    population: Population
    records: tuple[StepRecord, ...]


def run_on_host(
    key: PRNGKey,
    setup: Setup,
    prompt: Prompt,
    rule: Rule,
    *,
    num_particles: int,
    context: PyTree = None,
    record: Callable[[Population], PyTree] | None = None,
    home: place,
    fixed_slots: bool = False,
    watch: Callable[[State, Potential], None] | None = None,
) -> tuple[Run, Potential]:
    """Runs `run_steps` step by step; arguments are those, but for these.

    Args:
        key: PRNG key.
        setup: what the run is told.
        prompt: with its text, for potentials that read it.
        rule: what happens between the steps.
        num_particles: N.
        context: as in `run_steps`.
        record: as in `run_steps`.
        home: as in `run_steps`.
        fixed_slots: as in `run_steps`.
        watch: called after every step, with the bound potential too.

    Returns:
        The `Run`, with `INTERRUPTED` in its status after Ctrl-C; and the bound potential, which knows what failed.
    """
    mute = Prompt(prompt.tokens, prompt.length)
    if setup.potential.traceable:
        model = _model(setup, mute)
        potential = model.potential
    else:
        # What runs on the host is kept out of compiled programs, where another object of it would recompile.
        model = _model(eqx.tree_at(lambda s: s.potential, setup, Potential()), mute)
        potential = setup.potential.bind(prompt)
    start_key, loop_key = jax.random.split(key)
    body, recorder = loop_of(model, rule, record=record, home=home, fixed_slots=fixed_slots)
    keys = _keys(body, loop_key, model.max_steps)
    population = _start(start_key, model, num_particles, context, home)
    if not potential.traceable:
        rows = with_fields(population.particles, potential_state=potential.start(num_particles, model.capacity))
        population = with_changes(population, particles=rows)
    state = State(population, ())
    try:
        for t in range(1, model.max_steps + 1):
            step = jnp.asarray(t, jnp.int32)
            if potential.traceable and body.traceable:
                population, row = _step(body, recorder, keys[t - 1], state.population, step)
            else:
                population, row = _step_apart(body, recorder, model, potential, keys[t - 1], state.population, step)
            state = State(population, (*state.records, row))
            if watch is not None:
                watch(state, potential)
            if bool(jnp.all(state.population.particles.finished)):
                break
    except KeyboardInterrupt:
        status = state.population.status | jnp.uint32(int(Status.INTERRUPTED))
        state = State(with_changes(state.population, status=status), state.records)
    return as_run(state, recorder, model.max_steps), potential


def as_run(state: State, recorder: Recorder, max_steps: int) -> Run:
    """What is done so far as a whole `Run`: in the steps that are left nothing happens."""
    population = with_changes(state.population, particles=idle(state.population.particles))
    left = max_steps - len(state.records)
    rows = [*state.records, *([_rest(recorder, population)] if left else [])]
    last = [len(rows) - 1] * (left - 1) if left else []
    order = jnp.asarray([*range(len(rows)), *last], jnp.int32)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves)[order], *rows)
    return Run(state.population, stacked)


@compiled
def _model(setup: Setup, prompt: Prompt) -> LanguageSteps:
    return setup.model(prompt)


@compiled
def _keys(body: sequence, key: PRNGKey, length: int) -> Array:
    # As `iterate` makes them.
    return jax.vmap(body.split)(jax.vmap(jax.random.fold_in, (None, 0))(fast_key(key), jnp.arange(length)))


@compiled
def _start(key: PRNGKey, model: LanguageSteps, num_particles: int, context: PyTree, home: place) -> Population:
    with home.near():
        return spawn(model, num_particles, context=context)(key)


@compiled
def _step(
    body: sequence, recorder: Recorder, keys: Array, population: Population, step: Int[Array, ""]
) -> tuple[Population, StepRecord]:
    with body.parts[0].near():  # pyright: ignore[reportFunctionMemberAccess]
        population, info = body.apply(keys, population, step)
        return population, recorder(population, info)


def _step_apart(
    body: sequence,
    recorder: Recorder,
    model: LanguageSteps,
    potential: Potential,
    keys: Array,
    population: Population,
    step: Int[Array, ""],
) -> tuple[Population, StepRecord]:
    """The same with a potential, or a rule, that cannot be compiled."""
    home, between, _ = body.parts
    move = _move if between.traceable else _move.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    population, moving = move(sequence(home, between), keys[:2], population, step)
    rows, view, made = _write(model, keys[2], step, population.particles)
    potential_state, scored = potential.update(rows.potential_state, view)
    rows = with_fields(rows, potential_state=potential_state)
    checked = check_scored(potential, scored, rows.num_rows)
    return _absorb(model, recorder, population, moving, step, rows, view, made, checked)


@compiled
def _move(
    parts: sequence, keys: Array, population: Population, step: Int[Array, ""]
) -> tuple[Population, ResampleInfo]:
    with parts.parts[0].near():  # pyright: ignore[reportFunctionMemberAccess]
        population, info = parts.apply(keys, population, step)
        return population, info[1]


@compiled
def _write(model: LanguageSteps, key: PRNGKey, step: Int[Array, ""], rows: Rows) -> tuple[Rows, StepView, Made]:
    return model.write(plain_key(key), step, idle(rows))


@compiled
def _absorb(
    model: LanguageSteps,
    recorder: Recorder,
    population: Population,
    moving: ResampleInfo,
    step: Int[Array, ""],
    rows: Rows,
    view: StepView,
    made: Made,
    scored: Scored,
) -> tuple[Population, StepRecord]:
    weighed = model.weigh(step, rows, view, made, scored)
    # What `extend` does with a step that is not written yet.
    frozen = model.freeze(population.status, population.particles, weighed)
    absorbed, weighting = absorb(population, model.log_potential(step, population.particles, frozen))
    population = with_changes(absorbed, particles=frozen)
    return population, recorder(population, (None, moving, weighting))


@compiled
def _rest(recorder: Recorder, population: Population) -> StepRecord:
    slots = jnp.arange(population.num_particles, dtype=jnp.int32)
    stay = ResampleInfo(population.ess, jnp.zeros((), bool), slots)
    return recorder(population, (None, stay, WeightInfo(jnp.zeros((), jnp.int32))))
