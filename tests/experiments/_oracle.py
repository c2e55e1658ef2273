"""A language model for the chains task whose law is known: steps are right with probability `skill`, else at random.

Nothing is trained and nothing is approximate, so whole experiments have known answers: a solution of T steps is right
with probability skill^T, and a judge of another skill has an evidence of 1.
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from probinf import llm
from probinf.llm import _chains as chains

NEVER = -30.0  # log probability of tokens that are out of place


class Size(NamedTuple):
    vocab_size: int = 17
    max_length: int = 96


class Seen(NamedTuple):
    """Of each row: the last result, the number of tokens, and whether all results are right."""

    value: jax.Array
    made: jax.Array
    right: jax.Array


class Output(NamedTuple):
    logits: jax.Array
    values: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Letters:
    """One character a token, the beginning of the text in front."""

    vocab_size: int = 17
    bos_id: int = chains.BOS
    eos_id: int = chains.EOS

    def encode(self, text):
        return [chains.BOS, *(chains.VOCABULARY.index(letter) for letter in text)]

    def decode(self, ids):
        return "".join(chains.VOCABULARY[token] for token in ids if token < chains.BOS)


class Oracle(eqx.Module):
    """A `StepwiseModel`; with a value head it says of each token whether all results so far are right, with noise."""

    skill: jax.Array
    value: jax.Array | None = None
    config: Size = eqx.field(static=True, default=Size())

    def prefill(self, tokens, length):
        del length
        start = Seen(tokens[1], jnp.zeros((), jnp.int32), jnp.ones((), bool))
        return tokens, self._output(tokens, start)

    def empty_cache(self, num_rows, capacity):
        del capacity
        # A result of -1 stands for the problem's first number.
        return Seen(jnp.full(num_rows, -1, jnp.int32), jnp.zeros(num_rows, jnp.int32), jnp.ones(num_rows, bool))

    def advance(self, prompt, cache, tokens, count):
        def one(cache, item):
            token, index = item
            value = jnp.where(cache.value < 0, prompt[1], cache.value)
            digit = cache.made % 2 == 0
            right = cache.right & (~digit | (token == self._target(prompt, value, cache.made)))
            after = Seen(jnp.where(digit, token, value), cache.made + 1, right)
            after = jax.tree.map(lambda new, old: jnp.where(index < count, new, old), after, cache)
            return after, jax.vmap(lambda row: self._output(prompt, row))(after)

        cache, output = jax.lax.scan(one, cache, (tokens.T, jnp.arange(tokens.shape[1])))
        return cache, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), output)

    def _target(self, prompt, value, made):
        place = jnp.minimum(2 + 2 * (made // 2), 2 * chains.NUM_STEPS)
        return chains._apply(value % 10, prompt[place], prompt[place + 1])

    def _output(self, prompt, row):
        value = jnp.where(row.value < 0, prompt[1], row.value)
        ids = jnp.arange(self.config.vocab_size)
        digits = jnp.where(ids == self._target(prompt, value, row.made), self.skill, (1 - self.skill) / 9)
        digits = jnp.where(ids < 10, jnp.log(digits), NEVER)
        end = jnp.where(row.made // 2 == chains.NUM_STEPS - 1, chains.EOS, chains.END_STEP)
        ends = jnp.where(ids == end, 0.0, NEVER)
        logits = jnp.where(row.made % 2 == 0, digits, ends)
        if self.value is None:
            return Output(logits, None)
        # Noise that depends on the text alone, as a trained model's errors do.
        noise = jnp.sin((37 * value + 11 * row.made + prompt[1]).astype(logits.dtype))
        return Output(logits, jnp.where(row.right, self.value, -self.value) + 1.5 * noise)


def oracle(skill, value=None):
    """An `LM` of this skill; `value` is the size of its value head's logit, None for none."""
    head = None if value is None else jnp.asarray(value)
    return llm.LM(Oracle(jnp.asarray(skill), head), Letters(), (chains.EOS,), f"oracle-{skill}")
