"""Models and steps whose numbers are known by hand: a bigram model, texts cut into steps, all texts of three tokens."""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from probinf.llm import LM, Prompt, StepView

STOP = 0


@dataclass(frozen=True)
class Config:
    vocab_size: int
    max_length: int = 32


@dataclass(frozen=True)
class Letters:
    """Token i is the i-th letter."""

    letters: str = ".abcdefg"

    @property
    def vocab_size(self):
        return len(self.letters)

    def encode(self, text):
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)


class Output(NamedTuple):
    logits: Any
    values: Any


class Bigram(eqx.Module):
    """p(v | last token) is a row of `table`; `value` [V] is a head that looks at the last token."""

    table: Any
    value: Any = None
    config: Config = eqx.field(static=True, default=Config(3))

    def prefill(self, tokens, length):
        return (), self._read(tokens[length - 1])

    def empty_cache(self, num_rows, capacity):
        return {"tokens": jnp.zeros((num_rows, capacity), jnp.int32), "lengths": jnp.zeros(num_rows, jnp.int32)}

    def advance(self, prompt, cache, tokens, count):
        del prompt
        column = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        where = jnp.where(column < count[:, None], cache["lengths"][:, None] + column, cache["tokens"].shape[1])
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        kept = cache["tokens"].at[rows, where].set(tokens.astype(jnp.int32), mode="drop")
        return {"tokens": kept, "lengths": cache["lengths"] + count}, self._read(tokens)

    def _read(self, tokens):
        return Output(self.table[tokens], None if self.value is None else self.value[tokens])


def bigram(probabilities, value=None, tokenizer=None, name="bigram"):
    table = jnp.log(jnp.asarray(probabilities, jnp.float32))
    head = None if value is None else jnp.asarray(value, jnp.float32)
    return LM(Bigram(table, head, Config(table.shape[0])), tokenizer, (STOP,), name)


# Rows sum to 1; 0 stops. The judge has another opinion everywhere.
WEAK = bigram([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]], name="weak")
STRONG = bigram([[0.3, 0.1, 0.6], [0.5, 0.2, 0.3], [0.25, 0.25, 0.5]], name="strong")
JUDGING = bigram([[0.3, 0.1, 0.6], [0.5, 0.2, 0.3], [0.25, 0.25, 0.5]], value=[1.5, -0.5, 0.25], name="head")
PROMPT = Prompt(jnp.asarray([1, 2, 0], jnp.int32), jnp.asarray(2, jnp.int32), "ab")


def log_prob(lm, tokens, before):
    """Log probability of tokens behind one token, by hand."""
    table = np.asarray(lm.model.table, np.float64)
    return sum(table[a, b] for a, b in itertools.pairwise([before, *tokens]))


def all_texts(depth=3, vocab=3):
    """Every text that ends at the stop token or after `depth` tokens, by enumeration."""
    done, open_texts = [], [()]
    for _ in range(depth):
        longer = [(*text, v) for text in open_texts for v in range(vocab)]
        done += [text for text in longer if text[-1] == STOP]
        open_texts = [text for text in longer if text[-1] != STOP]
    return done + open_texts


def cut(text, lengths):
    """A text cut into steps of the given lengths."""
    steps, begin = [], 0
    for length in lengths:
        if begin < len(text):
            steps.append(tuple(text[begin : begin + length]))
            begin += length
    return steps


def views(texts, base: LM | None = WEAK, size=3, before=2, last=True, dtype=jnp.float32, capacity=7):
    """The `StepView`s of N texts, each a list of steps; shorter ones wait. `before` is the prompt's last token."""
    num_steps = max(map(len, texts))
    found = []
    for t in range(num_steps):
        tokens, everything = np.zeros((len(texts), size), np.int32), np.zeros((len(texts), capacity), np.int32)
        count, length, logs = (np.zeros(len(texts), kind) for kind in (np.int32, np.int32, np.float64))
        for n, text in enumerate(texts):
            so_far = [token for step in text[: t + 1] for token in step]
            everything[n, : len(so_far)], length[n] = so_far, len(so_far)
            if t < len(text):
                tokens[n, : len(text[t])], count[n] = text[t], len(text[t])
                prefix = [before, *(token for step in text[:t] for token in step)]
                logs[n] = log_prob(base, text[t], prefix[-1]) if base is not None else -1.0
        ends = np.array([text[: t + 1][-1][-1] == STOP for text in texts])
        found.append(
            StepView(
                tokens=jnp.asarray(tokens),
                count=jnp.asarray(count),
                log_prob=jnp.asarray(logs, dtype),
                active=jnp.asarray([t < len(text) for text in texts]),
                finished=jnp.asarray(ends),
                all_tokens=jnp.asarray(everything),
                length=jnp.asarray(length),
                last=jnp.asarray(last and t == num_steps - 1),
            )
        )
    return found


@eqx.filter_jit
def update(bound, state, step):
    return bound.update(state, step)


def begin(potential, steps, prompt=PROMPT):
    """A potential bound to a prompt, and its first state."""
    num_rows, capacity = steps[0].all_tokens.shape
    if potential.context() is not None:  # it holds a model
        return _begin(potential, prompt, num_rows, capacity)
    bound = potential.bind(prompt)
    return bound, bound.start(num_rows, capacity)


@eqx.filter_jit
def _begin(potential, prompt, num_rows, capacity):
    bound = potential.bind(prompt)
    return bound, bound.start(num_rows, capacity)


def run(potential, steps, prompt=PROMPT):
    """What a potential says at each step, and its last state; steps of one shape are compiled once."""
    bound, state = begin(potential, steps, prompt)
    said = []
    for step in steps:
        state, scored = update(bound, state, step) if bound.traceable else bound.update(state, step)
        said.append(scored)
    return said, state


def total(said):
    """The sum of the log potentials of each row, in double precision."""
    return np.sum([np.asarray(scored.log_potential, np.float64) for scored in said], axis=0)


def enumerated(potential, lengths=(1, 1, 1)):
    """All texts of the weak model, their probability, and exp of their total log potential."""
    texts = all_texts()
    p = np.exp(np.array([log_prob(WEAK, text, 2) for text in texts]))
    assert abs(p.sum() - 1) < 1e-6
    said, _ = run(potential, views([cut(text, lengths) for text in texts]))
    return texts, p, np.exp(total(said))


TWO = views([[(1,), (2, 1), (STOP,)], [(2, 2), (1,), (1, STOP)]])


def letter_scorer(step):
    """r of a text: a function of its last token and its length, 0 < r < 1."""
    last = jnp.take_along_axis(step.all_tokens, step.length[:, None] - 1, axis=1)[:, 0]
    return (0.2 + 0.3 * last.astype(jnp.float32)) / (1 + 0.1 * step.length.astype(jnp.float32))


def reward_of(text):
    return (0.2 + 0.3 * text[-1]) / (1 + 0.1 * len(text))
