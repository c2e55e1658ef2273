"""Cumulative sums on a view by columns: every entry against NumPy, at all small sizes and two large ones.

Planted bugs, each shown to be caught below: blocks that start from their own sum; a view read row by row; the
padding counted as ones; both branches of `cumulate` wrong in the start (CPU's loop and the tree of the others).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import _sums
from probinf.core._sums import cumulate, cumulative_sum, exclusive, from_columns, largest, to_columns, view_shape

SIZES = [*range(1, 41), 1000, 2**20 + 3]
FEW = [1, 2, 15, 16, 17, 40, 1000]


def integers(count, dtype=np.int32, seed=0):
    return np.random.default_rng(seed).integers(-900, 1000, count).astype(dtype)


def assert_sums(values, sums):
    np.testing.assert_array_equal(np.asarray(sums), np.cumsum(values, dtype=values.dtype), strict=True)


@pytest.mark.parametrize("count", SIZES)
def test_cumulative_sum(count):
    values = integers(count)
    assert_sums(values, cumulative_sum(jnp.asarray(values)))
    if count in FEW:
        assert_sums(values, jax.jit(cumulative_sum)(jnp.asarray(values)))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_dtypes_are_kept(x64, dtype):
    large = {np.int32: 2_000_000, np.int64: 2**52}[dtype]  # the total just fits
    values = np.full(1000, large, dtype)
    assert_sums(values, cumulative_sum(jnp.asarray(values)))


@pytest.mark.parametrize("count", FEW)
def test_under_vmap(count):
    values = integers(3 * count).reshape(3, count)
    sums = jax.jit(jax.vmap(cumulative_sum))(jnp.asarray(values))
    np.testing.assert_array_equal(sums, np.cumsum(values, axis=1))
    down = jax.vmap(cumulative_sum, in_axes=1, out_axes=1)(jnp.asarray(values.T))
    np.testing.assert_array_equal(down, np.cumsum(values, axis=1).T)


@pytest.mark.parametrize("count", SIZES)
def test_shape_of_the_view(count):
    columns, rows = view_shape(count)
    assert columns & (columns - 1) == 0
    assert columns**2 / 2 <= count < 2 * columns**2 or count < 2
    assert columns * rows >= count
    assert rows < 16 or rows % 16 == 0
    least = -(-count // columns)
    assert least <= rows < least + 16


def test_shape_of_an_empty_view():
    assert view_shape(0) == (1, 0)


def assert_view(values, make):
    """Item r * columns + c stands at [c, r]; zeros follow the last."""
    columns, rows = view_shape(values.shape[0])
    view = np.asarray(make(jnp.asarray(values)))
    assert view.shape == (columns, rows)
    for c, r in itertools.product(range(columns), range(rows)):
        index = r * columns + c
        assert view[c, r] == (values[index] if index < values.shape[0] else 0)


@pytest.mark.parametrize("count", FEW)
def test_to_columns(count):
    assert_view(integers(count), to_columns)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_there_and_back(count, dtype):
    values = integers(count, dtype)
    np.testing.assert_array_equal(from_columns(to_columns(jnp.asarray(values)), count), values, strict=True)


@pytest.mark.parametrize("count", [*FEW, 64, 65])
def test_exclusive(count):
    values = integers(count)
    expected = np.concatenate([np.zeros(1, np.int32), np.cumsum(values, dtype=np.int32)[:-1]])
    np.testing.assert_array_equal(exclusive(jnp.asarray(values)), expected, strict=True)
    pair = jax.vmap(exclusive)(jnp.asarray(np.stack([values, -values])))
    np.testing.assert_array_equal(pair, np.stack([expected, -expected]))


def add_carrying(one, two):
    """Numbers whole + part / 1000."""
    part = one["part"] + two["part"]
    carry = (part >= 1000).astype(part.dtype)
    return {"whole": one["whole"] + two["whole"] + carry, "part": part - 1000 * carry}


def carrying_case(columns=7, rows=5):
    rng = np.random.default_rng(1)
    items = {"whole": rng.integers(0, 9, (columns, rows)), "part": rng.integers(0, 1000, (columns, rows))}
    start = {"whole": rng.integers(0, 9, rows), "part": rng.integers(0, 1000, rows)}
    total = 1000 * start["whole"] + start["part"] + np.cumsum(1000 * items["whole"] + items["part"], axis=0)
    as_int32 = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.int32), tree) for tree in (start, items)]
    return *as_int32, total


def thousandths(number):
    return 1000 * number["whole"] + number["part"]


def test_cumulate_trees_with_a_carry():
    start, items, total = carrying_case()
    sums = cumulate(start, items, add_carrying)
    np.testing.assert_array_equal(thousandths(sums), total)
    assert np.all(np.asarray(sums["part"]) < 1000)
    np.testing.assert_array_equal(cumulate(start, items, add_carrying, thousandths), total)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), (start, items))
    both = jax.jit(jax.vmap(lambda s, i: cumulate(s, i, add_carrying, thousandths)))(*batch)
    np.testing.assert_array_equal(both, np.stack([total, 0 * total]))


def test_cumulate_reads_more_than_it_is_given():
    start, items = jnp.zeros(3, jnp.int32), jnp.ones((4, 3), jnp.int32)
    twice, even = cumulate(start, items, jnp.add, lambda sums: (2 * sums, sums % 2 == 0))
    np.testing.assert_array_equal(twice[:, 0], [2, 4, 6, 8])
    np.testing.assert_array_equal(even[:, 2], [False, True, False, True])


def branches(monkeypatch):
    """`cumulate` as it runs on CPU, and as it runs elsewhere."""

    def run(name):
        def chosen(*args, **by_name):
            return by_name[name](*args)

        def call(function, *args):
            with monkeypatch.context() as patch:
                patch.setattr(jax.lax, "platform_dependent", chosen)
                return function(*args)

        return call

    return run("cpu"), run("default")


@pytest.mark.parametrize("count", [1, 17, 1000])
def test_both_branches_agree(monkeypatch, count):
    values = integers(count)
    for branch in branches(monkeypatch):
        pair = branch(jax.jit(jax.vmap(cumulative_sum)), jnp.asarray(np.stack([values, values[::-1]])))
        np.testing.assert_array_equal(pair, np.cumsum(np.stack([values, values[::-1]]), axis=1))


def test_both_branches_agree_on_trees(monkeypatch):
    start, items, total = carrying_case()
    for branch in branches(monkeypatch):
        np.testing.assert_array_equal(branch(cumulate, start, items, add_carrying, thousandths), total)


def test_lowers_for_every_platform():
    exported = jax.export.export(jax.jit(cumulative_sum), platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((1000,), jnp.int32)
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    text = exported.mlir_module()
    assert "stablehlo.case" in text  # both branches are there
    assert_sums(integers(1000), exported.call(jnp.asarray(integers(1000))))


def as_rows(values):
    columns, rows = view_shape(values.shape[0])
    return jnp.pad(values, (0, rows * columns - values.shape[0])).reshape(columns, rows)


def padded_with_ones(values):
    columns, rows = view_shape(values.shape[0])
    return jnp.pad(values, (0, rows * columns - values.shape[0]), constant_values=1).reshape(rows, columns).T


@pytest.mark.parametrize("planted", [as_rows, padded_with_ones])
def test_planted_bugs_of_the_view_are_caught(planted):
    with pytest.raises(AssertionError):
        assert_view(integers(1000), planted)


@pytest.mark.parametrize("name", ["exclusive", "to_columns"])
def test_planted_bugs_of_the_sum_are_caught(monkeypatch, name):
    planted = {"exclusive": lambda sums: jnp.cumsum(sums, dtype=sums.dtype), "to_columns": as_rows}[name]
    monkeypatch.setattr(_sums, name, planted)
    with pytest.raises(AssertionError):
        assert_sums(integers(1000), cumulative_sum(jnp.asarray(integers(1000))))


@pytest.mark.parametrize("index", [0, 1], ids=["cpu", "default"])
def test_a_forgotten_start_is_caught(monkeypatch, index):
    branch = branches(monkeypatch)[index]
    start, items, total = carrying_case()
    nothing = jax.tree.map(jnp.zeros_like, start)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(branch(cumulate, nothing, items, add_carrying, thousandths), total)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "values",
    [[1.0, -2.0], [-3.0, -2.0], [-np.inf, -1e-40], [-np.inf, -np.inf], [np.inf, 1.0], [-0.0, -1.0], [-1e30, 1e-30]],
)
def test_largest(x64, dtype, values):
    values = np.asarray(values, dtype)
    for order in (values, values[::-1]):
        np.testing.assert_array_equal(largest(jnp.asarray(order)), values.max(), strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_passes_nan_of_either_sign_on(x64, dtype, sign):
    for others in (-np.inf, np.inf):
        values = np.asarray([others, np.copysign(np.nan, sign), 1.0], dtype)
        assert np.isnan(largest(jnp.asarray(values)))
