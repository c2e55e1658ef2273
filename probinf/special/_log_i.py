r"""The logarithm of the modified Bessel function of the first kind, in two regions and in every lane at once.

From radius $r = \sqrt{v^2 + x^2} = 21$ on Debye's expansion (`_debye.py`), below it the power series
(`_power_series.py`). Each lane needs two logarithms, of other numbers in either region, so two are taken. The first
derivatives have formulas of their own; all further ones are theirs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from probinf.special._arguments import common, known_above_minus_one
from probinf.special._debye import VALUES, argument_slope, far, order_slope, series, slope_parts
from probinf.special._derivatives import divide, item_wise, slope_in_first, tangent, total
from probinf.special._iv_ratio import near_ratio
from probinf.special._log_k import log_k
from probinf.special._power_series import factor_parts, log_factor

HALF_LOG_TWO_PI = float(0.5 * np.log(2 * np.pi))
FACTOR_SLOPE = item_wise(partial(slope_in_first, log_factor))
ORDER_SLOPE = item_wise(partial(order_slope, 1))
ARGUMENT_SLOPE = item_wise(partial(argument_slope, 1))


def log_iv(v: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."], *, reflect: bool = True) -> Float[Array, "..."]:
    r"""Computes $\log I_v(x)$, the modified Bessel function of the first kind, of real order v.

    In float64 the error is below 4e-15 times max(1, |value|, r), $r = \sqrt{v^2 + x^2}$ (what rounding the arguments
    does already), in float32 below 1.2e-6 times that, for 0 <= v <= 1e6 and 1e-300 <= x <= 1e300 (1e-37 to 1e37). For
    v = 0 the relative error stays at rounding as x -> 0. Derivatives in order and argument, of any order, are right.

    Edges: at x = 0 it is 0 for v = 0, -inf for v > 0 and inf for -1 < v < 0; inf at x = inf; -inf at v = inf. NaN for
    x < 0, v = x = inf and NaN. An order of -1 or less takes the reflection
    $I_{-v} = I_v + (2 / \pi) \sin(\pi v) K_v$, with NaN where that is negative. The call then costs as much as one of
    `log_kv` more, under `vmap` over traced orders always. Orders given as Python or NumPy numbers are looked at while
    tracing: where all are above -1, no program for K is compiled.

    Args:
        v: order; float32, float64 or whole numbers.
        x: argument, at least 0; broadcast with `v`, of the same floating dtype.
        reflect: whether orders of -1 and less are served; without them, where they are NaN, compilation is faster.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _public(False, reflect and not known_above_minus_one(v), *common(v=v, x=x))


