r"""`AbstractScheme`: what a resampling scheme is, and the pieces that the schemes share.

The law of a pinned scheme is that given slot 0 keeps ancestor 0, of the scheme made symmetric by a random rotation of
slots and of particles: with offspring numbers c it is proportional to `P(c) c_0` (Andrieu, Doucet, Holenstein 2010;
Chopin, Singh 2015). Rotating the slots alone is not enough where the order of the particles matters (stratified,
SSP): conditional SMC would be biased, as enumeration shows.
"""

import abc
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf.core import PRNGKey, choose, weight_dtype
from probinf.samplers._fixed_point import FixedPoint, cumulative_offspring, fraction_bits

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


def pin_slot(ancestors: Ancestors) -> Ancestors:
    """The ancestors with slot 0 its own."""
    return ancestors.at[0].set(0)


def expected_offspring(weights: Weights) -> FixedPoint:
    """Each particle's expected offspring number; they sum to N exactly."""
    count = weights.shape[0]
    bits = fraction_bits(count, weights.dtype)
    cumulative = cumulative_offspring(weights, count)
    whole = jnp.diff(cumulative.whole, prepend=jnp.zeros_like(cumulative.whole[:1]))
    part = jnp.diff(cumulative.part, prepend=jnp.zeros_like(cumulative.part[:1]))
    return FixedPoint(whole + (part >> bits), part & ((1 << bits) - 1))


def fill_slots(copies: Int[Array, " n"]) -> Ancestors:
    """Each particle repeated as often as `copies` says; slots left over hold the last particle."""
    slots = jnp.arange(copies.shape[0], dtype=jnp.int32)
    filled = jnp.searchsorted(jnp.cumsum(copies, dtype=jnp.int32), slots, side="right").astype(jnp.int32)
    return jnp.minimum(filled, slots[-1])


def all_tuples(count: int) -> Int[Array, "m n"]:
    return jnp.asarray(np.array(list(itertools.product(range(count), repeat=count)), np.int32))


def turned_law(scheme: AbstractScheme, weights: Weights) -> tuple[Int[Array, "m n"], Float[Array, " m"]]:
    """The law of the scheme under a uniform rotation of the particles."""
    count = weights.shape[0]
    turns = jnp.arange(count, dtype=jnp.int32)
    outcomes, chances = jax.vmap(lambda turn: scheme.law(jnp.roll(weights, turn), False))(turns)
    return ((outcomes - turns[:, None, None]) % count).reshape(-1, count), chances.reshape(-1) / count


def conditioned_law(
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
