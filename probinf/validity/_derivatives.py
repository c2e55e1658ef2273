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

from probinf.core import PRNGKey, Target
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
        A `Check` of the largest error, relative to the largest slope at a point, of symmetric differences; its bound is
        1e-5 in float64 and .02 in float32, where little is left of a difference.
    """
    wide = jnp.result_type(float) == jnp.float64
    step, bound = (1e-5, 1e-5) if wide else (1e-2, 2e-2)
    errors = np.asarray(_errors(target, draw, jax.random.split(key, num_points), jnp.asarray(step)), float)
    found = float(np.max(errors)) if np.all(np.isfinite(errors)) else float("nan")
    return Check("gradient", f"{subject}: {num_points} points", found, bound, 0.0, f"{bound:.0e} of the slope")


@eqx.filter_jit
def _errors(target: Target, draw: Callable, keys: Array, step: Float[Array, ""]) -> Float[Array, " n"]:
    def at(key: PRNGKey) -> Float[Array, ""]:
        draw_key, direction_key = jax.random.split(key)
        flat, unravel = ravel_pytree(draw(draw_key))
        direction = jax.random.normal(direction_key, flat.shape, flat.dtype)
        direction = direction / jnp.maximum(jnp.linalg.norm(direction), jnp.finfo(flat.dtype).tiny)

        def value(x: Float[Array, " d"]) -> Float[Array, ""]:
            return target.log_density(unravel(x))

        size = step.astype(flat.dtype)
        slope = jax.grad(value)(flat)
        ahead, behind = value(flat + size * direction), value(flat - size * direction)
        return jnp.abs((ahead - behind) / (2 * size) - slope @ direction) / (1 + jnp.linalg.norm(slope))

    return jax.vmap(at)(keys)
