"""The Llama family on disk: keys of `config.json`, names of tensors, and what of it is not understood.

Names are those of `LlamaForCausalLM` of the package transformers, which reads what is written here; a value head is
stored beside them as `value_head.weight` [1, D] and `value_head.bias` [1].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from probinf.models.lm._config import LanguageModelConfig
from probinf.models.lm._layer import Layer
from probinf.models.lm._model import LanguageModel

_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_JOINED = {"query_key_value": ("query", "key", "value"), "gate_up": ("gate", "up")}
# Our names, theirs, and what theirs is when absent; without a default the key must be there.
_COUNTS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
_SUPPORTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}


class Family(NamedTuple):
    """How one family of models is stored: what another file would define for another family.

    Attributes:
        architecture: the entry of `architectures` in `config.json`.
        read_config: the content of `config.json` and its name (for errors) to a configuration.
        write_config: a configuration to what `config.json` says.
        tensors: a model's arrays by name; only shapes are looked at, so a model of `ShapeDtypeStruct`s will do.
        build: configuration, NumPy arrays by name and the dtype of the computation to a model.
        is_ignored: whether a tensor that the model has no place for may be left out.
    """

    architecture: str
    read_config: Callable[[Mapping[str, Any], str], LanguageModelConfig]
    write_config: Callable[[LanguageModelConfig], dict[str, Any]]
    tensors: Callable[[LanguageModel], dict[str, Any]]
    build: Callable[[LanguageModelConfig, Mapping[str, np.ndarray], str], LanguageModel]
    is_ignored: Callable[[str], bool]


def _read_config(content: Mapping[str, Any], file: str) -> LanguageModelConfig:
    """The configuration.

    Raises:
        ValueError: a key is missing, its value out of range, or it asks for what this family's code does not do.
    """
    for key, known in _SUPPORTED.items():
        if content.get(key, known) != known:
            raise ValueError(f"{file}: `{key}` is {content[key]!r}, and only {known!r} is supported")
    missing = [key for key in _COUNTS.values() if content.get(key) is None]
    if missing:
        raise ValueError(f"{file}: `{missing[0]}` is missing; it must be there for a model of type 'llama'")
    counts = {ours: content[theirs] for ours, theirs in _COUNTS.items()}
    # A null is as good as an absent key, as in transformers, whose defaults these are.
    heads = counts["num_heads"]
    head_dim = content.get("head_dim")
    try:
        return LanguageModelConfig(
            **counts,
            num_kv_heads=_default(content.get("num_key_value_heads"), heads),
            head_dim=counts["dim"] // heads if head_dim is None else head_dim,
            max_length=_default(content.get("max_position_embeddings"), 2048),
            rope_theta=_rope_theta(content, file),
            norm_eps=_default(content.get("rms_norm_eps"), 1e-6),
            tie_embeddings=_default(content.get("tie_word_embeddings"), False),
            value_head=_default(content.get("value_head"), False),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file}: {error}") from error


def _rope_theta(content: Mapping[str, Any], file: str) -> float:
    # `rope_scaling` up to version 4 of transformers, `rope_parameters` from version 5.
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", content.get("partial_rotary_factor"))
    if kind != "default" or partial not in (None, 1.0):
        raise ValueError(
            f"{file}: rotary embeddings of type {kind!r} with `partial_rotary_factor` {partial} are not supported, "
            "only the default ones"
        )
    return float(_default(rope.get("rope_theta"), _default(content.get("rope_theta"), 10000.0)))


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _write_config(config: LanguageModelConfig) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in _COUNTS.items()} | {
        "model_type": "llama",
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "value_head": config.value_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _tensors(model: LanguageModel) -> dict[str, Any]:
    tensors: dict[str, Any] = {"model.embed_tokens.weight": model.embed}
    for index, layer in enumerate(model.layers):
        tensors |= {f"model.layers.{index}.{name}.weight": getattr(layer, field) for name, field in _LAYER.items()}
    tensors["model.norm.weight"] = model.norm
    if model.output is not None:
        tensors["lm_head.weight"] = model.output
    if model.value is not None and model.value_bias is not None:
        tensors["value_head.weight"] = model.value[None, :]
        tensors["value_head.bias"] = model.value_bias[None]
    return tensors


def _build(config: LanguageModelConfig, tensors: Mapping[str, np.ndarray], compute_dtype: str) -> LanguageModel:
    def layer(index: int) -> Layer:
        parts = {field: tensors[f"model.layers.{index}.{name}.weight"] for name, field in _LAYER.items()}
        joined = {field: _joined([parts.pop(name) for name in names]) for field, names in _JOINED.items()}
        return Layer(**{field: jnp.asarray(array) for field, array in (parts | joined).items()})

    return LanguageModel(
        embed=jnp.asarray(tensors["model.embed_tokens.weight"]),
        layers=tuple(layer(index) for index in range(config.num_layers)),
        norm=jnp.asarray(tensors["model.norm.weight"]),
        output=None if config.tie_embeddings else jnp.asarray(tensors["lm_head.weight"]),
        value=jnp.asarray(tensors["value_head.weight"].reshape(-1)) if config.value_head else None,
        value_bias=jnp.asarray(tensors["value_head.bias"].reshape(())) if config.value_head else None,
        config=config,
        compute_dtype=compute_dtype,
    )


def _joined(matrices: list[np.ndarray]) -> np.ndarray:
    # On the host, so that a device never holds them twice; in the widest of their dtypes.
    dtype = np.result_type(*matrices)
    return np.concatenate([matrix.astype(dtype) for matrix in matrices])


def _is_ignored(name: str) -> bool:
    # Old checkpoints store the rotary frequencies, and tied ones may store the embedding a second time.
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


LLAMA = Family("LlamaForCausalLM", _read_config, _write_config, _tensors, _build, _is_ignored)
