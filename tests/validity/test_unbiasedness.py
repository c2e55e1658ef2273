"""Unbiasedness at any time: the known rates, power on both sides, confidence sequences, drawing until decided.

Planted bugs, each shown to be caught below: evidence too large by 10 % and by 2; too small by 10 % (bounded only); the
log of the mean in place of the mean of logs is seen as a surplus; a NaN estimate.
"""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from probinf.validity._unbiasedness import BETS, confidence_sequence, evidence_unbiasedness, log_capital, unbiased

LOG_SD = 0.8


def lognormal(rng, shape, mean=1.0):
    return rng.normal(math.log(mean) - LOG_SD**2 / 2, LOG_SD, shape)


def test_capital_by_hand():
    ratios = np.array([1.5, 0.0, 3.0])
    expected = np.mean([np.cumprod([1 + bet * (x - 1) for x in ratios]) for bet in BETS], axis=0)
    np.testing.assert_allclose(np.exp(log_capital(ratios, BETS)), expected, rtol=1e-12)


def test_known_false_alarms():
    # 4000 runs of 2000 at .01: known .0065, and over three seeds .0045; the standard error is .0012.
    rng = np.random.default_rng(0)
    failed = [np.max(log_capital(np.exp(lognormal(rng, (500, 2000))), BETS), axis=1) > math.log(100) for _ in range(8)]
    assert 0.001 < np.mean(failed) < 0.01


def test_known_time_to_rejection():
    rng = np.random.default_rng(1)
    lost = log_capital(np.exp(lognormal(rng, (400, 4000), mean=1.1)), BETS) >= math.log(100)
    assert lost[:, -1].mean() > 0.95
    times = np.where(lost.any(1), lost.argmax(1) + 1, 4000)
    np.testing.assert_allclose(np.median(times), 940, rtol=0.12)


def bounded(rng, size, mean=1.0):
    """Ratios of 0 or 2: an estimator that hits half of the time."""
    with np.errstate(divide="ignore"):
        return np.log(2.0 * (rng.random(size) < mean / 2))


def test_false_alarms_of_both_sides():
    # 1000 runs of 1000 at .05: 6 standard errors above would be .09, but the bound of Ville is not met closely.
    rng = np.random.default_rng(2)
    failed = np.mean(
        [
            not evidence_unbiasedness(bounded(rng, 1000) - 5, -5.0, false_alarm_rate=0.05, bound=2.0).passed
            for _ in range(1000)
        ]
    )
    assert 0.005 < failed < 0.05


def test_sound_estimates_pass():
    rng = np.random.default_rng(3)
    check = evidence_unbiasedness(lognormal(rng, 20_000) - 700, -700.0, subject="bootstrap filter")
    assert check.passed
    assert (check.law, check.subject, check.false_alarm_rate) == ("unbiasedness", "bootstrap filter", 1e-6)
    np.testing.assert_allclose(check.bound, math.log(1e6))
    assert check.detects.startswith("a bias of +0.0")


def test_a_surplus_is_caught():
    rng = np.random.default_rng(4)
    logs = lognormal(rng, 6000)
    assert evidence_unbiasedness(logs, 0.0).passed
    assert not evidence_unbiasedness(logs + math.log(1.1), 0.0).passed
    assert not evidence_unbiasedness(logs[:200] + math.log(2), 0.0).passed
    assert not evidence_unbiasedness(logs - np.mean(logs), 0.0).passed  # exp of an unbiased log is too large


def test_a_deficit_is_caught_with_a_bound_only():
    rng = np.random.default_rng(5)
    low = bounded(rng, 6000, mean=0.9)
    assert evidence_unbiasedness(low, 0.0).passed
    assert not evidence_unbiasedness(low, 0.0, bound=2.0).passed
    assert not evidence_unbiasedness(bounded(rng, 6000, mean=1.1), 0.0, bound=2.0).passed
    check = evidence_unbiasedness(bounded(rng, 6000), 0.0, bound=2.0)
    assert check.passed
    assert check.detects.count("a bias of") == 2


def test_what_is_detected_is_detected():
    rng = np.random.default_rng(6)
    check = evidence_unbiasedness(bounded(rng, 4000), 0.0, bound=2.0)
    more, less = (float(part.split()[3]) for part in check.detects.split(", "))
    for _ in range(100):
        assert not evidence_unbiasedness(bounded(rng, 4000, 1 + 1.15 * more), 0.0, bound=2.0).passed
        assert not evidence_unbiasedness(bounded(rng, 4000, 1 + 1.15 * less), 0.0, bound=2.0).passed


def test_too_few_say_so():
    check = evidence_unbiasedness([0.0, 0.1], 0.0)
    assert check.passed
    assert check.detects == "nothing surely: too few estimates"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("others", [[], [0.0, 0.1]])
def test_nan_and_infinity_never_pass(bad, others):
    check = evidence_unbiasedness([*others, bad], 0.0)
    assert not check.passed
    assert math.isnan(bad) == math.isnan(check.found)


def test_estimates_of_zero_count():
    assert evidence_unbiasedness(np.full(10_000, -np.inf), 0.0).passed  # no surplus
    assert not evidence_unbiasedness(np.full(10_000, -np.inf), 0.0, bound=3.0).passed


@pytest.mark.slow
def test_confidence_sequences_cover():
    # 200 sequences at .05, of 500 estimates each: at most .05 may ever leave; 6 standard errors make it .14.
    rng = np.random.default_rng(7)
    left = 0
    for _ in range(200):
        log_lower, log_upper = confidence_sequence(
            bounded(rng, 500) + 3, false_alarm_rate=0.05, log_bound=math.log(2) + 3
        )
        assert np.all(log_lower[1:] >= log_lower[:-1])
        assert np.all(log_upper[1:] <= log_upper[:-1])
        left += not (np.all(log_lower <= 3) and np.all(log_upper >= 3))
    assert left / 200 <= 0.05


