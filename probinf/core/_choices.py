"""Finite random choices for `choose`."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf.core._types import PRNGKey


class Categorical(eqx.Module):
    """Independent draws from rows of probabilities: `choose(key, categorical, probabilities) -> int32 [rows]`.

    Law: entry r is s with probability `probabilities[r, s] / sum(probabilities[r])`; entries are independent.
    A state of probability zero is never drawn.
    """

    def sample(self, key: PRNGKey, probabilities: Float[Array, "rows states"]) -> Int[Array, " rows"]:
        """One draw a row, by inversion."""
        sums = jnp.cumsum(probabilities, axis=1)
        positions = jax.random.uniform(key, (sums.shape[0], 1), sums.dtype) * sums[:, -1:]
        drawn = jnp.sum(sums <= positions, axis=1, dtype=jnp.int32)
        last = sums.shape[1] - 1 - jnp.argmax((probabilities > 0)[:, ::-1], axis=1)  # a rounded position on the end
        return jnp.minimum(drawn, last.astype(jnp.int32))

    def law(self, probabilities: Float[Array, "rows states"]) -> tuple[Int[Array, "m rows"], Float[Array, " m"]]:
        """All tuples of states."""
        rows, states = probabilities.shape
        tuples = np.array(list(itertools.product(range(states), repeat=rows)), np.int32)
        normalised = probabilities / jnp.sum(probabilities, axis=1, keepdims=True)
        chances = jnp.prod(normalised[np.arange(rows)[None], tuples], axis=1)
        return jnp.asarray(tuples), chances


categorical = Categorical()
