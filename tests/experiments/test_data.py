"""The shipped data are the published ones."""

from typing import Any

import numpy as np
import pytest

from probinf.experiments import load


def test_nile_is_the_published_series():
    data = load("nile")
    assert data.columns == ("year", "flow")
    years, flow = data.values.T
    np.testing.assert_array_equal(years, np.arange(1871, 1971))
    # Mean and variance as printed by R's `Nile`, and the two extremes that every plot of it shows.
    assert flow.mean() == pytest.approx(919.35)
    assert flow.var(ddof=1) == pytest.approx(28637.95, abs=0.005)
    assert years[flow.argmin()] == 1913
    assert years[flow.argmax()] == 1879


def test_diabetes_is_the_data_of_scikit_learn():
    from sklearn.datasets import load_diabetes

    theirs: Any = load_diabetes(scaled=False)
    ours = load("diabetes")
    assert ours.columns == (*theirs.feature_names, "progression")
    np.testing.assert_array_equal(ours.values[:, :-1], theirs.data)
    np.testing.assert_array_equal(ours.values[:, -1], theirs.target)


def test_an_unknown_name_offers_the_known_ones():
    with pytest.raises(ValueError, match=r"no data set 'nil'.*\['diabetes', 'nile'\]"):
        load("nil")
