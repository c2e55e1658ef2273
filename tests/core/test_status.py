"""Status bits: each bit, what is fatal, the words, warning or error, combination under `vmap`.

Planted bugs, each shown to be caught below: a bit left out of the fatal ones; all weights zero fatal without a NaN;
a NaN anywhere in the batch that makes another member fatal; members counted from one.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import _status
from probinf.core._status import FATAL, InferenceError, InferenceWarning, Status, check_status, explain, flag, is_fatal

BITS = [bit for bit in Status if bit]
FATAL_ALONE = {Status.POSINF_LOG_WEIGHT, Status.NONFINITE_INIT, Status.MAX_STEPS, Status.BAD_INVOLUTION}
BOTH = Status.ALL_WEIGHTS_ZERO | Status.NAN_LOG_WEIGHT
MENDS = {
    Status.NAN_LOG_WEIGHT: "float64",
    Status.POSINF_LOG_WEIGHT: "scale of zero",
    Status.ALL_WEIGHTS_ZERO: "raise `num_particles`",
    Status.NONFINITE_INIT: "`initial_position`",
    Status.DIVERGENT: "Raise `target_accept`",
    Status.MAX_STEPS: "Raise `max_steps`",
    Status.BAD_INVOLUTION: "Mend the `involution`",
    Status.INTERRUPTED: "the same `checkpoint`",
}


def words(*values):
    return jnp.asarray([int(value) for value in values], jnp.uint32)


def test_bits_are_distinct_and_keep_their_values():
    # The numbers are in saved files: they may not change.
    assert {bit.name: int(bit) for bit in BITS} == {
        "NAN_LOG_WEIGHT": 1,
        "POSINF_LOG_WEIGHT": 2,
        "ALL_WEIGHTS_ZERO": 4,
        "NONFINITE_INIT": 8,
        "DIVERGENT": 16,
        "MAX_STEPS": 32,
        "BAD_INVOLUTION": 64,
        "INTERRUPTED": 128,
    }
    assert set(MENDS) == set(BITS)
    assert int(Status.OK) == 0


@pytest.mark.parametrize("bit", BITS, ids=lambda bit: bit.name)
def test_flag(bit):
    status = flag(bit, jnp.array([[True, False], [False, True]]))
    assert status.dtype == jnp.uint32
    np.testing.assert_array_equal(status, int(bit) * np.eye(2, dtype=np.uint32), strict=True)
    assert int(jax.jit(lambda condition: flag(bit, condition))(jnp.array(True))) == bit
    # A flag never takes away what was set before.
    before = words(*BITS)
    np.testing.assert_array_equal(before | flag(bit, jnp.zeros(8, bool)), before)
    np.testing.assert_array_equal(before | flag(bit, jnp.ones(8, bool)), np.asarray(before) | np.uint32(bit))


def assert_fatality(function):
    every = np.arange(256, dtype=np.uint32)
    expected = [any(bit & status for bit in FATAL_ALONE) or (BOTH & status) == BOTH for status in every.tolist()]
    np.testing.assert_array_equal(function(jnp.asarray(every)), expected, strict=True)


def test_what_is_fatal():
    """All 256 statuses."""
    assert_fatality(is_fatal)
    assert_fatality(jax.jit(jax.vmap(is_fatal)))
    assert not bool(is_fatal(jnp.uint32(int(Status.ALL_WEIGHTS_ZERO))))
    assert not bool(is_fatal(jnp.uint32(int(Status.NAN_LOG_WEIGHT))))
    assert bool(is_fatal(jnp.uint32(int(BOTH))))
    np.testing.assert_array_equal(is_fatal(words(0, BOTH).reshape(1, 2)), [[False, True]])


@pytest.mark.parametrize("bit", sorted(FATAL_ALONE), ids=lambda bit: bit.name)
def test_a_bit_left_out_is_caught(monkeypatch, bit):
    monkeypatch.setattr(_status, "FATAL", FATAL & ~bit)
    with pytest.raises(AssertionError):
        assert_fatality(is_fatal)


@pytest.mark.parametrize(
    "planted",
    [
        lambda status: (status & jnp.uint32(int(FATAL | Status.ALL_WEIGHTS_ZERO))) != 0,
        lambda status: (status & jnp.uint32(int(FATAL))) != 0,
        lambda status: is_fatal(status | jnp.bitwise_or.reduce(status)),
    ],
    ids=["zero_is_fatal", "nan_and_zero_is_not", "members_mixed"],
)
def test_wrong_fatality_is_caught(planted):
    with pytest.raises(AssertionError):
        assert_fatality(planted)


@pytest.mark.parametrize("bit", BITS, ids=lambda bit: bit.name)
def test_explain_names_bit_cause_and_mend(bit):
    text = explain(bit)
    assert text.startswith(f"{bit.name}: ")
    assert MENDS[bit] in text
    assert text.endswith(".")
    assert "\n" not in text
    assert "members" not in text
    for same in (int(bit), np.uint32(bit), jnp.uint32(int(bit)), np.asarray([bit], np.uint32), [int(bit)]):
        assert explain(same) == text


def test_explain_nothing():
    assert explain(Status.OK) == explain(np.zeros((3, 2), np.uint32)) == explain(np.zeros(0, np.uint32)) == ""


def assert_members():
    text = explain(words(0, Status.DIVERGENT, BOTH, Status.DIVERGENT | Status.INTERRUPTED))
    lines = text.split("\n")
    assert [line.split(" ")[0] for line in lines] == ["NAN_LOG_WEIGHT", "ALL_WEIGHTS_ZERO", "DIVERGENT", "INTERRUPTED"]
    members = [re.findall(r"\[members \[(.*)\] of (\d+)\]: ", line)[0] for line in lines]
    assert members == [("2", "4"), ("2", "4"), ("1, 3", "4"), ("3", "4")]


def test_explain_names_members():
    assert_members()


def test_explain_members_of_a_matrix_are_counted_by_rows():
    assert "[members [4] of 6]" in explain(words(0, 0, 0, 0, 32, 0).reshape(2, 3))


def test_explain_shortens_many_members():
    eight = explain(np.full(8, 16, np.uint32))
    assert "[members [0, 1, 2, 3, 4, 5, 6, 7] of 8]" in eight
    assert "[members [0, 1, 2, 3, 4, 5, 6, 7, …] of 1000]" in explain(np.full(1000, 16, np.uint32))


def test_members_counted_from_one_are_caught(monkeypatch):
    monkeypatch.setattr(_status, "_shorten", lambda indices: str((indices + 1).tolist()))
    with pytest.raises(AssertionError):
        assert_members()


def test_explain_counts():
    counts = {"DIVERGENT": "12 of 4000 (0.3 %), first at 17", "MAX_STEPS": "not set, so not said"}
    text = explain(words(0, Status.DIVERGENT), counts=counts)
    assert text.startswith("DIVERGENT [members [1] of 2] (12 of 4000 (0.3 %), first at 17): ")
    assert "not said" not in text
    assert explain(Status.DIVERGENT, counts={}) == explain(Status.DIVERGENT)


@pytest.mark.parametrize("value", range(256))
def test_check_raises_or_warns_or_is_silent(value):
    if bool(is_fatal(jnp.uint32(value))):
        with pytest.raises(InferenceError) as raised:
            check_status(value, what="my run")
        text = str(raised.value)
        assert text.startswith("`my run` failed.\n")
        assert text.endswith("Pass `throw=False` to get the flagged result.")
    elif value:
        with pytest.warns(InferenceWarning) as warned:
            check_status(value, what="my run")
        (one,) = warned  # one warning, however many bits
        text = str(one.message)
        assert text.startswith("`my run` finished with flags.\n")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_status(value, what="my run")
        return
    assert explain(value) in text
    for bit in BITS:
        assert (f"\n{bit.name}: " in text) == bool(bit & value)


def test_check_of_several_members():
    with pytest.raises(InferenceError, match=r"BAD_INVOLUTION \[members \[2\] of 3\]"):
        check_status(words(0, Status.DIVERGENT, Status.BAD_INVOLUTION), what="run")
    # A NaN in one member and no weight in another: neither is fatal.
    with pytest.warns(InferenceWarning, match=r"(?s)NAN_LOG_WEIGHT \[members \[0\].*ALL_WEIGHTS_ZERO \[members \[1\]"):
        check_status(words(Status.NAN_LOG_WEIGHT, Status.ALL_WEIGHTS_ZERO), what="run")
    with pytest.raises(InferenceError):
        check_status(words(0, BOTH), what="run")


def test_check_passes_counts_on():
    with pytest.warns(InferenceWarning, match="3 of 10"):
        check_status(Status.DIVERGENT, what="run", counts={"DIVERGENT": "3 of 10"})
    with pytest.raises(InferenceError, match="step 7"):
        check_status(Status.MAX_STEPS, what="run", counts={"MAX_STEPS": "step 7"})


def test_errors_can_be_caught_by_their_kind():
    assert issubclass(InferenceError, RuntimeError)
    assert issubclass(InferenceWarning, UserWarning)


def test_bits_combine_under_vmap_and_scan():
    def one(faults):
        """OR over the steps of a chain, under `scan`."""

        def step(status, fault):
            nan = flag(Status.NAN_LOG_WEIGHT, jnp.isnan(fault))
            return status | nan | flag(Status.ALL_WEIGHTS_ZERO, fault == -jnp.inf), is_fatal(status | nan)

        return jax.lax.scan(step, jnp.uint32(0), faults)

    nan, inf = np.nan, np.inf
    faults = jnp.asarray([[0.0, 0.0, 0.0], [nan, 0.0, 0.0], [0.0, -inf, 0.0], [-inf, 0.0, nan]])
    status, fatal = jax.jit(jax.vmap(one))(faults)
    np.testing.assert_array_equal(status, [0, 1, 4, 5])
    np.testing.assert_array_equal(fatal[:, -1], [False, False, False, True])
    for row in range(4):  # the same as alone: no member touches another
        np.testing.assert_array_equal(one(faults[row])[0], status[row])
    assert int(jnp.bitwise_or.reduce(status)) == BOTH
