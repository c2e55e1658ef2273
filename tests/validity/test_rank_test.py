"""The exact rank test: calibration, kernels with planted bugs on a skewed joint law, a kernel that is not reversible.

Planted bugs, each shown to be caught below: no acceptance step; a drift that the ratio does not correct; a prior
counted 1.5 times; positions that become NaN; a fatal status; a kernel that stands still; a rotation
tested as if reversible.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.core import FATAL, Target
from probinf.validity._rank_test import rank_test
from tests.validity._joint import Info, Metropolis, State, simulate, target_of

OPTIONS: Any = {"num_chains": 3000, "num_steps": 15}


def run(key, kernel, **kwargs):
    return rank_test(jax.random.clone(key), kernel, simulate, target_of, **{**OPTIONS, **kwargs})


def failures(report):
    return {check.subject for check in report.failures}


def test_sound_kernels_pass(key):
    report = run(key, Metropolis()).check()
    np.testing.assert_allclose(report.false_alarm_rate, 1e-6)
    assert [check.subject for check in report.checks[2:]] == [
        "density.log_likelihood",
        "density.log_prior",
        "position.x[0]",
        "position.x[1]",
    ]
    run(key, samplers.random_walk(0.8), num_steps=5).check()


def test_steps_of_any_size_give_uniform_ranks(key):
    """Chains that hardly move from the exact draw too: the ranks are exact, not asymptotic."""
    run(key, Metropolis(scale=0.05)).check()


def test_wrong_kernels_are_caught(key):
    assert not run(key, Metropolis(weight=0.0)).passed
    assert not run(key, Metropolis(drift=0.2)).passed
    assert not run(key, Metropolis(prior_weight=1.5)).passed


def test_chains_that_are_not_fit(key):
    assert failures(run(key, Metropolis(scale=0.0))) == {"share of chains standing still"}
    assert failures(run(key, Metropolis(fatal=int(FATAL)))) == {"chains with a fatal status"}
    report = run(key, Metropolis(poison=2.0))
    check = next(check for check in report.checks if check.subject == "position.x[0]")
    assert math.isnan(check.found)


def test_false_alarms_at_a_moderate_rate(key):
    # 200 reports at .05 of 60 chains each: the share lies within 6 standard errors above .05.
    keys = jax.random.split(key, 200)
    options = {"num_chains": 60, "num_steps": 9, "false_alarm_rate": 0.05}
    failed = 1 - np.mean([run(one, Metropolis(), **options).passed for one in keys])
    assert 0 < failed < 0.05 + 6 * math.sqrt(0.05 * 0.95 / 200)


class Turn(eqx.Module):
    """Turns the plane by an angle: leaves the standard normal law invariant, and is not reversible."""

    angle: Any = eqx.field(converter=jnp.asarray)

    def init(self, key, target, position):
        del key, target
        return State(position, jnp.zeros((), jnp.uint32))

    def step(self, key, target, state):
        del key, target
        c, s = jnp.cos(self.angle), jnp.sin(self.angle)
        x = jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]) @ state.position
        return State(x, state.status), Info(jnp.ones(()), state.status)


def test_a_kernel_that_is_not_reversible(key):
    def draw(key):
        return jax.random.normal(key, (2,)), ()

    def normal(data):
        return Target(lambda x: jnp.zeros(()), lambda x: -0.5 * jnp.sum(x**2))

    def product(x, data):
        return {"product": x[0] + 2 * x[1]}

    options = {"num_chains": 2000, "num_steps": 4, "statistics": product}
    forwards, backwards = Turn(0.4), Turn(-0.4)

    def positions(report):
        return [check for check in report.checks if check.subject.startswith(("position", "statistic"))]

    sound = rank_test(key, forwards, draw, normal, reverse=backwards, **options)
    assert all(check.passed for check in positions(sound))
    # Turned the same way both times, the chain comes back to values it has had: ranks go in pairs.
    wrong = rank_test(jax.random.clone(key), forwards, draw, normal, **options)
    assert not all(check.passed for check in positions(wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_chains": 1}, "`num_chains` is 1; needed at least 2"),
        ({"num_steps": 0}, "`num_steps` is 0; needed at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"false_alarm_rate": 1.5}, r"`false_alarm_rate` is 1\.5"),
    ],
)
def test_bad_arguments(key, change, message):
    with pytest.raises(ValueError, match=message):
        run(key, Metropolis(), **change)
