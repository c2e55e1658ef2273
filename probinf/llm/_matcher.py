r"""`Matcher`: finds texts and token ids in what a model writes, as a table that a compiled program can follow.

The automaton of Aho and Corasick (1975) over characters, run over the characters of each token: from state s, token v
leads to `next_state[s, v]`, and `hits[s, v]` tells whether one of the texts was completed within it. So a text may
begin in one token and end in another, wherever the tokenizer cuts. A text that names a special token, such as
`<|im_end|>`, stands for that token, which writes nothing.
"""

import functools
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from probinf.llm._lm import LM


class Matcher(eqx.Module):
    """A table of S states and V tokens; state 0 is the start.

    Attributes:
        next_state: the state after a token; None where there is nothing to match.
        hits: whether a text, or one of the ids, was completed by it; None likewise.
    """

    next_state: Int[Array, "s v"] | None
    hits: Bool[Array, "s v"] | None

    def step(self, state: Int[Array, " n"], token: Int[Array, " n"]) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
        """The states after one more token in each row, and whether it completed something."""
        if self.next_state is None or self.hits is None:
            return state, jnp.zeros(state.shape, bool)
        return self.next_state[state, token], self.hits[state, token]


def find_matcher(name: str, ends: Sequence[str | int], lm: LM) -> Matcher:
    """The matcher of some texts and token ids.

    Args:
        name: what the caller calls them, for the error.
        ends: texts and ids; none at all matches nothing. The name of a special token is as good as its id.
        lm: whose vocabulary and tokenizer it is for.

    Raises:
        ValueError: an id is not in the vocabulary, or no token writes a character of a text.
        TypeError: a text is given where the `LM` has no tokenizer.
    """
    if not ends:
        return Matcher(None, None)
    texts = [end for end in ends if isinstance(end, str)]
    ids = [end for end in ends if not isinstance(end, str)]
    if texts and lm.tokenizer is None:
        raise TypeError(f"`{name}` holds the text {texts[0]!r}, but this `LM` has no tokenizer: pass token ids")
    special = {text: special_id(lm.tokenizer, text) for text in texts}
    ids += [token for token in special.values() if token is not None]
    for token in ids:
        if not 0 <= token < lm.vocab_size:
            raise ValueError(f"`{name}` holds {token}; token ids of this model are 0 to {lm.vocab_size - 1}")
    written = tuple(text for text in texts if special[text] is None)
    if written:
        _check_writable(name, written, lm)
        next_state, hits = _table(written, lm.tokenizer, lm.vocab_size)
        hits = hits.copy()
    else:
        next_state, hits = np.zeros((1, lm.vocab_size), np.int32), np.zeros((1, lm.vocab_size), bool)
    hits[:, ids] = True
    return Matcher(jnp.asarray(next_state), jnp.asarray(hits))


@functools.lru_cache(maxsize=64)
def special_id(tokenizer: Any, text: str) -> int | None:
    """The id of the special token of this name; None where a text is none.

    Special is a token that `encode` makes of its name alone and that `decode` leaves out.

    Args:
        tokenizer: with `encode(text) -> ids`, which may put tokens around every text, and `decode(ids) -> text`.
        text: such as `<|im_end|>`.
    """
    try:
        ids, around = (Counter(int(token) for token in tokenizer.encode(one)) for one in (text, ""))
    except ValueError:  # the vocabulary has no token for it
        return None
    own = list((ids - around).elements())
    return own[0] if len(own) == 1 and tokenizer.decode(own) == "" else None


def _check_writable(name: str, texts: tuple[str, ...], lm: LM) -> None:
    written = set("".join(token_texts(lm.tokenizer, lm.vocab_size)))
    for text in texts:
        missing = [character for character in text if character not in written]
        if missing:
            raise ValueError(
                f"`{name}` holds the text {text!r}, which names no special token of this model, and no token writes "
                f"{missing[0]!r}: pass token ids instead"
            )


@functools.lru_cache(maxsize=32)
def _table(texts: tuple[str, ...], tokenizer: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    moves, ends = _automaton(texts)
    next_state = np.zeros((len(moves), vocab_size), np.int32)
    hits = np.zeros((len(moves), vocab_size), bool)
    known = set("".join(texts))
    for token, text in enumerate(token_texts(tokenizer, vocab_size)):
        if text and known.isdisjoint(text):
            continue  # begins anew from wherever it was
        for start in range(len(moves)):
            state = start
            for character in text:
                state = moves[state].get(character, 0)
                hits[start, token] |= ends[state]
            next_state[start, token] = state
    return next_state, hits


def _automaton(texts: tuple[str, ...]) -> tuple[list[dict[str, int]], list[bool]]:
    """Transitions of every state on the characters that do not lead to the start, and whether a text ends in it."""
    moves: list[dict[str, int]] = [{}]
    ends = [False]
    for text in texts:
        state = 0
        for character in text:
            if character not in moves[state]:
                moves.append({})
                ends.append(False)
                moves[state][character] = len(moves) - 1
            state = moves[state][character]
        ends[state] = True
    # Shorter prefixes first, so that the state that a missing move falls back to is complete already.
    fallback = [0] * len(moves)
    waiting = deque(moves[0].values())
    while waiting:
        state = waiting.popleft()
        ends[state] |= ends[fallback[state]]
        for character, target in moves[state].items():
            fallback[target] = moves[fallback[state]].get(character, 0)
            waiting.append(target)
        moves[state] = moves[fallback[state]] | moves[state]
    return moves, ends


@functools.lru_cache(maxsize=8)
def token_texts(tokenizer: Any, vocab_size: int) -> tuple[str, ...]:
    """What each token adds to a text.

    Decoded behind another token where that gives more than the token alone: many tokenizers drop a blank at the start
    of a text. A token that is a part of a character's bytes reads as a replacement character, and breaks every match.

    Args:
        tokenizer: with `decode(ids) -> text`; ids that it does not know add nothing.
        vocab_size: number of tokens of the model, which may be padded beyond the tokenizer's.
    """
    known = min(vocab_size, int(getattr(tokenizer, "vocab_size", vocab_size)))
    alone = [tokenizer.decode([token]) for token in range(known)]
    before = next((token for token, text in enumerate(alone) if text.isalnum()), None)
    found = []
    for token, text in enumerate(alone):
        if before is not None:
            pair = tokenizer.decode([before, token])
            if pair.startswith(alone[before]) and pair.endswith(text):
                text = pair[len(alone[before]) :]
        found.append(text)
    return (*found, *("" for _ in range(vocab_size - known)))
