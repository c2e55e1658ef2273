"""Shapes are traced once for each layout of a call, and no value is mistaken for another layout."""

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probinf.core._layout import layout_of, shapes_of


def test_shapes_are_traced_once_for_each_layout() -> None:
    calls = []

    def doubled(x: Any, scale: Any) -> Any:
        calls.append(1)
        return {"y": x * scale, "n": jnp.zeros(3)}

    for value in (1.0, 2.0):
        found = shapes_of(doubled, jnp.full(4, value), 2)
        assert found["y"].shape == (4,)
    assert len(calls) == 1
    shapes_of(doubled, jnp.ones(5), 2)
    shapes_of(doubled, jnp.ones(5, jnp.int32), 2)
    shapes_of(doubled, jnp.ones(5), 3)
    assert len(calls) == 4


def test_precision_is_part_of_the_layout(x64: Any) -> None:
    def widest() -> Any:
        return jnp.zeros(2)

    assert shapes_of(widest).dtype == jnp.float64
    with jax.enable_x64(False):
        assert shapes_of(widest).dtype == jnp.float32


def test_what_cannot_be_hashed_has_no_layout_and_still_has_shapes() -> None:
    data = np.arange(3.0, dtype=np.float32)
    assert layout_of(data) is None
    assert shapes_of(lambda x: jnp.asarray(x) * 2, data).shape == (3,)


def test_data_is_not_kept_alive() -> None:
    data = jnp.arange(7.0)
    pointer = weakref.ref(data)
    shapes_of(jnp.sin, data)
    del data
    gc.collect()
    assert pointer() is None
