r"""`init_language_model`: random weights to train from.

Entries are normal with variance 1 / fan-in; matrices that write to the residual stream are smaller by
$1/\sqrt{2 \cdot \text{layers}}$, as in GPT-2 (Radford et al., 2019), and embeddings have standard deviation 0.02.
"""

from typing import Any

import jax
import jax.numpy as jnp

from probinf.core._types import PRNGKey
from probinf.models.lm._config import LanguageModelConfig
from probinf.models.lm._layer import Layer
from probinf.models.lm._model import LanguageModel, compute_dtype_name
from probinf.models.lm._precision import at_least_single, check_representable

_EMBED_SCALE = 0.02


def init_language_model(
    key: PRNGKey, config: LanguageModelConfig, dtype: Any = jnp.float32, compute_dtype: Any = None
) -> LanguageModel:
    """Draws the weights of a model that knows nothing yet.

    Args:
        key: PRNG key, consumed.
        config: the shape of the model.
        dtype: dtype of the weights.
        compute_dtype: dtype of the computation; None is float64 for weights of float64, and float32 for others.

    Returns:
        A model whose value head, if it has one, says 0.

    Raises:
        ValueError: `dtype` is no float, or float64 where JAX computes in single precision; or `compute_dtype` is none
            that a model computes in.
    """
    check_dtype(dtype)
    compute_dtype = compute_dtype_name(at_least_single(dtype) if compute_dtype is None else compute_dtype)
    residual = (2 * config.num_layers) ** -0.5
    query_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    embed_key, output_key, layers_key = jax.random.split(key, 3)

    def matrix(key: PRNGKey, size: int, inputs: int, scale: float = 1.0) -> jax.Array:
        return jax.random.normal(key, (size, inputs), dtype) * (scale * inputs**-0.5)

    def layer(key: PRNGKey) -> Layer:
        keys = jax.random.split(key, 7)
        query_key_value = [matrix(keys[i], size, config.dim) for i, size in enumerate((query_dim, kv_dim, kv_dim))]
        gate_up = [matrix(keys[i], config.hidden_dim, config.dim) for i in (4, 5)]
        return Layer(
            attention_norm=jnp.ones(config.dim, dtype),
            query_key_value=jnp.concatenate(query_key_value),
            output=matrix(keys[3], config.dim, query_dim, residual),
            mlp_norm=jnp.ones(config.dim, dtype),
            gate_up=jnp.concatenate(gate_up),
            down=matrix(keys[6], config.dim, config.hidden_dim, residual),
        )

    def embedding(key: PRNGKey) -> jax.Array:
        return jax.random.normal(key, (config.vocab_size, config.dim), dtype) * _EMBED_SCALE

    layer_keys = jax.random.split(layers_key, config.num_layers)
    return LanguageModel(
        embed=embedding(embed_key),
        layers=tuple(layer(layer_keys[index]) for index in range(config.num_layers)),
        norm=jnp.ones(config.dim, dtype),
        output=None if config.tie_embeddings else embedding(output_key),
        value=jnp.zeros(config.dim, dtype) if config.value_head else None,
        value_bias=jnp.zeros((), dtype) if config.value_head else None,
        config=config,
        compute_dtype=compute_dtype,
    )


def check_dtype(dtype: Any) -> None:
    """Raises `ValueError` for a dtype of weights that is no float, or that JAX would silently cut to another."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`dtype` is {jnp.dtype(dtype).name!r}: weights are floats; pass float32 or bfloat16")
    check_representable("dtype", dtype)
