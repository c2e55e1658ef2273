r"""`LowRankTuner`: `StanTuner` with a `LowRankFactor`, learned from positions and gradients of all healthy chains.

Scales come from the moments of a whole window, $D_i^2 = \sigma(x_i) / \sigma(g_i)$; directions from the last `BUFFER`
points of it, whichever chains they are of.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probinf.samplers._adaptation import Welford, stan_windows, start_welford, update_welford
from probinf.samplers._factor import as_rows
from probinf.samplers._low_rank import LowRankFactor, as_low_rank, low_rank_estimate
from probinf.samplers._stan_tuner import StanTuner
from probinf.samplers._tuner import Transition

BUFFER = 100  # points that directions are learned from, at least: four to a direction where there are many
TO_A_DIRECTION = 4


class LowRankMoments(NamedTuple):
    """What is remembered of a window.

    Attributes:
        positions, gradients: moments of every coordinate.
        last_positions, last_gradients: [m, d] of the last points, in the order of arrival modulo m.
        num: [] int32, points so far.
    """

    positions: Welford
    gradients: Welford
    last_positions: Float[Array, "m d"]
    last_gradients: Float[Array, "m d"]
    num: Int[Array, ""]


class LowRankTuner(StanTuner):
    """The tuner of a kernel with `rank` above 0.

    Attributes:
        rank: the most directions.
    """

    needs_gradients: ClassVar[bool] = True
    rank: int = eqx.field(static=True, default=8)

    def first_factor(self, rows: Float[Array, "n d"]) -> Any:
        """The kernel's own, or the identity."""
        factor = self.initial.factor
        if isinstance(factor, LowRankFactor):
            return factor.astype(rows.dtype)
        diagonal = jnp.ones(rows.shape[1], rows.dtype) if factor is None else factor.astype(rows.dtype)
        return as_low_rank(diagonal, min(self.rank, rows.shape[1]))

    def no_moments(self, rows: Float[Array, "n d"]) -> LowRankMoments:
        """Of no points yet."""
        dimension, dtype = rows.shape[1], rows.dtype
        none = start_welford(dimension, dense=False, dtype=dtype)
        empty = jnp.zeros((max(BUFFER, TO_A_DIRECTION * self.rank), dimension), dtype)
        return LowRankMoments(none, none, empty, empty, jnp.zeros((), jnp.int32))

    def collect(self, moments: LowRankMoments, transition: Transition, use: Bool[Array, " n"]) -> LowRankMoments:
        """With the points of a transition; one without a finite gradient does not count."""
        positions, gradients = as_rows(transition.positions), as_rows(transition.gradients)
        use = use & jnp.all(jnp.isfinite(gradients), axis=1)
        size = moments.last_positions.shape[0]
        number = jnp.sum(use, dtype=jnp.int32)
        order = jnp.cumsum(use, dtype=jnp.int32) - 1
        # Of more points than there are places the last: no place is written twice.
        slots = jnp.where(use & (order >= number - size), (moments.num + order) % size, size)
        return LowRankMoments(
            update_welford(moments.positions, positions, use),
            update_welford(moments.gradients, gradients, use),
            moments.last_positions.at[slots].set(positions, mode="drop"),
            moments.last_gradients.at[slots].set(gradients, mode="drop"),
            moments.num + number,
        )

    def estimate(self, moments: LowRankMoments, old: LowRankFactor) -> LowRankFactor:
        """The factor; the old one where the points are too few, or do not tell."""
        square = jnp.sqrt(moments.positions.sum_squares) / jnp.sqrt(moments.gradients.sum_squares)
        known = jnp.isfinite(square) & (square > 0)
        scales = jnp.where(known, jnp.sqrt(jnp.where(known, square, 1)), old.scales)
        size = moments.last_positions.shape[0]
        use = jnp.arange(size, dtype=jnp.int32) < moments.num
        found = low_rank_estimate(scales, moments.last_positions, moments.last_gradients, use, old.stretches.shape[0])
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found)]
        good = (moments.num > 2) & jnp.all(jnp.stack(finite))
        return jax.tree.map(lambda new, now: jnp.where(good, new, now), found, old)


def low_rank_tuner(kernel: Any, num_steps: int, target_accept: float | None) -> LowRankTuner:
    """The tuner of a `TunableKernel` whose `rank` is above 0."""
    accept = kernel.default_target_accept if target_accept is None else target_accept
    return LowRankTuner(kernel, stan_windows(num_steps), jnp.asarray(accept, float), kernel.rank)


def refuse_rank(part: Any) -> None:
    """Raises `ValueError` for a part of another kernel that is to learn directions."""
    if getattr(part, "rank", 0):
        raise ValueError(
            f"`rank` is {part.rank} in a part of another kernel, whose gradients warm-up is not told: tune the part by "
            "itself with `warmup`, or leave `rank` out"
        )
