"""Token masks: by hand, by enumeration of all legal texts, and bad arguments.

Planted bugs, run every time in `test_planted_*`: a restricted proposal whose weight is left out, an automaton that
counts -1 from the end of its table, one that stands still.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm._masks import Automaton
from tests.llm._steps import STOP, WEAK, all_texts

# "1 then 2, any number of times, then stop": state 0 wants 1 or the stop, state 1 wants 2, state 2 is past the stop.
PAIRS = [[2, 1, -1], [-1, -1, 0], [-1, -1, -1]]

NOT_A_MASK: Any = 4


def is_pairs(text):
    whole = text[:-1] if text[-1] == STOP else text
    return all(token == 1 + i % 2 for i, token in enumerate(whole)) and not (text[-1] == STOP and len(whole) % 2)


def restricted(mask, before=2, depth=3):
    """Text -> (probability under the restricted proposal, product of the allowed masses), by enumeration."""
    table = np.exp(np.asarray(WEAK.model.table, np.float64))
    found = {}
    open_rows = [((), mask.start(1), 1.0, 1.0)]
    for _ in range(depth):
        longer = []
        for text, state, q, mass in open_rows:
            law = table[(before, *text)[-1]]
            allowed = np.asarray(mask.allowed(state))[0]
            total = law[allowed].sum()
            for v in np.flatnonzero(allowed):
                after = mask.advance(state, jnp.asarray([v]))
                row = ((*text, int(v)), after, q * law[v] / total, mass * total)
                if v == STOP:
                    found[row[0]] = row[2:]
                else:
                    longer.append(row)
        open_rows = longer
    return found | {text: (q, mass) for text, _, q, mass in open_rows}


def probability(text, before=2):
    table = np.exp(np.asarray(WEAK.model.table, np.float64))
    return np.prod([table[a, b] for a, b in itertools.pairwise([before, *text])])


MASKS = {
    "automaton": (lambda: llm.automaton(PAIRS), is_pairs),
    "ban": (lambda: llm.ban_tokens([2], 3), lambda text: 2 not in text),
    "allow": (lambda: llm.allow_tokens([0, 2], 3), lambda text: 1 not in text),
    "both": (
        lambda: llm.intersect(llm.automaton(PAIRS), llm.ban_tokens([2], 3)),
        lambda text: is_pairs(text) and 2 not in text,
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_weighted_proposal_is_the_model_on_legal_texts(name):
    make, legal = MASKS[name]
    found = restricted(make())
    for text in all_texts():
        q, mass = found.get(text, (0, 0))
        np.testing.assert_allclose(q * mass, probability(text) if legal(text) else 0, rtol=1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_laws_of_a_mask(name):
    mask = MASKS[name][0]()
    assert isinstance(mask, llm.TokenMask)
    start = mask.start(2)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(start)} == {2}
    state = eqx.filter_jit(mask.advance)(start, jnp.asarray([1, 2]))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)
    allowed = eqx.filter_jit(mask.allowed)(state)
    assert (allowed.shape, allowed.dtype) == ((2, 3), bool)
    swapped = mask.advance(start, jnp.asarray([2, 1]))  # a row depends on itself alone
    np.testing.assert_array_equal(mask.allowed(swapped), allowed[::-1])
    many = jax.vmap(lambda token: mask.allowed(mask.advance(mask.start(2), token)))(jnp.asarray([[1, 2], [2, 1]]))
    np.testing.assert_array_equal(many, [allowed, allowed[::-1]])


def test_automaton_by_hand():
    mask = llm.automaton(PAIRS)
    state = mask.start(1)
    assert mask.allowed(state).tolist() == [[True, True, False]]
    state = mask.advance(state, jnp.asarray([1]))
    assert mask.allowed(state).tolist() == [[False, False, True]]
    stuck = mask.advance(state, jnp.asarray([1]))  # illegal: nothing is allowed from there on
    assert (stuck.tolist(), mask.allowed(stuck).tolist()) == ([-1], [[False] * 3])
    assert mask.advance(stuck, jnp.asarray([2])).tolist() == [-1]
    for outside in (-1, 3):
        assert mask.advance(state, jnp.asarray([outside])).tolist() == [-1]
    later = llm.automaton(np.array(PAIRS), initial=1)
    assert later.allowed(later.start(1)).tolist() == [[False, False, True]]
    assert stuck.dtype == mask.start(1).dtype


def test_fixed_masks_by_hand():
    assert llm.ban_tokens([], 3).allowed(llm.ban_tokens([], 3).start(1)).tolist() == [[True] * 3]
    nothing = llm.allow_tokens([], 3)
    assert nothing.allowed(nothing.start(2)).tolist() == [[False] * 3] * 2
    assert llm.ban_tokens(np.array([0, 2]), 3).allows.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: llm.ban_tokens([3], 3), ValueError, "holds 3, outside the vocabulary of 3 tokens"),
        (lambda: llm.allow_tokens([-1], 3), ValueError, "holds -1"),
        (lambda: llm.allow_tokens(["a"], 3), TypeError, "holds 'a'; needed token ids"),
        (lambda: llm.allow_tokens([0.5], 3), TypeError, "holds 0.5"),
        (lambda: llm.ban_tokens([0], 0), ValueError, "`vocab_size` is 0"),
        (lambda: llm.automaton([0, 1]), ValueError, r"shape \(2,\); needed \(number of states"),
        (lambda: llm.automaton(np.zeros((0, 3), int)), ValueError, r"shape \(0, 3\)"),
        (lambda: llm.automaton([[0.0, 1.0]]), TypeError, "holds float64 numbers"),
        (lambda: llm.automaton([[0, 1, -1]]), ValueError, "from state 0 with token 1 to 1; needed -1"),
        (lambda: llm.automaton([[0, -2]]), ValueError, "with token 1 to -2"),
        (lambda: llm.automaton(PAIRS, initial=3), ValueError, "`initial` is 3"),
        (lambda: llm.intersect(), ValueError, "at least one"),
        (lambda: llm.intersect(llm.ban_tokens([0], 3), NOT_A_MASK), TypeError, "TokenMask"),
    ],
)
def test_bad_masks(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_masks_of_different_vocabularies():
    mask = llm.intersect(llm.ban_tokens([0], 3), llm.ban_tokens([0], 4))
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 4\)"):
        mask.allowed(mask.start(1))


# --- planted bugs ---


def test_planted_weight_left_out():
    found = restricted(llm.automaton(PAIRS))
    legal = np.array([probability(text) for text in found])
    wrong = np.array([q for q, _ in found.values()])
    assert 0.5 * np.abs(legal / legal.sum() - wrong).sum() > 0.1  # total variation


class CountsFromTheEnd(Automaton):
    def allowed(self, state):
        return self.table[state] >= 0


class StandsStill(Automaton):
    def advance(self, state, token):
        return state


@pytest.mark.parametrize(("bug", "token"), [(CountsFromTheEnd, 2), (StandsStill, 1)])
def test_planted_automata(bug, token):
    right = llm.automaton([[1, 1, -1], [-1, -1, 0]])
    wrong = bug(right.table, right.initial)
    said = [mask.allowed(mask.advance(mask.start(1), jnp.asarray([token]))).tolist() for mask in (right, wrong)]
    assert said[0] != said[1]
