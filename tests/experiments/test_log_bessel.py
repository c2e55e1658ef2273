"""Log-Bessel functions: the oracle against stored digits, the data of the fits, claims and planted bugs, a small run.

Planted bugs, each shown to be caught: an error above its bound, a value that is not finite, NaN, a SciPy that has
learned to fit, a slope that is zero, a Kalman filter of another length scale. Nothing but the timing is random.
"""

import csv
import json
import math
import types
from functools import partial
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest

from probinf.experiments import Experiment, find, load, run_experiment
from probinf.experiments import _log_bessel as experiment
from probinf.experiments import _log_bessel_accuracy as accuracy
from probinf.experiments import _log_bessel_exact as exact
from probinf.experiments import _log_bessel_fits as fits
from probinf.experiments import _log_bessel_images as images
from probinf.experiments import _log_bessel_speed as speed
from probinf.experiments import _registry as registry
from probinf.experiments import _tour_bessel as tour
from probinf.experiments._page import plain

TABLE = Path(__file__).parents[1] / "special" / "log_bessel_points.csv"
SMALL = experiment.Config(num_plane=40, num_box=40, num_derivatives=10, num_timed=2000, num_rounds=3)


class TestExact:
    """Against 24 digits that another recursion gave."""

    @pytest.fixture(scope="class")
    @classmethod
    def rows(cls):
        with TABLE.open(newline="") as file:
            return [row | {name: float.fromhex(row[name]) for name in "vx"} for row in csv.DictReader(file)]

    @pytest.mark.parametrize(("name", "function"), [("I", exact.log_i), ("K", exact.log_k)])
    def test_values(self, rows, name, function):
        with mp.workdps(40):
            for row in rows:
                truth = mp.mpf(row[name])
                assert abs(function(row["v"], row["x"]) - truth) <= mp.mpf(10) ** -22 * max(1, abs(truth)), row

    @pytest.mark.parametrize(("name", "function"), [("I", exact.log_i), ("K", exact.log_k)])
    def test_slopes(self, rows, name, function):
        with mp.workdps(40):
            for row in rows[9:70:7]:
                if row["v"] == 0:  # the step is relative to the order
                    continue
                for found, part in zip(exact.slopes(function, row["v"], row["x"]), ("_v", "_x"), strict=True):
                    truth = mp.mpf(row[name + part])
                    assert abs(found - truth) <= mp.mpf(10) ** -19 * max(1, abs(truth)), (row, part)

    def test_order_zero_at_small_arguments(self):
        with mp.workdps(40):
            assert abs(exact.log_i0(1e-8) / (mp.mpf(1e-8) ** 2 / 4) - 1) < 1e-16
            assert abs(exact.log_i0(3.0) - exact.log_i(0, 3.0)) < mp.mpf(10) ** -38

    def test_von_mises_fisher_in_three_dimensions(self):
        """A_3 = coth(k) - 1/k, and the constant is k / (4 pi sinh k)."""
        with mp.workdps(40):
            for kappa in (0.5, 9.0, 900.0):
                assert abs(exact.resultant(3, kappa) - (mp.coth(kappa) - 1 / mp.mpf(kappa))) < mp.mpf(10) ** -35
                direct = mp.log(kappa / (4 * mp.pi * mp.sinh(kappa))) + kappa * mp.mpf(0.3)
                assert abs(exact.log_density(3, kappa, 0.3) - direct) < mp.mpf(10) ** -33

    def test_errors(self):
        found = exact.errors([1.0, 2.5, np.nan, np.inf], [mp.mpf(1), mp.mpf(2), mp.mpf(1), mp.mpf(1)], [1.0, 5.0, 1, 1])
        np.testing.assert_array_equal(found, [0, 0.1, np.inf, np.inf])


