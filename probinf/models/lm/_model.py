r"""`LanguageModel`: a decoder-only transformer of the Llama family, whole or one token at a time.

$\log p(x_{1:T} \mid c) = \sum_t \log p(x_t \mid c, x_{<t})$, each factor a softmax of the logits at the position
before. Training, `prefill` and `advance` run the same layers through the same `attend`, so that decoding with caches
gives the numbers of a full recomputation. Touvron et al. (2023), "LLaMA". Weights may be stored in bfloat16 and are
then cast layer by layer to the dtype of the computation: LayerCast of Yuan et al. (2025), "Give Me FP32 or Give Me
Death".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from probinf.core import is_concrete, whole_number
from probinf.models.lm._attention import Shared, rotation_at
from probinf.models.lm._cache import PromptCache, RowCache, slots_of, write_keys, write_values
from probinf.models.lm._config import LanguageModelConfig
from probinf.models.lm._layer import Layer, rms_norm
from probinf.models.lm._precision import cast_weight, check_representable, contract

COMPUTE_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Output(NamedTuple):
    """What the model says at a position.

    Attributes:
        logits: of the next token, [..., V]; at least single precision.
        values: the second head's number, [...]; None without a value head.
    """

    logits: Float[Array, "*b v"]
    values: Float[Array, "*b"] | None


def compute_dtype_name(dtype: Any) -> str:
    """The name of a dtype that a model can compute in.

    Raises:
        ValueError: it cannot.
    """
    name = jnp.dtype(dtype).name
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"`compute_dtype` is {name!r}; choose one of {', '.join(COMPUTE_DTYPES)}")
    return name


class LanguageModel(eqx.Module):
    r"""A causal language model; weights are array leaves, so that new ones recompile nothing.

    Token ids must lie in [0, V): another makes the output of its sequence NaN. Pad with any id of the vocabulary;
    what is padded on the right has no influence on what stands before it.

    Attributes:
        embed: embedding [V, D].
        layers: the blocks, unrolled.
        norm: scale of the last normalisation, [D].
        output: output matrix [V, D]; None where it is the embedding.
        value: second head [D], or None.
        value_bias: its bias, [], or None.
        config: what shapes the model; static.
        compute_dtype: name of the dtype of activations and caches; static. Weights stay in theirs, and are cast where
            they are used. Logits, softmax and norms are computed in at least single precision.
    """

    embed: Float[Array, "v d"]
    layers: tuple[Layer, ...]
    norm: Float[Array, " d"]
    output: Float[Array, "v d"] | None
    value: Float[Array, " d"] | None
    value_bias: Float[Array, ""] | None
    config: LanguageModelConfig = eqx.field(static=True)
    compute_dtype: str = eqx.field(static=True, default="float32", converter=compute_dtype_name)

    def __call__(self, tokens: Int[Array, "*b l"]) -> Output:
        """The output at every position of whole sequences, for training and as the reference of the caches.

        Args:
            tokens: sequences of up to `config.max_length` tokens, each from its first position on.

        Returns:
            Logits [*b, l, V] and values [*b, l].

        Raises:
            ValueError: the sequences are longer than the context.
        """
        length = tokens.shape[-1]
        self._check_length("sequences", length)
        hidden, _ = self._sequences(tokens.reshape(-1, length))
        return self._read(hidden.reshape(*tokens.shape, self.config.dim))

    def prefill(self, tokens: Int[Array, " p"], length: Int[Array, ""] | int) -> tuple[PromptCache, Output]:
        """Reads a prompt, once for all the rows that will continue it.

        Args:
            tokens: the prompt, padded on the right with anything to one of few sizes P, so that few programs are
                compiled.
            length: number of real tokens, from 1 to P; traced, so that another length recompiles nothing.

        Returns:
            The cache, and the output at the last real token: logits [V] and value [].

        Raises:
            ValueError: the prompt is longer than the context; or, where the value of `length` is known, it is out of
                range.
        """
        size = tokens.shape[0]
        self._check_length("a prompt", size)
        if is_concrete(length) and not 1 <= int(length) <= size:
            raise ValueError(f"`length` is {int(length)}, but the prompt has {size} tokens: needed 1 to {size}")
        length = jnp.asarray(length, jnp.int32)
        # What padding holds may be no token: NaN there would reach real rows as 0 times NaN.
        tokens = jnp.where(jnp.arange(size, dtype=jnp.int32) < length, tokens, jnp.zeros_like(tokens))
        hidden, kept = self._sequences(tokens[None])
        last = jax.lax.dynamic_index_in_dim(hidden[0], length - 1, keepdims=False)
        keys, values = (tuple(array[0] for array in arrays) for arrays in zip(*kept, strict=True))
        return PromptCache(keys, values, length), self._read(last)

    def empty_cache(self, num_rows: int, capacity: int) -> RowCache:
        """The cache of rows that have appended nothing yet.

        Args:
            num_rows: number of rows n >= 1.
            capacity: the most tokens T a row may append, from 1 to `config.max_length`.

        Raises:
            ValueError: a number is out of range.
            TypeError: a number is not an integer.
        """
        num_rows = whole_number("num_rows", num_rows, least=1)
        capacity = whole_number("capacity", capacity, least=1)
        self._check_length("rows", capacity)
        config = self.config

        def empty(*shape: int) -> tuple[Array, ...]:
            shape = num_rows, config.num_kv_heads, *shape
            return tuple(jnp.zeros(shape, self._dtype()) for _ in range(config.num_layers))

        keys, values = empty(config.head_dim, capacity), empty(capacity, config.head_dim)
        return RowCache(keys, values, jnp.zeros(num_rows, jnp.int32))

    def advance(
        self, prompt: PromptCache, cache: RowCache, tokens: Int[Array, "n s"], count: Int[Array, " n"]
    ) -> tuple[RowCache, Output]:
        """Appends tokens to every row, each at its own position behind the prompt.

        The caller keeps `prompt.length` plus a row's length within `config.max_length`, and the row's length within
        the capacity; tokens beyond the capacity are written nowhere, and outputs from there on mean nothing.

        Args:
            prompt: the prompt that all rows share.
            cache: what each row has appended so far. Donate it, or carry it through a loop: it is updated in place.
            tokens: row n appends its first `count[n]` of these S tokens; the rest is not looked at.
            count: from 0 to S.

        Returns:
            The cache, and the output at every token: logits [n, s, V] and values [n, s]. Outputs at tokens that were
            not appended mean nothing; what is not used of them is not computed under `jit`.

        Raises:
            ValueError: `tokens`, `count` and `cache` differ in their number of rows.
        """
        num_rows, num_tokens = tokens.shape
        if not num_rows == count.shape[0] == cache.lengths.shape[0]:
            raise ValueError(
                f"`tokens` has {num_rows} rows, `count` {count.shape[0]} and `cache` {cache.lengths.shape[0]}: make "
                "them agree"
            )
        capacity, size = cache.keys[0].shape[-1], prompt.keys[0].shape[-1]
        count = jnp.clip(count.astype(jnp.int32), 0, num_tokens)
        steps = jnp.arange(num_tokens, dtype=jnp.int32)[None, :]
        tokens = jnp.where(steps < count[:, None], tokens, jnp.zeros_like(tokens))
        slots = slots_of(cache.lengths, count, num_tokens, capacity)
        places = cache.lengths[:, None] + steps
        visible = jnp.arange(capacity, dtype=jnp.int32)[None, None, :] <= places[:, :, None]
        real = jnp.arange(size, dtype=jnp.int32) < prompt.length

        def keep(index: int) -> Callable[[Array, Array], tuple[Array, Array]]:
            kept = cache.keys[index], cache.values[index]
            return lambda keys, values: (write_keys(kept[0], keys, slots), write_values(kept[1], values, slots))

        shared = [Shared(keys, values, real) for keys, values in zip(prompt.keys, prompt.values, strict=True)]
        hidden, kept = self._run(tokens, prompt.length + places, keep, visible, shared)
        keys, values = zip(*kept, strict=True)
        lengths = jnp.minimum(cache.lengths + count, capacity)
        return RowCache(keys, values, lengths), self._read(hidden)

    def _sequences(self, tokens: Int[Array, "n s"]) -> tuple[Array, list[tuple[Array, Array]]]:
        steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        visible = (steps[None, :] <= steps[:, None])[None]

        def keep(index: int) -> Callable[[Array, Array], tuple[Array, Array]]:
            del index
            return lambda keys, values: (jnp.moveaxis(keys, 1, 3), jnp.swapaxes(values, 1, 2))

        return self._run(tokens, steps[None], keep, visible, [None] * len(self.layers))

    def _run(
        self,
        tokens: Int[Array, "n s"],
        positions: Int[Array, "#n s"],
        keep: Callable[[int], Callable[[Array, Array], tuple[Array, Array]]],
        visible: Bool[Array, "#n s t"],
        shared: list[Any],
    ) -> tuple[Float[Array, "n s d"], list[tuple[Array, Array]]]:
        """The normalised residual stream behind the last layer, and what each layer kept."""
        dtype, config, kept = self._dtype(), self.config, []
        # Negative ids would count from the end.
        tokens = jnp.where(tokens < 0, config.vocab_size, tokens)
        x = self.embed.at[tokens].get(mode="fill", fill_value=np.nan).astype(dtype)
        rotation = rotation_at(positions, config.head_dim, config.rope_theta, dtype)
        for index, layer in enumerate(self.layers):
            x, pair = layer(x, config, rotation, keep(index), visible, shared[index])
            kept.append(pair)
        return rms_norm(x, self.norm, config.norm_eps), kept

    def _read(self, hidden: Float[Array, "*b d"]) -> Output:
        output, hidden = cast_weight(self.embed if self.output is None else self.output, hidden)
        logits = contract("...d,vd->...v", hidden, output)
        if self.value is None or self.value_bias is None:
            return Output(logits, None)
        values = contract("...d,d->...", hidden, self.value.astype(hidden.dtype))
        return Output(logits, values + self.value_bias.astype(values.dtype))

    def _dtype(self) -> np.dtype:
        dtype = jnp.dtype(self.compute_dtype)
        check_representable("compute_dtype", dtype)
        return dtype

    def _check_length(self, what: str, length: int) -> None:
        if not 1 <= length <= self.config.max_length:
            raise ValueError(
                f"{what} of {length} tokens (padding counted) in a context of `max_length` = {self.config.max_length} "
                "tokens: shorten the text, pad it less, or use a model with a longer context"
            )
