r"""`StepReader`: a second language model that reads what the first one writes, each new token once.

It holds its prompt's cache once, shared by all rows, and for every row a cache and the law of the next token,
$\log p_B(\cdot \mid c, x_{1:t})$, so that a step of S tokens costs one pass over S tokens and no second look at the
prefix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from probinf.core import is_concrete, repeat_while, whole_number
from probinf.llm._kept import real
from probinf.llm._lm import LM
from probinf.llm._potential_types import Prompt, StepView

PROBLEMS = "problems"  # the axis over which the engine maps several problems
CHUNK = 64  # tokens of a row in one pass: logits of [N, CHUNK, V] bound the memory


class ReaderState(NamedTuple):
    """What a reader keeps of N rows: their caches, and the law of the next token of each."""

    cache: PyTree[Any]
    log_probs: Float[Array, "n v"]


class StepReader(eqx.Module):
    r"""Log probabilities of steps under a language model, $\log p_B(x_t \mid c, x_{1:t-1})$.

    Attributes:
        lm: the model that reads.
        temperature: of its law.
        chunk: tokens of a row that go through it in one pass.
        prompt: the cache of the prompt; None before `bind`.
        log_probs: the law of the first token, [V]; None before `bind`.
    """

    lm: LM
    temperature: Float[Array, ""]
    chunk: int = eqx.field(static=True)
    prompt: PyTree[Any] = None
    log_probs: Float[Array, " v"] | None = None

    def bind(self, prompt: Prompt) -> "StepReader":
        """Reads the prompt."""
        cache, output = self.lm.model.prefill(prompt.tokens, prompt.length)
        return StepReader(self.lm, self.temperature, self.chunk, cache, self._law(output.logits))

    def start(self, num_rows: int, capacity: int) -> ReaderState:
        """The state of rows that have written nothing."""
        if self.log_probs is None:
            raise TypeError("`start` before `bind`: bind the potential to a prompt first")
        law = jnp.broadcast_to(self.log_probs, (num_rows, *self.log_probs.shape))
        return ReaderState(self.lm.empty_cache(num_rows, capacity), law)

    def read(self, state: ReaderState, step: StepView) -> tuple[ReaderState, Float[Array, " n"]]:
        """The state after the step, and the log probability of its tokens; 0 for rows that made none.

        A token outside the model's vocabulary has probability zero.
        """

        def block(
            tokens: Int[Array, "n s"], count: Int[Array, " n"], carry: tuple[ReaderState, Array]
        ) -> tuple[ReaderState, Array]:
            state, total = carry
            size = state.log_probs.shape[-1]
            cache, output = self.lm.model.advance(self.prompt, state.cache, jnp.clip(tokens, 0, size - 1), count)
            logits = self._tempered(output.logits)
            first = _at(state.log_probs, tokens[:, 0])
            rest = _at(logits[:, :-1], tokens[:, 1:]) - jax.nn.logsumexp(logits[:, :-1], axis=-1)
            rest = jnp.where(_steps(rest) + 1 < count[:, None], rest, 0)
            total = total + jnp.where(count > 0, first, 0) + jnp.sum(rest, axis=-1)
            law = jax.nn.log_softmax(last_of(logits, count), axis=-1)
            return ReaderState(cache, jnp.where((count > 0)[:, None], law, state.log_probs)), total

        total = jnp.zeros(state.log_probs.shape[0], state.log_probs.dtype)
        return in_blocks(block, step.tokens, num_fed(step), (state, total), self.chunk, step.axis_name)

    def _tempered(self, logits: Array) -> Array:
        return logits / self.temperature.astype(logits.dtype)

    def _law(self, logits: Array) -> Array:
        return jax.nn.log_softmax(self._tempered(logits), axis=-1)


def step_reader(lm: LM, temperature: Any = 1.0, chunk: int = CHUNK) -> StepReader:
    """A `StepReader` that is not bound yet.

    Args:
        lm: the model that reads.
        temperature: of its law; > 0.
        chunk: tokens of a row that go through it in one pass, >= 1; smaller needs less memory.

    Raises:
        ValueError: a number is out of range.
        TypeError: `lm` is not an `LM`.
    """
    if not isinstance(lm, LM):
        raise TypeError(f"needed an `LM` (`llm.load` gives one), got {type(lm).__name__}")
    return StepReader(lm, positive("temperature", temperature), whole_number("chunk", chunk, 1))


def in_blocks(
    function: Callable,
    tokens: Int[Array, "n s"],
    count: Int[Array, " n"],
    carry: Any,
    size: int,
    axis_name: str | None = None,
) -> Any:
    """Folds `function(tokens, count, carry) -> carry` over blocks of at most `size` of each row's tokens.

    Args:
        function: of tokens [n, size] and how many of them are real.
        tokens: left-aligned.
        count: how many of them are real.
        carry: pytree.
        size: of a block. One block is no loop; several are a `while_loop` over those that hold a token, which has no
            reverse-mode derivative.
        axis_name: that of the `StepView`: the loops of several problems end together, and keep no copies of caches.

    Returns:
        The last carry.
    """
    room = tokens.shape[1]
    if room <= size:
        return function(tokens, count, carry)
    num_blocks = -(-room // size)
    padded = jnp.pad(tokens, ((0, 0), (0, num_blocks * size - room)))
    longest = jnp.max(count)
    longest = longest if axis_name is None else jax.lax.pmax(longest, axis_name)

    def body(i: Any, state: tuple[Array, Any]) -> tuple[Array, Any]:
        del i
        start, carry = state
        part = jax.lax.dynamic_slice_in_dim(padded, start, size, axis=1)
        return start + size, function(part, jnp.clip(count - start, 0, size), carry)

    begin = jnp.zeros((), count.dtype), carry
    return repeat_while(lambda state: state[0] < longest, body, begin, num_blocks)[1]


def last_of(outputs: Float[Array, "n s *v"], count: Int[Array, " n"]) -> Float[Array, "n *v"]:
    """The output at each row's last real token; at its first where there is none."""
    index = jnp.maximum(count - 1, 0).reshape(-1, *(1,) * (outputs.ndim - 1))
    return jnp.take_along_axis(outputs, index, axis=1, mode="promise_in_bounds")[:, 0]


