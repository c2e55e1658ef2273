"""Particle keys: the bits of the reference generator, one draw a particle, nothing shared between particles.

Planted bugs, each seen to fail: one noise for the whole population; a counter that ignores the particle; a rotation
distance changed.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from probinf.core import _particle_keys
from probinf.core._particle_keys import map_particles, particle_keys, threefry


def reference(key_words, first, second):
    return threefry_2x32(key_words, jnp.stack([first, second]).astype(jnp.uint32))


def words_of(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32))


def test_bits_are_those_of_the_reference():
    key, count = words_of(1, 2), words_of(2, (2, 50))
    ours = threefry((jnp.full(50, key[0]), jnp.full(50, key[1])), (count[0], count[1]))
    theirs = reference(key, count[0], count[1])
    assert bool(jnp.all(jnp.stack(ours) == theirs))
    # Salmon et al.: the published answer for key and counter of all ones.
    ones = jnp.uint32(0xFFFFFFFF)
    assert [int(word) for word in threefry((ones, ones), (ones, ones))] == [0x1CB996FC, 0xBB002BE7]


def test_a_changed_rotation_is_caught(monkeypatch):
    monkeypatch.setattr(_particle_keys, "_ROTATIONS", ((13, 15, 26, 6), (17, 29, 16, 25)))
    ones = jnp.uint32(0xFFFFFFFF)
    assert [int(word) for word in threefry((ones, ones), (ones, ones))] != [0x1CB996FC, 0xBB002BE7]


def test_bits_of_particle_and_block(key):
    words = jax.random.key_data(key)
    bits = jax.vmap(lambda k: jax.random.bits(k, (2, 3), jnp.uint32))(particle_keys(key, 4))
    for i in range(4):
        expected = reference(words, jnp.full(6, i), jnp.arange(6))
        assert bool(jnp.all(bits[i].ravel() == expected[0] ^ expected[1]))


def test_numbers_depend_on_key_and_particle_alone(key):
    clones = [jax.random.clone(key) for _ in range(3)]
    draw = jax.vmap(lambda k: jax.random.normal(k, (2,)))
    many = draw(particle_keys(clones[0], 100))
    assert bool(jnp.all(draw(particle_keys(clones[1], 7)) == many[:7]))
    assert len(np.unique(np.asarray(many))) == 200
    raw = jax.random.key_data(clones[2])
    assert bool(jnp.all(draw(particle_keys(raw, 100)) == many))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", [False, True])
def test_draws_are_independent_standard_normals(key, x64, dtype, split):
    # 64-bit draws use both words of a block, 32-bit ones their xor; splitting goes through `_split`, else `_fold_in`.
    def draw(k):
        first, second = jax.random.split(k) if split else (jax.random.fold_in(k, 4), jax.random.fold_in(k, 5))
        return jnp.stack([jax.random.normal(first, (), dtype), jax.random.normal(second, (), dtype)])

    n = 40_000
    draws = np.asarray(jax.jit(jax.vmap(draw))(particle_keys(key, n)))
    assert draws.dtype == dtype
    # Six standard errors a number, 9 numbers, 4 cases: false alarms below 1e-6. Detects a correlation of 0.06 and
    # a mean of 0.06 with a false-pass rate below 1e-6.
    bound = 6 / np.sqrt(n)
    np.testing.assert_allclose(draws.mean(0), 0, atol=bound)
    np.testing.assert_allclose(draws.var(0), 1, atol=bound * np.sqrt(2))
    np.testing.assert_allclose((draws**3).mean(0), 0, atol=bound * np.sqrt(15))
    assert abs(np.mean(draws[:, 0] * draws[:, 1])) < bound
    assert abs(np.mean(draws[1:, 0] * draws[:-1, 0])) < bound
    assert abs(np.mean(draws[1:, 0] * draws[:-1, 1])) < bound


def test_shared_noise_is_caught(key):
    # The planted bug: the same key for each particle, as `vmap` over everything but the key would have it.
    draws = jax.vmap(lambda x: x + jax.random.normal(key))(jnp.zeros(100))
    assert len(np.unique(np.asarray(draws))) == 1


def test_keys_within_keys_are_new(key):
    # Particles of a particle (SMC squared): the inner population must not repeat the outer numbers.
    inner = jax.vmap(lambda k: jax.vmap(lambda j: jax.random.bits(j, (), jnp.uint32))(particle_keys(k, 10)))
    outer = jax.vmap(lambda k: jax.random.bits(k, (10,), jnp.uint32))
    first, second = jax.random.clone(key), jax.random.clone(key)
    bits = np.concatenate([np.ravel(inner(particle_keys(first, 10))), np.ravel(outer(particle_keys(second, 10)))])
    assert len(np.unique(bits)) == 200


def test_other_generators_give_words(key):
    rbg = jax.random.key(7, impl="rbg")
    assert particle_keys(rbg, 3).shape == (3,)
    assert particle_keys(key, 0).shape == (0,)


def test_using_the_parent_again_is_reported(key):
    def twice(k):
        return jax.vmap(jax.random.normal)(particle_keys(k, 3)), jax.random.normal(k)

    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(twice)(key)


def test_one_draw_costs_one_threefry(key):
    # 20 rounds of one rotation each, so 20 left shifts and none more: no split behind the scenes.
    text = jax.jit(lambda k: jax.vmap(jax.random.normal)(particle_keys(k, 8))).lower(key).as_text()
    assert len(re.findall(r"shift_left.*tensor<8xui32>", text)) == 20


def test_lowers_for_every_platform(key):
    function = jax.jit(lambda words: jax.vmap(jax.random.normal)(particle_keys(words, 8)))
    words = jax.ShapeDtypeStruct((2,), jnp.uint32)
    exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(words)
    assert exported.platforms == ("cpu", "cuda", "tpu")


# One block; two, of which the last is not full; the most that are taken in blocks; one pass again.
@pytest.mark.parametrize("count", [1, 512, 513, 1000, 16384, 16385])
def test_blocks_are_a_vmap(key, count):
    keys = [jax.random.clone(key) for _ in range(2)]
    items = {"a": jnp.arange(3.0 * count).reshape(count, 3), "b": jnp.arange(count)}

    def draw(k, item, other):
        return {"noise": jax.random.normal(k, (2,)), "same": (item, other)}

    other = jnp.arange(count) * 2
    mapped = jax.jit(lambda k: map_particles(draw, k, count, items, other))(keys[0])
    expected = jax.vmap(draw)(particle_keys(keys[1], count), items, other)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), mapped, expected))


def test_padding_of_the_last_block_adds_no_nan_to_gradients(key):
    x = jnp.full(700, 4.0)  # the derivative of a square root at a padded zero is infinite

    def total(x):
        return jnp.sum(map_particles(lambda k, one: jnp.sqrt(one) + jax.random.normal(k), key, 700, x))

    np.testing.assert_allclose(jax.grad(total)(x), 0.25)
