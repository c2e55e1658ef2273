"""One step of all rows: who draws, who waits, who has ended, at which position, and what it weighs.

Exact but for drawing the tokens themselves; what is drawn is then checked against the model's own law in double
precision, and against a full recomputation for a transformer.

Planted bugs, shown to be caught: a cache that takes the tokens of rows that wait, one position for all rows, texts
matched within one token only.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import unwrap_key
from probinf.llm._matcher import find_matcher, token_texts
from probinf.llm._model import LanguageSteps
from probinf.llm._task import make_task
from probinf.models.lm import LanguageModelConfig, init_language_model
from tests.llm._folders import CHARACTERS, EOS, character_tokenizer
from tests.llm._tables import law_of, table_lm

CONFIG = LanguageModelConfig(
    vocab_size=12, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, hidden_dim=24, max_length=64
)


@dataclass(frozen=True)
class Pieces:
    """Tokens of several characters, so that texts are cut in unexpected places."""

    texts: tuple[str, ...]

    @property
    def vocab_size(self):
        return len(self.texts)

    def encode(self, text):
        return [self.texts.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def steps_model(lm, prompt=(1, 2), **options):
    task = make_task(lm, list(prompt), **({"potential": "none", "step": llm.block(2), "max_steps": 3} | options))
    return task.setup.model(task.prompt(0))


def common_model(broken=False):
    """The model of several tests, so that they share a program; `broken` says NaN behind a first token 0."""
    lm = table_lm(0, 4, 6, stop_ids=(3,))
    if broken:
        lm = eqx.tree_at(lambda m: m.model.logits, lm, lm.model.logits.at[1].set(jnp.nan))
    return steps_model(lm, step=llm.delimiter(0, max_tokens=3), max_steps=2)


@eqx.filter_jit
def write(model, key, num_rows, num_steps):
    """Some steps without weights or resampling."""
    bits, restore = unwrap_key(key)

    def step(t, rows):
        return model.mutate(jax.random.fold_in(restore(bits), t), t, rows)

    return jax.lax.fori_loop(1, num_steps + 1, step, model.init(restore(bits), num_rows))


@pytest.fixture(scope="module")
def transformer():
    model = init_language_model(jax.random.key(3), CONFIG)
    # Larger weights than at the start of training: the law then depends on what was written.
    return llm.LM(jax.tree.map(lambda leaf: leaf * 3, model), None, (0,), "random")


@eqx.filter_jit
def full_log_prob(model, prompt, tokens, length, temperature):
    """The log probability of every text, from one pass over it with its prompt."""
    whole = jnp.concatenate([jnp.broadcast_to(prompt, (tokens.shape[0], prompt.shape[0])), tokens], axis=1)
    laws = jax.nn.log_softmax(model(whole).logits[:, prompt.shape[0] - 1 : -1] / temperature, axis=-1)
    taken = jnp.take_along_axis(laws, tokens[:, :, None], axis=2)[:, :, 0]
    return jnp.sum(jnp.where(jnp.arange(tokens.shape[1])[None] < length[:, None], taken, 0), axis=1)


class FedWhileWaiting(eqx.Module):
    """Planted: rows that wait are fed what they do not write."""

    model: Any

    @property
    def config(self):
        return self.model.config

    def prefill(self, tokens, length):
        return self.model.prefill(tokens, length)

    def empty_cache(self, num_rows, capacity):
        return self.model.empty_cache(num_rows, capacity)

    def advance(self, prompt, cache, tokens, count):
        return self.model.advance(prompt, cache, tokens, jnp.ones_like(count))


class OnePosition(FedWhileWaiting):
    """Planted: all rows are at the position of the longest."""

    def advance(self, prompt, cache, tokens, count):
        cache = cache._replace(lengths=jnp.full_like(cache.lengths, jnp.max(cache.lengths)))
        return self.model.advance(prompt, cache, tokens, count)


BUGS = [pytest.param(bug, marks=pytest.mark.slow) for bug in (FedWhileWaiting, OnePosition)]


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_rows_that_wait_and_end_do_not_disturb_the_cache(transformer, key, bug):
    """The log probability that was added up step by step is that of one pass over the whole text."""
    prompt, options = (1, 2, 3), {"step": llm.delimiter([4, 5, 6], max_tokens=5), "max_steps": 4, "temperature": 0.8}

    def gap(lm):
        rows = write(steps_model(lm, prompt, **options), key, 8, 4)
        exact = full_log_prob(transformer.model, jnp.asarray(prompt, jnp.int32), rows.tokens, rows.length, 0.8)
        assert len(set(np.asarray(rows.length).tolist())) > 2
        return np.max(np.abs(np.asarray(rows.log_prob - exact)))

    if bug is None:
        assert gap(transformer) < 2e-4
    else:
        assert gap(llm.LM(bug(transformer.model), None, (0,), "bug")) > 1e-2


def test_steps_end_at_delimiters_and_rows_at_stops(key):
    rows = write(common_model(), key, 64, 2)
    tokens, length, boundaries = (np.asarray(x) for x in (rows.tokens, rows.length, rows.boundaries))
    for row in range(64):
        text = tokens[row, : length[row]].tolist()
        steps = [text[: boundaries[row, 0]], text[boundaries[row, 0] : boundaries[row, 1]]]
        if rows.num_steps[row] == 1:
            assert boundaries[row].tolist() == [length[row], 0]
            steps = steps[:1]
        for step in steps:
            ends = [i for i, token in enumerate(step) if token in (0, 3)]
            assert ends == [len(step) - 1] or (not ends and len(step) == 3)
        assert bool(rows.stopped[row]) == (text[-1] == 3)
        assert bool(rows.finished[row]) == (text[-1] == 3 or length[row] == 6)
        assert 3 not in text[:-1]
    assert {tuple(pair) for pair in boundaries.tolist()} >= {(1, 0), (3, 6), (1, 2)}
    assert np.all(tokens[np.arange(6)[None] >= length[:, None]] == 0)


@pytest.mark.parametrize("base", ["model", pytest.param("proposal", marks=pytest.mark.slow)])
def test_log_prob_is_the_base_law_and_correction_the_mask(key, base):
    lm = table_lm(0, 4, 4)
    mask = llm.automaton(np.array([[1, 0, 0, 0], [-1, 0, -1, 0]]))  # behind a token 0 only 1 and 3
    model = steps_model(lm, step=llm.block(2), max_steps=2, temperature=0.6, mask=mask, base=base)
    rows = write(model, key, 16, 2)
    log_prob, log_mass = np.asarray(rows.log_prob), np.asarray(rows.log_mass)
    for row, text in enumerate(np.asarray(rows.tokens).tolist()):
        log_p = log_q = 0.0
        for i, token in enumerate(text):
            tempered = law_of(lm, text[:i], 0.6)
            allowed = [1, 3] if i and text[i - 1] == 0 else [0, 1, 2, 3]
            assert token in allowed
            log_p += law_of(lm, text[:i], 1.0 if base == "model" else 0.6)[token]
            log_q += tempered[token] - np.log(np.exp(tempered[allowed]).sum())
        np.testing.assert_allclose(log_prob[row], log_p, atol=1e-5)
        np.testing.assert_allclose(log_mass[row], log_p - log_q, atol=1e-5)


@pytest.mark.slow
def test_a_row_without_a_way_on_ends_with_weight_zero(key):
    lm = table_lm(0, 3, 4)
    mask = llm.automaton(np.array([[0, 0, 1], [-1, -1, -1]]))
    rows = write(steps_model(lm, step=llm.block(2), max_steps=2, mask=mask), key, 32, 2)
    tokens, length = np.asarray(rows.tokens), np.asarray(rows.length)
    dead = np.asarray([2 in row[:n][:-1] or (row[n - 1] == 2 and n < 4) for row, n in zip(tokens, length, strict=True)])
    assert 0 < dead.sum() < 32
    assert np.array_equal(np.asarray(rows.log_mass) == -np.inf, dead)
    assert np.all(np.asarray(rows.finished)[dead])
    assert not np.any(np.asarray(rows.stopped)[dead])
    assert np.all(tokens[dead, length[dead] - 1] == 2)


def test_rows_do_not_depend_on_how_many_there_are(key):
    few, many = (write(common_model(), key, n, 2) for n in (4, 64))
    assert np.array_equal(few.tokens, many.tokens[:4])
    np.testing.assert_allclose(few.log_prob, many.log_prob[:4], rtol=1e-5)


def test_a_reference_leads_row_zero(key):
    model = common_model()
    free = write(model, key, 64, 2)
    long = int(np.argmax(np.asarray(free.length)))
    for row in (long, int(np.argmax(np.asarray(free.stopped)))):
        led = eqx.tree_at(lambda m: m.decoder.reference, model, free.tokens[row], is_leaf=lambda x: x is None)
        led = write(led, jax.random.fold_in(key, 99), 64, 2)
        assert np.array_equal(led.tokens[0], free.tokens[row])
        np.testing.assert_allclose(led.log_prob[0], free.log_prob[row], rtol=1e-5)
        for name in ("length", "finished", "stopped", "boundaries"):
            assert np.array_equal(getattr(led, name)[0], getattr(free, name)[row])
        assert not np.array_equal(led.tokens[1:], free.tokens[1:])


def test_rows_that_are_finished_stay_as_they_are(key):
    model = common_model()
    before = write(model, key, 64, 1)
    after = eqx.filter_jit(model.mutate)(jax.random.fold_in(key, 7), jnp.asarray(2), before)
    done = np.asarray(before.finished)
    assert 0 < done.sum() < 64
    for name in ("tokens", "length", "log_prob", "log_mass", "boundaries", "scores", "num_steps", "match_state"):
        assert np.array_equal(getattr(before, name)[done], getattr(after, name)[done], equal_nan=name == "scores")
    for name in ("log_increment", "step_tokens", "scorer_tokens"):
        assert not np.any(np.asarray(getattr(after, name))[done])
    assert np.array_equal(before.cache.node[done], after.cache.node[done])


def test_a_model_that_says_nan_is_weighed_as_nan(key):
    rows = write(common_model(broken=True), key, 64, 2)
    first = np.asarray(rows.tokens[:, 0]) == 0
    assert 0 < first.sum() < 64
    assert np.array_equal(np.isnan(np.asarray(rows.log_increment)), first)
    assert np.all(np.asarray(rows.finished)[first])


# --- texts that end something ---

PIECES = Pieces(("a", "b", "ab", "aa", "ba", ";", "b;a", "", "\N{REPLACEMENT CHARACTER}", "aab"))


def follow(matcher, tokens):
    if matcher.hits is None:  # nothing to match
        return matcher.step(jnp.zeros(len(tokens), jnp.int32), jnp.asarray(tokens))[1].tolist()
    next_state, table = np.asarray(matcher.next_state), np.asarray(matcher.hits)
    state, found = 0, []
    for token in tokens:
        found.append(bool(table[state, token]))
        state = next_state[state, token]
    return found


def expected_hits(ends, tokens):
    """Which tokens complete a text, by looking for it in what was written."""
    texts, ids = [end for end in ends if isinstance(end, str)], [end for end in ends if not isinstance(end, str)]
    found = []
    for i, token in enumerate(tokens):
        before, text = PIECES.decode(tokens[:i]), PIECES.decode(tokens[: i + 1])
        now, earlier = (sum(t.startswith(end, at) for end in texts for at in range(len(t))) for t in (text, before))
        found.append(now > earlier or token in ids)
    return found


@pytest.mark.parametrize("ends", [("ab",), ("aab", "b;"), (";",), ("aa", 7), ("abab", "ba"), (), (5, 0)], ids=str)
def test_texts_are_found_wherever_tokens_cut_them(ends):
    matcher = find_matcher("stop", ends, llm.LM(table_lm(0, len(PIECES.texts), 1).model, PIECES, (), "pieces"))
    rng = np.random.default_rng(0)
    for tokens in [*itertools.product([0, 1, 2], repeat=3), *rng.integers(0, 10, size=(30, 6)).tolist()]:
        assert follow(matcher, tokens) == expected_hits(ends, list(tokens)), tokens


def test_matching_within_one_token_is_caught():
    inside = ["ab" in PIECES.texts[token] for token in (0, 1)]
    assert inside != expected_hits(("ab",), [0, 1])


@dataclass(frozen=True)
class DropsBlanks:
    """As tokenizers that take a blank at the start of a text for their own."""

    texts: tuple[str, ...] = ("a", " b", "c")
    vocab_size: int = 3

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids).removeprefix(" ")


def test_a_blank_at_the_start_of_a_token_counts():
    assert token_texts(DropsBlanks(), 5) == ("a", " b", "c", "", "")


def test_the_name_of_a_special_token_is_its_id():
    """Though it writes nothing, and though the tokenizer puts another one before every text."""
    lm = llm.LM(table_lm(0, 17, 1).model, character_tokenizer(), (), "characters")
    matcher = find_matcher("stop", ["<eos>", ";"], lm)
    assert matcher.hits is not None
    assert np.flatnonzero(matcher.hits[0]).tolist() == [CHARACTERS.index(";"), EOS]
    assert matcher.hits.shape == (2, 17)  # states of the text alone
    with pytest.raises(ValueError, match=r"'<end>', which names no special token of this model"):
        find_matcher("stop", ["<end>"], lm)


def test_a_stop_text_ends_rows(key):
    lm = table_lm(0, 3, 6)
    lm = llm.LM(lm.model, Pieces(("x", "y", "yx")), (), "pieces")
    rows = write(steps_model(lm, step=llm.block(2), max_steps=3, stop="xy"), key, 64, 3)
    for row in range(64):
        text = lm.decode(np.asarray(rows.tokens[row])[: int(rows.length[row])])
        assert bool(rows.stopped[row]) == ("xy" in text)
        assert "xy" not in lm.decode(np.asarray(rows.tokens[row])[: int(rows.length[row]) - 1])
    assert 0 < int(rows.stopped.sum()) < 64


@pytest.mark.slow
def test_a_delimiter_is_looked_for_afresh_behind_a_delimiter(key):
    """The third of three equal characters ends no step, as the first two did; the bound of a step cuts no delimiter."""
    lm = llm.LM(table_lm(0, 2, 6).model, Pieces(("x", "y")), (), "pieces")
    rows = write(steps_model(lm, (1,), step=llm.delimiter("xx", max_tokens=4), max_steps=2), key, 64, 2)
    found = set()
    for tokens, length, ends in zip(*map(np.asarray, (rows.tokens, rows.length, rows.boundaries)), strict=True):
        text, start, begun, expected = lm.decode(tokens[:length]), 0, 0, []
        for end in range(1, length + 1):
            delimited = text[begun:end].endswith("xx")
            if delimited or end - start == 4:
                expected.append(end)
                found.add(end - start)
                start = end
            begun = end if delimited else begun
        assert ends.tolist() == expected[:2]
    assert found == {1, 2, 3, 4}


def test_logits_are_needed_to_go_on(key):
    model = steps_model(table_lm(0, 3, 3))
    with pytest.raises(TypeError, match="these rows have no logits"):
        model.mutate(key, 1, model.init(key, 2).with_heavy())


def test_language_steps_are_a_model_in_batch_form(key):
    model = steps_model(table_lm(0, 3, 3))
    assert isinstance(model, LanguageSteps)
    assert model.batch
    assert model.num_steps == 4
    assert model.init(key, 5).num_rows == 5
