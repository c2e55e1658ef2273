"""Fast keys: the bits of `jax.random` in every use, other keys left alone, reuse still reported.

Planted bugs, each shown to be caught below: the words of a block swapped; 32-bit numbers from one word in place of
both; the counter counted along columns; splits that begin at 1; a folded number that loses its upper half; a key
rewrapped without being consumed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import define_prng_impl

from probinf.core import _fast_key
from probinf.core._fast_key import fast_key, plain_key

SHAPES = [(), (1,), (7,), (1000,), (2, 3, 4), (4, 0)]
NUMBERS = [0, 1, 2, 255, 65_536, 2**31 - 1, 2**31, 2**32 - 1]


def data(key):
    return np.asarray(jax.random.key_data(key))


def is_fast(key):
    return key.dtype == jax.random.key_dtype(_fast_key._GENERATOR)


def rewrapped(key, implementation):
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=implementation)


def assert_agrees(key, convert):
    """All three operations of `convert(key)` give what they give on `key`."""

    def pair():
        return jax.random.clone(key), convert(jax.random.clone(key))

    for shape in [(3, 5), (7,), ()]:
        for dtype in (jnp.uint8, jnp.uint16, jnp.uint32):
            plain, fast = pair()
            np.testing.assert_array_equal(jax.random.bits(plain, shape, dtype), jax.random.bits(fast, shape, dtype))
    plain, fast = pair()
    np.testing.assert_array_equal(data(jax.random.split(plain, (2, 3))), data(jax.random.split(fast, (2, 3))))
    for number in NUMBERS:
        plain, fast = pair()
        ours, theirs = (data(jax.random.fold_in(k, jnp.uint32(number))) for k in (fast, plain))
        np.testing.assert_array_equal(ours, theirs)


def test_operations_agree(key):
    assert_agrees(key, fast_key)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_equal(key, shape, dtype):
    plain, fast = jax.random.clone(key), fast_key(key)
    ours, theirs = jax.random.bits(fast, shape, dtype), jax.random.bits(plain, shape, dtype)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_64_bit_numbers_are_equal(key, x64, shape):
    plain, fast = jax.random.split(jax.random.clone(key)), jax.random.split(fast_key(key))
    for draw, dtype in ((jax.random.bits, jnp.uint64), (jax.random.normal, jnp.float64)):
        index = int(draw is jax.random.normal)
        ours, theirs = draw(fast[index], shape, dtype), draw(plain[index], shape, dtype)
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: jax.random.normal(k, (50,)),
        lambda k: jax.random.normal(k, (50,), jnp.bfloat16),
        lambda k: jax.random.uniform(k, (3, 4)),
        lambda k: jax.random.randint(k, (50,), -3, 1000),
        lambda k: jax.random.categorical(k, jnp.log(jnp.array([0.2, 0.5, 0.3])), shape=(50,)),
        lambda k: jax.random.permutation(k, 50),
        lambda k: jax.random.gamma(k, 2.0, (5,)),
    ],
    ids=["normal", "bfloat16", "uniform", "randint", "categorical", "permutation", "gamma"],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_draws_are_equal(key, draw, jit):
    plain, other = jax.random.clone(key), jax.random.clone(key)
    run = jax.jit(lambda k: draw(fast_key(k))) if jit else lambda k: draw(fast_key(k))
    np.testing.assert_array_equal(run(other), draw(plain), strict=True)


@pytest.mark.parametrize("shape", [0, 1, 2, 5, (2, 3), 1000], ids=str)
def test_splits_are_equal_and_stay_fast(key, shape):
    plain, fast = jax.random.split(jax.random.clone(key), shape), jax.random.split(fast_key(key), shape)
    np.testing.assert_array_equal(data(plain), data(fast), strict=True)
    assert is_fast(fast)


def test_generations_of_splits_and_folds(key):
    def leaves(k):
        first, second = jax.random.split(k)
        folded = jax.vmap(jax.random.fold_in, (None, 0))(first, jnp.arange(5))
        return jax.vmap(jax.random.normal)(folded), jax.random.bits(jax.random.fold_in(second, 2**32 - 1), (4,))

    plain, fast = jax.random.clone(key), fast_key(key)
    for ours, theirs in zip(jax.jit(leaves)(fast), leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_under_vmap_and_scan(key):
    def draw(k):
        return jax.random.normal(fast_key(k), (3,))

    keys = [jax.random.split(jax.random.clone(key), 4) for _ in range(3)]
    expected = np.stack([jax.random.normal(keys[0][i], (3,)) for i in range(4)])
    np.testing.assert_array_equal(jax.vmap(draw)(keys[1]), expected)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, k: (c, draw(k)), 0, keys[2])[1], expected)


def test_there_and_back(key):
    plain, other = jax.random.clone(key), jax.random.clone(key)
    back = plain_key(fast_key(key))
    assert back.dtype == plain.dtype
    np.testing.assert_array_equal(data(back), data(plain))
    fast = fast_key(other)
    assert is_fast(fast)
    assert fast_key(fast) is fast
    assert plain_key(plain) is plain


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_other_generators_pass_through(implementation):
    key = jax.random.key(5, impl=implementation)
    assert fast_key(key) is key
    assert plain_key(key) is key


def test_legacy_keys_pass_through():
    key = jax.random.PRNGKey(5)
    assert fast_key(key) is key
    assert plain_key(key) is key


def test_the_old_bits_are_left_alone(key):
    # Without `jax_threefry_partitionable` the reference numbers are others, which a fast key does not have.
    with jax.threefry_partitionable(False):
        assert fast_key(key) is key
    assert is_fast(fast_key(key))


def test_too_many_numbers_are_refused(key):
    with pytest.raises(NotImplementedError, match=r"2\*\*32 or more"):
        jax.jit(lambda k: jax.random.bits(fast_key(k), (2**16, 2**16), jnp.uint32)).lower(key)


def original_again(k):
    return jax.random.normal(fast_key(k)), jax.random.normal(k)


def fast_twice(k):
    fast = fast_key(k)
    return jax.random.normal(fast), jax.random.normal(fast)


def fast_and_back(k):
    fast = fast_key(k)
    return jax.random.normal(fast), jax.random.normal(plain_key(fast))


def made_fast_twice(k):
    return jax.random.normal(fast_key(k)), jax.random.normal(fast_key(k))


USES = [original_again, fast_twice, fast_and_back, made_fast_twice]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_reuse_is_reported(key, use, jit):
    with pytest.raises(jax.errors.KeyReuseError):
        (jax.jit(lambda k: use(k)) if jit else use)(key)


def test_the_consuming_draw_is_dead_code(key):
    compiled = jax.jit(lambda k: jax.random.key_data(fast_key(k))).lower(key).compile().as_text()
    assert compiled is not None
    assert "shift-left" not in compiled


def test_a_key_that_is_not_consumed_is_caught(key, monkeypatch):
    # The planted bug: reuse that the checker does not see.
    monkeypatch.setattr(_fast_key, "_rewrap", rewrapped)
    jax.jit(lambda k: original_again(k))(key)


def swapped(words, shape):
    return _fast_key._blocks(words, shape)[::-1]


def by_columns(words, shape):
    return tuple(jnp.transpose(word) for word in _fast_key._blocks(words, shape[::-1]))


def bits_of(blocks):
    def random_bits(words, bit_width, shape):
        first, second = blocks(words, shape)
        return (first ^ second).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width])

    return random_bits


def one_word(words, bit_width, shape):
    return _fast_key._blocks(words, shape)[1].astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width])


def split_from_one(words, shape):
    first, second = _fast_key._blocks(words, (int(np.prod(shape)) + 1,))
    return jnp.stack([first[1:], second[1:]], axis=-1).reshape(*shape, 2)


PLANTED = {
    "nothing": {},
    "words_swapped": {"split": lambda words, shape: jnp.stack(swapped(words, shape), axis=-1)},
    "one_word": {"random_bits": one_word},
    "by_columns": {"random_bits": bits_of(by_columns)},
    "split_from_one": {"split": split_from_one},
    "half_folded": {
        "fold_in": lambda words, number: _fast_key._fold_in(words, jnp.asarray(number, jnp.uint32) & jnp.uint32(0xFFFF))
    },
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_caught(key, name):
    parts = {"split": _fast_key._split, "random_bits": _fast_key._random_bits, "fold_in": _fast_key._fold_in}
    planted = define_prng_impl(
        key_shape=(2,), seed=_fast_key._seed, name=f"planted_{name}", tag=f"p{len(name)}", **(parts | PLANTED[name])
    )

    def convert(key):
        return rewrapped(key, planted)

    if name == "nothing":
        assert_agrees(key, convert)
        return
    with pytest.raises(AssertionError):
        assert_agrees(key, convert)
