"""`PromptCache` and `RowCache`: keys and values of a prompt, held once, and of every row's own tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class PromptCache(NamedTuple):
    """Keys and values of a prompt that all rows share; see `LanguageModel.prefill`.

    Attributes:
        keys: one array a layer, [kv, hd, P]; entries from `length` on are never seen.
        values: likewise, [kv, P, hd].
        length: number of real tokens, [].
    """

    keys: tuple[Float[Array, "kv hd p"], ...]
    values: tuple[Float[Array, "kv p hd"], ...]
    length: Int[Array, ""]


class RowCache(NamedTuple):
    """Keys and values of the tokens that each row appended; every leaf has the row axis first.

    Rows are copied by taking from every leaf along that axis.

    Attributes:
        keys: one array a layer, [n, kv, hd, T], as the product with queries reads them; entries from the row's length
            on are never seen.
        values: likewise, [n, kv, T, hd].
        lengths: number of tokens of each row, [n], at most the capacity T.
    """

    keys: tuple[Float[Array, "n kv hd t"], ...]
    values: tuple[Float[Array, "n kv t hd"], ...]
    lengths: Int[Array, " n"]


def slots_of(lengths: Int[Array, " n"], count: Int[Array, " n"], num_tokens: int, capacity: int) -> Int[Array, "n s"]:
    """Where each row's tokens go: behind its own, and beyond the end of the cache for those it does not append."""
    step = jnp.arange(num_tokens, dtype=jnp.int32)[None, :]
    # No two slots of a row are equal, also beyond the end, which lets the scatter assume so.
    return jnp.where(step < count[:, None], lengths[:, None] + step, capacity + step)


def write_keys(
    kept: Float[Array, "n kv hd t"], new: Float[Array, "n s kv hd"], slots: Int[Array, "n s"]
) -> Float[Array, "n kv hd t"]:
    """Puts `new` into each row's slots, in place where the cache is donated or carried by a loop."""

    # A map over rows, not row indices: the scatter then stays on each device's own rows.
    def write(row: Array, items: Array, where: Array) -> Array:
        return row.at[:, :, where].set(jnp.moveaxis(items, 0, 2), mode="drop", unique_indices=True)

    return jax.vmap(write)(kept, new, slots)


def write_values(
    kept: Float[Array, "n kv t hd"], new: Float[Array, "n s kv hd"], slots: Int[Array, "n s"]
) -> Float[Array, "n kv t hd"]:
    """`write_keys` for values."""

    def write(row: Array, items: Array, where: Array) -> Array:
        return row.at[:, where].set(jnp.swapaxes(items, 0, 1), mode="drop", unique_indices=True)

    return jax.vmap(write)(kept, new, slots)
