r"""The ratio of neighbouring orders $I_{v+1}(x) / I_v(x)$, never a difference of logarithms.

For r >= 21 the derivative of Debye's expansion gives (DLMF 10.41(iii), rewritten)
$$I_{v+1} / I_v = x / (r + v) - x w^2 \bigl(\tfrac12 + \sum_{k \ge 1} w^k e_k(q)\bigr),$$
without cancellation; below, the backward recurrence. Both are smooth in order and argument, so all derivatives are
those of the formulas.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from probinf.special._arguments import common
from probinf.special._debye import fall_parts, far, radius, slope_sum
from probinf.special._derivatives import item_wise
from probinf.special._power_series import ratio_over_argument


def iv_ratio(v: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Computes $I_{v+1}(x) / I_v(x)$, within 1e-15 (float64) or 2e-7 (float32), relative.

    At order v = p / 2 - 1 it is the mean resultant length of the von Mises-Fisher distribution in p dimensions.
    Derivatives of any order in both arguments are right.

    Edges: 0 at x = 0 and at v = inf, 1 at x = inf, inf at v = -1, x = 0. NaN for x < 0, for v < -1 (where I_v may
    vanish), for v = x = inf and for NaN.

    Args:
        v: order, at least -1; float32, float64 or whole numbers.
        x: argument, at least 0; broadcast with `v`, of the same floating dtype.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _iv_ratio(*common(v=v, x=x))


@jax.jit
def _iv_ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    inside = (v >= -1) & (v < jnp.inf) & (x >= 0) & (x < jnp.inf) & ((v > -1) | (x > 0))
    value = ratio(jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    limit = jnp.where((x == jnp.inf) & (v < jnp.inf), 1, jnp.where((v == jnp.inf) & (x < jnp.inf), 0, jnp.inf))
    return jnp.where(inside, value, jnp.where((v >= -1) & (x >= 0) & ((v < jnp.inf) | (x < jnp.inf)), limit, jnp.nan))


def ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The ratio for -1 <= v < inf and 0 <= x < inf."""
    lanes = far(v, x)
    near_v, near_x = jnp.where(lanes.mask, 1, v), jnp.where(lanes.mask, 1, x)
    return jnp.where(lanes.mask, far_ratio(lanes.v, lanes.x), near_ratio(near_v, near_x))


@item_wise
def far_ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The ratio from radius 21 on."""
    w = 1 / radius(v, x)
    lead, rest = fall_parts(v, x)
    return lead - (rest + x * w * slope_sum(w, (v * w) ** 2, 1))


def near_ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The ratio below radius 21."""
    return 0.5 * x * ratio_over_argument(v, 0.25 * x * x)
