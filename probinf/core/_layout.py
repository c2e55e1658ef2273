"""What a call looks like, its values aside: by that the shapes of results are remembered, as programs are by `jit`."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def layout_of(*trees: PyTree) -> Hashable | None:
    """Structures, shapes, dtypes and what is no array; None where something of that cannot be hashed."""
    leaves, structure = jax.tree.flatten(trees)
    outlines = tuple(_outline(leaf) for leaf in leaves)
    # Types too, as 0 == 0.0 == False.
    layout = structure, outlines, tuple(type(leaf) for leaf in outlines), jnp.result_type(float)
    try:
        hash(layout)
    except TypeError:
        return None
    return layout


def shapes_of(function: Callable[..., Any], *args: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what a function returns, as `equinox.filter_eval_shape`; traced once for each layout."""
    layout = layout_of(function, *args)
    return eqx.filter_eval_shape(function, *args) if layout is None else _remembered(layout)


@functools.lru_cache(maxsize=256)
def _remembered(layout: Any) -> PyTree[jax.ShapeDtypeStruct]:
    # Outlines stand for the arrays, so that no data is kept alive but what functions have closed over.
    function, *args = jax.tree.unflatten(*layout[:2])
    return eqx.filter_eval_shape(function, *args)


def _outline(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))
