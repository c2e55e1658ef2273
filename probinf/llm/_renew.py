"""`renew` and `waste_free_run`: the parts of waste-free SMC on texts; see `_waste_free`."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core import (
    FeynmanKac,
    Population,
    PRNGKey,
    ResampleInfo,
    categorical,
    choose,
    cond,
    extend,
    is_fatal,
    iterate,
    place,
    sequence,
    spawn,
    take,
    unwrap_key,
    weigh,
    with_changes,
)
from probinf.core._effects import scan
from probinf.core._population import bank
from probinf.llm._model import LanguageSteps
from probinf.llm._rows import Rows
from probinf.llm._run import Recorder, Run, StepRecord


class Pair(NamedTuple):
    """N texts, and the same before their last step."""

    before: Rows
    now: Rows


class Cost(NamedTuple):
    """What moves took so far: steps accepted, steps proposed, tokens, and tokens fed to the scorer."""

    num_accepted: Int[Array, ""]
    num_proposed: Int[Array, ""]
    num_tokens: Int[Array, ""]
    num_scorer_tokens: Int[Array, ""]


class Remembering(FeynmanKac):
    """`LanguageSteps` whose particles remember what they were before their last step."""

    batch: ClassVar[bool] = True
    model: LanguageSteps

    @property
    def num_steps(self) -> int:
        """Number of times."""
        return self.model.num_steps

    def init(self, key: PRNGKey, num_particles: int) -> Pair:
        """N empty texts."""
        rows = self.model.init(key, num_particles)
        return Pair(rows, rows)

    def mutate(self, key: PRNGKey, t: int | Array, x: Pair) -> Pair:
        """Writes the t-th step."""
        return Pair(x.now, self.model.mutate(key, t, x.now))

    def log_potential(self, t: int | Array, x_prev: PyTree | None, x: Pair) -> Float[Array, " n"]:
        """Log weight of the step that was just written."""
        del t, x_prev
        return x.now.log_increment

    def freeze(self, status: Array, old: Pair, new: Pair) -> Pair:
        """The old texts after a fatal fault."""
        return Pair(self.model.freeze(status, old.before, new.before), self.model.freeze(status, old.now, new.now))


class renew(eqx.Module):
    """Resamples M rows and moves them. Law: the identity in expectation, as moves keep their target.

    With `when` it is not quite that, for moves keep the target of all populations together, and not of those that are
    picked by their ESS.

    Args:
        model: a `LanguageSteps` whose potential is traceable.
        scheme: a resampling scheme.
        when: `population -> bool`, or None for always.
        chain_length: P, states of each chain; divides N.
    """

    model: LanguageSteps
    scheme: Callable[..., Int[Array, " n"]]
    when: Callable[[Population], Bool[Array, ""]] | None
    chain_length: int = eqx.field(static=True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """Renews the population before step `step`, from the second on, as long as there is a step to write anew."""
        done = jnp.asarray(step, jnp.int32) - 1
        # Not until all rows are finished: a move that is left out where it would change something biases the evidence.
        due = (done > 0) & jnp.any(~population.particles.before.finished) & ~is_fatal(population.status)
        due = due & (weigh(population.log_weights).total > 0)
        if self.when is not None:
            due = due & self.when(population)
        bits, restore = unwrap_key(key)
        slots = jnp.arange(population.num_particles, dtype=jnp.int32)

        def renewed(bits: Array, population: Population) -> tuple[Population, Array]:
            return self._renewed(restore(bits), population, done)

        after, ancestors = cond(due, renewed, lambda bits, population: (population, slots), bits, population)
        return after, ResampleInfo(population.ess, due, ancestors)

    def _renewed(self, key: PRNGKey, population: Population, done: Array) -> tuple[Population, Array]:
        scheme_key, offset_key, move_key = jax.random.split(key, 3)
        weighed = weigh(population.log_weights)
        length = self.chain_length
        starts = population.num_particles // length
        # Every P-th of N draws from a random one on: each row is expected M W times.
        offset = choose(offset_key, categorical, jnp.ones((1, length), weighed.relative.dtype))[0]
        drawn = self.scheme(scheme_key, weighed.relative)
        ancestors = drawn[offset + length * jnp.arange(starts, dtype=jnp.int32)]
        before, now = take(population.particles, ancestors)
        bits, restore = unwrap_key(jax.random.split(move_key, length - 1))

        def move(now: Rows, bits: Array) -> tuple[Rows, tuple[Rows, Cost]]:
            write_key, accept_key = jax.random.split(restore(bits))
            other = self.model.mutate(write_key, done, before)
            rate = acceptance(other.log_increment, now.log_increment)
            chances = jnp.stack([1 - rate, rate], axis=1)
            proposed = ~before.finished
            accepted = (choose(accept_key, categorical, chances) > 0) & proposed
            # What the step cost was counted when it was written.
            after = jax.tree.map(functools.partial(_select, accepted), other, now)
            cost = (accepted, proposed, other.step_tokens, other.scorer_tokens)
            return after, (after, Cost(*(jnp.sum(values, dtype=jnp.int32) for values in cost)))

        _, (states, costs) = scan(move, now, bits, length - 1)

        def gathered(first: Array, others: Array) -> Array:
            return jnp.concatenate([first[None], others]).reshape(population.num_particles, *first.shape[1:])

        particles = Pair(
            jax.tree.map(lambda leaf: jnp.tile(leaf, (length,) + (1,) * (leaf.ndim - 1)), before),
            jax.tree.map(gathered, now, states),
        )
        ancestors = jnp.tile(ancestors, length)
        log_scale, log_scale_low = bank(population.log_scale, population.log_scale_low, weighed.log_mean)
        return with_changes(
            population,
            particles=particles,
            log_weights=jnp.zeros_like(population.log_weights),
            log_scale=log_scale,
            log_scale_low=log_scale_low,
            eve=population.eve[ancestors],
            num_resampled=population.num_resampled + 1,
            context=jax.tree.map(
                lambda so_far, more: so_far + jnp.sum(more, dtype=so_far.dtype), population.context, costs
            ),
        ), ancestors


def acceptance(new: Float[Array, " n"], old: Float[Array, " n"]) -> Float[Array, " n"]:
    """The probability that a step of log weight `new` replaces one of `old`, both drawn from the proposal.

    Args:
        new: log of base over proposal times potential; NaN counts as -inf.
        old: the same of the step that stands; finite.
    """
    return jnp.where(new > -jnp.inf, jnp.exp(jnp.minimum(new - old, 0)), 0)


def waste_free_run(
    key: PRNGKey,
    model: LanguageSteps,
    *,
    num_particles: int,
    chain_length: int,
    scheme: Callable[..., Int[Array, " n"]],
    when: Callable[[Population], Bool[Array, ""]] | None = None,
) -> tuple[Run, Cost]:
    """The algorithm; arguments are those of `waste_free`."""
    start_key, loop_key = jax.random.split(key)
    remembering, nothing = Remembering(model), jnp.zeros((), jnp.int32)
    population = spawn(remembering, num_particles, context=Cost(nothing, nothing, nothing, nothing))(start_key)
    home = place(None)
    body = sequence(home, renew(model, scheme, when, chain_length), extend(remembering))

    def record(population: Population, info: Any) -> StepRecord:
        return Recorder(None, home)(_now(population), info)

    steps = iterate(body, over=jnp.arange(1, model.max_steps + 1, dtype=jnp.int32), record=record)
    population, records = steps(loop_key, population)
    return Run(with_changes(_now(population), context=None), records), population.context


def _now(population: Population) -> Population:
    return with_changes(population, particles=population.particles.now)


def _select(rows: Bool[Array, " n"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
