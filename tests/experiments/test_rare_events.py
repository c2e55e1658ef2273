"""Persistence exponents: exact answers, a small run from end to end, and planted bugs.

Exact: the four published values of independent intervals and a process whose intervals are independent; covariances by
enumeration of the matrices; orthant probabilities of two and three Gaussians against the filter.

Planted bugs, each shown to be caught: the field of another dimension, noise of too small a window, a potential that
forgets every other step, a start that is not turned over, a slope measured before it has settled, a NaN. A
claim on random numbers has a false-alarm rate of 1e-6, and so has the comparison with the orthant probability (32
filters of 2000).
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.experiments import _persistence as persistence
from probinf.experiments import _rare_events as rare
from probinf.experiments import compare, find, run_experiment
from probinf.experiments._page import plain

NAMES = list(rare.PROCESSES)
SMALL = rare.Config(
    num_particles=2000, num_replicates=32, horizon=16.0, burn_in=6.0, diffusion_points=4, acceleration_points=8
)


def points_of(name):
    return 8 if name == "acceleration" else 4


class TestIndependentIntervals:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_published_values(self, name):
        process = rare.PROCESSES[name]
        mean_interval = math.pi / math.sqrt(process.curvature)
        found = persistence.independent_intervals(process.correlation, mean_interval, process.rate)
        assert found == pytest.approx(process.intervals, abs=5e-6)

    @pytest.mark.parametrize("rate", [0.1, 0.3])
    def test_a_telegraph_signal_has_independent_intervals(self, rate):
        """Signs that turn at the points of a Poisson process: A = exp(-2 rate t), intervals of mean 1 / rate."""
        found = persistence.independent_intervals(
            lambda t: np.asarray(np.sin(np.pi / 2 * np.exp(-2 * rate * t))), 1 / rate, 2 * rate
        )
        assert found == pytest.approx(rate, abs=1e-8)

    @pytest.mark.parametrize("name", NAMES)
    def test_curvature_and_rate_are_those_of_the_correlation(self, name):
        process = rare.PROCESSES[name]
        r = process.correlation
        h = np.array(1e-3)
        # The second difference of |t|^3 terms (random acceleration) is wrong by a multiple of h.
        assert 2 * (1 - r(h)) / h**2 == pytest.approx(process.curvature, rel=2e-3)
        assert np.log(r(np.array(60.0)) / r(np.array(61.0))) == pytest.approx(process.rate, rel=1e-6)


class TestProcess:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("points", [1, 5])
    def test_covariance(self, name, points, x64):
        process = rare.PROCESSES[name]
        found = persistence.covariance_error(process.linear(points), process.correlation, 40)
        assert found < (1e-12 if name == "acceleration" else 3e-7)

    @pytest.mark.parametrize("name", NAMES)
    def test_covariance_in_the_precision_of_the_filters(self, name):
        process = rare.PROCESSES[name]
        found = persistence.covariance_error(process.linear(points_of(name)), process.correlation, 40)
        assert found < rare.LARGEST_COVARIANCE_ERROR

    def test_the_covariance_by_unrolling(self):
        """`covariance_error` against the covariance of three steps written out as one matrix."""
        linear = persistence.diffusion(2, 2)
        p, m = linear.num_states, linear.num_points
        rows = linear.start.shape[0] + 3
        state = np.zeros((rows, p))
        state[: linear.start.shape[0]] = linear.start[:, :p]
        values = [np.append(linear.start[:, p], np.zeros(3))]
        for n in range(3):
            noise = np.zeros((rows, 1))
            noise[linear.start.shape[0] + n] = 1
            moved = np.concatenate([state, noise], axis=1) @ linear.step
            state = moved[:, :p]
            values += list(moved[:, p:].T)
        time = np.append(0, persistence.STEP * np.arange(1, 3 * m + 1) / m)
        exact = 1 / np.sqrt(np.cosh((time[:, None] - time) / 2) ** 2)
        np.testing.assert_allclose(np.array(values) @ np.array(values).T, exact, atol=1e-7)

    def test_looking_less_often_keeps_every_kth_point(self):
        linear = persistence.random_acceleration(6)
        found = persistence.looked_at(linear, 3)
        assert found.step.shape == linear.step.shape
        np.testing.assert_array_equal(found.step[:, :2], linear.step[:, :2])
        np.testing.assert_array_equal(found.step[:, 2:], linear.step[:, [4, 4, 4, 7, 7, 7]])
        with pytest.raises(ValueError, match="multiple of 4"):
            persistence.looked_at(linear, 4)

    def test_the_field_of_another_dimension_is_caught(self):
        wrong = persistence.covariance_error(persistence.diffusion(2, 4), rare.PROCESSES["diffusion-1"].correlation, 40)
        assert wrong > 1e-2

    @pytest.mark.parametrize(("setting", "value"), [("LEAD", 2), ("LAG", 1), ("TAIL", 2), ("STEP", 1.5)])
    def test_too_small_a_window_is_caught(self, monkeypatch, setting, value):
        monkeypatch.setattr(persistence, setting, value)
        process = rare.PROCESSES["diffusion-1"]
        found = persistence.covariance_error(process.linear(4), process.correlation, 20)
        assert found > rare.LARGEST_COVARIANCE_ERROR


def orthant(r12, r23, r13):
    """P(three standard normals with these correlations have one sign)."""
    return 0.25 + (math.asin(r12) + math.asin(r23) + math.asin(r13)) / (2 * math.pi)


def two_steps(name, *, linear=None):
    """The comparison of P(one sign at 0, 1/2) and P(one sign at 0, 1/2, 1) with their exact values."""
    process = rare.PROCESSES[name]
    points = points_of(name)
    # Of the shapes of the run from end to end, so that one program serves both.
    linear = persistence.looked_at(linear or process.linear(points), points)
    logs = rare.log_survival(jax.random.key(0), linear, 32, SMALL)
    step, double = (float(process.correlation(np.array(t))) for t in (0.5, 1.0))
    exact = np.array([0.5 + math.asin(step) / math.pi, orthant(step, step, double)])
    return compare(np.exp(logs[:, 1:3]), exact)


class NotTurned(persistence.Survival):
    """A planted bug: paths that start below zero keep their states."""

    def init(self, key, num_particles):
        drawn = jax.random.normal(key, (num_particles, self.start.shape[0]), self.start.dtype) @ self.start
        return persistence.Particle(drawn[:, :-1], jnp.abs(drawn[:, -1]))


class Forgetful(persistence.Survival):
    """A planted bug: every other step kills nobody."""

    def log_potential(self, t, x_prev, x):
        return jnp.where(jnp.asarray(t) % 2 == 0, 0, persistence.Survival.log_potential(self, t, x_prev, x))


def as_kind(kind, linear, num_steps):
    model = persistence.survival(linear, num_steps)
    return kind(model.start, model.step, model.num_moves)


@pytest.mark.no_key_reuse
class TestSurvival:
    @pytest.mark.parametrize("name", ["diffusion-3", "acceleration"])
    def test_two_steps_against_orthant_probabilities(self, name):
        found = two_steps(name)
        assert found.holds, found

    def test_a_wrong_covariance_is_caught(self):
        assert not two_steps("diffusion-3", linear=persistence.diffusion(1, 4)).holds

    def test_a_start_that_is_not_turned_over_is_caught(self, monkeypatch):
        monkeypatch.setattr(rare, "survival", lambda *args: as_kind(NotTurned, *args))
        assert not two_steps("diffusion-3").holds

    def test_a_potential_that_forgets_every_other_step_is_caught(self, monkeypatch):
        monkeypatch.setattr(rare, "survival", lambda *args: as_kind(Forgetful, *args))
        assert not two_steps("acceleration").holds

    def test_only_the_least_value_of_a_step_matters(self):
        model = persistence.survival(persistence.diffusion(2, 4), 3)
        particle = persistence.Particle(jnp.zeros((3, 1)), jnp.array([0.5, 0.0, -1.0]))
        found = model.log_potential(jnp.array(1), None, particle)
        np.testing.assert_array_equal(found, [0, -np.inf, -np.inf])

    def test_every_point_of_a_step_counts(self, key):
        model = persistence.survival(persistence.random_acceleration(4), 3)
        first, second = jax.random.split(key)
        x = model.init(first, 1000)
        found = model.mutate(second, jnp.array(1), x)
        noise = jax.random.normal(jax.random.clone(second), (1000, 8), jnp.float32)
        moved = jnp.concatenate([x.state, noise], axis=1) @ model.step
        np.testing.assert_allclose(found.lowest, np.asarray(moved[:, 2:]).min(axis=1), atol=1e-5)
        assert np.all(np.asarray(x.lowest) > 0)


def decay(theta, count=32, steps=32, noise=0.0, seed=0):
    """Log survival of made-up filters with slope theta, whose increments have this standard deviation."""
    wobble = np.random.default_rng(seed).normal(size=(count, steps)).cumsum(axis=1) * noise
    path = -theta * persistence.STEP * np.arange(1, steps + 1) + wobble
    return np.concatenate([np.zeros((count, 1)), path], axis=1)


class TestSlopes:
    def test_of_a_straight_line(self):
        np.testing.assert_allclose(rare.slopes(decay(0.2), 4, 20), 0.2, rtol=1e-12)

    def test_the_mean_is_that_of_the_probability_not_of_its_logarithm(self):
        """With normal log estimates of variance v the plain mean of logs is v/2 too low."""
        logs = decay(0.2, count=20_000, noise=0.1)
        grown = 0.01 / 2 / persistence.STEP
        error = rare.slopes(logs, 0, 32).std() / math.sqrt(20_000)
        assert rare.slopes(logs, 0, 32).mean() == pytest.approx(0.2 - grown, abs=5 * error)
        assert error < 0.1 * grown

    def test_extrapolation_removes_a_bias_of_its_order(self):
        for order in (1.5, 2.0):
            fine, coarse = (np.full(3, 0.2 - 0.3 * width**order) for width in (0.125, 0.125 * rare.RATIO))
            np.testing.assert_allclose(rare.extrapolate(fine, coarse, order), 0.2, rtol=1e-12)

    def test_no_survivors_have_no_slope(self):
        logs = decay(0.2)
        logs[:, 10:] = -np.inf
        assert np.all(np.isnan(rare.slopes(logs, 4, 20)))
        logs = decay(0.2)
        logs[3, 10:] = -np.inf  # one filter that died is an estimate like others
        assert np.all(np.isfinite(rare.slopes(logs, 4, 20)))


def verdicts(**changes):
    """The claims for made-up filters that are right, but for the changes."""
    metrics = {
        name: rare.summarise(
            process,
            decay(process.reference, noise=0.002, seed=1),
            decay(process.reference - 1e-4, noise=0.002, seed=2),
            SMALL,
        )
        | {"covariance_error": 1e-7}
        for name, process in rare.PROCESSES.items()
    }
    metrics["intervals"] = {"theta": {n: p.intervals for n, p in rare.PROCESSES.items()}}
    for name, change in changes.items():
        metrics[name] = metrics[name] | change
    found = rare.claims(plain(metrics))
    json.dumps(plain(metrics), allow_nan=False)
    return [claim.holds for claim in found]


class TestClaims:
    def test_they_hold_for_filters_that_are_right(self):
        assert verdicts() == [True] * 8

    def test_a_wrong_exponent_is_caught(self):
        process = rare.PROCESSES["acceleration"]
        wrong = rare.summarise(process, decay(0.26, noise=0.002), decay(0.26, noise=0.002, seed=1), SMALL)
        assert verdicts(acceleration=wrong)[3] is False

    def test_a_bent_path_is_caught(self):
        process = rare.PROCESSES["diffusion-2"]
        bent = decay(process.reference, noise=0.002)
        bent += np.where(np.arange(33) > 20, 0.05 * (np.arange(33) - 20), 0.0)
        found = rare.summarise(process, bent, bent, SMALL)
        assert verdicts(**{"diffusion-2": found})[4] is False

    def test_wrong_covariance_and_wrong_intervals_are_caught(self):
        assert verdicts(**{"diffusion-1": {"covariance_error": 1e-3}})[5] is False
        other = {n: p.intervals + (1e-5 if n == "diffusion-3" else 0) for n, p in rare.PROCESSES.items()}
        assert verdicts(intervals={"theta": other})[6] is False
        close = {n: p.intervals for n, p in rare.PROCESSES.items()} | {"acceleration": 0.2501}
        assert verdicts(intervals={"theta": close})[6:] == [False, False]

    def test_nan_upholds_nothing(self):
        process = rare.PROCESSES["diffusion-1"]
        dead = decay(process.reference)
        dead[:, 10:] = -np.inf
        found = rare.summarise(process, dead, dead, SMALL) | {"covariance_error": math.nan}
        assert verdicts(**{"diffusion-1": found})[:6] == [False, True, True, True, False, False]


def run_small(tmp_path, monkeypatch, **changes):
    monkeypatch.setattr(find("rare-events").load(), "SCALES", {"quick": dataclasses.replace(SMALL, **changes)})
    return run_experiment("rare-events", out=tmp_path / "rare")


@pytest.mark.no_key_reuse
class TestRun:
    @pytest.mark.slow
    def test_from_end_to_end(self, tmp_path, monkeypatch):
        outcome = run_small(tmp_path, monkeypatch)
        broken = [claim.text for claim in outcome.claims if not claim.holds]
        assert not broken
        assert len(outcome.claims) == 8
        text = outcome.report.read_text()
        assert text.count("<svg ") == 6
        again = run_small(tmp_path, monkeypatch)
        assert len(again.reused) == 6
        metrics = json.loads((tmp_path / "rare" / "metrics.json").read_text())["metrics"]
        assert metrics["diffusion-2"]["theta"] == pytest.approx(3 / 16, rel=0.03)
