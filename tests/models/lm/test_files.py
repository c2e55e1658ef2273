"""`save_language_model` and `load_language_model`: the layout that others read, and what damage is told apart.

Planted bugs, run every time: a file cut at every part of it, a tensor taken away, turned, renamed or of integers, and
every setting of `config.json` that asks for another model.
"""

import dataclasses
import importlib
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from probinf.models.lm import LanguageModelConfig, load_language_model, read_metadata, save_language_model
from tests.models.lm._tiny import CONFIG, tiny

safetensors = pytest.importorskip("safetensors.numpy")

UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False)
NAMES = {
    "model.embed_tokens.weight": (11, 12),
    "model.norm.weight": (12,),
    "lm_head.weight": (11, 12),
    "value_head.weight": (1, 12),
    "value_head.bias": (1,),
} | {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(2)
    for name, shape in {
        "input_layernorm": (12,),
        "self_attn.q_proj": (24, 12),
        "self_attn.k_proj": (8, 12),
        "self_attn.v_proj": (8, 12),
        "self_attn.o_proj": (12, 24),
        "post_attention_layernorm": (12,),
        "mlp.gate_proj": (20, 12),
        "mlp.up_proj": (20, 12),
        "mlp.down_proj": (12, 20),
    }.items()
}


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.fixture
def folder(tmp_path):
    save_language_model(tmp_path / "model", tiny(config=UNTIED))
    return tmp_path / "model"


def edit(folder, **changes):
    """Changes `config.json`; None takes a key away."""
    file = folder / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def rewrite(folder, change):
    """Changes the tensors."""
    file = folder / "model.safetensors"
    tensors = dict(safetensors.load(file.read_bytes()))
    change(tensors)
    file.write_bytes(safetensors.save(tensors, {"format": "pt"}))


# --- there and back ---


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("config", [CONFIG, UNTIED, dataclasses.replace(CONFIG, value_head=False)])
def test_what_is_saved_is_loaded(tmp_path, dtype, config):
    model = tiny(dtype, config=config)
    save_language_model(tmp_path, model)
    same(load_language_model(tmp_path), model)


@pytest.mark.usefixtures("x64")
def test_double_precision_is_kept_and_computed_in(tmp_path):
    model = tiny(jnp.float64)
    save_language_model(tmp_path, model)
    loaded = load_language_model(tmp_path)
    same(loaded, model)
    assert loaded.compute_dtype == "float64"


def test_weights_are_cast_when_asked(tmp_path):
    model = tiny(jnp.bfloat16)
    save_language_model(tmp_path, model)
    wide = load_language_model(tmp_path, dtype="float32")
    same(wide, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model))
    assert load_language_model(tmp_path).compute_dtype == "float32"
    assert load_language_model(tmp_path, compute_dtype="bfloat16").compute_dtype == "bfloat16"


def test_dtypes_may_differ_between_tensors(tmp_path):
    model = tiny(jnp.bfloat16)
    model = eqx.tree_at(lambda m: m.norm, model, model.norm.astype(jnp.float32))
    save_language_model(tmp_path, model)
    same(load_language_model(tmp_path), model)


def test_the_file_has_the_names_and_shapes_of_llama(folder):
    stored = safetensors.load((folder / "model.safetensors").read_bytes())
    assert {name: array.shape for name, array in stored.items()} == NAMES
    model = tiny(config=UNTIED)
    np.testing.assert_array_equal(stored["model.layers.1.self_attn.k_proj.weight"], model.layers[1].key)
    np.testing.assert_array_equal(stored["model.layers.0.mlp.up_proj.weight"], model.layers[0].up)


def test_the_configuration_has_the_keys_of_llama(folder):
    content = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 32,
        "rope_theta": 50.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    assert content.items() >= expected.items()


def test_configurations_of_others_are_read_with_their_defaults(folder):
    edit(folder, num_key_value_heads=None, head_dim=None, rms_norm_eps=None, rope_theta=None, value_head=None)
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, max_position_embeddings=None)

    def drop(tensors):
        del tensors["value_head.weight"], tensors["value_head.bias"]
        for layer in range(2):
            for name in ("q", "k", "v", "o"):
                tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = np.ones((12, 12), np.float32)
        # What old checkpoints have more.
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)

    rewrite(folder, drop)
    expected = LanguageModelConfig(11, 12, 2, 6, 6, 2, 20, 2048, 5000.0, 1e-6, tie_embeddings=False)
    assert load_language_model(folder).config == expected


