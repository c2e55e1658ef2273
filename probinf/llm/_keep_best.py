r"""`keep_best`: the step of beam search, in the place of resampling: the best K/M of K rows go on, each in M copies.

It is a rule and not a law: what goes on is chosen by rank, so that weights afterwards stand for no target.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core import Population, PRNGKey, ResampleInfo, is_fatal, take, with_changes
from probinf.llm._gather import settle
from probinf.llm._rows import Rows
from probinf.llm._selectors import AGGREGATES


class keep_best(eqx.Module):
    """Keeps the best rows of each group, and copies each of them `width` times.

    Rows of weight zero come last, and so do texts that have ended and of which an equal one is kept already: they have
    nothing to explore. Among equal scores the lower slot wins. Weights become equal, but for those that are zero.

    Args:
        num_groups: groups of K = N / num_groups neighbours that are searched apart; divides N.
        width: M, copies of each row that goes on; divides K.
        aggregate: how the scores of a text's steps become one: "last", "min", "prod" or "mean".
        distinct: whether equal texts that have not ended count once, too.
        gather: `(particles, ancestors) -> particles`.

    Raises:
        ValueError: an unknown aggregate; or, when called, the numbers do not divide each other.
    """

    num_groups: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    aggregate: str = eqx.field(static=True, default="last")
    distinct: bool = eqx.field(static=True, default=False)
    gather: Callable[[PyTree, Int[Array, " n"]], PyTree] = take

    def __check_init__(self) -> None:
        """Raises `ValueError` for an unknown aggregate."""
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"`aggregate` must be one of {list(AGGREGATES)}, got {self.aggregate!r}")

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """Chooses and copies; `key` and `step` are not used."""
        del key, step
        rows, count = population.particles, population.num_particles
        size = count // self.num_groups
        if size * self.num_groups != count or size % self.width:
            raise ValueError(
                f"{count} rows in {self.num_groups} groups, of which 1 in {self.width} is kept: needed numbers that "
                "divide each other"
            )
        alive = population.log_weights > -jnp.inf
        score = score_of_steps(rows.scores, self.aggregate)
        score = jnp.where(alive & ~jnp.isnan(score), score, -jnp.inf).reshape(self.num_groups, size)
        again = repeated(rows, alive if self.distinct else alive & rows.finished).reshape(self.num_groups, size)
        # The last key counts first; the sort is stable.
        order = jnp.lexsort((-score, again, ~alive.reshape(self.num_groups, size)), axis=-1)
        kept = order[:, : size // self.width].astype(jnp.int32)
        first = jnp.arange(self.num_groups, dtype=jnp.int32)[:, None] * size
        ancestors = jnp.repeat(kept + first, self.width, axis=1).reshape(-1)
        ancestors = ancestors[settle(ancestors)]
        due = jnp.any(alive) & ~is_fatal(population.status)
        ancestors = jnp.where(due, ancestors, jnp.arange(count, dtype=jnp.int32))
        chosen = with_changes(
            population,
            particles=self.gather(rows, ancestors),
            eve=population.eve[ancestors],
            log_weights=jnp.where(alive[ancestors], jnp.zeros_like(population.log_weights), -jnp.inf),
            num_resampled=population.num_resampled + due.astype(jnp.int32),
        )
        return chosen, ResampleInfo(population.ess, due, ancestors)


def score_of_steps(scores: Float[Array, "n t"], aggregate: str) -> Float[Array, " n"]:
    """One score a row from the scores of its steps, in the order of `aggregate_scores`; NaN where there is none.

    For "prod" it is the logarithm of the product, which does not underflow.
    """
    real = ~jnp.isnan(scores)
    some = jnp.any(real, axis=1)
    if aggregate == "last":
        index = jnp.max(jnp.where(real, jnp.arange(scores.shape[1]), 0), axis=1)
        found = jnp.take_along_axis(scores, index[:, None], axis=1)[:, 0]
    elif aggregate == "min":
        found = jnp.min(jnp.where(real, scores, jnp.inf), axis=1)
    elif aggregate == "prod":
        found = jnp.sum(jnp.where(real, jnp.log(jnp.maximum(scores, 0)), 0), axis=1)
    else:
        found = jnp.sum(jnp.where(real, scores, 0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1).astype(scores.dtype)
    return jnp.where(some, found, jnp.nan)


def repeated(rows: Rows, among: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Rows whose text an earlier row of `among` has too; only those in `among` are looked at."""

    def same(column: Int[Array, " n"]) -> Bool[Array, "n n"]:
        return column[:, None] == column[None, :]

    # Column by column: all at once would be an array of N x N x capacity.
    equal = jax.lax.fori_loop(
        0,
        rows.tokens.shape[1],
        lambda i, equal: equal & same(jax.lax.dynamic_index_in_dim(rows.tokens, i, axis=1, keepdims=False)),
        same(rows.length) & (among[:, None] & among[None, :]),
    )
    return jnp.any(jnp.tril(equal, -1), axis=1)
