"""`LM`: a language model with its tokenizer, and `load`, which finds one by name or in a folder."""

import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from probinf.llm._potential_types import Prompt
from probinf.models.lm import load_language_model, load_tokenizer
from probinf.models.lm._tokenizer import read_object


@runtime_checkable
class Config(Protocol):
    """What the engine must know of a model's shape."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        ...

    @property
    def max_length(self) -> int:
        """The context: the most tokens of prompt and text together."""
        ...


@runtime_checkable
class StepwiseModel(Protocol):
    """A causal model that is fed token by token: all that the engine needs (see `models.lm.LanguageModel`).

    Law: whatever the split of a text into a prompt and calls of `advance`, the logits are those of the text.
    """

    @property
    def config(self) -> Config:
        """Vocabulary and context."""
        ...

    def prefill(self, tokens: Int[Array, " p"], length: Int[Array, ""]) -> tuple[PyTree, Any]:
        """Reads a prompt of `length` tokens, padded on the right: its cache, and the output at its last token."""
        ...

    def empty_cache(self, num_rows: int, capacity: int) -> PyTree:
        """The cache of rows that hold nothing yet and will hold at most `capacity` tokens; leaves [N, ...]."""
        ...

    def advance(
        self, prompt: PyTree, cache: PyTree, tokens: Int[Array, "n s"], count: Int[Array, " n"]
    ) -> tuple[PyTree, Any]:
        """Appends the first `count[n]` of S tokens to row n: the cache, and the output at each token.

        An output has `logits` [N, S, V] of the next token, and `values` [N, S] of a second head, or None.
        """
        ...


class LM(eqx.Module):
    """A language model, its tokenizer and where its texts end.

    Attributes:
        model: the network, a `StepwiseModel` such as `models.lm.LanguageModel`.
        tokenizer: with `encode(text) -> ids` and `decode(ids) -> text`; static. None if prompts, delimiters and stops
            are given as token ids only.
        stop_ids: tokens that end a text; static.
        name: for messages and reports; static.
    """

    model: Any
    tokenizer: Any = eqx.field(static=True, default=None)
    stop_ids: tuple[int, ...] = eqx.field(static=True, default=())
    name: str = eqx.field(static=True, default="")

    def __check_init__(self) -> None:
        """Raises `ValueError` for stop ids outside the vocabulary."""
        for token in self.stop_ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"`stop_ids` holds {token}; token ids of this model are 0 to {self.vocab_size - 1}")

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return int(self.model.config.vocab_size)

    @property
    def max_length(self) -> int:
        """The most tokens of prompt and text together."""
        return int(self.model.config.max_length)

    def empty_cache(self, num_rows: int, capacity: int) -> PyTree:
        """The model's cache of rows that hold nothing yet and will hold at most `capacity` tokens."""
        return self.model.empty_cache(num_rows, cache_size(capacity, self.max_length))

    def encode(self, prompt: str | Any, name: str = "prompt") -> np.ndarray:
        """A prompt as token ids, int32.

        Args:
            prompt: a text, or token ids.
            name: what the caller calls it, for the error.

        Raises:
            ValueError: it is empty, or holds a token that the model does not know.
            TypeError: it is neither a text nor integers, or a text where there is no tokenizer.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise TypeError(f"`{name}` is a text, but this `LM` has no tokenizer: pass token ids")
            ids = np.asarray(self.tokenizer.encode(prompt), np.int64).reshape(-1)
        else:
            ids = np.asarray(prompt)
            if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
                raise TypeError(f"`{name}` is {prompt!r}; needed a text or a list of token ids")
        if ids.size == 0:
            raise ValueError(f"`{name}` is empty: there must be a token to go on from, such as the model's first one")
        unknown = ids[(ids < 0) | (ids >= self.vocab_size)]
        if unknown.size:
            raise ValueError(
                f"`{name}` holds the unknown token {int(unknown[0])}; token ids of this model are 0 to "
                f"{self.vocab_size - 1}: use the tokenizer that belongs to it"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Any) -> str:
        """Token ids as text; without a tokenizer the ids, with blanks between."""
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else [int(token) for token in ids]
        return " ".join(map(str, numbers)) if self.tokenizer is None else self.tokenizer.decode(numbers)


def make_prompt(ids: np.ndarray, size: int, text: str | None = None) -> Prompt:
    """Token ids as a `Prompt`, padded to `size`."""
    padded = np.zeros(size, np.int32)
    padded[: ids.size] = ids
    return Prompt(jnp.asarray(padded), jnp.asarray(ids.size, jnp.int32), text)


def bucket(length: int, most: int) -> int:
    """The size that a prompt of `length` tokens is padded to: few sizes, so that few programs are compiled.

    Multiples of 16 up to 64 tokens, four sizes for each doubling from there on, at most `most`.
    """
    grain = max(16, 1 << max(length - 1, 1).bit_length() >> 3)
    return max(length, min(-(-length // grain) * grain, most))


def cache_size(capacity: int, most: int) -> int:
    """The room for the tokens of a row in a cache, a multiple of 32 where the context holds as many.

    The inner loops of attention run over it; with a remainder they are several times as slow on CPU.

    Args:
        capacity: the most tokens of a row.
        most: the longest cache that the model gives.
    """
    return max(capacity, min(-(-capacity // 32) * 32, most))


def load(name_or_folder: str | os.PathLike[str], *, dtype: Any = None, compute_dtype: Any = None) -> LM:
    """A model that comes with the package, or one from a folder as `transformers` writes it.

    Texts end at the tokens that `config.json` and `generation_config.json` call `eos_token_id`.

    Args:
        name_or_folder: "chains", "chains-strong", "chains-reward", or a folder with `config.json`, `model.safetensors`
            and, for texts, `tokenizer.json`. A name that is also a folder here means the one that is shipped.
        dtype: what to cast the weights to; None keeps theirs.
        compute_dtype: dtype of the computation; see `load_language_model`.

    Raises:
        ImportError: the package `safetensors`, or for a tokenizer `tokenizers`, is not installed.
        FileNotFoundError: there is no such model.
        ValueError: a file is damaged, or of a model that is not known.
    """
    own = Path(__file__).with_name("checkpoints")
    names = sorted(folder.parent.name for folder in own.glob("*/config.json"))
    is_shipped = str(name_or_folder) in names
    folder = own / str(name_or_folder) if is_shipped else Path(name_or_folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no model {str(name_or_folder)!r}: needed a folder, or one of those that come with the package: "
            f"{', '.join(names) or 'none'}"
        )
    model = load_language_model(folder, dtype, compute_dtype)
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    return LM(model, tokenizer, _stop_ids(folder), str(name_or_folder) if is_shipped else folder.name)


def _stop_ids(folder: Path) -> tuple[int, ...]:
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        if file.is_file():
            ends = read_object(file).get("eos_token_id")
            found.update([ends] if isinstance(ends, int) else ends or [])
    return tuple(sorted(found))
