"""Kernels on all texts of a tiny model, by enumeration: their matrix, and the law that they must leave as it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from probinf import llm
from probinf.core import Ending, categorical, choose
from probinf.core._control import MAX_STEPS
from probinf.llm._reference import Reference
from probinf.llm._task import make_task
from probinf.validity import enumerate_algorithm
from probinf.validity._kernel_matrix import KernelMatrix, matrix_checks
from tests.llm._tables import all_texts, log_prob, node_of, num_nodes, steps_of, table_lm


class After:
    """Ctrl-C after some passes."""

    def __init__(self, num_passes):
        self.num_passes = num_passes

    def border(self, num_done):
        return self.num_passes if num_done < self.num_passes else MAX_STEPS

    def __call__(self, present):
        return Ending.INTERRUPTED if present.num_done >= self.num_passes else None


def models(vocab_size=2, depth=3, stop_ids=()):
    """A proposer, and a judge whose values depend on the whole prefix."""
    return tuple(table_lm(seed, vocab_size, depth, stop_ids=stop_ids, scale=1.5) for seed in (1, 2))


def tiny_task(lm, **options):
    return make_task(lm, [0], **({"step": llm.block(1), "max_steps": 3} | options))


def value_of(judge, text):
    return float(judge.model.values[node_of(text, judge.vocab_size)])


def log_odds(judge, text, ends=(), max_tokens=1):
    """Log of the odds of all prefixes at the ends of steps."""
    steps = steps_of(text, ends, max_tokens)
    return sum(value_of(judge, sum(steps[: t + 1], ())) for t in range(len(steps)))


def masses(lm, texts, log_potential):
    """p(text) prod_t G_t."""
    return np.exp([log_prob(lm, text) + log_potential(text) for text in texts])


def references(texts, task, stop_ids=(), ends=(), cut=None):
    """All texts as references, stacked; cut into steps by `cut`, or at `ends`."""
    capacity, bound = task.setup.capacity, task.setup.max_steps
    tokens, boundaries = np.zeros((len(texts), capacity), np.int32), np.zeros((len(texts), bound), np.int32)
    num_steps = np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        steps = steps_of(text, ends, task.setup.step_tokens) if cut is None else cut(text)
        tokens[i, : len(text)] = text
        boundaries[i, : len(steps)] = np.cumsum([len(step) for step in steps])
        num_steps[i] = len(steps)
    finished = [len(text) == capacity or text[-1] in stop_ids for text in texts]
    return Reference(*map(jnp.asarray, (tokens, boundaries, num_steps, np.asarray(finished))))


def nodes(tokens, length, vocab_size):
    """The place of each text in the tree of all texts."""
    node = jnp.zeros(length.shape, jnp.int32)
    for place in range(tokens.shape[-1]):
        node = jnp.where(place < length, vocab_size * node + tokens[..., place] + 1, node)
    return node


def kernel_checks(step, states, texts, target, vocab_size, *, reversible=False):
    """Whether `step(key, reference, index) -> reference` leaves a law of texts invariant; one program for all states.

    The state to start from is the first choice of what is enumerated.
    """

    def run(key):
        start_key, step_key = jax.random.split(key)
        index = choose(start_key, categorical, jnp.ones((1, len(texts))))[0]
        drawn = step(step_key, jax.tree.map(lambda leaf: leaf[index], states), index)
        return index, nodes(drawn.tokens, drawn.length, vocab_size)

    law = enumerate_algorithm(run)
    place = np.full(num_nodes(vocab_size, max(map(len, texts))), -1)
    place[[node_of(text, vocab_size) for text in texts]] = np.arange(len(texts))
    start, end, chances = (np.asarray(leaf) for leaf in (*law.outcomes, law.probabilities))
    possible = chances > 0
    assert np.all(place[end[possible]] >= 0), "the kernel leaves the texts"
    matrix = np.zeros((len(texts), len(texts)))
    np.add.at(matrix, (start[possible], place[end[possible]]), chances[possible] * len(texts))
    return matrix_checks(
        KernelMatrix(jnp.asarray(matrix), jnp.asarray(target / math.fsum(target))), reversible=reversible, subject=""
    )


def measure(population, vocab_size):
    """The mass that a population puts on every text, by its node."""
    rows = population.particles
    mass = jnp.exp(population.log_scale + population.log_scale_low + population.log_weights) / rows.num_rows
    found = jnp.zeros(num_nodes(vocab_size, rows.tokens.shape[1]))
    return found.at[nodes(rows.tokens, rows.length, vocab_size)].add(mass)


def expected_measure(lm, capacity, log_potential):
    """p(text) prod_t G_t of every text, by its node."""
    texts = all_texts(lm, capacity, lm.stop_ids)
    found = np.zeros(num_nodes(lm.vocab_size, capacity))
    found[[node_of(text, lm.vocab_size) for text in texts]] = masses(lm, texts, log_potential)
    return found
