r"""`ssp`: resampling by the Srinivasan sampling process.

Each offspring number is the floor or the ceiling of $N W_i$, and they are negatively associated (Gerber, Chopin,
Whiteley 2019). Pinned: each decision is tilted by what it makes of the offspring of particle 0, whose open part is a
martingale (a Doob transform).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from probinf.core import PRNGKey, cumulative_sum
from probinf.samplers._fixed_point import ancestors_from_ends, fraction_bits
from probinf.samplers._scheme import (
    AbstractScheme,
    Ancestors,
    Weights,
    conditioned_law,
    expected_offspring,
    fill_slots,
    pin_slot,
    turned_law,
)


class SSP(AbstractScheme):
    """Srinivasan sampling process: N_i is floor or ceil of N W_i, negatively associated. A sequential scan."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        count = weights.shape[0]
        bits = fraction_bits(count, weights.dtype)
        whole, part = expected_offspring(weights)
        turn_key, key = jax.random.split(key)
        turn = jax.random.randint(turn_key, (), 0, count, jnp.int32) if pinned else 0
        uniforms = jax.random.uniform(key, weights.shape, weights.dtype)
        up = ssp_rounding(part, uniforms, 1 << bits, turn, whole[0] if pinned else None)
        ends = cumulative_sum((whole + up).astype(jnp.int32))
        ancestors = ancestors_from_ends(ends, count, count)
        return pin_slot(ancestors) if pinned else ancestors

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """All 2^(N-1) sequences of pairwise decisions."""
        if pinned:
            return conditioned_law(*turned_law(self, weights), weights)
        count = weights.shape[0]
        expected = count * weights / jnp.sum(weights)
        whole = jnp.floor(expected + 1e-9)
        part = jnp.clip(expected - whole, 0)
        decisions = jnp.asarray(
            np.array(list(itertools.product([True, False], repeat=count - 1))).reshape(-1, count - 1)
        )
        up, chances = jax.vmap(_ssp_path, (None, 0))(part, decisions)
        return jax.vmap(fill_slots)((whole[None] + up).astype(jnp.int32)), chances


def ssp_rounding(
    part: Int[Array, " n"],
    uniforms: Float[Array, " n"],
    one: int,
    first: int | Array = 0,
    pinned_whole: Int[Array, ""] | None = None,
) -> Int[Array, " n"]:
    """Rounds fractional parts that sum to a whole number: 1 up, 0 down, each up with probability part / one.

    Particles are taken in turn from `first` on. Two are open at a time; a random decision closes one of them.

    Args:
        part: in [0, one), with a sum divisible by `one`.
        uniforms: in [0, 1); entry 0 is not used.
        one: the unit.
        first: the particle to begin with.
        pinned_whole: whole offspring of particle 0, to draw from the law in proportion to its final number; the
            open part of particle 0 is a martingale, so each decision is tilted by what it makes of that number.

    Returns:
        0 or 1 for each particle.
    """
    order = jnp.roll(jnp.arange(part.shape[0], dtype=jnp.int32), -first)

    def step(carry: tuple[Array, Array], item: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], tuple]:
        holder, held = carry
        index, fresh, uniform = item
        both = held + fresh
        low = both < one
        # Below one: one of the two drops to 0. Else: one of the two rises to 1. `keep`: the holder stays open.
        chance = jnp.where(low, held, one - held).astype(uniform.dtype)
        scale = jnp.where(low, both, 2 * one - both).astype(uniform.dtype)
        if pinned_whole is not None:
            base = pinned_whole.astype(uniform.dtype) * one
            opened = base + jnp.where(low, both, both - one).astype(uniform.dtype)
            closing = base + jnp.where(low, 0, one).astype(uniform.dtype)
            kept = jnp.where(holder == 0, opened, jnp.where(index == 0, closing, 1))
            left = jnp.where(holder == 0, closing, jnp.where(index == 0, opened, 1))
            chance, scale = chance * kept, chance * kept + (scale - chance) * left
        keep = uniform * scale < chance
        closed = jnp.where(keep, index, holder)
        return (jnp.where(keep, holder, index), jnp.where(low, both, both - one)), (closed, ~low)

    start = (order[0], part[order[0]])
    (last, left), (closed, risen) = jax.lax.scan(step, start, (order[1:], part[order[1:]], uniforms[1:]))
    up = jnp.zeros_like(part).at[closed].add(risen.astype(part.dtype))
    return up.at[last].add((left >= one).astype(part.dtype))


def _ssp_path(part: Weights, decisions: Bool[Array, " m"]) -> tuple[Weights, Float[Array, ""]]:
    """The roundings and the probability of one sequence of decisions (True: the holder stays open)."""
    up = jnp.zeros_like(part)
    holder, held, probability = jnp.zeros((), jnp.int32), part[0], jnp.ones((), part.dtype)
    for index in range(1, part.shape[0]):
        keep = decisions[index - 1]
        both = held + part[index]
        low = both < 1 - 1e-9
        scale = jnp.where(low, both, 2 - both)
        chance = jnp.where(scale > 0, jnp.where(low, held, 1 - held) / jnp.where(scale > 0, scale, 1), 0)
        probability = probability * jnp.where(keep, chance, 1 - chance)
        up = up.at[jnp.where(keep, index, holder)].set(jnp.where(low, 0, 1).astype(part.dtype))
        holder, held = jnp.where(keep, holder, index), jnp.where(low, both, both - 1)
    return up.at[holder].set(jnp.where(held > 0.5, 1, 0).astype(part.dtype)), probability
