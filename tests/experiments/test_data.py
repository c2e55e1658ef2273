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


def test_coal_has_the_published_number_of_disasters():
    data = load("coal")
    assert data.columns == ("year", "disasters")
    years, disasters = data.values.T
    np.testing.assert_array_equal(years, np.arange(1851, 1963))
    assert disasters.sum() == 191  # Jarrett (1979)
    # Before and after the boundary that Carlin, Gelfand and Smith (1992) find.
    assert (disasters[:41].sum(), disasters.max()) == (127, 6)


def test_galaxies_are_the_published_velocities():
    data = load("galaxies")
    assert data.values.shape == (82, 1)
    velocity = data.values[:, 0]
    assert np.all(np.diff(velocity) > 0)
    assert (velocity[0], velocity[77], velocity[-1]) == (9.172, 26.960, 34.279)
    # `median(galaxies)` of the R package MASS, whose mean differs by the misprint of one value.
    assert np.median(velocity) == pytest.approx(20.8335)
    assert velocity.mean() == pytest.approx((82 * 20.8281707 + 0.270) / 82, abs=1e-6)


def test_an_unknown_name_offers_the_known_ones():
    with pytest.raises(ValueError, match=r"no data set 'nil'.*\['coal', 'diabetes', 'galaxies', 'nile'\]"):
        load("nil")
