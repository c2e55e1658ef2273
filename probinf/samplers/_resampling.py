r"""Resampling schemes: random ancestors with $E[\#\{n : A_n = i\}] = N W_i$.

Law of every scheme: for weights W and offspring numbers N_i, `E N_i = N W_i`, so that resampling keeps the
meaning of a population. `scheme(key, weights, pinned=True)` draws from the law given that slot 0 keeps
ancestor 0, of the scheme made symmetric by a random rotation of slots and of particles: with offspring numbers c
it is proportional to `P(c) c_0` (Andrieu, Doucet, Holenstein 2010; Chopin, Singh 2015). Rotating the slots alone
is not enough where the order of the particles matters (stratified, SSP): conditional SMC would be biased, as
enumeration shows. Every scheme is a `Choice`, so its exact law can be enumerated.

Sources: Gordon, Salmond, Smith 1993 (multinomial); Kitagawa 1996 (stratified, systematic); Liu, Chen 1998
(residual); Gerber, Chopin, Whiteley 2019 (SSP).
"""

import abc
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from probinf.core import PRNGKey, choose, cumulative_sum, weight_dtype
from probinf.samplers._fixed_point import (
    FixedPoint,
    ancestors_from_ends,
    cumulative_offspring,
    fraction_bits,
    offspring_columns,
)

Weights = Float[Array, " n"]
Ancestors = Int[Array, " n"]


class AbstractScheme(eqx.Module):
    r"""A resampling scheme: `scheme(key, weights, pinned=False) -> ancestors`.

    Weights are unnormalised and >= 0, with a finite sum; NaN, negative and infinite ones count as zero. If
    all are zero the result is the identity. With N particles in float32, `|N_i - N W_i|` exceeds the
    scheme's own bound by at most `2**-17 + N W_i 2**-22`.
    """

    def __call__(self, key: PRNGKey, weights: Weights, pinned: bool = False) -> Ancestors:
        """Draws N ancestors for N weights.

        Args:
            key: PRNG key.
            weights: [N], unnormalised.
            pinned: whether slot 0 must keep ancestor 0 (conditional resampling).

        Returns:
            int32 [N], each in [0, N).

        Raises:
            ValueError: `weights` is not a vector with at least one entry (two if `pinned`).
            TypeError: `weights` are not floating.
        """
        if weights.ndim != 1 or weights.shape[0] < (2 if pinned else 1):
            least = "2 (conditional resampling needs a second slot)" if pinned else "1"
            raise ValueError(f"`weights` has shape {weights.shape}; needed (N,) with N at least {least}")
        if not jnp.issubdtype(weights.dtype, jnp.floating):
            raise TypeError(f"`weights` has dtype {weights.dtype}; needed a floating dtype: convert it first")
        weights = weights.astype(weight_dtype(weights.dtype))
        return choose(key, self, jax.lax.stop_gradient(weights), pinned)

    @abc.abstractmethod
    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw; the fast path."""

    @abc.abstractmethod
    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """All outcomes and their probabilities, from the definition (not from the fast path)."""


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


def _pin(ancestors: Ancestors) -> Ancestors:
    return ancestors.at[0].set(0)


class Systematic(AbstractScheme):
    """One uniform for all slots; |N_i - N W_i| < 1. Pinned: with a uniform cyclic shift of the slots."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        if not pinned:
            return positions_to_ancestors(weights, jax.random.uniform(key, dtype=weights.dtype))
        slot, offset = _pinned_position(key, weights, 0)
        return _pin(jnp.roll(positions_to_ancestors(weights, offset), -slot))

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
        return _locate(weights, positions), (cuts[1:] - cuts[:-1]) / upper


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
        return _pin(jnp.roll(ancestors, -slot))

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """Independent slots: slot n takes particle i with the overlap of their intervals."""
        if pinned:
            return _condition(*_turned(self, weights), weights)
        count = weights.shape[0]
        upper = jnp.cumsum(weights / jnp.sum(weights)) * count
        lower = jnp.concatenate([jnp.zeros(1, upper.dtype), upper[:-1]])
        slots = jnp.arange(count, dtype=upper.dtype)[:, None]
        overlap = jnp.clip(jnp.minimum(upper[None], slots + 1) - jnp.maximum(lower[None], slots), 0, 1)
        outcomes = _tuples(count)
        return outcomes, jnp.prod(overlap[jnp.arange(count)[None], outcomes], axis=1)


