r"""`fast_key`: the same threefry bits as `jax.random`, with the rounds written out.

On CPU JAX lowers threefry to a loop of five passes, about 80 small operations a draw, which dominate where few
numbers are drawn at a time. A fast key has the same bits, gives the same numbers and splits into the same keys;
its rounds are written out and fuse into one pass.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Key, UInt32

from probinf.core._particle_keys import threefry

PRNGKeys = Key[Array, "*n"] | UInt32[Array, "*n 2"]


def fast_key(key: PRNGKeys) -> PRNGKeys:
    """The key (or keys) with the same bits and a faster way to draw; `key` itself if it is no plain threefry key.

    Before a loop, not in it: the key is consumed, and in the loop one folds numbers into the fast one.

    For draws of our own. `jax.random.poisson` refuses such keys and `gamma` is slow with them: hand
    `plain_key(key)` to code of others.
    """
    plain = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and str(jax.random.key_impl(key)) == "threefry2x32"
    if not plain or not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        return key
    return _rewrap(key, _GENERATOR)


def plain_key(key: PRNGKeys) -> PRNGKeys:
    """The key (or keys) that `fast_key` was given."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype != _FAST_DTYPE:
        return key
    return _rewrap(key, "threefry2x32")


def _rewrap(key: Key[Array, "*n"], implementation: Any) -> Key[Array, "*n"]:
    # The draw is dead code, which XLA removes; it lets the key-reuse checker see that `key` was consumed.
    if key.ndim == 0:
        jax.random.bits(key, (), jnp.uint32)
    else:
        jax.vmap(lambda one: jax.random.bits(one, (), jnp.uint32))(key.reshape(-1))
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=implementation)


def _blocks(data: UInt32[Array, "2"], shape: tuple[int, ...]) -> tuple[Array, Array]:
    if math.prod(shape) >= 2**32:
        raise NotImplementedError(f"2**32 or more numbers in one draw: shape {shape}")
    counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    first, second = (jnp.broadcast_to(data[i], shape) for i in range(2))
    return threefry((first, second), (jnp.zeros_like(counter), counter))


def _split(data: UInt32[Array, "2"], shape: tuple[int, ...]) -> Array:
    return _derived(jnp.stack(_blocks(data, shape), axis=-1))


def _random_bits(data: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    first, second = _blocks(data, shape)
    if bit_width == 64:
        return (first.astype(jnp.uint64) << jnp.uint64(32)) | second.astype(jnp.uint64)
    return (first ^ second).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width])


def _fold_in(data: UInt32[Array, "2"], number: Any) -> Array:
    number = jnp.asarray(number, jnp.uint32)
    return _derived(jnp.stack(threefry((data[0], data[1]), (jnp.zeros((), jnp.uint32), number))))


def _derived(words: UInt32[Array, "*n 2"]) -> UInt32[Array, "*n 2"]:
    """Derived keys as they lie in memory: XLA would look through the `stack`, and hash anew for all that draw."""
    return jax.lax.optimization_barrier(words)


def _seed(seed: Any) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


_GENERATOR = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="fast_threefry",
    tag="fst",
)
_FAST_DTYPE = jax.random.key_dtype(_GENERATOR)
