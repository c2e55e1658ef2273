"""`Tokenizer`: text to token ids and back; `FileTokenizer` is one read from a `tokenizer.json`.

The format, and the package `tokenizers` that runs it, are those of Hugging Face.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from probinf.models.lm._extra import import_extra


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    Law: `decode(encode(text))` is `text`, up to special tokens and what the tokenizer normalises. Equal tokenizers
    are equal as Python objects, so that a model that carries one is not compiled again.
    """

    @property
    def vocab_size(self) -> int:
        """Number of tokens; every id is below it."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, or None."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, or None."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer adds to a whole text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        ...


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer in the `tokenizer.json` format; two with the same content are equal.

    Attributes:
        content: the text of the file.
        bos_id, eos_id: ids of the tokens that begin and end a text, or None.

    Raises:
        ImportError: the package `tokenizers` is not installed.
        ValueError: `content` is no tokenizer.
    """

    content: str = field(repr=False)
    bos_id: int | None = None
    eos_id: int | None = None
    _engine: Any = field(init=False, repr=False, compare=False)
    _unknown: int | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Builds the tokenizer."""
        engine = _engine_of(self.content, "`content`")
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "_unknown", _unknown_id(self.content, engine))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones too."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any text.
            special_tokens: whether to add what the tokenizer adds to a whole text, such as a BOS; False for a piece
                of a text, such as a delimiter.

        Raises:
            ValueError: the text has something that the vocabulary has no token for.
        """
        with _as_value_error(f"the text {_short(text)!r} cannot be put into tokens"):
            encoding = self._engine.encode(text, add_special_tokens=special_tokens)
        if self._unknown in encoding.ids:
            begin, end = encoding.offsets[encoding.ids.index(self._unknown)]
            raise ValueError(
                f"the text {_short(text)!r} has {text[begin:end]!r} at character {begin}, for which the vocabulary has "
                "no token: leave it out, or use another tokenizer"
            )
        return list(encoding.ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids, without special tokens unless they are asked for."""
        return self._engine.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)

    def token(self, index: int) -> str | None:
        """The vocabulary's name of an id, or None."""
        return self._engine.id_to_token(int(index))


def load_tokenizer(folder: str | os.PathLike[str]) -> FileTokenizer:
    """Reads the tokenizer of a model's folder.

    Args:
        folder: a folder with `tokenizer.json`. The tokens that begin and end a text are those that
            `tokenizer_config.json` names, or else `config.json` (of several, the first).

    Raises:
        ImportError: the package `tokenizers` is not installed.
        FileNotFoundError: there is no `tokenizer.json`.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: give a folder that has a `tokenizer.json`")
    content = read_text(file)
    engine = _engine_of(content, str(file))
    named, numbered = _read_optional(folder / "tokenizer_config.json"), _read_optional(folder / "config.json")

    def special(name: str) -> int | None:
        token = named.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (found := engine.token_to_id(token)) is not None:
            return found
        index = numbered.get(f"{name}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        return index if isinstance(index, int) else None

    return FileTokenizer(content, special("bos"), special("eos"))


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: it is not UTF-8 text ({error})") from error


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, needed a JSON object")
    return content


def _read_optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _engine_of(content: str, where: str) -> Any:
    package = import_extra("tokenizers", "reading a tokenizer")
    with _as_value_error(f"{where} is no tokenizer"):
        return package.Tokenizer.from_str(content)


def _unknown_id(content: str, engine: Any) -> int | None:
    """The token that stands for whatever has none, if there is one; `Unigram` names it by its id."""
    model = json.loads(content)["model"]
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else engine.token_to_id(token)


@contextlib.contextmanager
def _as_value_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The package raises nothing narrower; whatever is narrower is not its word on the input.
        if type(error) is not Exception:
            raise
        raise ValueError(f"{what}: {error}") from error


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
