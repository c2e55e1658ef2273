"""`save_language_model` and `load_language_model`: a folder as the package transformers writes and reads it.

`config.json` says what the model is, `model.safetensors` holds the weights under the names of its family, and
`tokenizer.json` with `tokenizer_config.json`, where there is one, the tokenizer. Nothing here needs PyTorch.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probinf.core._files import write_file
from probinf.models.lm._config import LanguageModelConfig
from probinf.models.lm._extra import import_extra
from probinf.models.lm._init import check_dtype, init_language_model
from probinf.models.lm._llama import LLAMA, Family
from probinf.models.lm._model import LanguageModel
from probinf.models.lm._precision import at_least_single
from probinf.models.lm._tokenizer import FileTokenizer, read_object

FAMILIES = {"llama": LLAMA}  # by `model_type` of `config.json`
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def save_language_model(
    folder: str | os.PathLike[str],
    model: LanguageModel,
    tokenizer: FileTokenizer | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a model, every tensor in its dtype, so that transformers can read it as `LlamaForCausalLM`.

    A value head goes along as two more tensors. `config.json` is written last: a folder that has one is complete.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        model: its weights.
        tokenizer: written as it was read; None writes none.
        metadata: texts to keep with the weights; see `read_metadata`.

    Raises:
        ImportError: the package `safetensors` is not installed.
        TypeError: `metadata` holds something that is not text.
        OSError: the disk is full, or the folder cannot be written to; old files are whole.
    """
    package = import_extra("safetensors.numpy", "saving a model")
    texts = dict(metadata or {})
    for name, text in texts.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError(f"`metadata` has {name!r}: {text!r}; names and values must be texts, such as JSON")
    family = LLAMA
    tensors = {name: np.ascontiguousarray(np.asarray(value)) for name, value in family.tensors(model).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Readers of PyTorch models refuse files that do not name a format.
    content = package.save(tensors, metadata=texts | {"format": "pt"})
    write_file(folder / "model.safetensors", lambda file: file.write(content))
    # Two names of one key: the second up to version 4 of transformers.
    dtype = jnp.dtype(model.embed.dtype).name
    config: dict[str, Any] = {"architectures": [family.architecture], "dtype": dtype, "torch_dtype": dtype}
    config |= family.write_config(model.config)
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        write_file(folder / "tokenizer.json", lambda file: file.write(tokenizer.content.encode()))
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    else:
        # transformers would otherwise take the ids of Llama 2 for granted.
        config |= {"bos_token_id": None, "eos_token_id": None}
    _write_json(folder / "config.json", config)


def load_language_model(folder: str | os.PathLike[str], dtype: Any = None, compute_dtype: Any = None) -> LanguageModel:
    """Reads a model of a family that is known; now that is Llama.

    Args:
        folder: a folder with `config.json` and `model.safetensors`.
        dtype: what to cast the weights to; None keeps the dtype of each tensor.
        compute_dtype: dtype of the computation; None is float64 for weights of float64, and float32 for all others:
            weights in bfloat16 are cast layer by layer.

    Raises:
        ImportError: the package `safetensors` is not installed.
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or cut; the architecture or a setting is not known; a tensor is missing, of the
            wrong shape, no float, or one that the model has no place for; or `dtype` cannot be had.
    """
    package = import_extra("safetensors", "loading a model")
    if dtype is not None:
        check_dtype(dtype)
    folder = Path(folder)
    config_file, file = folder / "config.json", folder / "model.safetensors"
    for needed in (config_file, file):
        if not needed.is_file():
            sharded = (
                "; weights in several files are not read yet" if (folder / f"{file.name}.index.json").exists() else ""
            )
            raise FileNotFoundError(
                f"{needed} is missing: give a folder with config.json and model.safetensors{sharded}"
            )
    family, config = _read_config(config_file)
    try:
        with package.safe_open(file, framework="np") as stored:
            tensors = _read_tensors(stored, family, config, file, dtype)
    except package.SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut: {error}; copy it again") from error
    if compute_dtype is None:
        compute_dtype = max((at_least_single(array.dtype) for array in tensors.values()), key=lambda one: one.itemsize)
    return family.build(config, tensors, jnp.dtype(compute_dtype).name)


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that `save_language_model` kept with the weights in this folder.

    Raises:
        ImportError: the package `safetensors` is not installed.
        FileNotFoundError: there are no weights.
        ValueError: their file is damaged or cut.
    """
    package = import_extra("safetensors", "reading metadata")
    file = Path(folder) / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: give the folder of a saved model")
    try:
        with package.safe_open(file, framework="np") as stored:
            metadata = dict(stored.metadata() or {})
    except package.SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut: {error}; copy it again") from error
    metadata.pop("format", None)
    return metadata


def _read_config(file: Path) -> tuple[Family, LanguageModelConfig]:
    content = read_object(file)
    kind = content.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{file}: `model_type` is {kind!r} (architectures {content.get('architectures')}), and only "
            f"{', '.join(map(repr, FAMILIES))} can be loaded"
        )
    family = FAMILIES[kind]
    architectures = content.get("architectures") or [family.architecture]
    if architectures != [family.architecture]:
        raise ValueError(f"{file}: `architectures` is {architectures}, needed [{family.architecture!r}]")
    return family, family.read_config(content, str(file))


def _read_tensors(
    stored: Any, family: Family, config: LanguageModelConfig, file: Path, dtype: Any
) -> dict[str, np.ndarray]:
    """The arrays that a model of this configuration has, each checked before it is read."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    template = jax.eval_shape(partial(init_language_model, config=config), key)
    needed = {name: leaf.shape for name, leaf in jax.eval_shape(family.tensors, template).items()}
    names = set(stored.keys())
    missing = sorted(set(needed) - names)
    if missing:
        raise ValueError(
            f"{file} has no tensor `{missing[0]}` of shape {needed[missing[0]]}, which config.json calls for "
            f"({len(missing)} of {len(needed)} are missing): the weights belong to another configuration"
        )
    unknown = sorted(name for name in names - set(needed) if not family.is_ignored(name))
    if unknown:
        raise ValueError(
            f"{file} has a tensor `{unknown[0]}` that a model of this configuration has no place for ({len(unknown)} "
            "in all): without it the model would be another"
        )
    tensors = {}
    for name, shape in needed.items():
        entry = stored.get_slice(name)
        found, kind = tuple(entry.get_shape()), entry.get_dtype()
        if found != shape:
            raise ValueError(f"{file}: tensor `{name}` has shape {found}, but config.json calls for {shape}")
        if kind not in _FLOATS:
            raise ValueError(f"{file}: tensor `{name}` has dtype {kind}; needed one of {', '.join(_FLOATS)}")
        wanted = jnp.dtype(_FLOATS[kind] if dtype is None else dtype)
        check_dtype(wanted)
        # Cast on the host: a device that computes in single precision would cut float64 first.
        tensors[name] = stored.get_tensor(name).astype(wanted)
    return tensors


def _tokenizer_config(tokenizer: FileTokenizer) -> dict[str, Any]:
    def name(index: int | None) -> str | None:
        return None if index is None else tokenizer.token(index)

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name(tokenizer.bos_id),
        "eos_token": name(tokenizer.eos_id),
    }


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_file(file, lambda out: out.write(text.encode()))
