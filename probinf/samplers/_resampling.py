r"""Resampling schemes: random ancestors with $E[\#\{n : A_n = i\}] = N W_i$.

Law of every scheme: for weights W and offspring numbers N_i, `E N_i = N W_i`, so that resampling keeps the
meaning of a population. `scheme(key, weights, pinned=True)` draws given that slot 0 keeps ancestor 0 (see
`AbstractScheme`). Every scheme is a `Choice`, so its exact law can be enumerated.

Sources: Gordon, Salmond, Smith 1993 (multinomial); Kitagawa 1996 (stratified, systematic); Liu, Chen 1998
(residual); Gerber, Chopin, Whiteley 2019 (SSP).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from probinf.core import PRNGKey, cumulative_sum
from probinf.samplers._fixed_point import (
    FixedPoint,
    ancestors_from_ends,
    cumulative_offspring,
    fraction_bits,
    offspring_columns,
)
from probinf.samplers._scheme import (
    AbstractScheme,
    Ancestors,
    Weights,
    all_tuples,
    conditioned_law,
    expected_offspring,
    fill_slots,
    pin_slot,
    turned_law,
)
from probinf.samplers._ssp import SSP


def positions_to_ancestors(weights: Weights, uniforms: Float[Array, "..."]) -> Ancestors:
    """The particle at position n + uniforms[n] of the cumulative offspring numbers, for each slot n.

    The core of `systematic` (one uniform) and `stratified` (one a slot).

    Args:
        weights: [N], unnormalised.
        uniforms: [] or [N], in [0, 1).

    Returns:
        Nondecreasing int32 [N]; never a particle of weight zero unless all are.
    """
    count = weights.shape[0]
    units = jnp.floor(uniforms * (1 << fraction_bits(count, weights.dtype)))

    def end(number: FixedPoint) -> Array:
        offset = units.astype(number.part.dtype)
        if uniforms.ndim:
            offset = offset.at[number.whole].get(mode="clip")
        return jnp.minimum(number.whole + (offset < number.part).astype(number.whole.dtype), count)

    return ancestors_from_ends(offspring_columns(weights, count, end), count, count)


def _pinned_position(key: PRNGKey, weights: Weights, index: int | Array) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """A uniform position among the offspring of one particle, as slot and offset in [0, 1)."""
    count = weights.shape[0]
    cumulative = cumulative_offspring(weights, count)
    scale = 1 << fraction_bits(count, weights.dtype)
    below = jax.tree.map(lambda leaf: jnp.where(index > 0, leaf[index - 1], 0), cumulative)
    whole = (cumulative.whole[index] - below.whole).astype(weights.dtype)
    part = (cumulative.part[index] - below.part).astype(weights.dtype)
    width = whole + part / scale
    # Rounding can put the position on the upper end, which belongs to the next particle.
    shift = jnp.minimum(jax.random.uniform(key, dtype=width.dtype), 1 - 2.0**-20) * width
    position = below.part.astype(width.dtype) / scale + shift
    floor = jnp.floor(position)
    slot = jnp.minimum(below.whole + floor.astype(below.whole.dtype), count - 1)
    return slot.astype(jnp.int32), position - floor


class Systematic(AbstractScheme):
    """One uniform for all slots; |N_i - N W_i| < 1. Pinned: with a uniform cyclic shift of the slots."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        if not pinned:
            return positions_to_ancestors(weights, jax.random.uniform(key, dtype=weights.dtype))
        slot, offset = _pinned_position(key, weights, 0)
        return pin_slot(jnp.roll(positions_to_ancestors(weights, offset), -slot))

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """The pieces of [0, 1) (pinned: of particle 0's interval) on which the ancestors are constant."""
        count = weights.shape[0]
        edges = jnp.cumsum(weights / jnp.sum(weights)) * count
        upper = edges[0] if pinned else jnp.ones_like(edges[0])
        breaks = (edges[:, None] - jnp.arange(count, dtype=edges.dtype)[None, :]).reshape(-1)
        breaks = (breaks % count) if pinned else jnp.where((breaks > 0) & (breaks < 1), breaks, 0)
        cuts = jnp.sort(jnp.clip(jnp.concatenate([jnp.zeros(1, edges.dtype), breaks, upper[None]]), 0, upper))
        middles = (cuts[1:] + cuts[:-1]) / 2
        positions = (middles[:, None] + jnp.arange(count, dtype=edges.dtype)[None, :]) % count
        lengths = cuts[1:] - cuts[:-1]
        # The middle of a piece as short as rounding may lie in the interval of another particle.
        lengths = jnp.where(lengths > 8 * count * jnp.finfo(lengths.dtype).eps, lengths, 0)
        return _locate(weights, positions), lengths / upper


