"""`prefill` and `advance`: decoding with caches is the full recomputation, in place, for every row apart.

Planted bugs, run every time in `test_planted_*`: positions that forget the prompt; padding of the prompt that is seen;
tokens that are not appended but written; own keys seen one too far; a cache that is copied; weights cast ahead of
the loop.
"""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.models.lm import LanguageModel, _layer, _model
from tests.models.lm._tiny import CONFIG, tiny, tokens

ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)
LENGTH, PADDED, ROWS, CAPACITY, STEP = 5, 8, 4, 10, 3

LAST = jnp.asarray(LENGTH, jnp.int32)

recompute = jax.jit(LanguageModel.__call__)
prefill = jax.jit(LanguageModel.prefill)
advance = jax.jit(LanguageModel.advance)


def ragged(seed=0):
    """Which of each row's tokens to append in each call: from none to `STEP`, rows apart from one another."""
    rng, done, calls = np.random.default_rng(seed), np.zeros(ROWS, int), []
    while (done < CAPACITY).any():
        count = np.minimum(rng.integers(0, STEP + 1, ROWS), CAPACITY - done)
        calls.append((done, count))
        done = done + count
    return calls


def furthest(model, advance=advance):
    """The largest difference between decoding with caches and recomputing all, relative to the largest logit."""
    prompt, rows = tokens(1, PADDED), np.asarray(tokens(2, ROWS, CAPACITY))
    whole = jnp.concatenate([jnp.broadcast_to(prompt[:LENGTH], (ROWS, LENGTH)), jnp.asarray(rows)], axis=1)
    expected = jax.tree.map(np.asarray, recompute(model, whole))
    shared, out = prefill(model, prompt, LAST)
    worst = [np.abs(out.logits - expected.logits[0, LENGTH - 1]).max()]
    cache = model.empty_cache(ROWS, CAPACITY)
    for done, count in ragged():
        given = np.full((ROWS, STEP), -7, np.int32)  # what is not appended is not looked at
        for n in range(ROWS):
            given[n, : count[n]] = rows[n, done[n] : done[n] + count[n]]
        cache, out = advance(model, shared, cache, jnp.asarray(given), jnp.asarray(count, jnp.int32))
        out = jax.tree.map(np.asarray, out)
        assert np.isfinite(out.logits).all()
        for n in range(ROWS):
            for s in range(count[n]):
                at = LENGTH + done[n] + s
                worst.append(np.abs(out.logits[n, s] - expected.logits[n, at]).max())
                worst.append(np.abs(out.values[n, s] - expected.values[n, at]))
        np.testing.assert_array_equal(cache.lengths, done + count)
    return max(worst) / np.abs(expected.logits).max()


# --- decoding is recomputation ---


def test_decoding_is_recomputation():
    assert furthest(tiny()) < 1e-5


@pytest.mark.usefixtures("x64")
def test_decoding_is_recomputation_in_double_precision():
    assert furthest(tiny(jnp.float64)) < 1e-13


def test_decoding_is_recomputation_in_bfloat16():
    assert furthest(tiny(jnp.bfloat16, "bfloat16", ONE_LAYER)) < 0.05


def _padding_seen(monkeypatch):
    shared = _model.Shared
    monkeypatch.setattr(_model, "Shared", lambda keys, values, visible: shared(keys, values, jnp.ones_like(visible)))


def _all_written(monkeypatch):
    slots_of = _model.slots_of
    monkeypatch.setattr(
        _model, "slots_of", lambda lengths, count, n, capacity: slots_of(lengths, jnp.full_like(count, n), n, capacity)
    )


def _planted_in_rows(change):
    """A change of positions and visibility, in the program of rows alone."""

    def plant(monkeypatch):
        run = LanguageModel._run

        def planted(self, tokens, positions, keep, visible, shared):
            if shared[0] is not None:
                positions, visible = change(positions, visible)
            return run(self, tokens, positions, keep, visible, shared)

        monkeypatch.setattr(LanguageModel, "_run", planted)

    return plant


PLANTS = {
    "positions forget the prompt": _planted_in_rows(lambda positions, visible: (positions - LENGTH, visible)),
    "own keys one too far": _planted_in_rows(
        lambda positions, visible: (positions, jnp.roll(visible, 1, axis=2).at[:, :, 0].set(True))
    ),
    "padding seen": _padding_seen,
}


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bugs_are_seen(monkeypatch, name):
    PLANTS[name](monkeypatch)
    # A new function, so that it is traced with the plant.
    planted = furthest(tiny(config=ONE_LAYER), advance=jax.jit(lambda *a: LanguageModel.advance(*a)))
    assert planted > 1e-3


