"""Verdicts: exact cases, and planted biases that must break a claim.

Planted bugs: replicates shifted by 12 standard errors, one NaN replicate, one wrong entry among many, replicates that
agree on a wrong value.
"""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from probinf.experiments import below, compare, near, normal_bound, student_bound


def replicates(shift=0.0, count=32, num=5):
    noise = np.random.default_rng(0).normal(size=(count, num))
    return noise + shift * np.ones(num)


class TestCorrectness:
    def test_bounds_have_the_stated_false_alarm_rate(self):
        for num in (1, 12, 300):
            assert num * 2 * scipy.stats.norm.sf(normal_bound(num)) == pytest.approx(1e-6)
            assert num * 2 * scipy.stats.t.sf(student_bound(num, 32), 31) == pytest.approx(1e-6)

    def test_bounds_grow_with_the_number_of_comparisons_and_shrink_with_replicates(self):
        assert normal_bound(1) < normal_bound(10) < student_bound(10, 100) < student_bound(10, 10)

    def test_compare_is_the_textbook_t_statistic(self):
        values = replicates()
        theirs: Any = scipy.stats.ttest_1samp(values, np.zeros(5))
        expected = theirs.statistic
        found = compare(values, np.zeros(5))
        np.testing.assert_allclose(found.z, expected, rtol=1e-12)
        assert found.worst == pytest.approx(np.abs(expected).max())
        assert found.holds

    def test_near_and_below(self):
        assert below(0.5, 0.5)
        assert not below(0.5000001, 0.5)
        assert near(99.9, 100.0, relative=1e-3)
        assert not near(99.8, 100.0, relative=1e-3)
        assert near(-99.95, -100.0, relative=1e-3)


class TestPlantedBugs:
    def test_a_bias_of_twelve_standard_errors_is_caught(self):
        assert not compare(replicates(shift=12 / math.sqrt(32)), np.zeros(5)).holds

    def test_one_wrong_entry_among_many_is_caught(self):
        values = replicates(num=200)
        values[:, 137] += 3.0
        assert not compare(values, np.zeros(200)).holds

    def test_one_nan_is_never_upheld(self):
        values = replicates()
        values[3, 2] = np.nan
        found = compare(values, np.zeros(5))
        assert math.isnan(found.worst)
        assert not found.holds

    def test_agreeing_on_a_wrong_value_is_caught(self):
        assert not compare(np.full((4, 1), 1.0), np.zeros(1)).holds

    @pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
    def test_a_missing_number_upholds_nothing(self, missing):
        assert not below(missing, 1.0)
        assert not near(missing, 1.0, relative=0.5)


class TestEdge:
    def test_replicates_without_spread_must_be_equal(self):
        found = compare(np.full((4, 1), 2.0), np.full(1, 2.0))
        assert found.worst == 0
        assert found.holds

    def test_bad_arguments_are_refused(self):
        with pytest.raises(ValueError, match=r"must be \[r, k\]"):
            compare(np.zeros(3), np.zeros(3))
        with pytest.raises(ValueError, match=r"must be \[r, k\]"):
            compare(np.zeros((4, 3)), np.zeros(2))
        with pytest.raises(ValueError, match="at least 2"):
            compare(np.zeros((1, 3)), np.zeros(3))
        with pytest.raises(ValueError, match="`num` must be at least 1"):
            normal_bound(0)
        with pytest.raises(ValueError, match="`alpha` must lie between 0 and 1"):
            normal_bound(1, alpha=1.0)
