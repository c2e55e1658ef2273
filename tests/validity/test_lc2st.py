"""The local classifier test on a normal model: exact p-values and planted bugs.

Planted bugs, each shown to be caught below: too wide by 30 %; shifted; a posterior that equals the prior; a NaN draw.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.validity._lc2st import lc2st

NOISE = 0.5
GAIN = 1 / (1 + NOISE**2)


def simulate(key):
    keys = jax.random.split(key)
    x = jax.random.normal(keys[0])
    return x, x + NOISE * jax.random.normal(keys[1])


class Posterior(eqx.Module):
    """Exact with the defaults; array leaves, so that planted bugs compile nothing."""

    width: Any = eqx.field(default=1.0, converter=jnp.asarray)
    shift: Any = eqx.field(default=0.0, converter=jnp.asarray)
    gain: Any = eqx.field(default=GAIN, converter=jnp.asarray)
    poison: Any = eqx.field(default=jnp.inf, converter=jnp.asarray)

    def __call__(self, key, y):
        draws = self.gain * y + self.shift + self.width * math.sqrt(1 - GAIN) * jax.random.normal(key, (50,))
        return jnp.where(y > self.poison, jnp.nan, draws)


def run(key, posterior=None, observation=0.8, **kwargs):
    posterior = Posterior() if posterior is None else posterior
    defaults = {"num_simulations": 1000, "num_draws": 50, "num_nulls": 99}
    return lc2st(jax.random.clone(key), simulate, posterior, jnp.asarray(observation), **{**defaults, **kwargs})


def test_a_sound_posterior_passes(key):
    report = run(key).check()
    check = report.checks[0]
    assert report.false_alarm_rate == 0.01
    np.testing.assert_allclose(check.bound, 0.98)
    assert 0 <= check.found <= 0.98


def test_wrong_posteriors_are_caught(key):
    assert not run(key, Posterior(width=1.3)).passed
    assert not run(key, Posterior(shift=0.2)).passed
    assert not run(key, Posterior(gain=0.0, width=1 / math.sqrt(1 - GAIN))).passed  # the prior


@pytest.mark.slow
def test_false_alarms_at_a_moderate_rate(key):
    # 300 p-values in steps of .05, each training on 50 pairs: .1 of them at most .1, within 6 standard errors.
    keys = jax.random.split(key, 300)
    options = {"num_simulations": 50, "num_nulls": 19, "false_alarm_rate": 0.1}
    checks = [run(one, **options).checks[0] for one in keys]
    error = 6 * math.sqrt(0.1 * 0.9 / 300)
    np.testing.assert_allclose(np.mean([not check.passed for check in checks]), 0.1, atol=error)
    np.testing.assert_allclose(np.mean([check.found for check in checks]), 0.475, atol=6 * 0.29 / math.sqrt(300))


def test_features_of_the_user(key):
    features = lambda x, y: jnp.stack([x, x * y])  # noqa: E731
    assert not run(key, Posterior(shift=0.2), features=features).passed
    assert run(key, Posterior(width=1.3), features=features, num_simulations=300).passed  # not what they can see


def test_nan_draws_fail(key):
    check = run(key, Posterior(poison=1.5), num_simulations=200).checks[0]
    assert math.isnan(check.found)
    assert not check.passed


def test_the_smallest_rate(key):
    assert run(key, num_nulls=49, num_simulations=100, false_alarm_rate=0.02).false_alarm_rate == 0.02
    with pytest.raises(ValueError, match=r"`num_nulls` 49 the smallest is 0\.02: take 99 nulls"):
        run(key, num_nulls=49, false_alarm_rate=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_simulations": 1}, "`num_simulations` is 1"),
        ({"num_draws": 51}, r"needed \(51,\)"),
        ({"num_nulls": 0}, "`num_nulls` is 0"),
        ({"false_alarm_rate": 1.0}, r"`false_alarm_rate` is 1\.0"),
    ],
)
def test_bad_arguments(key, change, message):
    with pytest.raises(ValueError, match=message):
        run(key, **change)