def test_an_output_stored_twice_is_not_read(folder):
    edit(folder, tie_word_embeddings=True)
    assert load_language_model(folder).output is None


def test_texts_are_kept_with_the_weights(tmp_path):
    save_language_model(tmp_path, tiny(), metadata={"training": '{"steps": 3}'})
    assert read_metadata(tmp_path) == {"training": '{"steps": 3}'}
    with pytest.raises(TypeError, match=r"`metadata`|metadata"):
        save_language_model(tmp_path, tiny(), metadata={"steps": 3})  # pyright: ignore[reportArgumentType]


# --- damage ---


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_weights_that_are_cut_are_refused(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut"):
        load_language_model(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut"):
        read_metadata(folder)


def _turn(tensors):
    tensors["model.layers.1.mlp.down_proj.weight"] = np.ascontiguousarray(
        tensors["model.layers.1.mlp.down_proj.weight"].T
    )


def _count(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)


def _add_bias(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(24, np.float32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"no tensor `model\.layers\.1\.mlp\.up_proj\.weight` of",
        ),
        (lambda t: t.pop("lm_head.weight"), r"no tensor `lm_head\.weight` of shape \(11, 12\)"),
        (_turn, r"`model\.layers\.1\.mlp\.down_proj\.weight` has shape \(20, 12\), but .* calls for \(12, 20\)"),
        (_count, r"`model\.norm\.weight` has dtype I32; needed one of F64, F32, F16, BF16"),
        (_add_bias, r"`model\.layers\.0\.self_attn\.q_proj\.bias` that a model .* has no place for"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, text):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{text}"):
        load_language_model(folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "mamba"}, "`model_type` is 'mamba'"),
        ({"model_type": None}, "`model_type` is None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "`architectures` is"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu', and only 'silu' is supported"),
        ({"attention_bias": True}, "`attention_bias` is True"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config`"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "type 'llama3'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "`partial_rotary_factor` 0.5"),
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"num_key_value_heads": 4}, "not a multiple"),
        ({"hidden_size": 13}, r"has shape \(11, 12\), but config.json calls for \(11, 13\)"),
        ({"num_hidden_layers": 3}, r"no tensor `model\.layers\.2\.input_layernorm\.weight`.*9 of 32 are missing"),
        ({"num_hidden_layers": 1}, r"a tensor `model\.layers\.1"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
    ids=str,
)
def test_configurations_that_are_not_this_model_are_refused(folder, changes, text):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=text):
        load_language_model(folder)


def test_configurations_that_are_no_json_are_refused(folder):
    file = folder / "config.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not JSON"):
        load_language_model(folder)
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds list"):
        load_language_model(folder)


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing.*several files are not read yet"):
        load_language_model(folder)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_language_model(folder / "nowhere")


def test_double_precision_is_refused_where_it_would_be_cut(folder):
    with pytest.raises(ValueError, match="JAX computes in single precision"):
        load_language_model(folder, dtype="float64")
    rewrite(folder, lambda tensors: tensors.update({k: v.astype(np.float64) for k, v in tensors.items()}))
    with pytest.raises(ValueError, match="JAX computes in single precision"):
        load_language_model(folder)
    assert load_language_model(folder, dtype=jnp.float32).embed.dtype == jnp.float32


def test_missing_packages_are_named(folder, monkeypatch):
    found = importlib.import_module

    def absent(name, *rest):
        if name.startswith("safetensors"):
            raise ImportError(f"No module named '{name}'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    for act in (lambda: load_language_model(folder), lambda: save_language_model(folder, tiny())):
        with pytest.raises(ImportError, match=r'pip install "probinf\[llm\]"'):
            act()


def test_bfloat16_is_stored_as_such(tmp_path):
    save_language_model(tmp_path, tiny(jnp.bfloat16))
    with importlib.import_module("safetensors").safe_open(tmp_path / "model.safetensors", framework="np") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}
        assert stored.get_tensor("model.norm.weight").dtype == ml_dtypes.bfloat16
