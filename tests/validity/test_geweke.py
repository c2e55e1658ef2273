"""Geweke's joint test: calibration, and kernels with planted bugs on a skewed joint law.

Planted bugs, each shown to be caught below: no acceptance step; a drift that the ratio does not correct; a prior
counted 1.3 times, or not at all; positions that become NaN; a fatal status; a kernel that stands still; a simulator
with other noise than the likelihood has.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.core import FATAL, Target
from probinf.validity import _geweke
from probinf.validity._geweke import _check, geweke
from tests.validity._joint import Metropolis, simulate, target_of

OPTIONS: Any = {"num_chains": 4000, "num_steps": 10}


def run(key, kernel, **kwargs):
    return geweke(jax.random.clone(key), kernel, simulate, target_of, **{**OPTIONS, **kwargs})


def failures(report):
    return {check.subject for check in report.failures}


def test_sound_kernels_pass(key):
    report = run(key, Metropolis()).check()
    np.testing.assert_allclose(report.false_alarm_rate, 1e-6)
    names = [check.subject for check in report.checks]
    assert names[:2] == ["chains with a fatal status", "share of chains standing still"]
    assert {"tanh density.log_likelihood", "tanh position.x[0]", "square of position.x[1]"} <= set(names)
    assert "position.x[1] times data[1]" in names
    assert len(names) == 2 + 4 + 2 + 4
    assert "4000 chains of 10 steps" in report.title
    run(key, samplers.random_walk(0.8), num_steps=3).check()


def test_wrong_kernels_are_caught(key):
    assert not run(key, Metropolis(weight=0.0)).passed
    assert not run(key, Metropolis(drift=0.2)).passed
    assert not run(key, Metropolis(prior_weight=1.3)).passed
    assert "square of position.x[0]" in failures(run(key, Metropolis(prior_weight=0.0)))


def test_another_simulator_is_caught(key):
    def noisier(key):
        position, (wait, y) = simulate(key)
        return position, (wait, position["x"][1] + 1.2 * (y - position["x"][1]))

    report = geweke(key, Metropolis(), noisier, target_of, **OPTIONS)
    assert "square of position.x[1]" in failures(report) or "position.x[1] times data[1]" in failures(report)


def test_chains_that_are_not_fit(key):
    assert failures(run(key, Metropolis(scale=0.0))) == {"share of chains standing still"}
    assert failures(run(key, Metropolis(fatal=int(FATAL)))) == {"chains with a fatal status"}
    report = run(key, Metropolis(poison=2.0))
    check = next(check for check in report.checks if check.subject == "tanh position.x[0]")
    assert math.isnan(check.found)
    assert not check.passed


def test_false_alarms_at_a_moderate_rate(key):
    """The z of 400 groups of 100 chains, 10 functions: each within its bound, shares as the normal law has them."""
    seen = {}

    def keep(chains, num_pilot):
        names, before, after = original(chains, num_pilot)
        seen["values"] = before, after
        return names, before, after

    original = _geweke._functions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_geweke, "_functions", keep)
        run(key, Metropolis(), num_chains=40_000, num_steps=2)
    before, after = (np.asarray(values).reshape(400, 100, -1) for values in seen["values"])
    checks = [_check("g", b[:, j], a[:, j], 0.05) for b, a in zip(before, after, strict=True) for j in range(10)]
    failed = 1 - np.mean([check.passed for check in checks])
    # 4000 checks, which are dependent within a group of 10: 6 standard errors of at most 400 / 2 independent ones.
    assert 0.02 < failed < 0.05 + 6 * math.sqrt(0.05 * 0.95 / 200)


def test_what_is_detected_is_detected():
    rng = np.random.default_rng(0)
    for _ in range(200):
        before = np.tanh(rng.normal(size=2000))
        after = np.tanh(rng.normal(size=2000))
        check = _check("g", before, after, 1e-6)
        off = float(check.detects.split()[-2])
        assert not _check("g", before, after + 1.1 * off * before.std(), 1e-6).passed


def test_few_changes_give_no_alarm():
    """Five changes in 1000, all upwards: no evidence at 1e-6, whatever a centred z would say."""
    before = np.zeros(1000)
    assert _check("g", before, before + (np.arange(1000) < 5), 1e-6).passed
    assert _check("g", before, before, 1e-6).detects == "nothing: no chain changed it"


def test_statistics_and_big_data(key):
    """Twenty measurements enter by mean and mean square; a statistic of the user's has a name."""

    def many(key):
        keys = jax.random.split(key)
        x = jax.random.normal(keys[0])
        return x, x + jax.random.normal(keys[1], (20,))

    def posterior(ys):
        log_likelihood = jax.tree_util.Partial(lambda ys, x: -0.5 * jnp.sum((ys - x) ** 2), ys)
        return Target(log_likelihood, lambda x: -0.5 * x**2)

    def gap(x, ys):
        return {"gap": (x - jnp.mean(ys)) ** 2}

    kernel = samplers.random_walk(0.4)
    report = geweke(key, kernel, many, posterior, num_chains=1000, num_steps=3, statistics=gap).check()
    names = {check.subject for check in report.checks}
    assert {"tanh statistic.gap", "position times mean data", "position times mean square data"} <= names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_chains": 99}, "`num_chains` is 99; needed at least 100"),
        ({"num_steps": 0}, "`num_steps` is 0; needed at least 1"),
        ({"num_pilot": 10}, "`num_pilot` is 10"),
        ({"false_alarm_rate": -0.1}, r"`false_alarm_rate` is -0\.1"),
    ],
)
def test_bad_arguments(key, change, message):
    with pytest.raises(ValueError, match=message):
        run(key, Metropolis(), **change)