def test_planted_writes_of_tokens_that_are_not_appended_are_seen(monkeypatch):
    model = tiny(config=ONE_LAYER)
    shared, _ = prefill(model, tokens(1, PADDED), LAST)
    before = model.empty_cache(ROWS, CAPACITY)
    given, count = tokens(3, ROWS, STEP), jnp.asarray([0, 2, 3, 1], jnp.int32)

    def written(step):
        after, _ = step(model, shared, before, given, count)
        return np.any(np.asarray(after.keys[0]) != 0, axis=(1, 2))

    expected = np.arange(CAPACITY)[None] < np.asarray(count)[:, None]
    np.testing.assert_array_equal(written(advance), expected)
    _all_written(monkeypatch)
    assert (written(jax.jit(lambda *a: LanguageModel.advance(*a))) != expected).any()


# --- rows ---


def test_padding_of_a_prompt_has_no_influence():
    model, prompt = tiny(), tokens(1, PADDED)
    out = [prefill(model, prompt.at[LENGTH:].set(fill), LAST)[1].logits for fill in (0, 3, -1, 99)]
    out.append(recompute(model, prompt[None])[0][0, LENGTH - 1])
    for one in out[1:]:
        np.testing.assert_allclose(one, out[0], rtol=1e-5, atol=1e-5)


def test_rows_do_not_depend_on_their_company():
    model = tiny()
    shared, _ = prefill(model, tokens(1, PADDED), LAST)
    cache, given, count = model.empty_cache(ROWS, CAPACITY), tokens(3, ROWS, STEP), jnp.asarray([3, 1, 0, 2], jnp.int32)
    _, out = advance(model, shared, cache, given, count)
    others = jnp.asarray([False, True, True, True])
    _, again = advance(
        model, shared, cache, jnp.where(others[:, None], 1, given), jnp.where(others, 2, count).astype(jnp.int32)
    )
    np.testing.assert_array_equal(again.logits[0], out.logits[0])


def test_rows_are_copied_along_the_leading_axis():
    model = tiny()
    shared, _ = prefill(model, tokens(1, PADDED), LAST)
    first, second = tokens(3, ROWS, STEP), tokens(4, ROWS, STEP)
    count, ancestors = jnp.asarray([3, 1, 2, 3], jnp.int32), np.array([2, 2, 0, 1])
    cache, _ = advance(model, shared, model.empty_cache(ROWS, CAPACITY), first, count)
    moved = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[ancestors]), cache)
    cache, out = advance(model, shared, moved, second, jnp.full(ROWS, 3, jnp.int32))
    np.testing.assert_array_equal(cache.lengths, np.asarray(count)[ancestors] + 3)
    afresh, _ = advance(model, shared, model.empty_cache(ROWS, CAPACITY), first[ancestors], count[ancestors])
    _, expected = advance(model, shared, afresh, second, jnp.full(ROWS, 3, jnp.int32))
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_tokens_beyond_the_capacity_are_written_nowhere():
    model = tiny()
    shared, _ = prefill(model, tokens(1, PADDED), LAST)
    cache, given, three = model.empty_cache(ROWS, CAPACITY), tokens(3, ROWS, STEP), jnp.full(ROWS, 3, jnp.int32)
    for _ in range(3):
        cache, _ = advance(model, shared, cache, given, three)
    last, _ = advance(model, shared, cache, given, three)
    again, out = advance(model, shared, last, given, three)
    np.testing.assert_array_equal(cache.lengths, 9)
    np.testing.assert_array_equal(again.lengths, CAPACITY)
    np.testing.assert_array_equal(last.keys[0][..., :9], cache.keys[0][..., :9])
    np.testing.assert_array_equal(again.keys[0], last.keys[0])
    assert np.isfinite(out.logits).all()


def test_numbers_of_rows_must_agree():
    model = tiny()
    shared, _ = prefill(model, tokens(1, PADDED), LAST)
    # The checker of shapes would speak first.
    with pytest.raises((ValueError, TypeError), match=r"rows|count"):
        model.advance(shared, model.empty_cache(3, 4), tokens(1, 3, 2), jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match="`tokens` has 2 rows, `count` 2 and `cache` 3"):
        model.advance(shared, model.empty_cache(3, 4), tokens(1, 2, 2), jnp.ones(2, jnp.int32))


# --- several problems ---


