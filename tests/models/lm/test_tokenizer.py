"""`FileTokenizer` and `load_tokenizer`: text there and back, special tokens, equality, and what is refused."""

import importlib
import json

import pytest

from probinf.models.lm import FileTokenizer, Tokenizer, load_tokenizer, save_language_model
from tests.models.lm._tiny import tiny

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

VOCABULARY = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, ";": 5}


def content(unknown=True) -> str:
    """A tokenizer of single characters, which begins a text with `<s>`."""
    vocabulary = {name: index for name, index in VOCABULARY.items() if unknown or name != "<unk>"}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made.to_str()


def test_text_goes_there_and_back():
    tokenizer = FileTokenizer(content(), 0, 1)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.encode("ab;a") == [0, 3, 4, 5, 3]
    assert tokenizer.encode("ab;a", special_tokens=False) == [3, 4, 5, 3]
    assert tokenizer.decode([0, 3, 4, 5, 3, 1]) == "ab;a"
    assert tokenizer.decode([0, 3], skip_special_tokens=False) == "<s>a"
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (6, 0, 1)


def test_the_same_content_is_the_same_tokenizer():
    one, other = FileTokenizer(content(), 0, 1), FileTokenizer(content(), 0, 1)
    assert (one, hash(one)) == (other, hash(other))
    assert one != FileTokenizer(content(), 0)
    assert content() not in repr(one)


def test_it_is_saved_and_loaded_with_a_model(tmp_path):
    tokenizer = FileTokenizer(content(), 0, 1)
    save_language_model(tmp_path, tiny(), tokenizer)
    assert load_tokenizer(tmp_path) == tokenizer
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path) == tokenizer  # the ids are in `config.json` too
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 5]}))
    assert load_tokenizer(tmp_path) == tokenizer
    (tmp_path / "config.json").unlink()
    assert load_tokenizer(tmp_path) == FileTokenizer(content())


def test_special_tokens_may_be_written_as_objects(tmp_path):
    (tmp_path / "tokenizer.json").write_text(content())
    names = {"bos_token": {"content": "<s>", "special": True}, "eos_token": "absent"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    assert load_tokenizer(tmp_path) == FileTokenizer(content(), 0)


@pytest.mark.parametrize("unknown", [True, False])
def test_text_without_tokens_is_refused(unknown):
    with pytest.raises(ValueError, match=r"'abXb'.*(has 'X' at character 2|cannot be put into tokens)"):
        FileTokenizer(content(unknown)).encode("abXb")


@pytest.mark.parametrize("damaged", ["", "{", "{}", '{"model": {"type": "None"}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, damaged):
    with pytest.raises(ValueError, match="`content` is no tokenizer"):
        FileTokenizer(damaged)
    (tmp_path / "tokenizer.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)


def test_files_that_are_missing_or_no_text_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged: it is not UTF-8"):
        load_tokenizer(tmp_path)


def test_the_missing_package_is_named(monkeypatch):
    text = content()

    def absent(name, *rest):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r'reading a tokenizer needs .*pip install "probinf\[llm\]"'):
        FileTokenizer(text)