class TestMeasurements:
    def test_scipy_has_no_value_for_a_third(self):
        pairs = accuracy.plane(np.random.default_rng(0), 5000)
        for name in ("I", "K"):
            missing = 1 - np.isfinite(accuracy.by_scipy(name, *pairs)).mean()
            assert 0.33 < missing < 0.41

    def test_the_range_holds_order_zero(self):
        v, x = accuracy.box(np.random.default_rng(0), 100)
        assert np.sum(v == 0) == 5
        assert np.all((x > 0) & (v <= 1e6))

    def test_summary(self):
        found = accuracy.summary(np.array([1.0, 3.0, 2.0, np.inf]))
        assert found == {"largest": 3, "median": 2, "not_finite": 0.25}
        assert math.isnan(accuracy.summary(np.array([np.inf]))["largest"])

    def test_ratios_of_times_are_taken_within_a_round(self):
        seconds = {"SciPy": np.array([[2.0, 2], [4, 4], [9, 9]]), "float64": np.array([[1.0, 2], [1, 2], [3, 2]])}
        found = speed.compare(seconds, 100)
        assert found["float64"]["scipy_over_this"] == 3
        assert found["float64"]["rate"] == 100
        assert found["SciPy"]["scipy_over_this"] == 1

    def test_tfp_where_it_is_installed(self):
        """By a stand-in whose scaled logarithm is the order, so that its derivatives are known."""
        stand_in = types.SimpleNamespace(log_bessel_ive=lambda v, x: v + 0 * x, log_bessel_kve=lambda v, x: v + 0 * x)
        v, x = np.array([1.0, 2.0]), np.array([3.0, 5.0])
        np.testing.assert_array_equal(accuracy.libraries(stand_in)["TFP"]("I", v, x), v + x)
        np.testing.assert_array_equal(accuracy.libraries(stand_in)["TFP"]("K", v, x), v - x)
        found = accuracy.slopes(partial(accuracy.tfp_traced, stand_in, "K"), v, x)
        np.testing.assert_array_equal(found, [[1, 1], [-1, -1]])
        module, text = accuracy.tfp()
        assert (module is None) == (text == "not installed" or "does not import" in text)

    def test_calls_come_in_turn(self):
        heard = []
        found = speed.measure({"a": lambda: heard.append("a"), "b": lambda: heard.append("b")}, 2)
        assert heard == ["a", "b"] * 3
        assert found["a"].shape == (2, 2)