def test_confidence_sequences_close_in():
    rng = np.random.default_rng(8)
    logs = bounded(rng, 20_000) - 900  # exp would underflow
    wide = confidence_sequence(logs, false_alarm_rate=0.01)
    assert np.all(wide.log_upper == np.inf)
    assert -900.08 < wide.log_lower[-1] < -900
    both = confidence_sequence(logs, false_alarm_rate=0.01, log_bound=math.log(2) - 900)
    assert -900.08 < both.log_lower[-1] < -900 < both.log_upper[-1] < -899.92
    assert both.log_upper[0] <= math.log(2) - 900


def test_confidence_sequence_agrees_with_the_test():
    rng = np.random.default_rng(9)
    logs = lognormal(rng, 1000, mean=1.3)
    log_lower = confidence_sequence(logs, false_alarm_rate=0.01).log_lower[-1]
    assert not evidence_unbiasedness(logs, log_lower, false_alarm_rate=0.0101).passed
    assert evidence_unbiasedness(logs, log_lower + 0.02, false_alarm_rate=0.01).passed


def test_nan_in_a_confidence_sequence():
    sequence = confidence_sequence([0.0, 0.1, math.nan, 0.2])
    assert np.isnan(sequence.log_lower).tolist() == [False, False, True, True]
    assert np.isnan(sequence.log_upper).tolist() == [False, False, True, True]


def estimate(key, factor=1.0):
    return LOG_SD * jax.random.normal(key) - LOG_SD**2 / 2 + jnp.log(factor)


def test_drawing_until_decided(key):
    keys = jax.random.split(key, 4)
    sound = unbiased(keys[0], estimate, 0.0)
    assert sound.passed
    num_estimates = int(sound.detects.split()[-2])
    assert 3000 < num_estimates < 30_000
    wrong = unbiased(keys[1], lambda k: estimate(k, 2.0), 0.0)
    assert not wrong.passed
    assert wrong.detects.endswith("1024 estimates")
    short = unbiased(keys[2], estimate, 0.0, max_estimates=1500)
    assert short.detects.endswith("; 1500 estimates")
    assert short.passed
    assert not unbiased(keys[3], lambda k: jnp.where(estimate(k) > 1, jnp.nan, 0), 0.0).passed


def test_drawing_on_the_host(key):
    def host(key):
        return float(np.random.default_rng(np.asarray(jax.random.key_data(key))).normal() - 0.5)

    check = unbiased(key, host, 0.0, traceable=False, max_estimates=20, batch_size=9)
    assert check.passed
    assert check.detects == "nothing surely: too few estimates; 20 estimates"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_estimates": []}, r"`log_estimates` has shape \(0,\)"),
        ({"log_estimates": 1.0}, r"`log_estimates` has shape \(\)"),
        ({"log_exact": math.inf}, "`log_exact` is inf; needed the finite log"),
        ({"false_alarm_rate": 0.0}, r"`false_alarm_rate` is 0\.0"),
        ({"bound": 1.0}, r"`bound` is 1\.0; needed a finite number above 1"),
        ({"bound": 1.2}, r"`bound` is 1\.2, but an estimate is 1\.649 times the exact value"),
    ],
)
def test_bad_arguments(change, message):
    good = {"log_estimates": [0.0, 0.5], "log_exact": 0.0}
    with pytest.raises(ValueError, match=message):
        evidence_unbiasedness(**{**good, **change})


def test_bad_arguments_of_the_others(key):
    with pytest.raises(ValueError, match=r"`log_bound` is 0\.3; needed a finite number that no estimate exceeds"):
        confidence_sequence([0.0, 0.5], log_bound=0.3)
    for change, message in [
        ({"max_estimates": 1}, "`max_estimates` is 1"),
        ({"tolerance": 0.0}, r"`tolerance` is 0\.0"),
        ({"estimator": lambda k: jax.random.normal(k, (2,))}, r"`estimator` returned an array of shape \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            unbiased(**{"key": jax.random.clone(key), "estimator": estimate, "log_exact": 0.0, **change})


@pytest.mark.parametrize("log_bound", [699.0, 711.0, 800.0, 1e6])
def test_a_bound_far_above_the_estimates_does_not_overflow(log_bound):
    logs = lognormal(np.random.default_rng(8), 2000)
    surplus_only = confidence_sequence(logs, false_alarm_rate=0.05)
    log_lower, log_upper = confidence_sequence(logs, false_alarm_rate=0.05, log_bound=log_bound)
    assert np.all(log_lower <= 0)
    assert np.all((0 <= log_upper) & (log_upper <= log_bound))
    assert np.all(log_upper[1:] <= log_upper[:-1])
    # The grid is wider and half of the rate is kept for deficits, but the lower bound still says something.
    assert abs(log_lower[-1] - surplus_only.log_lower[-1]) < 0.5
    log_lower, log_upper = confidence_sequence(np.zeros(10), log_bound=log_bound)
    assert np.all(log_lower <= 0)
    assert np.all(log_upper == log_bound)


@pytest.mark.parametrize("bad", ["a", "1.5", [1.0, 2.0], 1j])
def test_what_is_no_number_is_named(bad, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    for name, call in [
        ("log_bound", lambda: confidence_sequence([0.0, 0.5], log_bound=bad)),
        ("bound", lambda: evidence_unbiasedness([0.0, 0.5], 0.0, bound=bad)),
        ("log_exact", lambda: evidence_unbiasedness([0.0, 0.5], bad)),
    ]:
        with pytest.raises(TypeError, match=rf"`{name}` is .*; needed a real number"):
            call()
