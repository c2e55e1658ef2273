"""Folders of tiny models: random weights, and a tokenizer of single characters."""

from pathlib import Path

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from probinf.models.lm import FileTokenizer, LanguageModelConfig, init_language_model, save_language_model

CHARACTERS = (*"0123456789+-*>;", "<bos>", "<eos>")
BOS, EOS = 15, 16


def character_tokenizer() -> FileTokenizer:
    """The ids of `CHARACTERS` are their places; texts begin with `<bos>`."""
    engine = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(CHARACTERS)}))
    engine.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens(["<bos>", "<eos>"])
    engine.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return FileTokenizer(engine.to_str(), BOS, EOS)


def write_model(folder: Path, *, seed: int = 0, value_head: bool = False) -> Path:
    """A model of 17 tokens with random weights, and its folder."""
    config = LanguageModelConfig(
        vocab_size=17,
        dim=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        hidden_dim=16,
        max_length=96,
        value_head=value_head,
    )
    save_language_model(folder, init_language_model(jax.random.key(seed), config), character_tokenizer())
    return folder
