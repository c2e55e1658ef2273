"""A language model whose laws are a table over all prefixes, so that everything about it can be enumerated."""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probinf import llm


class TableConfig(NamedTuple):
    vocab_size: int
    max_length: int


class TableOutput(NamedTuple):
    logits: jax.Array
    values: jax.Array | None


class TableCache(NamedTuple):
    node: jax.Array  # [N], place of the prefix in the tree of all prefixes
    bulk: jax.Array  # [N, B], only there to be large


class TableModel(eqx.Module):
    """Logits [nodes, V] and values [nodes]: node 0 is the prompt, `V * node + token + 1` what follows it.

    The prompt does not matter.
    """

    logits: jax.Array
    values: jax.Array
    config: TableConfig = eqx.field(static=True)
    bulk: int = eqx.field(static=True, default=1)

    @property
    def value(self):
        """Stands for the weights of a value head."""
        return self.values

    def prefill(self, tokens, length):
        return length, TableOutput(self.logits[0], self.values[0])

    def empty_cache(self, num_rows, capacity):
        return TableCache(jnp.zeros(num_rows, jnp.int32), jnp.zeros((num_rows, self.bulk), self.logits.dtype))

    def advance(self, prompt, cache, tokens, count):
        size, nodes = self.config.vocab_size, self.logits.shape[0]
        node, outputs = cache.node, []
        for index in range(tokens.shape[1]):
            node = jnp.where(index < count, jnp.minimum(node * size + tokens[:, index] + 1, nodes - 1), node)
            outputs.append(TableOutput(self.logits[node], self.values[node]))
        bulk = cache.bulk + jnp.where(count > 0, node, 0)[:, None].astype(cache.bulk.dtype)
        return TableCache(node, bulk), jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *outputs)


def num_nodes(vocab_size, depth):
    return sum(vocab_size**level for level in range(depth + 1))


def table_lm(seed=0, vocab_size=3, depth=3, *, stop_ids=(), bulk=1, dtype=None, scale=1.0, name="table"):
    """Random laws of texts of up to `depth` tokens over `vocab_size` tokens."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(scale * rng.normal(size=(num_nodes(vocab_size, depth), vocab_size)), dtype or float)
    values = jnp.asarray(rng.normal(size=num_nodes(vocab_size, depth)), dtype or float)
    model = TableModel(logits, values, TableConfig(vocab_size, 64), bulk)
    return llm.LM(model, None, stop_ids, name)


def node_of(text, vocab_size):
    node = 0
    for token in text:
        node = vocab_size * node + token + 1
    return node


def law_of(lm, text, temperature=1.0):
    """log p of the next token after a text, in NumPy."""
    logits = np.asarray(lm.model.logits[node_of(text, lm.vocab_size)], np.float64) / temperature
    return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


def all_texts(lm, capacity, stop_ids=()):
    """All texts that end with a stop or have `capacity` tokens."""
    found = []
    for length in range(1, capacity + 1):
        for text in itertools.product(range(lm.vocab_size), repeat=length):
            if any(token in stop_ids for token in text[:-1]):
                continue
            if length == capacity or text[-1] in stop_ids:
                found.append(text)
    return found


def log_prob(lm, text, temperature=1.0):
    return float(sum(law_of(lm, text[:i], temperature)[token] for i, token in enumerate(text)))


def steps_of(text, ends, max_tokens):
    """A text cut into steps."""
    steps: list[Any] = [[]]
    for token in text:
        steps[-1].append(token)
        if token in ends or len(steps[-1]) == max_tokens:
            steps.append([])
    return [tuple(step) for step in steps if step]
