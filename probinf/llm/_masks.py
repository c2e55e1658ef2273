r"""Hard constraints on tokens, with correct weights: proposal $q = p \, 1[A] / p(A)$, weight $p(A)$ a token.

Restricting the vocabulary to the allowed set A and renormalising samples the wrong distribution: a text comes out with
probability $p(x) / \prod_k p(A_k)$. Multiplying the weight by $p(A_k)$ at every token gives back $p(x) 1[legal]$, whose
evidence is the probability that the model writes a legal text, or the legal beginning of one where texts are cut off by
`max_steps` or `max_tokens` (Lew et al. 2023, "Sequential Monte Carlo steering"). A text ends by a stop token, which
must be allowed where it may end.
"""

import operator
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from probinf.core import whole_number


@runtime_checkable
class TokenMask(Protocol):
    """Which tokens may come next in each row.

    Law: row n of `allowed` depends on row n of the state alone, and the state on the row's tokens alone.
    """

    def start(self, num_rows: int) -> PyTree:
        """The state before the first token; leaves [N, ...]."""
        ...

    def allowed(self, state: PyTree) -> Bool[Array, "n v"]:
        """Whether token v may come next in row n."""
        ...

    def advance(self, state: PyTree, token: Int[Array, " n"]) -> PyTree:
        """The state after one more token in every row."""
        ...


class FixedMask(eqx.Module):
    """See `allow_tokens` and `ban_tokens`."""

    allows: Bool[Array, " v"]

    def start(self, num_rows: int) -> PyTree:
        """A state that only tells how many rows there are."""
        return jnp.zeros((num_rows, 0), jnp.int32)

    def allowed(self, state: PyTree) -> Bool[Array, "n v"]:
        """The same for every row."""
        return jnp.broadcast_to(self.allows, (state.shape[0], *self.allows.shape))

    def advance(self, state: PyTree, token: Int[Array, " n"]) -> PyTree:
        """Changes nothing."""
        del token
        return state


def allow_tokens(ids: Any, vocab_size: int) -> FixedMask:
    """A `TokenMask` that allows these tokens and no others. Remember the stop token.

    Args:
        ids: token ids, any iterable of integers.
        vocab_size: number of tokens of the model, `lm.model.config.vocab_size`.

    Raises:
        ValueError: an id is outside the vocabulary.
        TypeError: an id, or `vocab_size`, is not an integer.
    """
    return FixedMask(jnp.asarray(_among(ids, vocab_size)))


def ban_tokens(ids: Any, vocab_size: int) -> FixedMask:
    """A `TokenMask` that allows all tokens but these.

    Args:
        ids: token ids, any iterable of integers.
        vocab_size: number of tokens of the model, `lm.model.config.vocab_size`.

    Raises:
        ValueError: an id is outside the vocabulary.
        TypeError: an id, or `vocab_size`, is not an integer.
    """
    return FixedMask(jnp.asarray(~_among(ids, vocab_size)))


def _among(ids: Any, vocab_size: int) -> np.ndarray:
    size = whole_number("vocab_size", vocab_size, 1)
    chosen = np.zeros(size, bool)
    for i in ids:
        try:
            number = operator.index(i)
        except TypeError:
            raise TypeError(f"`ids` holds {i!r}; needed token ids, integers (`tokenizer.encode` gives them)") from None
        if not 0 <= number < size:
            raise ValueError(f"`ids` holds {number}, outside the vocabulary of {size} tokens (0 to {size - 1})")
        chosen[number] = True
    return chosen


class Automaton(eqx.Module):
    """See `automaton`."""

    table: Int[Array, "s v"]
    initial: Int[Array, ""]

    def start(self, num_rows: int) -> PyTree:
        """The initial state in every row."""
        return jnp.broadcast_to(self.initial, (num_rows,))

    def allowed(self, state: PyTree) -> Bool[Array, "n v"]:
        """The tokens with a transition."""
        return (self._rows(state) >= 0) & (state >= 0)[:, None]

    def advance(self, state: PyTree, token: Int[Array, " n"]) -> PyTree:
        """Follows the transition; an illegal token leads to -1, where nothing is allowed."""
        rows = self._rows(state)
        inside = (token >= 0) & (token < rows.shape[1])
        to = jnp.take_along_axis(rows, jnp.where(inside, token, 0)[:, None], axis=1, mode="promise_in_bounds")[:, 0]
        return jnp.where((state >= 0) & inside, to, -1).astype(state.dtype)

    def _rows(self, state: PyTree) -> Int[Array, "n v"]:
        return self.table[jnp.maximum(state, 0)]


def automaton(table: Any, initial: int = 0) -> Automaton:
    """A `TokenMask` from a deterministic finite automaton that reads tokens.

    A text may go on as long as it has a transition; it ends by a stop token, for which the table has transitions in
    the accepting states (to any state: nothing follows). A state without transitions is a dead end of weight zero.

    Args:
        table: [S, V] integers, the state after token v in state s; -1 where v is illegal in s. A new table of the same
            shape does not recompile.
        initial: state before the first token.

    Raises:
        ValueError: the table is not of that shape, or names a state that does not exist.
        TypeError: the table does not hold integers.
    """
    states = np.asarray(table)
    if states.ndim != 2 or 0 in states.shape:
        raise ValueError(f"`table` has shape {states.shape}; needed (number of states, vocabulary size)")
    if not np.issubdtype(states.dtype, np.integer):
        raise TypeError(f"`table` holds {states.dtype} numbers; needed integers, states or -1")
    count = states.shape[0]
    bad = np.argwhere((states < -1) | (states >= count))
    if bad.size:
        s, v = bad[0]
        raise ValueError(
            f"`table` leads from state {s} with token {v} to {states[s, v]}; needed -1 (illegal) or 0 to {count - 1}"
        )
    start = whole_number("initial", initial)
    if start >= count:
        raise ValueError(f"`initial` is {start}; needed a state of `table`, 0 to {count - 1}")
    return Automaton(jnp.asarray(states, jnp.int32), jnp.asarray(start, jnp.int32))


class Intersection(eqx.Module):
    """See `intersect`."""

    masks: tuple[TokenMask, ...]

    def start(self, num_rows: int) -> PyTree:
        """The states of all masks."""
        return tuple(mask.start(num_rows) for mask in self.masks)

    def allowed(self, state: PyTree) -> Bool[Array, "n v"]:
        """What every mask allows."""
        first, *others = (mask.allowed(part) for mask, part in zip(self.masks, state, strict=True))
        for other in others:
            if other.shape != first.shape:
                raise ValueError(f"masks of different vocabularies: shapes {first.shape} and {other.shape}")
            first = first & other
        return first

    def advance(self, state: PyTree, token: Int[Array, " n"]) -> PyTree:
        """Advances all masks."""
        return tuple(mask.advance(part, token) for mask, part in zip(self.masks, state, strict=True))


def intersect(*masks: TokenMask) -> Intersection:
    """A `TokenMask` that allows what all of `masks` allow.

    Raises:
        ValueError: there is none.
        TypeError: one of them is not a `TokenMask`.
    """
    if not masks:
        raise ValueError("`intersect` needs at least one mask")
    for mask in masks:
        if not isinstance(mask, TokenMask):
            raise TypeError(f"`masks` must be `TokenMask`s (`start`, `allowed`, `advance`), got {mask!r}")
    return Intersection(masks)