def num_fed(step: StepView) -> Int[Array, " n"]:
    """How many tokens of each row a model is fed."""
    return jnp.where(step.active, step.count, 0)


def check_tokens(reader: LM, lm: Any, role: str) -> None:
    """Sees that one model can read what another writes, token by token.

    Args:
        reader: the model that reads.
        lm: the `LM` that proposes.
        role: what to call `reader` in the message.

    Raises:
        ValueError: a token may mean something else to it.
    """
    theirs, ours = lm.vocab_size, reader.vocab_size
    if reader.tokenizer is None and lm.tokenizer is None:
        if theirs == ours:
            return
        raise ValueError(
            f"the {role} has {ours} tokens, the model that proposes has {theirs}, and neither has a tokenizer: give "
            "both the same vocabulary"
        )
    if reader.tokenizer != lm.tokenizer:
        raise ValueError(
            f"the {role} {reader.name!r} ({ours} tokens) and the model {lm.name!r} ({theirs} tokens) have different "
            f"tokenizers, so that a token id is not the same text to both: use a {role} of the same family, or "
            "`llm.text_scorer`, which reads text"
        )


def positive(name: str, value: Any) -> Float[Array, ""]:
    """`value` as an array.

    Args:
        name: what the caller calls it, for the error.
        value: a number > 0, or a traced scalar.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if is_concrete(value) and not 0 < float(value) < float("inf"):
        raise ValueError(f"`{name}` is {value!r}; needed a finite number above 0")
    return real(value)


def _steps(tokens: Array) -> Int[Array, "1 s"]:
    return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]


def _at(values: Float[Array, "*b v"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
    inside = (tokens >= 0) & (tokens < values.shape[-1])
    index = jnp.where(inside, tokens, 0)[..., None]
    found = jnp.take_along_axis(values, index, axis=-1, mode="promise_in_bounds")[..., 0]
    return jnp.where(inside, found, -jnp.inf)
