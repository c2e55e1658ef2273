r"""`particle_keys`: a key for every particle at the price of one draw.

Splitting a key N ways and drawing from each part runs the generator twice. Here particle i's key is the pair
(parent key, i), and its j-th block of random bits is threefry2x32(parent key, counter (i, j)): Salmon, Moraes,
Dror and Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3". So `vmap` over these keys compiles to one
elementwise threefry over the population, whatever the sampler inside, and particle i's numbers depend on the
key and on i alone, not on N or on the number of devices.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Key, PyTree, UInt32

from probinf.core._effects import enumerating
from probinf.core._types import PRNGKey

_BLOCK = 512
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def particle_keys(key: PRNGKey, num_particles: int) -> Key[Array, " n"]:
    r"""Keys for N particles, to be used under `vmap`: `jax.vmap(sampler)(particle_keys(key, n), x)`.

    They are ordinary typed keys (split, fold_in and every sampler of `jax.random` work) of an own generator;
    `jax.random.poisson` alone refuses any generator but JAX's and raises `NotImplementedError`.

    Args:
        key: PRNG key, consumed.
        num_particles: N >= 0, below 2^32.

    Returns:
        A typed key array of shape [N].
    """
    return _keys(_words(key), jax.lax.iota(jnp.uint32, num_particles))


def map_particles(
    function: Callable, key: PRNGKey, num_particles: int, *items: PyTree[Array], own_generator: bool = True
) -> PyTree:
    """`jax.vmap(function)(particle_keys(key, num_particles), *items)`; on CPU, for up to 2^14 particles, in blocks.

    XLA splits a draw for a thousand particles between threads, and waiting for them costs more than the draw.
    Blocks are below the size that it splits: a filter of 1e3 particles took 0.75 of the time, on half the cores.

    Args:
        function: `(key, *items) -> pytree`, of one particle.
        key: PRNG key, consumed.
        num_particles: N.
        *items: leaves [N, ...].
        own_generator: whether `function` can draw from particle keys (`draws_with_particle_keys`); if not it gets
            those of `jax.random.split`.

    Returns:
        Leaves [N, ...].
    """
    if not own_generator:
        return jax.vmap(function)(jax.random.split(key, num_particles), *items)

    def whole(words: Array, items: PyTree) -> PyTree:
        return jax.vmap(function)(_keys(words, jax.lax.iota(jnp.uint32, num_particles)), *items)

    def in_blocks(words: Array, items: PyTree) -> PyTree:
        count = -(-num_particles // _BLOCK)
        size = -(-num_particles // (16 * count)) * 16

        def split(leaf: Array) -> Array:
            # The last block is filled up with copies of the last item, so that nothing new is met there.
            filled = jnp.pad(leaf, [(0, count * size - num_particles)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
            return filled.reshape(count, size, *leaf.shape[1:])

        def draw(start: Array, block: PyTree) -> tuple[Array, PyTree]:
            index = start + jax.lax.iota(jnp.uint32, size)
            return start + jnp.uint32(size), jax.vmap(function)(_keys(words, index), *block)

        _, drawn = jax.lax.scan(draw, jnp.zeros((), jnp.uint32), jax.tree.map(split, items), count)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_particles], drawn)

    words = _words(key)
    # Blocks run one after the other, which would bring particles that are spread over a mesh together.
    if not jax.sharding.get_abstract_mesh().empty or not _BLOCK < num_particles <= 32 * _BLOCK:
        return whole(words, items)
    return jax.lax.platform_dependent(words, items, cpu=in_blocks, default=whole)


def draws_with_particle_keys(function: Callable, *items: PyTree) -> bool:
    """Whether `function(key, *items)` can draw from particle keys; `jax.random.poisson` cannot.

    Args:
        function: of a key, and of what belongs to one particle.
        *items: leaves of one particle, or their shapes.
    """
    try:
        with enumerating(None):
            jax.eval_shape(lambda *values: function(particle_keys(jax.random.key(0), 1)[0], *values), *items)
    except NotImplementedError:
        return False
    return True


def _keys(words: UInt32[Array, "2"], index: UInt32[Array, " n"]) -> Key[Array, " n"]:
    columns = [jnp.broadcast_to(words[0], index.shape), jnp.broadcast_to(words[1], index.shape), index]
    return jax.random.wrap_key_data(jnp.stack(columns, axis=-1), impl=_GENERATOR)


def _words(key: PRNGKey) -> UInt32[Array, "2"]:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    fresh = jax.random.bits(key, (2,), jnp.uint32)
    # The words of a threefry key are as good as fresh ones; the draw above is then dead code which XLA removes,
    # and is there so that the key-reuse checker sees `key` consumed.
    return jax.random.key_data(key) if str(jax.random.key_impl(key)) == "threefry2x32" else fresh


def threefry(key: tuple[Array, Array], count: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry2x32 with 20 rounds, elementwise on uint32 arrays of one shape.

    The rounds are written out because the loop that JAX lowers to on CPU does not fuse with what follows.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = count[0] + schedule[0], count[1] + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(distance)) | (b >> jnp.uint32(32 - distance)))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


def _blocks(data: UInt32[Array, "3"], shape: tuple[int, ...]) -> tuple[Array, Array]:
    size = math.prod(shape)
    first, second, index = (jnp.broadcast_to(data[i], shape) for i in range(3))
    counter = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return threefry((first, second), (index, counter))


def _seed(seed: Any) -> Array:
    raise NotImplementedError("particle keys are made by `particle_keys(key, num_particles)`, not from a seed")


def _split(data: UInt32[Array, "3"], shape: tuple[int, ...]) -> Array:
    first, second = _blocks(data, shape)
    return jnp.stack([first, second, jnp.broadcast_to(data[2], shape)], axis=-1)


def _random_bits(data: UInt32[Array, "3"], bit_width: int, shape: tuple[int, ...]) -> Array:
    first, second = _blocks(data, shape)
    if bit_width == 64:
        return (first.astype(jnp.uint64) << jnp.uint64(32)) | second.astype(jnp.uint64)
    return (first ^ second).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width])


def _fold_in(data: UInt32[Array, "3"], number: Array | int) -> Array:
    first, second = threefry((data[0], data[1]), (data[2], jnp.asarray(number).astype(jnp.uint32)))
    return jnp.stack([first, second, data[2]])


_GENERATOR = define_prng_impl(
    key_shape=(3,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="particle", tag="ptc"
)
