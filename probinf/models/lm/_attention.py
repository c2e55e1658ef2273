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
        keys: [kv, hd, p].
        values: [kv, p, hd].
        visible: which of them are real, [p].
    """

    keys: Float[Array, "kv hd p"]
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
    # Doubled last: compilers then keep cosine and sine, and do not compute them anew for each head that they turn.
    halves = (jnp.cos(angles), jnp.sin(angles))
    return Rotation(*(jnp.concatenate([half, half], axis=-1).astype(dtype) for half in halves))


def rotate(x: Float[Array, "n s h hd"], rotation: Rotation) -> Float[Array, "n s h hd"]:
    """Turns every head by its position's angles; element i pairs with element i + hd / 2."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * rotation.cosine + jnp.concatenate([-second, first], axis=-1) * rotation.sine


def attend(
    queries: Float[Array, "n s h hd"],
    keys: Float[Array, "n kv hd t"],
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
    kv, scale = keys.shape[1], head_dim**-0.5
    grouped = queries.reshape(n, s, kv, heads // kv, head_dim)
    # Explicit transposes of queries, the smallest arrays here: products then take all operands as they lie.
    own = contract("nksgd,nkdt->nksgt", jnp.swapaxes(grouped, 1, 2), keys) * scale
    own = _masked(own, visible[:, None, :, None, :])
    peak, weights, total = _exponentials(own)
    mixed = contract("nksgt,nktd->nksgd", weights.astype(values.dtype), values)
    if shared is None:
        mixed = mixed / total[..., None]
    else:
        # Heads lead here, for one product then serves all rows.
        logits = contract("knsgd,kdp->knsgp", jnp.moveaxis(grouped, 2, 0), shared.keys) * scale
        logits = _masked(logits, shared.visible[None, None, None, None, :])
        shared_peak, shared_weights, shared_total = _exponentials(logits)
        shared_mixed = contract("knsgp,kpd->knsgd", shared_weights.astype(values.dtype), shared.values)
        # Each part has a peak of its own, and the two meet in what is small: Milakov and Gimelshein (2018).
        shared_peak, shared_total, shared_mixed = (
            jnp.swapaxes(part, 0, 1) for part in (shared_peak, shared_total, shared_mixed)
        )
        highest = jnp.maximum(peak, shared_peak)
        share, shared_share = jnp.exp(peak - highest), jnp.exp(shared_peak - highest)
        total = share * total + shared_share * shared_total
        mixed = mixed * (share / total)[..., None] + shared_mixed * (shared_share / total)[..., None]
    return jnp.swapaxes(mixed, 1, 2).reshape(n, s, heads * head_dim).astype(queries.dtype)


def _masked(logits: Array, visible: Array) -> Array:
    # A finite floor: -inf less -inf is NaN where a padded query sees nothing.
    return jnp.where(visible, logits, jnp.finfo(logits.dtype).min)


def _exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """The largest logit, the exponentials of what the others lack of it, and their sum."""
    # The peak cancels between numerator and denominator, so that no gradient needs to pass through it.
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    weights = jnp.exp(logits - peak[..., None])
    return peak, weights, jnp.sum(weights, axis=-1)
