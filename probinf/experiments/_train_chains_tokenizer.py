"""The tokenizer of the chains task: 17 single characters, built with the package `tokenizers`."""

from probinf.llm import _chains as chains
from probinf.models.lm import FileTokenizer


def chains_tokenizer() -> FileTokenizer:
    """A tokenizer whose ids are the places in `chains.VOCABULARY`; blanks are skipped, other characters refused.

    Raises:
        ImportError: the package `tokenizers` is not installed.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    ids = {token: index for index, token in enumerate(chains.VOCABULARY)}
    begin, end = chains.VOCABULARY[chains.BOS], chains.VOCABULARY[chains.EOS]
    engine = tokenizers.Tokenizer(models.WordLevel(ids))
    engine.normalizer = normalizers.Replace(tokenizers.Regex(r"\s+"), "")
    pieces = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    engine.pre_tokenizer = pieces
    ends = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, ids[begin])])
    engine.post_processor = ends
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens([begin, end])
    return FileTokenizer(engine.to_str(pretty=True), chains.BOS, chains.EOS)
