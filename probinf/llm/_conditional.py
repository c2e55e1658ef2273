r"""Conditional SMC on texts: a particle filter whose slot 0 is led through a reference, one step of it a time slice.

    for t = 1 .. T:  if the ESS is low: draw an ancestor for the reference's future, others given it;
                     write step t of all rows, slot 0's as the reference has it;  weigh all by G_t

It leaves $\gamma_T / Z$ invariant: a text drawn from it, a pass led by that text, and a text drawn by the final weights
(Andrieu, Doucet, Holenstein 2010). The ancestor is drawn with $W_{t-1}^j$ times the mass of the future behind row j
(`rescore`; Lindsten, Jordan, Schoen 2014), so that the past too is renewed where lineages coalesce. It is drawn only
where the population is resampled, and before the others: either the other way biases the kernel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from probinf.core import (
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
from probinf.core._population import bank
from probinf.llm._gather import copy_rows
from probinf.llm._model import LanguageSteps
from probinf.llm._reference import Reference, behind
from probinf.llm._rescore import rescore
from probinf.llm._run import Recorder, Run
from probinf.llm._settled import settled


class Led(NamedTuple):
    """What a conditional filter remembers: its reference, and what re-scoring cost so far."""

    reference: Reference
    num_tokens: Int[Array, ""]
    num_scorer_tokens: Int[Array, ""]


class condition(eqx.Module):
    """Resamples given that slot 0 goes on with the reference, whose past is renewed with `ancestor_sampling`.

    Args:
        model: a `LanguageSteps` whose potential is traceable.
        scheme: a resampling scheme.
        when: `population -> bool`.
        ancestor_sampling: whether an ancestor is drawn for the reference; if not, it keeps its own past.
    """

    model: LanguageSteps
    scheme: Callable[..., Int[Array, " n"]]
    when: Callable[[Population], Bool[Array, ""]]
    ancestor_sampling: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """Resamples before step `step`, from the second on, until all rows are finished."""
        done = jnp.asarray(step, jnp.int32) - 1
        due = (done > 0) & jnp.any(~population.particles.finished) & ~is_fatal(population.status)
        due = due & self.when(population) & (weigh(population.log_weights).total > 0)
        bits, restore = unwrap_key(key)
        slots = jnp.arange(population.num_particles, dtype=jnp.int32)

        def renew(bits: Array, population: Population) -> tuple[Population, Array]:
            renewed = self._renewed if self.ancestor_sampling else self._kept
            particles, ancestors, context = renewed(restore(bits), population, done)
            log_mean = weigh(population.log_weights).log_mean
            log_scale, log_scale_low = bank(population.log_scale, population.log_scale_low, log_mean)
            return with_changes(
                population,
                particles=particles,
                log_weights=jnp.zeros_like(population.log_weights),
                log_scale=log_scale,
                log_scale_low=log_scale_low,
                eve=population.eve[ancestors],
                num_resampled=population.num_resampled + 1,
                context=context,
            ), ancestors

        def stay(bits: Array, population: Population) -> tuple[Population, Array]:
            del bits
            return population, slots

        after, ancestors = cond(due, renew, stay, bits, population)
        return after, ResampleInfo(population.ess, due, ancestors)

    def _kept(self, key: PRNGKey, population: Population, done: Array) -> tuple[Any, Array, Led]:
        del done
        ancestors = settled(self.scheme)(key, weigh(population.log_weights).relative, pinned=True)
        return copy_rows(population.particles, ancestors, self.model.decoder.axis_name), ancestors, population.context

    def _renewed(self, key: PRNGKey, population: Population, done: Array) -> tuple[Any, Array, Led]:
        ancestor_key, others_key = jax.random.split(key)
        led: Led = population.context
        rows, count = population.particles, population.num_particles
        future = rescore(self.model, rows, led.reference, done)
        chances = weigh(population.log_weights + future.log_mass.astype(population.log_weights.dtype))
        # Rounding, or a reference that no filter drew, may leave its future no mass at all: it then stays as it is.
        own = (jnp.arange(count) == 0).astype(chances.relative.dtype)
        chance = jnp.where(chances.total > 0, chances.relative, own)
        ancestor = choose(ancestor_key, categorical, chance[None])[0]
        # Schemes condition on slot 0 going on with particle 0; in those that depend on the order it matters only
        # up to a rotation.
        turned = jnp.roll(weigh(population.log_weights).relative, -ancestor)
        others = (self.scheme(others_key, turned, pinned=True) + ancestor) % count
        ancestors = others.at[0].set(ancestor)
        reference = behind(led.reference, rows, ancestor, done)
        context = Led(
            jax.tree.map(lambda new, old: jnp.where(chances.total > 0, new, old), reference, led.reference),
            led.num_tokens + jnp.sum(future.num_tokens, dtype=led.num_tokens.dtype),
            led.num_scorer_tokens + jnp.sum(future.num_scorer_tokens, dtype=led.num_scorer_tokens.dtype),
        )
        return take(rows, ancestors), ancestors, context


class lead(eqx.Module):
    """Writes one step of all rows, that of slot 0 as the reference of the population's context has it."""

    model: LanguageSteps

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, Any]:
        """Extends the population by step `step`."""
        tokens = population.context.reference.tokens
        led = eqx.tree_at(lambda m: m.decoder.reference, self.model, tokens, is_leaf=lambda leaf: leaf is None)
        return extend(led)(key, population, step)


def conditional_run(
    key: PRNGKey,
    model: LanguageSteps,
    reference: Reference,
    *,
    num_particles: int,
    scheme: Callable[..., Int[Array, " n"]],
    when: Callable[[Population], Bool[Array, ""]],
    ancestor_sampling: bool,
) -> Run:
    """One pass of conditional SMC. Its population's context is a `Led`.

    Args:
        key: PRNG key.
        model: a `LanguageSteps` whose potential is traceable.
        reference: a whole text.
        num_particles: N >= 2, slot 0 among them.
        scheme: a resampling scheme.
        when: `population -> bool`, whether to resample.
        ancestor_sampling: whether the reference's past is renewed.
    """
    start_key, loop_key = jax.random.split(key)
    nothing = jnp.zeros((), jnp.int32)
    population = spawn(model, num_particles, context=Led(reference, nothing, nothing))(start_key)
    home = place(None)
    body = sequence(home, condition(model, scheme, when, ancestor_sampling), lead(model))
    steps = iterate(body, over=jnp.arange(1, model.max_steps + 1, dtype=jnp.int32), record=Recorder(None, home))
    return Run(*steps(loop_key, population))
