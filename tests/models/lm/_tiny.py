"""A tiny model that every test shares, and its forward pass written once more in NumPy."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probinf.models.lm import LanguageModel, LanguageModelConfig, init_language_model

CONFIG = LanguageModelConfig(
    vocab_size=11,
    dim=12,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    hidden_dim=20,
    max_length=32,
    rope_theta=50.0,
    value_head=True,
)


def tiny(dtype=jnp.float32, compute_dtype=None, config=CONFIG, seed=0) -> LanguageModel:
    """A model with every weight random, so that none of them can be left out unseen; drawn without compiling."""
    init = partial(init_language_model, config=config, dtype=dtype, compute_dtype=compute_dtype)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale, shift = (leaf.shape[-1] ** -0.5, 0.0) if leaf.ndim == 2 else (0.3, 1.0)
        return jnp.asarray((shift + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype))

    return jax.tree.map(draw, jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0))))


def tokens(seed, *shape, config=CONFIG):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, shape), jnp.int32)


def _norm(x, scale, eps):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale


def _rotate(x, theta):
    """Turns [L, heads, d]: the complex number of elements i and i + d / 2 by m theta^(-2 i / d)."""
    length, _, d = x.shape
    angle = np.arange(length)[:, None] * theta ** (-2 * np.arange(d // 2) / d)
    turned = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def reference(model: LanguageModel, sequence) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and values of one sequence in double precision: head by head, query by query, keys repeated."""
    config, layers = model.config, model.layers
    model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), eqx.filter(model, eqx.is_array))
    length = len(sequence)
    x = model.embed[np.asarray(sequence)]
    for layer, parts in zip(model.layers, layers, strict=True):
        query, key, value, gate, up = (
            np.asarray(matrix, np.float64) for matrix in (parts.query, parts.key, parts.value, parts.gate, parts.up)
        )
        u = _norm(x, layer.attention_norm, config.norm_eps)
        q, k, v = ((u @ matrix.T).reshape(length, -1, config.head_dim) for matrix in (query, key, value))
        q, k = _rotate(q, config.rope_theta), _rotate(k, config.rope_theta)
        mixed = np.zeros_like(q)
        for head in range(config.num_heads):
            served = head // (config.num_heads // config.num_kv_heads)
            for s in range(length):
                logits = k[: s + 1, served] @ q[s, head] / np.sqrt(config.head_dim)
                weights = np.exp(logits - logits.max())
                mixed[s, head] = weights @ v[: s + 1, served] / weights.sum()
        x = x + mixed.reshape(length, -1) @ layer.output.T
        u = _norm(x, layer.mlp_norm, config.norm_eps)
        gated = u @ gate.T
        x = x + (gated / (1 + np.exp(-gated)) * (u @ up.T)) @ layer.down.T
    x = _norm(x, model.norm, config.norm_eps)
    output = model.embed if model.output is None else model.output
    return x @ output.T, None if model.value is None else x @ model.value + model.value_bias
