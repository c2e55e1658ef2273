r"""Log odds $\log r - \log(1 - r)$ of rewards: exact near 0 and near 1, and clipped where they must be finite."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core import is_concrete


def log_odds(reward: Float[Array, " n"]) -> Float[Array, " n"]:
    r"""$\log r - \log(1 - r)$; NaN outside [0, 1]."""
    inside = (reward >= 0) & (reward <= 1)
    safe = jnp.where(inside, reward, 0.5)
    return jnp.where(inside, jnp.log(safe) - jnp.log1p(-safe), jnp.nan)


def log_odds_of_log(log_reward: Float[Array, " n"]) -> Float[Array, " n"]:
    r"""Log odds of a reward given by its logarithm, $\ell - \log(1 - e^\ell)$; rounding above 0 counts as 0."""
    below = (log_reward < 0) | jnp.isnan(log_reward)
    safe = jnp.where(below, log_reward, -1)
    # Either form alone loses all digits at one end.
    near = safe > -0.6931
    small = jnp.log(-jnp.expm1(jnp.where(near, safe, -0.5)))
    large = jnp.log1p(-jnp.exp(jnp.where(near, -1, safe)))
    return jnp.where(below, safe - jnp.where(near, small, large), jnp.inf)


def clip_log_odds(value: Float[Array, " n"], clip: Float[Array, ""]) -> Float[Array, " n"]:
    """Log odds of the reward clipped to [`clip`, 1 - `clip`]; NaN stays NaN."""
    clip = clip.astype(value.dtype)
    bound = jnp.log1p(-clip) - jnp.log(clip)
    return jnp.clip(value, -bound, bound)


def as_clip(clip: Any) -> Float[Array, ""]:
    """`clip` as an array.

    Args:
        clip: a number between 0 and 0.5, or a traced scalar.

    Raises:
        ValueError: it is out of range.
    """
    if is_concrete(clip) and not 0 < float(clip) < 0.5:
        raise ValueError(f"`clip` is {clip!r}; needed a number between 0 and 0.5, such as 1e-7")
    return jnp.asarray(clip, float)