class Multinomial(AbstractScheme):
    """Independent slots, each taking particle i with probability W_i."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        ancestors = _independent(key, weights)
        return _pin(ancestors) if pinned else ancestors

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """All N^N tuples; pinned, those that begin with 0."""
        outcomes = _tuples(weights.shape[0])
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
        return _pin(jnp.where(self._pin_is_copy(pin_key, copies, rest, ends[-1]), ancestors, moved))

    @staticmethod
    def _split(weights: Weights) -> tuple[Int[Array, " n"], Weights]:
        """Whole copies and the fractional remainders (in units of one offspring)."""
        count = weights.shape[0]
        bits = fraction_bits(count, weights.dtype)
        whole, part = _offspring(weights)
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
        tuples = _tuples(count)
        is_copy = jnp.arange(count, dtype=jnp.int32) < num_copies
        fixed = _fill(copies)
        outcomes = jnp.where(is_copy[None], fixed[None], tuples)
        chances = jnp.where(total > 0, rest / jnp.where(total > 0, total, 1), 1 / count)
        # Slots that hold copies do not use their entry: average over it.
        factors = jnp.where(is_copy[None], 1 / count, chances[tuples])
        probabilities = jnp.prod(factors, axis=1)
        return _condition(outcomes, probabilities, weights) if pinned else (outcomes, probabilities)


class SSP(AbstractScheme):
    """Srinivasan sampling process: N_i is floor or ceil of N W_i, negatively associated. A sequential scan."""

    def sample(self, key: PRNGKey, weights: Weights, pinned: bool) -> Ancestors:
        """One draw."""
        count = weights.shape[0]
        bits = fraction_bits(count, weights.dtype)
        whole, part = _offspring(weights)
        turn_key, key = jax.random.split(key)
        turn = jax.random.randint(turn_key, (), 0, count, jnp.int32) if pinned else 0
        uniforms = jax.random.uniform(key, weights.shape, weights.dtype)
        up = ssp_rounding(part, uniforms, 1 << bits, turn, whole[0] if pinned else None)
        ends = cumulative_sum((whole + up).astype(jnp.int32))
        ancestors = ancestors_from_ends(ends, count, count)
        return _pin(ancestors) if pinned else ancestors

    def law(self, weights: Weights, pinned: bool) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
        """All 2^(N-1) sequences of pairwise decisions."""
        if pinned:
            return _condition(*_turned(self, weights), weights)
        count = weights.shape[0]
        expected = count * weights / jnp.sum(weights)
        whole = jnp.floor(expected + 1e-9)
        part = jnp.clip(expected - whole, 0)
        decisions = jnp.asarray(
            np.array(list(itertools.product([True, False], repeat=count - 1))).reshape(-1, count - 1)
        )
        up, chances = jax.vmap(_ssp_path, (None, 0))(part, decisions)
        return jax.vmap(_fill)((whole[None] + up).astype(jnp.int32)), chances


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


def _offspring(weights: Weights) -> FixedPoint:
    """Each particle's expected offspring number; they sum to N exactly."""
    count = weights.shape[0]
    bits = fraction_bits(count, weights.dtype)
    cumulative = cumulative_offspring(weights, count)
    whole = jnp.diff(cumulative.whole, prepend=jnp.zeros_like(cumulative.whole[:1]))
    part = jnp.diff(cumulative.part, prepend=jnp.zeros_like(cumulative.part[:1]))
    return FixedPoint(whole + (part >> bits), part & ((1 << bits) - 1))


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


def _fill(copies: Int[Array, " n"]) -> Ancestors:
    """Each particle repeated as often as `copies` says; slots left over hold the last particle."""
    slots = jnp.arange(copies.shape[0], dtype=jnp.int32)
    filled = jnp.searchsorted(jnp.cumsum(copies, dtype=jnp.int32), slots, side="right").astype(jnp.int32)
    return jnp.minimum(filled, slots[-1])


def _tuples(count: int) -> Int[Array, "m n"]:
    return jnp.asarray(np.array(list(itertools.product(range(count), repeat=count)), np.int32))


def _turned(scheme: AbstractScheme, weights: Weights) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
    """The law of the scheme under a uniform rotation of the particles."""
    count = weights.shape[0]
    turns = jnp.arange(count, dtype=jnp.int32)
    outcomes, chances = jax.vmap(lambda turn: scheme.law(jnp.roll(weights, turn), False))(turns)
    return ((outcomes - turns[:, None, None]) % count).reshape(-1, count), chances.reshape(-1) / count


def _condition(
    outcomes: Int[Array, "m n"], probabilities: Float[Array, " m"], weights: Weights
) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
    """The law of a scheme with randomly exchanged slots, given that slot 0 holds particle 0: P(c) c_0 / (N W_0)."""
    count = weights.shape[0]
    offspring = jnp.sum(outcomes == 0, axis=1)
    tilted = probabilities * offspring.astype(probabilities.dtype)
    first = jnp.argmax(outcomes == 0, axis=1)
    swapped = outcomes.at[jnp.arange(outcomes.shape[0]), first].set(outcomes[:, 0]).at[:, 0].set(0)
    expected = count * weights[0] / jnp.sum(weights)
    return swapped, tilted / jnp.where(expected > 0, expected, 1)


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
