"""Gradients: that automatic differentiation of a target agrees with differences of its values.

A kernel with a wrong gradient still leaves its target invariant, and mixes badly; custom derivative rules and `where`
around unsafe functions are how gradients go wrong.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from probinf.core import PRNGKey, Target, whole_number
from probinf.validity._report import Check


def gradient_check(
    key: PRNGKey, target: Target, draw: Callable[[PRNGKey], PyTree], *, num_points: int = 64, subject: str = ""
) -> Check:
    """Whether the gradient of a log density is its derivative, along random directions at random points.

    Args:
        key: PRNG key.
        target: a `Target` on floating positions.
        draw: key -> position.
        num_points: how many points.
        subject: a name for the table.

    Returns:
        A `Check` of the largest error of symmetric differences, beyond what rounding and the halving of their step
        explain, relative to the slope; its bound is 1e-4 in float64 and .02 in float32. NaN, which fails, where
        differences say nothing at any point.
    """
    num_points = whole_number("num_points", num_points, 1)
    bound = 1e-4 if jnp.result_type(float) == jnp.float64 else 2e-2
    errors, doubt = (np.asarray(x, float) for x in _errors(target, draw, jax.random.split(key, num_points + 1)))
    if not np.all(np.isfinite(errors)):
        found = float("nan")
    else:
        seen = doubt < 0.1  # of the slope: elsewhere differences say nothing
        found = float(np.max(errors[seen])) if np.any(seen) else float("nan")
    return Check("gradient", f"{subject}: {num_points} points", found, bound, 0.0, f"{bound:.0e} of the slope")


@eqx.filter_jit
def _errors(target: Target, draw: Callable, keys: Array) -> tuple[Array, Array]:
    rows = jax.vmap(lambda key: ravel_pytree(draw(key))[0])(jax.random.split(keys[0], 256))
    spread = jnp.maximum(jnp.std(rows, axis=0), jnp.finfo(rows.dtype).tiny)
    size = jnp.asarray(jnp.finfo(rows.dtype).eps, rows.dtype) ** 0.25

    def at(key: PRNGKey) -> tuple[Array, Array]:
        draw_key, direction_key = jax.random.split(key)
        flat, unravel = ravel_pytree(draw(draw_key))
        direction = spread * jax.random.normal(direction_key, flat.shape, flat.dtype)

        def value(x: Float[Array, " d"]) -> Float[Array, ""]:
            return target.log_density(unravel(x))

        def difference(h: Array) -> Array:
            return (value(flat + h * direction) - value(flat - h * direction)) / (2 * h)

        gradient = jax.grad(value)(flat)
        slope, whole = gradient @ direction, jnp.linalg.norm(gradient * spread) + jnp.finfo(flat.dtype).tiny
        wide, narrow = difference(size), difference(size / 2)
        # What is left of a difference, by rounding and by its own change when the step is halved.
        rounding = 8 * jnp.finfo(flat.dtype).eps * jnp.abs(value(flat)) / size
        doubt = jnp.abs(wide - narrow) + rounding
        error = jnp.maximum(jnp.abs((4 * narrow - wide) / 3 - slope) - doubt, 0)
        return error / whole, doubt / whole

    return jax.vmap(at)(keys[1:])
