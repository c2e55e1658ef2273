"""Language models: transformers of the Llama family in JAX, whole or one token at a time with caches."""

from probinf.models.lm._cache import PromptCache as PromptCache
from probinf.models.lm._cache import RowCache as RowCache
from probinf.models.lm._config import LanguageModelConfig as LanguageModelConfig
from probinf.models.lm._files import load_language_model as load_language_model
from probinf.models.lm._files import read_metadata as read_metadata
from probinf.models.lm._files import save_language_model as save_language_model
from probinf.models.lm._init import init_language_model as init_language_model
from probinf.models.lm._layer import Layer as Layer
from probinf.models.lm._model import LanguageModel as LanguageModel
from probinf.models.lm._model import Output as Output
from probinf.models.lm._tokenizer import FileTokenizer as FileTokenizer
from probinf.models.lm._tokenizer import Tokenizer as Tokenizer
from probinf.models.lm._tokenizer import load_tokenizer as load_tokenizer
