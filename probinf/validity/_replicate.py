"""One function on many independent keys, and the scalars of what it returns with their names."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from probinf.core import PRNGKey, is_traceable


def replicate(
    key: PRNGKey, function: Callable[[PRNGKey], PyTree], count: int, *, traceable: bool = True, batch_size: int = 1024
) -> PyTree[np.ndarray]:
    """`function` on `count` independent keys: its results with a leading axis, on the host.

    Args:
        key: split once into `count`.
        function: of a key; arrays in it belong in the leaves of a module or an `equinox.Partial`, so that the next
            call with the same functions compiles nothing.
        count: how many.
        traceable: whether it runs under `jit` and `vmap`; else in a loop on the host, with the same keys.
        batch_size: how many run at once.
    """
    if not traceable:
        results = [jax.tree.map(np.asarray, function(one)) for one in jax.random.split(key, count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *results)
    size = min(batch_size, count)
    num_batches = -(-count // size)
    # The last batch is filled up, so that one program serves all; the keys of the others do not change by that.
    keys = jax.random.split(key, num_batches * size)
    batches = [jax.tree.map(np.asarray, _mapped(function, keys[i * size : (i + 1) * size])) for i in range(num_batches)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *batches)


@eqx.filter_jit
def _mapped(function: Callable[[PRNGKey], PyTree], keys: Array) -> PyTree[Array]:
    return jax.vmap(function)(keys)


def all_traceable(traceable: bool, *functions: Any) -> bool:
    """Whether the caller and every function say that they may run under `jit`."""
    return traceable and all(is_traceable(function) for function in functions)


def scalar_names(tree: PyTree, root: str) -> tuple[str, ...]:
    """A name for every scalar of a tree of arrays, in the order of `flatten`: "mu[0]", or `root` for a bare scalar."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or root
        shape = np.shape(leaf)
        names += [name + (f"[{', '.join(map(str, index))}]" if index else "") for index in np.ndindex(*shape)]
    return tuple(names)


def flatten(tree: PyTree, num_axes: int = 0) -> Array:
    """The scalars of a tree as the last axis of one floating-point array; the first `num_axes` axes are kept."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    floating = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = jnp.result_type(*floating) if floating else jnp.result_type(float)
    flat = [leaf.astype(dtype).reshape(*leaf.shape[:num_axes], -1) for leaf in leaves]
    return jnp.concatenate(flat, axis=-1)


def check_draws(truth: PyTree, draws: PyTree, num_draws: int) -> None:
    """Raises `ValueError` unless `draws` is like `truth` with a leading axis of `num_draws`."""
    if jax.tree.structure(truth) != jax.tree.structure(draws):
        raise ValueError(
            f"`posterior` returned {jax.tree.structure(draws)}, but `simulate` gives parameters that are "
            f"{jax.tree.structure(truth)}: return draws of the same tree"
        )
    for (path, one), many in zip(jax.tree_util.tree_leaves_with_path(truth), jax.tree.leaves(draws), strict=True):
        needed = (num_draws, *np.shape(one))
        if np.shape(many) != needed:
            raise ValueError(
                f"`posterior` returned an array of shape {np.shape(many)} for parameters{jax.tree_util.keystr(path)}; "
                f"needed {needed}: `num_draws` draws along the first axis"
            )
