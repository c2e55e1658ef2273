"""`LanguageModelConfig`: the shape of a decoder-only transformer of the Llama family."""

import math
from dataclasses import dataclass, fields

from probinf.core import whole_number


@dataclass(frozen=True)
class LanguageModelConfig:
    """The numbers that shape a `LanguageModel`; hashable, and static wherever it is compiled in.

    Attributes:
        vocab_size: number of tokens V.
        dim: width D of the residual stream.
        num_layers: number of transformer blocks.
        num_heads: number of query heads, a multiple of `num_kv_heads`.
        num_kv_heads: number of heads of keys and values; each serves `num_heads / num_kv_heads` query heads.
        head_dim: size of one head; even, because rotary embeddings turn pairs.
        hidden_dim: width of the gated feed-forward block.
        max_length: the context: the most positions a sequence may have, prompt and generated tokens together.
        rope_theta: base of the rotary wavelengths.
        norm_eps: what is added to the mean square in `RMSNorm`.
        tie_embeddings: whether the output matrix is the embedding.
        value_head: whether the model has a second head, one number a position.

    Raises:
        TypeError: a count is not an integer, or a switch not a bool.
        ValueError: a number is out of range, or `num_heads` is not a multiple of `num_kv_heads`.
    """

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    max_length: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    value_head: bool = False

    def __post_init__(self) -> None:
        """Checks every number."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                # Plain integers, so that configurations read from a file and written in code are equal.
                object.__setattr__(self, field.name, whole_number(field.name, value, least=1))
            elif field.type is bool and not isinstance(value, bool):
                raise TypeError(f"`{field.name}` must be True or False, got {value!r}")
            elif field.type is float:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise TypeError(f"`{field.name}` must be a number, got {value!r}")
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"`{field.name}` is {value}; needed a finite number above 0")
                object.__setattr__(self, field.name, float(value))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"`num_heads` is {self.num_heads}, which is not a multiple of `num_kv_heads` = {self.num_kv_heads}: "
                "every head of keys must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` is {self.head_dim}; rotary embeddings turn pairs, so it must be even")