def test_problems_map_with_the_same_weights():
    model, prompts = tiny(config=ONE_LAYER), tokens(1, 2, PADDED)
    lengths = jnp.asarray([5, 8], jnp.int32)
    given, count = tokens(3, 2, ROWS, STEP), jnp.asarray([[3, 1, 0, 2], [0, 3, 3, 1]], jnp.int32)

    def answer(model, prompt, length, given, count):
        shared, _ = model.prefill(prompt, length)
        cache, _ = model.advance(shared, model.empty_cache(ROWS, CAPACITY), given, count)
        return model.advance(shared, cache, given, jnp.full(ROWS, 2, jnp.int32))

    together = jax.jit(jax.vmap(answer, in_axes=(None, 0, 0, 0, 0)))(model, prompts, lengths, given, count)
    for b in range(2):
        shared, _ = prefill(model, prompts[b], lengths[b])
        cache, _ = advance(model, shared, model.empty_cache(ROWS, CAPACITY), given[b], count[b])
        cache, out = advance(model, shared, cache, given[b], jnp.full(ROWS, 2, jnp.int32))
        np.testing.assert_array_equal(together[0].lengths[b], cache.lengths)
        np.testing.assert_allclose(together[1].logits[b, :, :2], out.logits[:, :2], rtol=1e-5, atol=1e-5)


# --- memory ---

LARGE = dataclasses.replace(CONFIG, num_heads=8, num_kv_heads=2, max_length=512)


def generate(write=None, dtype=jnp.float32, config=LARGE):
    """The compiled text of a loop that appends one token after another to every row of a donated cache."""

    def loop(model, shared, cache, token):
        def body(carry):
            step, cache, token = carry
            new, out = model.advance(shared, cache, token[:, None], jnp.ones_like(token))
            if write is not None:
                new = write(cache, new)
            return step + 1, new, jnp.argmax(out.logits[:, 0], axis=-1).astype(jnp.int32)

        return jax.lax.while_loop(lambda carry: carry[0] < 100, body, (0, cache, token))[1]

    model = jax.eval_shape(lambda: tiny(dtype, config=config))
    shared, _ = jax.eval_shape(LanguageModel.prefill, model, jax.ShapeDtypeStruct((64,), jnp.int32), 64)
    cache = jax.eval_shape(lambda: model.empty_cache(ROWS, 128))
    token = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    return str(jax.jit(loop, donate_argnums=2).lower(model, shared, cache, token).compile().as_text())


def copies_of_caches(text):
    """Instructions that write a whole cache: copies, and selections between an old and a new one."""
    sizes = f"128,{LARGE.head_dim}", f"{LARGE.head_dim},128"
    shape = "|".join(re.escape(f"f32[{ROWS},{LARGE.num_kv_heads},{size}]") for size in sizes)
    return re.findall(rf"= (?:{shape})\S* (?:copy|select|copy-start)\(", text)


def test_a_loop_updates_the_cache_in_place():
    text = generate()
    assert len(re.findall(r"may-alias|must-alias", text)) >= 2 * LARGE.num_layers
    assert "scatter" in text or "dynamic-update-slice" in text
    assert copies_of_caches(text) == []


def test_planted_copies_of_the_cache_are_seen():
    kept = generate(lambda old, new: jax.tree.map(lambda a, b: jnp.where(jnp.sum(new.lengths) > 9, b, a), old, new))
    assert copies_of_caches(kept) != []


def wide_weights_in_loop(text):
    """How many feed-forward matrices the loop over tokens carries in single precision."""
    (carried,) = re.findall(r"= (\(.*\)) while\(", text)
    sizes = [
        *itertools.permutations((LARGE.hidden_dim, LARGE.dim)),
        *itertools.permutations((2 * LARGE.hidden_dim, LARGE.dim)),
    ]
    return sum(carried.count(f"f32[{rows},{columns}]") for rows, columns in sizes)


@pytest.mark.slow  # `make test` compiles in another way, with other loops
def test_weights_in_bfloat16_are_not_cast_ahead_of_a_loop(monkeypatch):
    one_layer = dataclasses.replace(LARGE, num_layers=1)
    assert wide_weights_in_loop(generate(dtype=jnp.bfloat16, config=one_layer)) == 0
    monkeypatch.setattr(_layer, "cast_weight", lambda weight, x: (weight.astype(x.dtype), x))
    assert wide_weights_in_loop(generate(dtype=jnp.bfloat16, config=one_layer)) == 2


def test_grouped_queries_do_not_repeat_keys():
    model = jax.eval_shape(lambda: tiny(config=LARGE))
    cache = jax.eval_shape(lambda: model.empty_cache(ROWS, 128))
    shared, _ = jax.eval_shape(LanguageModel.prefill, model, jax.ShapeDtypeStruct((64,), jnp.int32), 64)
    ints = jax.ShapeDtypeStruct((ROWS, 1), jnp.int32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    program = jax.make_jaxpr(LanguageModel.advance)(model, shared, cache, *ints)
    largest = max(np.prod(v.aval.shape) for e in program.jaxpr.eqns for v in e.outvars)
    assert largest == ROWS * LARGE.num_kv_heads * 128 * LARGE.head_dim  # a cache, not one of it for every query head