class Stratified(AbstractScheme):
    """One uniform a slot; |N_i - N W_i| < 2."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        if not pinned:
            return positions_to_ancestors(weights, jax.random.uniform(key, weights.shape, weights.dtype))
        key, turn_key, pin_key = jax.random.split(key, 3)
        count = weights.shape[0]
        turn = jax.random.randint(turn_key, (), 0, count, jnp.int32)
        turned = jnp.roll(weights, turn)
        slot, offset = _pinned_position(pin_key, turned, turn)
        uniforms = jax.random.uniform(key, weights.shape, weights.dtype).at[slot].set(offset)
        ancestors = (positions_to_ancestors(turned, uniforms) - turn) % count
        return pin_slot(jnp.roll(ancestors, -slot))

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """Independent slots: slot n takes particle i with the overlap of their intervals."""
        if pinned:
            return conditioned_law(*turned_law(self, weights), weights)
        count = weights.shape[0]
        upper = jnp.cumsum(weights / jnp.sum(weights)) * count
        lower = jnp.concatenate([jnp.zeros(1, upper.dtype), upper[:-1]])
        slots = jnp.arange(count, dtype=upper.dtype)[:, None]
        overlap = jnp.clip(jnp.minimum(upper[None], slots + 1) - jnp.maximum(lower[None], slots), 0, 1)
        outcomes = all_tuples(count)
        return outcomes, jnp.prod(overlap[jnp.arange(count)[None], outcomes], axis=1)


class Multinomial(AbstractScheme):
    """Independent slots, each taking particle i with probability W_i."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        ancestors = _independent(key, weights)
        return pin_slot(ancestors) if pinned else ancestors

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """All N^N tuples; pinned, those that begin with 0."""
        outcomes = all_tuples(weights.shape[0])
        probabilities = jnp.prod((weights / jnp.sum(weights))[outcomes], axis=1)
        if not pinned:
            return outcomes, probabilities
        kept = jnp.where(outcomes[:, 0] == 0, probabilities, 0)
        return outcomes, kept / jnp.sum(kept)


