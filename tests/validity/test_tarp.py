"""TARP on a correlated normal model: calibration and planted bugs.

Planted bugs, each shown to be caught below: too wide by 20 %, shifted; right margins but no correlation; a posterior
that equals the prior (passes where the references ignore the data); a NaN draw.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.validity._simulation import simulation_based_calibration
from probinf.validity._tarp import tarp

# y = x[0] + x[1] + noise: the two coordinates are anticorrelated given y.
NOISE = 0.3
GAIN = 1 / (2 + NOISE**2)


def simulate(key):
    keys = jax.random.split(key)
    x = jax.random.normal(keys[0], (2,))
    return {"x": x}, x[0] + x[1] + NOISE * jax.random.normal(keys[1])


class Posterior(eqx.Module):
    """Exact with the defaults; array leaves, so that planted bugs compile nothing."""

    width: Any = eqx.field(default=1.0, converter=jnp.asarray)
    shift: Any = eqx.field(default=0.0, converter=jnp.asarray)
    correlation: Any = eqx.field(default=-GAIN / (1 - GAIN), converter=jnp.asarray)
    poison: Any = eqx.field(default=jnp.inf, converter=jnp.asarray)

    def __call__(self, key, y):
        z = jax.random.normal(key, (63, 2))
        other = self.correlation * z[:, 0] + jnp.sqrt(1 - self.correlation**2) * z[:, 1]
        noise = math.sqrt(1 - GAIN) * jnp.stack([z[:, 0], other], axis=1)
        return {"x": jnp.where(y > self.poison, jnp.nan, GAIN * y + self.shift + self.width * noise)}


def prior_draws(key, y):
    return {"x": jax.random.normal(key, (63, 2))}


def run(key, posterior=None, test=tarp, **kwargs):
    defaults = {"num_simulations": 2000, "num_draws": 63}
    posterior = Posterior() if posterior is None else posterior
    return test(jax.random.clone(key), simulate, posterior, **{**defaults, **kwargs})


def test_a_sound_posterior_passes(key):
    report = run(key).check()
    assert [check.subject for check in report.checks] == [f"reference {index}" for index in range(4)]
    np.testing.assert_allclose(report.false_alarm_rate, 1e-6)


def test_wrong_posteriors_are_caught(key):
    assert not run(key, Posterior(width=1.2)).passed
    assert not run(key, Posterior(width=0.8)).passed
    assert not run(key, Posterior(shift=0.3)).passed


def test_missing_correlation_is_caught_here_and_not_by_ranks(key):
    assert not run(key, Posterior(correlation=0.0)).passed
    assert run(key, Posterior(correlation=0.0), simulation_based_calibration).passed


def test_the_prior_is_caught_by_references_that_see_the_data(key):
    assert not run(key, prior_draws).passed
    assert run(key, prior_draws, reference=lambda k, y: simulate(k)[0]).passed


def test_references_of_the_user(key):
    reference = lambda k, y: {"x": jnp.stack([y, y]) + jax.random.normal(k, (2,))}  # noqa: E731
    run(key, reference=reference, num_references=1).check()
    assert not run(key, prior_draws, reference=reference, num_references=1).passed


def test_false_alarms_at_a_moderate_rate(key):
    # 200 reports at .05 of 80 simulations each: the share lies within 6 standard errors above .05.
    keys = jax.random.split(key, 200)
    failed = 1 - np.mean([run(one, num_simulations=80, false_alarm_rate=0.05).passed for one in keys])
    assert 0 < failed < 0.05 + 6 * math.sqrt(0.05 * 0.95 / 200)


def test_nan_draws_fail(key):
    report = run(key, Posterior(poison=2.0))
    assert all(math.isnan(check.found) for check in report.checks)
    assert not report.passed


@pytest.mark.slow
def test_a_loop_gives_the_same(key):
    options = {"num_simulations": 16, "num_references": 1, "false_alarm_rate": 0.1}
    found = [[check.found for check in run(key, traceable=flag, **options).checks] for flag in (True, False)]
    np.testing.assert_allclose(found[0], found[1], rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_simulations": 1}, "`num_simulations` is 1"),
        ({"num_draws": 64}, r"needed \(64, 2\): `num_draws` draws"),
        ({"num_references": 0}, "`num_references` is 0"),
        ({"num_pilot": 1}, "`num_pilot` is 1"),
        ({"false_alarm_rate": 0.0}, "`false_alarm_rate` is 0"),
    ],
)
def test_bad_arguments(key, change, message):
    with pytest.raises(ValueError, match=message):
        run(key, **change)
