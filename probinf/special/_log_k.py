r"""The logarithm of the modified Bessel function of the second kind, in every lane at once.

From radius $r = \sqrt{v^2 + x^2} = 21$ on Debye's expansion (`_debye.py`), below it recurrence from fitted seeds
(`_near_k.py`). The first derivatives have formulas of their own; all further ones are theirs. K is even in the order,
and so are the formulas.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from probinf.special._arguments import common
from probinf.special._debye import (
    VALUES,
    argument_slope,
    fall,
    far,
    order_slope,
    radius,
    rise,
    series,
    slope_parts,
    slope_sum,
)
from probinf.special._derivatives import item_wise, slope_in_first, tangent, total
from probinf.special._near_k import near_decay, near_k, near_ratio, split

HALF_LOG_HALF_PI = float(0.5 * np.log(np.pi / 2))


def log_kv(v: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Computes $\log K_v(x)$, the modified Bessel function of the second kind, of real order v.

    In float64 the error is below 4e-15 times max(1, |value|, r), $r = \sqrt{v^2 + x^2}$ (what rounding the arguments
    does already), in float32 below 1.2e-6 times that, for |v| <= 1e6 and 1e-300 <= x <= 1e300 (1e-37 to 1e37).
    Derivatives in order and argument, of any order, are right; K is even in v.

    Edges: inf at x = 0 and at v = +-inf, -inf at x = inf. NaN for x < 0, v = +-inf with x = inf, and NaN.

    Args:
        v: order; float32, float64 or whole numbers.
        x: argument, at least 0; broadcast with `v`, of the same floating dtype.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _public(False, *common(v=v, x=x))


def log_kve(v: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Computes $\log(e^x K_v(x)) = \log K_v(x) + x$ without taking the sum where x is large.

    Edges as those of `log_kv`.

    Args:
        v: order; float32, float64 or whole numbers.
        x: argument, at least 0; broadcast with `v`, of the same floating dtype.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _public(True, *common(v=v, x=x))


def kv_ratio(v: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Computes $K_{v+1}(x) / K_v(x)$, within 1e-14 (float64) or 1.5e-6 (float32), relative.

    It gives the moments of the generalised inverse Gaussian distribution. Derivatives of any order are right, but those
    in x may be infinite or NaN where x^2 underflows, below 1e-154 (float64) or 1e-19 (float32), and the second one in v
    is wrong in float32 where it is a difference of large numbers (at v = .48, x = 1e-8 by more than its size).

    Edges: at x = 0 it is inf for v > -1/2, 1 for v = -1/2 and 0 below; 1 at x = inf; inf at v = inf and 0 at v = -inf.
    NaN for x < 0, v = +-inf with x = inf, and NaN.

    Args:
        v: order; float32, float64 or whole numbers.
        x: argument, at least 0; broadcast with `v`, of the same floating dtype.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _kv_ratio(*common(v=v, x=x))


@partial(jax.jit, static_argnums=0)
def _public(scaled: bool, v: Float[Array, "*shape"], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return log_k(scaled, v, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_k(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes log K_v(x), plus x if `scaled`, with all edges."""
    inside = _inside(v, x)
    value = _value(scaled, jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    limit = jnp.where((x == jnp.inf), -jnp.inf, jnp.inf)
    return jnp.where(inside, value, jnp.where(_defined(v, x), limit, jnp.nan))


@partial(log_k.defjvp, symbolic_zeros=True)
def _log_k_jvp(scaled, primals, tangents):
    v, x = primals
    by_order = tangent(lambda: by_order_k(v, x), tangents[0])
    by_argument = tangent(lambda: by_argument_k(scaled, v, x), tangents[1])
    return log_k(scaled, v, x), total(x, by_order, by_argument)


def _inside(v, x):
    return (jnp.abs(v) < jnp.inf) & (x > 0) & (x < jnp.inf)


def _defined(v, x):
    return (x >= 0) & (v == v) & ((jnp.abs(v) < jnp.inf) | (x < jnp.inf))


def _value(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value for finite v and 0 < x < inf."""
    v = jnp.abs(v)
    lanes = far(v, x)
    near_v, near_x = jnp.where(lanes.mask, 1, v), jnp.where(lanes.mask, 1, x)
    slope, slope_rest, shift = slope_parts(lanes.v, lanes.x, lanes.r)
    first = jnp.where(lanes.mask, slope, 0.5 * near_x)
    log_first = jnp.log(first) + jnp.where(lanes.mask, slope_rest, 0) / first
    near = near_k(near_v, near_x, jnp.where(lanes.mask, -float(np.log(2)), log_first))
    log_second = jnp.log(jnp.where(lanes.mask, lanes.r, near.here))
    lead = lanes.v * (lanes.v / (lanes.r + lanes.x)) if scaled else lanes.r
    correction = series(VALUES, lanes.w, lanes.q, -1) + HALF_LOG_HALF_PI - 0.5 * log_second
    above = (lanes.v * (log_first + shift) - lead) + correction
    power = jnp.where(split(near_v)[0], 0, -near_v * log_first)
    offset = jnp.where(near.small, power + near_x if scaled else power, 0 if scaled else -near_x)
    return jnp.where(lanes.mask, above, offset + log_second)


def _near_log(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes log K_v(x) below radius 21, plus x where x > 2; for derivatives in v."""
    log_half = jnp.log(0.5 * x)
    near = near_k(v, x, log_half)
    return jnp.where(near.small & ~split(v)[0], -jnp.abs(v) * log_half, 0) + jnp.log(near.here)


NEAR_ORDER_SLOPE = item_wise(partial(slope_in_first, _near_log))
ORDER_SLOPE = item_wise(partial(order_slope, -1))
ARGUMENT_SLOPE = item_wise(partial(argument_slope, -1))


@jax.custom_jvp
def by_order_k(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of `log_k` in v, with all edges; odd in v."""
    return _by_order(v, x)


def _by_order_jvp(primals, tangents):
    # Mixed derivatives commute, and that of the derivative in x has the shorter program.
    v, x = primals
    by_order = tangent(lambda: slope_in_first(_by_order, v, x), tangents[0])
    by_argument = tangent(lambda: slope_in_first(partial(by_argument_k, False), v, x), tangents[1])
    return by_order_k(v, x), total(x, by_order, by_argument)


by_order_k.defjvp(_by_order_jvp, symbolic_zeros=True)


def _by_order(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    inside = _inside(v, x)
    lanes = far(jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    near = inside & ~lanes.mask
    near_v, near_x = jnp.where(near, v, 1), jnp.where(near, x, 1)
    below = NEAR_ORDER_SLOPE(near_v, near_x)
    above = ORDER_SLOPE(lanes.v, lanes.x)
    limit = jnp.where((x == jnp.inf) | (v == 0), 0, jnp.sign(v) * jnp.inf)
    return jnp.where(inside, jnp.where(lanes.mask, above, below), jnp.where(_defined(v, x), limit, jnp.nan))


def by_argument_k(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of `log_k` in x, with all edges."""
    inside = _inside(v, x)
    lanes = far(jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    near = inside & ~lanes.mask
    near_v, near_x = jnp.where(near, v, 1), jnp.where(near, x, 1)
    below = -near_decay(near_v, near_x)
    above = ARGUMENT_SLOPE(lanes.v, lanes.x)
    value = jnp.where(lanes.mask, above - (0 if scaled else 1), below + (1 if scaled else 0))
    limit = jnp.where(x == jnp.inf, 0 if scaled else -1, -jnp.inf)
    return jnp.where(inside, value, jnp.where(_defined(v, x), limit, jnp.nan))


@jax.jit
def _kv_ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    inside = _inside(v, x)
    lanes = far(jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    near = inside & ~lanes.mask
    near_v, near_x = jnp.where(near, v, 1), jnp.where(near, x, 1)
    value = jnp.where(lanes.mask, _far_ratio(lanes.v, lanes.x), near_ratio(near_v, near_x))
    at_zero = jnp.where(v > -0.5, jnp.inf, jnp.where(v == -0.5, 1, 0))
    limit = jnp.where(x == jnp.inf, 1, at_zero)
    return jnp.where(inside, value, jnp.where(_defined(v, x), limit, jnp.nan))


@item_wise
def _far_ratio(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """K_{v+1} / K_v from radius 21 on."""
    w = 1 / radius(v, x)
    lead = jnp.where(v >= 0, rise(jnp.maximum(v, 0), x), fall(jnp.maximum(-v, 0), x))
    return lead + x * w * slope_sum(w, (v * w) ** 2, -1)