class TestFits:
    def test_two_vectors_have_the_length(self):
        length = np.array([0.01, 0.9])
        x = fits.two_vectors(50, length)
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-15)
        np.testing.assert_allclose(np.linalg.norm(x.mean(axis=1), axis=-1), length, rtol=1e-15)

    def test_scipy_gives_the_start_of_its_root_finder(self):
        assert fits.scipy_fit(fits.two_vectors(2048, np.array([0.5]))[0]) == pytest.approx(1e-8, rel=1e-6)
        assert fits.scipy_fit(fits.two_vectors(10, np.array([0.5]))[0]) == pytest.approx(6.417064685, rel=1e-8)

    def test_banerjee(self):
        assert float(fits.by_banerjee(2048, 0.5)) == pytest.approx(1365.066742, rel=1e-4)

    def test_uniform_log_density(self):
        assert fits.uniform_log_density(3) == pytest.approx(-math.log(4 * math.pi))

    def test_crops_of_the_halves_are_apart(self):
        picture = np.arange(128 * 256 * 3, dtype=float).reshape(128, 256, 3)
        crops = images.cut(picture)
        assert crops.left.shape == (9, 64, 64, 3) == crops.right.shape
        np.testing.assert_allclose(crops.left.mean(axis=(1, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(crops.right.std(axis=(1, 2, 3)), 1, atol=1e-3)
        marked = np.zeros((64, 256, 3))
        marked[:, 127] = 1  # the last column of the left half
        crops = images.cut(marked)
        assert np.ptp(crops.left[-1]) > 0
        assert not np.any(crops.right)

    def test_features_are_unit_vectors_and_the_same_every_time(self):
        crops = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
        found, again = images.features(crops), images.features(crops)
        assert sorted(found) == list(images.DIMENSIONS)
        for dimension, x in found.items():
            assert x.shape == (2, dimension)
            np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-14)
            np.testing.assert_array_equal(x, again[dimension])

    def test_the_pictures_are_there(self):
        assert {name: picture.shape for name, picture in images.pictures().items()} == {
            "photograph": (600, 512, 3),
            "terrain": (344, 403, 3),
        }


def good():
    """Metrics as a sound run has them."""
    fine = {"largest": 1e-15, "median": 1e-16, "not_finite": 0.0}
    single = {"largest": 5e-7, "median": 1e-7, "not_finite": 0.0}
    both = {"order": fine, "argument": fine}
    fit = {"picture": "p", "concentration": 10.0, "length": 0.5, "residual": 1e-16, "scipy": 1e-8}
    rows = {"float64": {"scipy_over_this": 2.0}, "SciPy": {"scipy_over_this": 1.0}}
    return {
        "accuracy": {
            "num_plane": 10,
            "num_box": 10,
            "num_pairs": 1000,
            "plane": {"probinf, float64": {"I": fine, "K": fine}, "probinf, float32": {"I": single, "K": single}},
            "box": {"I": fine, "K": fine},
            "scipy_fails": {"I": 0.37, "K": 0.37},
            "small": {"probinf, float64": fine, "SciPy": {"largest": 1.0, "median": 0.1, "not_finite": 0.0}},
        },
        "derivatives": {"num_points": 5, "rows": {"I": {"probinf": both}, "K": {"probinf": both}}},
        "fits": {
            "rows": [{"error_ours": 1e-15, "error_SciPy": 1.0}, {"error_ours": 1e-15, "error_SciPy": math.nan}],
            "densities": [{"ours": 1e-11, "SciPy": math.nan}, {"ours": 1e-11, "SciPy": 1e-9}],
        },
        "features": {"rows": [{"fits": [fit, fit]}]},
        "speed": {"num_rounds": 3, "num_pairs": 10, "rows": {"I": rows, "K": rows}},
    }


def verdicts(*path, value=None):
    """Which claims fail once the number at `path` is `value`."""
    metrics = json.loads(json.dumps(good()))  # no part shared with another
    if path:
        place = metrics
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
    found = plain(metrics)
    json.dumps(found, allow_nan=False)
    return [index for index, claim in enumerate(experiment.claims(found)) if not claim.holds]


class TestClaims:
    def test_they_hold_for_a_sound_run(self):
        assert verdicts() == []
        assert len(experiment.claims(plain(good()))) == 9

    @pytest.mark.parametrize("value", [1e-14, math.nan])
    def test_values(self, value):
        assert verdicts("accuracy", "box", "K", "largest", value=value) == [0]
        assert verdicts("accuracy", "plane", "probinf, float64", "I", "largest", value=value) == [0]
        assert verdicts("accuracy", "box", "I", "not_finite", value=0.1) == [0]

    @pytest.mark.parametrize(
        ("path", "value", "failing"),
        [
            (("accuracy", "plane", "probinf, float32", "I", "largest"), 2e-6, [1]),
            (("accuracy", "scipy_fails", "K"), 0.1, [2]),
            (("accuracy", "small", "probinf, float64", "largest"), 1e-10, [3]),
            (("accuracy", "small", "SciPy", "largest"), 1e-15, [3]),
            (("derivatives", "rows", "K", "probinf", "order", "largest"), 1.0, [4]),
            (("fits", "rows", 1, "error_ours"), 1e-8, [5]),
            (("fits", "rows", 0, "error_SciPy"), 1e-8, [5]),
            (("fits", "densities", 0, "ours"), 1e-6, [6]),
            (("features", "rows", 0, "fits", 1, "residual"), math.nan, [7]),
            (("features", "rows", 0, "fits", 1, "scipy"), 10.0, [7]),
        ],
    )
    def test_each_is_broken_by_its_number(self, path, value, failing):
        assert verdicts(*path, value=value) == failing

    def test_speed(self):
        rows = {"float64": {"scipy_over_this": 1.0}}
        assert verdicts("speed", "rows", "I", value=rows) == [8]
        assert verdicts("speed", "rows", "K", value=rows) == []


class TestTour:
    def dense(self, smoothness, length_scale, variance, noise, y):
        """With the elementary covariances."""
        s = math.sqrt(2 * smoothness) * np.abs(np.subtract.outer(np.arange(y.size), np.arange(y.size))) / length_scale
        covariance = variance * (1 if smoothness == 0.5 else 1 + s) * np.exp(-s) + noise * np.eye(y.size)
        return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])

    @pytest.mark.parametrize("smoothness", [0.5, 1.5])
    def test_the_state_space_form(self, smoothness, x64):
        y = load("nile").values[:40, 1]
        y = (y - y.mean()) / y.std()
        exactly = self.dense(smoothness, 7.0, 0.8, 0.4, y)
        found = tour.by_kalman_filter(np.array([smoothness, 7.0, 0.8, 0.4]), y)
        assert found == pytest.approx(exactly, abs=1e-9)
        other = np.array([smoothness, 7.7, 0.8, 0.4])
        assert abs(tour.by_kalman_filter(other, y) - exactly) > 1e-3

    def test_no_state_space_form_is_made_up(self):
        with pytest.raises(ValueError, match=r"`smoothness` is 0\.7"):
            tour.by_kalman_filter(np.array([0.7, 1.0, 1.0, 1.0]), np.zeros(3))

    def test_a_fixed_smoothness_stays(self):
        def objective(x):
            return float(np.sum((x - 1) ** 2)), 2 * (x - 1)

        free, fixed = (
            tour.maximise(objective, np.array(tour.START)),
            tour.maximise(objective, np.array(tour.START), 1.5),
        )
        np.testing.assert_allclose(free.parameters, math.e, rtol=1e-5)
        assert fixed.parameters[0] == pytest.approx(1.5, rel=1e-12)
        assert free.log_likelihood > fixed.log_likelihood

    def test_claims(self):
        row = {"parameters": [0.5, 1.0, 1.0, 1.0], "log_likelihood": -3.0}
        metrics = {
            "fixed": [row, row],
            "learned": row | {"log_likelihood": -2.9},
            "kalman_difference": 1e-12,
            "slope_difference": 1e-8,
        }
        assert [claim.holds for claim in tour.claims(metrics)] == [True, True]
        assert [claim.holds for claim in tour.claims(metrics | {"kalman_difference": None})] == [False, True]
        worse = row | {"log_likelihood": -3.1}
        assert [claim.holds for claim in tour.claims(metrics | {"learned": worse})] == [True, False]
        assert [claim.holds for claim in tour.claims(metrics | {"slope_difference": 0.3})] == [True, False]

    @pytest.mark.slow
    def test_from_end_to_end(self, tmp_path):
        from probinf.experiments import open_workspace

        with open_workspace(tmp_path / "tour", {"experiment": "tour"}) as workspace:
            part = tour.run(None, workspace)
        assert [claim.text for claim in tour.claims(plain(part.metrics)) if not claim.holds] == []


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path, monkeypatch):
    entry = Experiment("log-bessel", "", "", "probinf.experiments._log_bessel")
    monkeypatch.setitem(registry._BY_NAME, "log-bessel", entry)
    monkeypatch.setattr(experiment, "SCALES", {"quick": SMALL})
    outcome = run_experiment("log-bessel", out=tmp_path / "bessel")
    # Two thousand pairs on a busy machine say nothing about speed.
    assert [claim.text for claim in outcome.claims[:-1] if not claim.holds] == []
    assert outcome.report.read_text().count("<svg ") == 4
    assert find("log-bessel") is entry
