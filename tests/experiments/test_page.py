"""Parts as JSON data and back."""

import json
import math

import numpy as np

from probinf.experiments import Figure, Part, Section, Table
from probinf.experiments._page import decode, encode, plain

PART = Part(
    {"array": np.arange(3, dtype=np.float32), "scalar": np.float64(2.5), "count": np.int32(4), "name": "x"},
    Section("Title", ("One.", "Two."), (Figure("figures/a.svg", "c", "a"), Table("t", ("x", "y"), (("1", "2"),)))),
)


def test_round_trip_through_json():
    back = decode(json.loads(json.dumps(encode(PART), allow_nan=False)))
    assert back.section == PART.section
    assert back.metrics == {"array": [0.0, 1.0, 2.0], "scalar": 2.5, "count": 4, "name": "x"}


def test_numbers_that_are_not_finite_become_null():
    values = {"a": math.nan, "b": np.array([1.0, np.inf]), "c": (np.float32(np.nan), {"d": -math.inf})}
    assert plain(values) == {"a": None, "b": [1.0, None], "c": [None, {"d": None}]}


def test_booleans_stay_booleans():
    assert plain({"a": True, "b": np.bool_(False), "c": np.array([True])}) == {"a": True, "b": False, "c": [True]}


def test_plain_is_idempotent():
    once = encode(PART)
    assert plain(once) == once
