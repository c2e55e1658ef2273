"""Simulation-based calibration on conjugate models, one skewed, one with counts and ties.

Planted bugs, each shown to be caught below: a posterior too wide by 20 %, too narrow, shifted; one that ignores the
data (caught by the log-likelihood alone); a parameter whose draws are another's; a NaN draw.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.validity._ecdf_bands import uniformity
from probinf.validity._simulation import simulation_based_calibration, simulation_ranks

NOISE = 0.7


def simulate(key):
    """A skewed rate with one waiting time, and a location with one measurement."""
    keys = jax.random.split(key, 4)
    rate, location = jnp.sum(jax.random.exponential(keys[0], (2,))), jax.random.normal(keys[1], (2,))
    wait = jax.random.exponential(keys[2]) / rate
    return {"rate": rate, "x": location}, (wait, location + NOISE * jax.random.normal(keys[3], (2,)))


class Posterior(eqx.Module):
    """Exact with width 1 and shift 0; both are array leaves, so that planted bugs compile nothing."""

    width: Any = eqx.field(default=1.0, converter=jnp.asarray)
    shift: Any = eqx.field(default=0.0, converter=jnp.asarray)
    num_draws: int = eqx.field(static=True, default=63)

    def __call__(self, key, data):
        wait, y = data
        keys = jax.random.split(key)
        scale = math.sqrt(NOISE**2 / (1 + NOISE**2))
        noise = jax.random.normal(keys[1], (self.num_draws, 2))
        x = (y / (1 + NOISE**2))[None] + self.shift + self.width * scale * noise
        return {"rate": jnp.sum(jax.random.exponential(keys[0], (self.num_draws, 3)), axis=1) / (1 + wait), "x": x}


posterior = Posterior()


def log_likelihood(parameters, data):
    wait, y = data
    return (
        jnp.log(parameters["rate"]) - parameters["rate"] * wait - 0.5 * jnp.sum((y - parameters["x"]) ** 2) / NOISE**2
    )


def prior_draws(key, data):
    return jax.vmap(lambda one: simulate(one)[0])(jax.random.split(key, 63))


def run(key: Any, posterior: Any = posterior, num_simulations: int = 1500, **kwargs: Any) -> Any:
    defaults = {"simulate": simulate, "num_simulations": num_simulations, "num_draws": 63, "quantities": log_likelihood}
    return simulation_based_calibration(key, posterior=posterior, **{**defaults, **kwargs})


def test_a_sound_posterior_passes(key):
    report = run(key).check()
    assert [check.subject for check in report.checks] == ["rate", "x[0]", "x[1]", "quantity"]
    assert {check.law for check in report.checks} == {"calibration"}
    np.testing.assert_allclose(report.false_alarm_rate, 1e-6)
    assert "1500 simulations, 63 draws" in report.title


def test_false_alarms_at_a_moderate_rate(key):
    # 400 reports at .05: the share of failures lies within 6 standard errors above .05, and is not zero.
    ranks = simulation_ranks(key, simulate, posterior, num_simulations=400 * 60, num_draws=63, batch_size=1500)
    groups = ranks.ranks.reshape(400, 60, -1)
    passed = [[uniformity(column, 64, false_alarm_rate=0.05 / 3).passed for column in group.T] for group in groups]
    failed = 1 - np.mean(np.all(passed, axis=1))
    assert 0.01 < failed < 0.05 + 6 * math.sqrt(0.05 * 0.95 / 400)


def failures(report):
    return {check.subject for check in report.failures}


def test_too_wide_too_narrow_shifted(key):
    assert {"x[0]", "x[1]"} <= failures(run(key, Posterior(width=1.2)))
    assert {"x[0]", "x[1]"} <= failures(run(jax.random.clone(key), Posterior(width=0.8)))
    assert {"x[0]", "x[1]"} <= failures(run(jax.random.clone(key), Posterior(shift=0.15)))


def test_the_prior_is_caught_by_the_log_likelihood_only(key):
    report = run(key, prior_draws)
    assert failures(report) == {"quantity"}
    blind = run(jax.random.clone(key), prior_draws, quantities=None)
    assert blind.passed
    assert len(blind.checks) == 3


def test_swapped_parameters_are_caught(key):
    def swapped(key, data):
        draws = posterior(key, data)
        return {"rate": draws["rate"], "x": draws["x"][:, ::-1]}

    assert not run(key, swapped).passed


def test_counts_tie_and_are_ranked_at_random(key):
    """Two values of a parameter: without random ties the ranks would be 0 and far off."""
    p = np.array([0.9, 0.3])

    def joint(key):
        keys = jax.random.split(key)
        index = jax.random.bernoulli(keys[0], 0.4).astype(jnp.int32)
        return index, jax.random.bernoulli(keys[1], jnp.asarray(p)[index])

    def exact(key, y, odds=1.0):
        likelihood = jnp.where(y, jnp.asarray(p), 1 - jnp.asarray(p))
        weight = jnp.array([0.6, 0.4 * odds]) * likelihood
        return jax.random.bernoulli(key, weight[1] / jnp.sum(weight), (30,)).astype(jnp.int32)

    options: Any = {"num_simulations": 2000, "num_draws": 30}
    report = simulation_based_calibration(key, joint, exact, **options).check()
    assert report.checks[0].subject == "parameters"
    wrong = lambda k, y: exact(k, y, odds=2.0)  # noqa: E731
    assert not simulation_based_calibration(jax.random.clone(key), joint, wrong, **options).passed


def test_functions_of_numpy_run_in_a_loop(key):
    def host_simulate(key):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        x = rng.normal()
        return np.float32(x), x + rng.normal()

    def host_posterior(key, y):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return (y / 2 + math.sqrt(0.5) * rng.normal(size=20)).astype(np.float32)

    def host_quantity(x, y):
        return {"residual": np.abs(y - x)}

    options: Any = {"num_simulations": 40, "num_draws": 20, "quantities": host_quantity, "traceable": False}
    ranks = simulation_ranks(key, host_simulate, host_posterior, **options)
    assert ranks.names == ("parameters", "residual")
    assert ranks.ranks.shape == (40, 2)
    assert ranks.ranks.std(0).min() > 3
    setattr(host_simulate, "traceable", False)  # noqa: B010 a function may say so itself
    del options["traceable"]
    again = simulation_ranks(jax.random.clone(key), host_simulate, host_posterior, **options)
    np.testing.assert_array_equal(again.ranks, ranks.ranks)


@pytest.mark.slow
def test_loop_and_vmap_give_the_same_ranks(key):
    options: Any = {"num_simulations": 7, "num_draws": 63, "quantities": log_likelihood}
    ranks = simulation_ranks(key, simulate, posterior, batch_size=3, **options)
    again = simulation_ranks(jax.random.clone(key), simulate, posterior, traceable=False, **options)
    np.testing.assert_array_equal(again.ranks, ranks.ranks)
    assert again.names == ranks.names == ("rate", "x[0]", "x[1]", "quantity")


def test_nan_draws_fail(key):
    def broken(key, data):
        draws = posterior(key, data)
        return {"rate": draws["rate"], "x": draws["x"].at[3, 1].set(jnp.where(data[0] > 3, jnp.nan, 0.0))}

    report = run(key, broken, quantities=None, num_simulations=500)
    assert math.isnan(report.checks[2].found)
    assert not report.checks[2].passed


def test_bad_draws_are_named(key):
    with pytest.raises(ValueError, match=r"shape \(63, 2\) for parameters\['x'\]; needed \(64, 2\)"):
        run(key, lambda k, y: {**Posterior(num_draws=64)(k, y), "x": jnp.zeros((63, 2))}, num_draws=64)
    key = jax.random.clone(key)
    with pytest.raises(ValueError, match="return draws of the same tree"):
        run(key, lambda k, y: posterior(k, y)["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_simulations": 1}, "`num_simulations` is 1; needed at least 2"),
        ({"num_draws": 0}, "`num_draws` is 0; needed at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"false_alarm_rate": 2.0}, r"`false_alarm_rate` is 2\.0"),
        ({"false_alarm_rate": 2e-10}, r"`false_alarm_rate` is 2e-10 for 4 checks; needed at least 4e-10"),
        ({"num_simulations": 2}, "too few to ever fail"),
    ],
)
def test_bad_arguments(key, change, message):
    with pytest.raises(ValueError, match=message):
        run(key, **change)


def test_what_is_no_function_is_refused(key):
    not_callable: Any = 3
    with pytest.raises(TypeError, match="posterior"):
        simulation_based_calibration(key, simulate, not_callable, num_simulations=10, num_draws=3)
