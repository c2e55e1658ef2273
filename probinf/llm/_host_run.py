"""`run_on_host`: the loop of `run_steps` in Python, for potentials that read texts and for those who want to watch.

The same verbs with the same keys, each part compiled by itself, so that the results are those of one compiled loop. The
loop ends once all rows are finished, and at Ctrl-C with what there is. Caches are donated to each part, which changes
them in place; what others may look at later, a `State`, is without them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
from probinf.llm._rows import Rows
from probinf.llm._run import Recorder, Rule, Run, StepRecord, loop_of


class State(NamedTuple):
    """Where a loop on the host stands.

    Attributes:
        population: after the steps that are done, of rows without logits, cache and state of the potential.
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
    light, heavy = _start(start_key, model, num_particles, context, home)
    if not potential.traceable:
        heavy = (*heavy[:2], potential.start(num_particles, model.capacity))
    state = State(light, ())
    try:
        for t in range(1, model.max_steps + 1):
            step = jnp.asarray(t, jnp.int32)
            if potential.traceable and body.traceable:
                light, heavy, row = _step((body, recorder, keys[t - 1], step, light), heavy)
            else:
                light, heavy, row = _step_apart(body, recorder, model, potential, keys[t - 1], step, light, heavy)
            state = State(light, (*state.records, row))
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


def _parted(population: Population) -> tuple[Population, tuple[PyTree, ...]]:
    """The population without what is heavy, and that, as arrays of its own: those of a model must not be given away."""
    rows: Rows = population.particles
    return with_changes(population, particles=rows.with_heavy()), jax.tree.map(_own, rows.heavy)


def _own(leaf: Any) -> Any:
    plain = eqx.is_array(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.lax.optimization_barrier(leaf) if plain else leaf


def _whole(light: Population, heavy: tuple[PyTree, ...]) -> Population:
    return with_changes(light, particles=light.particles.with_heavy(heavy))


@compiled
def _start(
    key: PRNGKey, model: LanguageSteps, num_particles: int, context: PyTree, home: place
) -> tuple[Population, tuple[PyTree, ...]]:
    with home.near():
        return _parted(spawn(model, num_particles, context=context)(key))


@functools.partial(compiled, donate="all-except-first")
def _step(fixed: tuple, heavy: tuple[PyTree, ...]) -> tuple[Population, tuple[PyTree, ...], StepRecord]:
    body, recorder, keys, step, light = fixed
    with body.parts[0].near():
        population, info = body.apply(keys, _whole(light, heavy), step)
        return *_parted(population), recorder(population, info)


def _step_apart(
    body: sequence,
    recorder: Recorder,
    model: LanguageSteps,
    potential: Potential,
    keys: Array,
    step: Int[Array, ""],
    light: Population,
    heavy: tuple[PyTree, ...],
) -> tuple[Population, tuple[PyTree, ...], StepRecord]:
    """The same with a potential, or a rule, that cannot be compiled."""
    home, between, _ = body.parts
    *caches, potential_state = heavy
    # The potential's state is its own: it may hold what a potential goes on using, so that it is not given away.
    move = _move if between.traceable else _move.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    light, caches, potential_state, moving = move(
        (sequence(home, between), keys[:2], step, light, potential_state), caches
    )
    rows, caches, view, made = _write((model, keys[2], step, light.particles), caches)
    update = _update if potential.traceable else _update.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    potential_state, scored = update(potential, potential_state, view)
    checked = check_scored(potential, scored, rows.num_rows)
    light, row = _absorb(model, recorder, light, moving, step, rows, view, made, checked)
    return light, (*caches, potential_state), row


@functools.partial(compiled, donate="all-except-first")
def _move(fixed: tuple, caches: list[PyTree]) -> tuple[Population, list[PyTree], PyTree, ResampleInfo]:
    parts, keys, step, light, potential_state = fixed
    with parts.parts[0].near():
        population, info = parts.apply(keys, _whole(light, (*caches, potential_state)), step)
    light, (*caches, potential_state) = _parted(population)
    return light, caches, potential_state, info[1]


@functools.partial(compiled, donate="all-except-first")
def _write(fixed: tuple, caches: list[PyTree]) -> tuple[Rows, list[PyTree], StepView, Made]:
    model, key, step, rows = fixed
    rows, view, made = model.write(plain_key(key), step, idle(rows.with_heavy((*caches, None))))
    return rows.with_heavy(), jax.tree.map(_own, list(rows.heavy[:2])), view, made


@compiled
def _update(potential: Potential, state: PyTree, view: StepView) -> tuple[PyTree, Scored]:
    return potential.update(state, view)


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
