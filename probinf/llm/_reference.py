"""`Reference`: the text that a conditional particle filter is led through, and what becomes of it at a new ancestor."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probinf.core import PRNGKey, categorical, choose, weigh
from probinf.llm._rows import Rows


class Reference(NamedTuple):
    """One whole text, cut into steps.

    Attributes:
        tokens: [capacity]; 0 beyond its length.
        boundaries: [max_steps], its length after each step; 0 where it had no such step.
        num_steps: how many steps it has.
        finished: whether it ended by itself or at the bound on tokens; if not, it ended with the last step of all.
    """

    tokens: Int[Array, " capacity"]
    boundaries: Int[Array, " max_steps"]
    num_steps: Int[Array, ""]
    finished: Bool[Array, ""]

    @property
    def length(self) -> Int[Array, ""]:
        """Number of tokens."""
        return self.length_after(self.num_steps)

    def length_after(self, num_steps: Int[Array, ""]) -> Int[Array, ""]:
        """Number of tokens after some steps; all of them after more than there are."""
        steps = jnp.minimum(num_steps, self.num_steps)
        return jnp.where(steps > 0, self.boundaries[jnp.maximum(steps, 1) - 1], 0)

    def rest(self, num_steps: Int[Array, ""]) -> Int[Array, " capacity"]:
        """The tokens behind the first steps, left-aligned."""
        size = self.tokens.shape[0]
        places = self.length_after(num_steps) + jnp.arange(size, dtype=self.tokens.dtype)
        return jnp.where(places < self.length, self.tokens[jnp.minimum(places, size - 1)], 0)


def reference_of(rows: Rows, slot: Int[Array, ""]) -> Reference:
    """The text of one row.

    Args:
        rows: N texts that are written to the end.
        slot: which.
    """
    return Reference(rows.tokens[slot], rows.boundaries[slot], rows.num_steps[slot], rows.finished[slot])


def draw_reference(key: PRNGKey, rows: Rows, log_weights: Float[Array, " n"]) -> tuple[Reference, Int[Array, ""]]:
    """A text drawn by its weight, and the slot that it stood in.

    Args:
        key: PRNG key.
        rows: N texts that are written to the end.
        log_weights: their log weights, not all of them -inf.
    """
    slot = choose(key, categorical, weigh(log_weights).relative[None])[0]
    return reference_of(rows, slot), slot


def behind(reference: Reference, rows: Rows, slot: Int[Array, ""], num_steps: Int[Array, ""]) -> Reference:
    """The text of a row, and behind it what the reference has behind its first `num_steps` steps.

    Args:
        reference: a whole text.
        rows: N texts of `num_steps` steps, or fewer where they are finished.
        slot: whose text comes first; unfinished where something follows.
        num_steps: how many steps are written.
    """
    first = reference_of(rows, slot)
    goes_on = reference.num_steps > num_steps
    length, start = rows.length[slot], reference.length_after(num_steps)
    places = jnp.arange(reference.tokens.shape[0], dtype=length.dtype)
    moved = jnp.roll(reference.rest(num_steps), length)
    steps = jnp.arange(reference.boundaries.shape[0], dtype=num_steps.dtype)
    later = jnp.where(steps < reference.num_steps, reference.boundaries - start + length, 0)
    return Reference(
        tokens=jnp.where(places < length, first.tokens, jnp.where(goes_on, moved, 0)),
        boundaries=jnp.where((steps < num_steps) | ~goes_on, first.boundaries, later),
        num_steps=jnp.where(goes_on, reference.num_steps, first.num_steps),
        finished=jnp.where(goes_on, reference.finished, first.finished),
    )