def log_ive(v: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."], *, reflect: bool = True) -> Float[Array, "..."]:
    r"""Computes $\log(e^{-x} I_v(x)) = \log I_v(x) - x$ without taking the difference where x is large.

    Edges as those of `log_iv`, but -inf at x = inf.

    Args:
        v: order; float32, float64 or whole numbers.
        x: argument, at least 0; broadcast with `v`, of the same floating dtype.
        reflect: whether orders of -1 and less are served; without them, where they are NaN, compilation is faster.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """
    return _public(True, reflect and not known_above_minus_one(v), *common(v=v, x=x))


@partial(jax.jit, static_argnums=(0, 1))
def _public(
    scaled: bool, reflect: bool, v: Float[Array, "*shape"], x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return SIGNED[scaled](v, x) if reflect else log_i(scaled, v, x)


def _signed(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """As `log_i`, for any order: only where one is -1 or less K is computed."""
    log_first = log_i(scaled, jnp.where(v > -1, v, -v), x)
    return jax.lax.cond(jnp.any(v <= -1), partial(_reflected, scaled), lambda *given: given[-1], v, x, log_first)


def _reflected(
    scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."], log_first: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The value for orders of either sign from that of I, `log_first`, at the order of which it is asked."""
    negative = v <= -1
    a = jnp.where(negative, -v, 1)
    log_second = log_k(scaled, a, x) - (2 * x if scaled else 0)
    nearest = jnp.round(a)
    parity = nearest - 2 * jnp.floor(0.5 * nearest)
    # sin(pi a) from the distance to the nearest integer: 0 at all integers, also at those beyond 2^53.
    factor = float(2 / np.pi) * (1 - 2 * parity) * jnp.sin(float(np.pi) * (a - nearest))
    difference = log_second - log_first
    limit = 300.0 if x.dtype == jnp.float64 else 40.0
    beyond = (difference > limit) & (factor != 0)
    within = log_first + jnp.log1p(factor * jnp.exp(jnp.minimum(jnp.where(beyond, 0, difference), limit)))
    outside = log_second + jnp.log(jnp.where(beyond, factor + jnp.exp(-jnp.where(beyond, difference, 0)), 1))
    return jnp.where(negative, jnp.where(beyond, outside, within), log_first)


# Not by reverse mode through `cond`, which would keep the intermediate numbers of both branches.
SIGNED = {scaled: item_wise(partial(_signed, scaled)) for scaled in (False, True)}


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_i(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes log I_v(x), less x if `scaled`, with all edges, for v > -1."""
    inside = (v > -1) & (v < jnp.inf) & (x > 0) & (x < jnp.inf)
    value = _value(scaled, jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    at_zero = jnp.where(v == 0, 0, -jnp.sign(v) * jnp.inf)
    at_infinity = jnp.where(x == 0, at_zero, -jnp.inf if scaled else jnp.inf)
    limit = jnp.where(v == jnp.inf, -jnp.inf, at_infinity)
    return jnp.where(inside, value, jnp.where(_defined(v, x), limit, jnp.nan))


def _defined(v, x):
    return (x >= 0) & (v > -1) & ((v < jnp.inf) | (x < jnp.inf))


@partial(log_i.defjvp, symbolic_zeros=True)
def _log_i_jvp(scaled, primals, tangents):
    v, x = primals
    by_order = tangent(lambda: by_order_i(v, x), tangents[0])
    by_argument = tangent(lambda: by_argument_i(scaled, v, x), tangents[1])
    return log_i(scaled, v, x), total(x, by_order, by_argument)


def _value(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value for -1 < v < inf and 0 < x < inf."""
    lanes = far(v, x)
    near_v, near_x = jnp.where(lanes.mask, 1, v), jnp.where(lanes.mask, 1, x)
    size = jnp.abs(lanes.v)  # beyond the radius the reflection of an order above -1 is below rounding
    factor, factor_rest = factor_parts(near_v, 0.25 * near_x * near_x)
    slope, slope_rest, shift = slope_parts(size, lanes.x, lanes.r)
    first = jnp.where(lanes.mask, slope, 0.5 * near_x)
    log_first = jnp.log(first) + jnp.where(lanes.mask, slope_rest, 0) / first
    second = jnp.where(lanes.mask, lanes.r, factor)
    log_second = jnp.log(second) + jnp.where(lanes.mask, 0, factor_rest) / second
    lead = size * (size / (lanes.r + lanes.x)) if scaled else lanes.r
    correction = series(VALUES, lanes.w, lanes.q, 1) - HALF_LOG_TWO_PI - 0.5 * log_second
    below = near_v * log_first + (log_second - near_x if scaled else log_second)
    return jnp.where(lanes.mask, (lead - size * (log_first + shift)) + correction, below)


def by_argument_i(scaled: bool, v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of `log_i` in x, with all edges."""
    inside = (v > -1) & (v < jnp.inf) & (x >= 0) & (x < jnp.inf)
    v_in, x_in = jnp.where(inside, v, 1), jnp.where(inside, x, 1)
    lanes = far(v_in, x_in)
    near_v, near_x = jnp.where(lanes.mask, 0, v_in), jnp.where(lanes.mask, 1, x_in)
    power = divide(near_v, jnp.where((near_v == 0) & (near_x == 0), 1, near_x))
    below = near_ratio(near_v, near_x) + power - (1 if scaled else 0)
    above = ARGUMENT_SLOPE(lanes.v, lanes.x) + (0 if scaled else 1)
    limit = jnp.where(v == jnp.inf, jnp.inf, 0 if scaled else 1)
    return jnp.where(inside, jnp.where(lanes.mask, above, below), jnp.where(_defined(v, x), limit, jnp.nan))


@jax.custom_jvp
def by_order_i(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of `log_i` in v, with all edges."""
    return _by_order(v, x)


def _by_order_jvp(primals, tangents):
    # Mixed derivatives commute, and that of the derivative in x has the shorter program.
    v, x = primals
    by_order = tangent(lambda: slope_in_first(_by_order, v, x), tangents[0])
    by_argument = tangent(lambda: slope_in_first(partial(by_argument_i, False), v, x), tangents[1])
    return by_order_i(v, x), total(x, by_order, by_argument)


by_order_i.defjvp(_by_order_jvp, symbolic_zeros=True)


def _by_order(v: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    inside = (v > -1) & (v < jnp.inf) & (x > 0) & (x < jnp.inf)
    lanes = far(jnp.where(inside, v, 1), jnp.where(inside, x, 1))
    near = inside & ~lanes.mask
    near_v, near_x = jnp.where(near, v, 1), jnp.where(near, x, 1)
    below = jnp.log(0.5 * near_x) + FACTOR_SLOPE(near_v, 0.25 * near_x * near_x)
    above = ORDER_SLOPE(lanes.v, lanes.x)
    limit = jnp.where(x == jnp.inf, 0, -jnp.inf)
    return jnp.where(inside, jnp.where(lanes.mask, above, below), jnp.where(_defined(v, x), limit, jnp.nan))
