r"""`attend`: one softmax over a prompt that all rows share and over each row's own keys.

A row $n$ at query $s$ sees the prompt keys $p < P$ and its own keys up to itself,

$$o = \frac{\sum_p e^{q \cdot k_p / \sqrt d}\, v_p + \sum_t e^{q \cdot k_t / \sqrt d}\, v_t}
           {\sum_p e^{q \cdot k_p / \sqrt d} + \sum_t e^{q \cdot k_t / \sqrt d}}.$$

The prompt's keys stand in memory once and are read once for all rows. Grouped queries: Ainslie et al. (2023), "GQA";
rotary positions: Su et al. (2021), "RoFormer", in the half-split layout of the Hugging Face checkpoints.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from probinf.models.lm._precision import at_least_single, contract


class Shared(NamedTuple):
    """Keys that all rows see.

    Attributes:
        keys, values: [kv, p, hd].
        visible: which of them are real, [p].
    """

    keys: Float[Array, "kv p hd"]
    values: Float[Array, "kv p hd"]
    visible: Bool[Array, " p"]


class Rotation(NamedTuple):
    """Cosine and sine of every position's angles, [n, s, 1, hd]."""

    cosine: Float[Array, "n s 1 hd"]
    sine: Float[Array, "n s 1 hd"]


def rotation_at(positions: Int[Array, "n s"], head_dim: int, theta: float, dtype: np.dtype) -> Rotation:
    r"""The angles $m\,\theta^{-2i/d}$ of positions $m$, in at least single precision."""
    wide = at_least_single(dtype)
    frequencies = jnp.asarray(theta ** (-np.arange(0, head_dim, 2) / head_dim), wide)
    angles = positions[:, :, None, None].astype(wide) * frequencies[None, None, None, :]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rotation(jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype))


def rotate(x: Float[Array, "n s h hd"], rotation: Rotation) -> Float[Array, "n s h hd"]:
    """Turns every head by its position's angles; element i pairs with element i + hd / 2."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * rotation.cosine + jnp.concatenate([-second, first], axis=-1) * rotation.sine


def attend(
    queries: Float[Array, "n s h hd"],
    keys: Float[Array, "n kv t hd"],
    values: Float[Array, "n kv t hd"],
    visible: Bool[Array, "#n s t"],
    shared: Shared | None = None,
) -> Float[Array, "n s d"]:
    """Attention of every query over the shared keys and its row's own.

    Args:
        queries: already rotated, as keys are; head h looks at the keys of head h // (h / kv).
        keys: each row's own.
        values: likewise.
        visible: which of its row's keys a query sees; masked entries must be finite, and have no influence then.
        shared: the prompt, or None.

    Returns:
        The heads side by side, d = h * hd, in the dtype of `queries`. A query that sees nothing gives a finite number
        without meaning.
    """
    n, s, heads, head_dim = queries.shape
    grouped = queries.reshape(n, s, keys.shape[1], heads // keys.shape[1], head_dim)
    scale = head_dim**-0.5
    own = _masked(contract("nskgd,nktd->nksgt", grouped, keys) * scale, visible[:, None, :, None, :])
    peak = jnp.max(own, axis=-1)
    if shared is None:
        weights, total = _exponentials(own, peak)
        mixed = contract("nksgt,nktd->nksgd", weights.astype(values.dtype), values)
    else:
        # Heads lead here, for the product with shared keys comes out so: only sums over p change places.
        logits = contract("nskgd,kpd->knsgp", grouped, shared.keys) * scale
        logits = _masked(logits, shared.visible[None, None, None, None, :])
        peak = jnp.maximum(peak, jnp.swapaxes(jnp.max(logits, axis=-1), 0, 1))
        weights, total = _exponentials(own, peak)
        shared_weights, shared_total = _exponentials(logits, jnp.swapaxes(peak, 0, 1))
        total = total + jnp.swapaxes(shared_total, 0, 1)
        mixed = contract("nksgt,nktd->nksgd", weights.astype(values.dtype), values)
        shared_mixed = contract("knsgp,kpd->knsgd", shared_weights.astype(values.dtype), shared.values)
        mixed = mixed + jnp.swapaxes(shared_mixed, 0, 1)
    mixed = mixed / total[..., None]
    return jnp.swapaxes(mixed, 1, 2).reshape(n, s, heads * head_dim).astype(queries.dtype)


def _masked(logits: Array, visible: Array) -> Array:
    # A finite floor: -inf less -inf is NaN where a padded query sees nothing.
    return jnp.where(visible, logits, jnp.finfo(logits.dtype).min)


def _exponentials(logits: Array, peak: Array) -> tuple[Array, Array]:
    # The peak cancels between numerator and denominator, so that no gradient needs to pass through it.
    weights = jnp.exp(logits - jax.lax.stop_gradient(peak)[..., None])
    return weights, jnp.sum(weights, axis=-1)
