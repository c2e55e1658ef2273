r"""The exact law of an algorithm whose random choices all go through `choose`.

Every sequence of outcomes is a script; the algorithm is run under all scripts at once (`vmap`), each weighted by
the product of its probabilities. No Monte Carlo error is left: monad-bayes tests its population monad this way.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from probinf.core import enumerating, is_concrete

MOST_COMPARED = 2**14


class Law(NamedTuple):
    """A finite law: outcomes with leading axis M, and their probabilities [M], which sum to 1."""

    outcomes: PyTree[Any]
    probabilities: Float[Array, " m"]

    def expectation(self, function: Callable[[Any], Array]) -> Array:
        """The expected value of `function(outcome)`; outcomes of probability zero are not looked at."""
        values = jax.vmap(function)(self.outcomes)
        shape = (-1,) + (1,) * (values.ndim - 1)
        weights = self.probabilities.reshape(shape)
        return jnp.sum(jnp.where(weights > 0, weights * values.astype(weights.dtype), 0), axis=0)


def outcome_rows(outcomes: PyTree, count: int) -> Float[np.ndarray, "m d"]:
    """Outcomes stacked on a leading axis of length `count` as rows of numbers, to be compared."""
    return np.concatenate([np.asarray(leaf, float).reshape(count, -1) for leaf in jax.tree.leaves(outcomes)], axis=1)


class _Counter:
    """Finds how many outcomes each choice has; goes on with the first."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def decide(self, outcomes: PyTree, probabilities: Array) -> PyTree:
        self.sizes.append(probabilities.shape[0])
        return jax.tree.map(lambda leaf: leaf[0], outcomes)


class _Script:
    """Decides the choices as the script says and multiplies up their probabilities."""

    def __init__(self, indices: Array) -> None:
        self.indices = indices
        self.position = 0
        self.probability: Array | None = None

    def decide(self, outcomes: PyTree, probabilities: Array) -> PyTree:
        index = self.indices[self.position]
        self.position += 1
        chance = probabilities[index]
        self.probability = chance if self.probability is None else self.probability * chance
        return jax.tree.map(lambda leaf: leaf[index], outcomes)


def enumerate_algorithm(
    algorithm: Callable[[Any], PyTree], *, max_outcomes: int = 2_000_000, batch_size: int = 65536
) -> Law:
    """The exact law of `algorithm(key)`.

    The random choices of the algorithm must all go through `choose`, in an order that does not depend on their
    outcomes, and outside `jit`, `vmap` and `lax` control flow of the caller's own (the verbs of `core` see to
    that). Use float64.

    Args:
        algorithm: a function of a key (which it passes on, and which is never used to draw).
        max_outcomes: refuse to enumerate more scripts than this.
        batch_size: how many scripts run at once.

    Returns:
        The law; outcomes are listed once per script, so equal outcomes can occur several times.

    Raises:
        ValueError: there are too many scripts, no choice at all, or random numbers beside the choices (looked for with
            two keys where there are at most 16,384 scripts).
    """
    counter = _Counter()
    with enumerating(counter):
        jax.eval_shape(lambda: algorithm(jax.random.key(0)))
    total = math.prod(counter.sizes)
    if not counter.sizes:
        raise ValueError("`algorithm` made no choice through `choose`: nothing to enumerate")
    if total > max_outcomes:
        raise ValueError(f"`algorithm` has {total} scripts ({counter.sizes}); `max_outcomes` is {max_outcomes}")
    scripts = np.array(list(itertools.product(*map(range, counter.sizes))), np.int32)

    def run_all(seed: Array) -> tuple[PyTree, Array]:
        def run(indices: Array) -> tuple[PyTree, Array]:
            handler = _Script(indices)
            with enumerating(handler):
                outcome = algorithm(jax.random.key(seed))
            return outcome, jnp.asarray(handler.probability)

        return jax.lax.map(run, jnp.asarray(scripts), batch_size=batch_size)

    compiled = jax.jit(run_all)
    law = Law(*compiled(jnp.asarray(0)))
    # Inside the caller's own `vmap` or `jit` there is nothing to compare on the host.
    if total <= MOST_COMPARED and is_concrete(law) and not _same(law, Law(*compiled(jnp.asarray(1)))):
        raise ValueError("`algorithm` draws random numbers that do not go through `choose`: its law is not finite")
    return law


def _same(law: Law, other: Law) -> bool:
    """Whether two laws agree wherever they have probability, to the bit but for NaN."""
    chances = np.asarray(law.probabilities)
    if not np.array_equal(chances, np.asarray(other.probabilities), equal_nan=True):
        return False
    possible = chances > 0
    for a, b in zip(jax.tree.leaves(law.outcomes), jax.tree.leaves(other.outcomes), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            continue
        first, second = np.asarray(a)[possible], np.asarray(b)[possible]
        if not np.array_equal(first, second, equal_nan=np.issubdtype(first.dtype, np.inexact)):
            return False
    return True
