r"""Moves of SMC samplers: transformers that apply a tuned Markov kernel to every particle of a population.

Law of all, for any kernel that leaves the target invariant: $\mu \mapsto \mu$ when $\mu \propto$ target. The particles
are states of the kernel, so that what the target said at them is never computed again.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from probinf.core import (
    Population,
    PRNGKey,
    Target,
    any_bits,
    fast_key,
    is_fatal,
    particle_keys,
    plain_key,
    with_changes,
)
from probinf.samplers._factor import as_rows
from probinf.samplers._stage import Stage, Tempering, corrected_step


class MovesInfo(NamedTuple):
    """What the moves at one temperature report.

    Attributes:
        acceptance_rate: [] mean over particles and moves.
        num_moves: [] int32.
    """

    acceptance_rate: Array
    num_moves: Array


def tuned_kernel(kernel: Any, context: Tempering, step_size: Float[Array, ""]) -> Any:
    """The kernel with the matrix of this stage and a step size."""
    return kernel.tuned(step_size, context.stage.factor)


def step_all(key: PRNGKey, kernel: Any, target: Target, states: PyTree) -> tuple[PyTree, Float[Array, ""]]:
    """One transition of every particle, and the mean acceptance rate, a particle at fault counting as zero."""
    keys = particle_keys(key, states.status.shape[0])
    states, info = jax.vmap(lambda k, state: kernel.step(k, target, state))(keys, states)
    rates = jnp.where(is_fatal(states.status) | jnp.isnan(info.acceptance_rate), 0, info.acceptance_rate)
    return states, jnp.mean(rates)


class adaptive_moves(eqx.Module):
    """Moves until the particles stop drifting away from where they started, and corrects the step size as it goes.

    After two moves it goes on while the mean squared distance from the start, in the units of the stage's factor, still
    grew by a tenth (Dau, Chopin 2022, use the same rule). What was done stands in `context.stage` for an exact re-run.

    Args:
        kernel: a kernel with `tuned(step_size, factor)` and `default_target_accept`.
        target: a `Target`.
        max_moves: bound.
        num_moves: make exactly so many, or None to adapt.
        growth: relative growth of the distance below which it stops.
    """

    kernel: Any
    target: Target
    max_moves: int = eqx.field(static=True)
    num_moves: int | None = eqx.field(static=True, default=None)
    growth: float = eqx.field(static=True, default=0.1)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, MovesInfo]:
        """Moves the particles."""
        del step
        context = population.context
        target = self.target.at_temperature(context.stage.inverse_temperature)
        start = as_rows(population.particles.position)
        scale = context.stage.factor if context.stage.factor.ndim == 1 else jnp.diagonal(context.stage.factor)
        zero, fast = jnp.zeros((), start.dtype), fast_key(key)

        def unfinished(carry: tuple) -> Array:
            count, _, _, _, _, before, now, rate = carry
            if self.num_moves is not None:
                return count < self.num_moves
            # Particles that are hardly ever moved do not drift either: the step size is still far too large.
            stuck = rate < self.kernel.default_target_accept / 2
            return (count < self.max_moves) & ((count < 2) | stuck | (now > (1 + self.growth) * before))

        def one(carry: tuple) -> tuple:
            count, states, step_size, step_sizes, rates, _, before, _ = carry
            step_sizes = step_sizes.at[count].set(step_size)
            kernel = tuned_kernel(self.kernel, context, step_size)
            states, rate = step_all(plain_key(jax.random.fold_in(fast, count)), kernel, target, states)
            distance = jnp.mean(jnp.sum(((as_rows(states.position) - start) / scale[None, :]) ** 2, axis=1))
            step_size = corrected_step(step_size, rate, self.kernel.default_target_accept)
            rate = rate.astype(rates.dtype)
            return count + 1, states, step_size, step_sizes, rates + rate, before, distance, rate

        empty = jnp.zeros_like(context.stage.step_sizes)
        carry = (jnp.zeros((), jnp.int32), population.particles, context.step_size, empty, zero, zero, zero, zero)
        count, states, step_size, step_sizes, rates, _, _, _ = jax.lax.while_loop(unfinished, one, carry)
        stage = Stage(context.stage.inverse_temperature, context.stage.factor, step_sizes, count)
        moved = _absorb_faults(population, states, Tempering(stage, step_size))
        return moved, MovesInfo(rates / jnp.maximum(count, 1).astype(rates.dtype), count)


class frozen_moves(eqx.Module):
    """Moves with the step sizes and the number of moves of `context.stage`: nothing depends on the particles."""

    kernel: Any
    target: Target

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, MovesInfo]:
        """Moves the particles."""
        del step
        context = population.context
        target = self.target.at_temperature(context.stage.inverse_temperature)
        fast = fast_key(key)

        def one(count: Int[Array, ""], carry: tuple) -> tuple:
            states, rates = carry
            kernel = tuned_kernel(self.kernel, context, context.stage.step_sizes[count])
            states, rate = step_all(plain_key(jax.random.fold_in(fast, count)), kernel, target, states)
            return states, rates + rate.astype(rates.dtype)

        carry = (population.particles, jnp.zeros_like(context.step_size))
        states, rates = jax.lax.fori_loop(0, context.stage.num_moves, one, carry)
        count = jnp.maximum(context.stage.num_moves, 1).astype(rates.dtype)
        return _absorb_faults(population, states, context), MovesInfo(rates / count, context.stage.num_moves)


class waste_free_moves(eqx.Module):
    """Waste-free moves (Dau, Chopin 2022): M of the N = M P particles start chains of length P, and all states count.

    The M are every P-th of the population from a random offset on, so that of systematically resampled particles they
    are a systematic sample. Law: E of the meaning is kept for any population, as a random part of it stands for it.

    Args:
        kernel, target: as for `adaptive_moves`.
        length: P >= 2, the states of a chain; it must divide N.
        frozen: whether step sizes are those of `context.stage`.
    """

    kernel: Any
    target: Target
    length: int = eqx.field(static=True)
    frozen: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, MovesInfo]:
        """Moves the particles."""
        del step
        context = population.context
        target = self.target.at_temperature(context.stage.inverse_temperature)
        offset_key, fast = jax.random.split(fast_key(key))
        offset = jax.random.randint(offset_key, (), 0, self.length)
        count = population.num_particles // self.length
        started = jnp.arange(count) * self.length + offset

        def one(carry: tuple, index: Int[Array, ""]) -> tuple:
            states, step_size = carry
            used = context.stage.step_sizes[index] if self.frozen else step_size
            kernel = tuned_kernel(self.kernel, context, used)
            states, rate = step_all(plain_key(jax.random.fold_in(fast, index)), kernel, target, states)
            return (states, corrected_step(used, rate, self.kernel.default_target_accept)), (states, rate, used)

        first = jax.tree.map(lambda leaf: leaf[started], population.particles)
        (_, step_size), (later, rates, used) = jax.lax.scan(
            one, (first, context.step_size), jnp.arange(self.length - 1, dtype=jnp.int32)
        )

        # Chain by chain, so that a resampled population stays in the order of its ancestors.
        def together(head: Array, tail: Array) -> Array:
            chains = jnp.concatenate([head[None], tail])
            return jnp.swapaxes(chains, 0, 1).reshape(-1, *chains.shape[2:])

        stage = context.stage
        if not self.frozen:
            stage = Stage(
                stage.inverse_temperature, stage.factor, used, jnp.full_like(stage.num_moves, self.length - 1)
            )
        moved = with_changes(
            population,
            log_weights=jnp.repeat(population.log_weights[started], self.length),
            eve=jnp.repeat(population.eve[started], self.length),
        )
        states = jax.tree.map(together, first, later)
        moved = _absorb_faults(moved, states, Tempering(stage, step_size))
        return moved, MovesInfo(jnp.mean(rates), jnp.asarray(self.length - 1, jnp.int32))


def _absorb_faults(population: Population, states: PyTree, context: Tempering) -> Population:
    bits = any_bits(states.status, population.log_weights > -jnp.inf)
    return with_changes(population, particles=states, status=population.status | bits, context=context)