class Residual(AbstractScheme):
    """floor(N W_i) copies of each particle, the remaining slots multinomial on what is left; N_i > N W_i - 1."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        count = weights.shape[0]
        copies, rest = self._split(weights)
        ends = jnp.minimum(cumulative_sum(copies), count)
        pin_key, key = jax.random.split(key)
        is_copy = jnp.arange(count, dtype=jnp.int32) < ends[-1]
        ancestors = jnp.where(is_copy, ancestors_from_ends(ends, count, count), _independent(key, rest))
        if not pinned:
            return ancestors
        # The pinned slot is a copy of particle 0 (they come first), or a remaining slot, which then moves to slot 0.
        moved = ancestors.at[jnp.minimum(ends[-1], count - 1)].set(ancestors[0])
        return pin_slot(jnp.where(self._pin_is_copy(pin_key, copies, rest, ends[-1]), ancestors, moved))

    @staticmethod
    def _split(weights: Weights) -> tuple[Int[Array, " n"], Weights]:
        """Whole copies and the fractional remainders (in units of one offspring)."""
        count = weights.shape[0]
        bits = fraction_bits(count, weights.dtype)
        whole, part = expected_offspring(weights)
        # A whole number that rounding left just below itself must not become a random slot.
        slack = 1 << max(bits - 18, 0)
        nearly_whole = ((part + slack) >> bits) > 0
        rest = jnp.where(nearly_whole, 0, part).astype(weights.dtype) / (1 << bits)
        return (whole + nearly_whole.astype(whole.dtype)).astype(jnp.int32), rest

    @staticmethod
    def _pin_is_copy(key: PRNGKey, copies: Array, rest: Array, num_copies: Array) -> Array:
        """Whether the pinned slot is one of the copies of particle 0 (else a remaining slot)."""
        remaining = (copies.shape[0] - num_copies).astype(rest.dtype)
        total = jnp.sum(rest)
        expected_rest = remaining * rest[0] / jnp.where(total > 0, total, 1)
        first = copies[0].astype(rest.dtype)
        return jax.random.uniform(key, dtype=rest.dtype) * (first + expected_rest) < first

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """Fixed copies first, then all tuples of the remaining slots."""
        count = weights.shape[0]
        expected = count * weights / jnp.sum(weights)
        copies = jnp.floor(expected + 1e-9).astype(jnp.int32)
        rest = jnp.clip(expected - copies.astype(expected.dtype), 0)
        rest = jnp.where(rest < 1e-9, 0, rest)
        total = jnp.sum(rest)
        num_copies = jnp.sum(copies, dtype=jnp.int32)
        tuples = all_tuples(count)
        is_copy = jnp.arange(count, dtype=jnp.int32) < num_copies
        fixed = fill_slots(copies)
        outcomes = jnp.where(is_copy[None], fixed[None], tuples)
        chances = jnp.where(total > 0, rest / jnp.where(total > 0, total, 1), 1 / count)
        # Slots that hold copies do not use their entry: average over it.
        factors = jnp.where(is_copy[None], 1 / count, chances[tuples])
        probabilities = jnp.prod(factors, axis=1)
        return conditioned_law(outcomes, probabilities, weights) if pinned else (outcomes, probabilities)


def _independent(key: PRNGKey, weights: Weights) -> Ancestors:
    """Independent draws proportional to the weights, by exact integer positions and a short search."""
    count = weights.shape[0]
    bits = fraction_bits(count, weights.dtype)
    cumulative = cumulative_offspring(weights, count)
    whole_key, part_key = jax.random.split(key)
    whole = jax.random.randint(whole_key, (count,), 0, count)
    part = jax.random.randint(part_key, (count,), 0, 1 << bits, dtype=cumulative.part.dtype)
    # Particles whose cumulative number has whole part w are those in [first[w], first[w + 1]).
    marks = jnp.zeros(count + 2, jnp.int32)
    marks = marks.at[cumulative.whole + 1].add(1, mode="promise_in_bounds", indices_are_sorted=True)
    first = cumulative_sum(marks)
    low, high = first[whole], first[whole + 1]

    def unfinished(bounds: tuple[Array, Array]) -> Array:
        return jnp.any(bounds[0] < bounds[1])

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        beyond = (cumulative.part[jnp.minimum(middle, count - 1)] <= part) & (low < high)
        return jnp.where(beyond, middle + 1, low), jnp.where(beyond | (low >= high), high, middle)

    low, _ = jax.lax.while_loop(unfinished, halve, (low, high))  # ends: the width halves each time
    return jnp.where(cumulative.whole[-1] > 0, low, jnp.arange(count, dtype=jnp.int32))


def _locate(weights: Weights, positions: Float[Array, "m n"]) -> Int[Array, "m n"]:
    """The particle whose interval of the cumulative offspring numbers holds each position."""
    count = weights.shape[0]
    edges = jnp.cumsum(weights / jnp.sum(weights)) * count
    last = count - 1 - jnp.argmax((weights > 0)[::-1])
    return jnp.minimum(jnp.searchsorted(edges, positions, side="right").astype(jnp.int32), last.astype(jnp.int32))


multinomial = Multinomial()
systematic = Systematic()
stratified = Stratified()
residual = Residual()
ssp = SSP()

ALL_SCHEMES = {
    "multinomial": multinomial,
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "ssp": ssp,
}
