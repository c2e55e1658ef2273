"""Warm-up of `mclmc`: the search of the step size, batch means, and both in a whole warm-up."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers
from probinf.core._target import Target
from probinf.samplers._mclmc import mclmc
from probinf.samplers._mclmc_tuning import (
    autocorrelation_time,
    start_batches,
    start_search,
    update_batches,
    update_search,
)
from tests._compilations import COMPILED

CHAINS, WANTED = 8, 0.01


@jax.jit
def search(key: Any, log_start: Any, log_best: Any, faults: Any) -> Any:
    """400 steps with energy errors that are normal with variance WANTED (step / best)^6; faults are added."""

    def body(state: Any, key: Any) -> Any:
        errors = 0.1 * jnp.exp(3 * (state.log_step - log_best)) * jax.random.normal(key, (CHAINS,))
        # A chain that counts fails where its error is not finite; one that does not count is at NaN.
        use = jnp.arange(CHAINS) != 3
        changes = jnp.where(use, errors + faults, jnp.nan)
        return update_search(state, changes, ~jnp.isfinite(changes), use, jnp.float32(WANTED)), state.log_step

    return jax.lax.scan(body, start_search(log_start), jax.random.split(key, 400))


@pytest.mark.parametrize(("start", "best"), [(1.0, 0.7), (1e-6, 3.0), (1e8, 1e3), (1e20, 1e30)])
def test_step_size_is_found(start: float, best: float, key: Any) -> None:
    """The last 400 or so errors count, so the sixth root is right to 2 %; the weights lift it by at most 4 %."""
    state, log_steps = search(key, jnp.log(jnp.float32(start)), jnp.log(jnp.float32(best)), jnp.zeros(CHAINS))
    assert abs(float(state.log_step) - np.log(best)) < 0.15
    assert np.max(np.abs(np.diff(log_steps))) < np.log(2) + 1e-5


@pytest.mark.parametrize(("faults", "least", "most"), [(np.nan, -80, -79), (-np.inf, -80, -79), (0.0, 79, 80)])
def test_step_size_stays_finite_and_positive(faults: float, least: float, most: float, key: Any) -> None:
    """All steps fail, or no step has an error: the search halves or doubles, to its bound."""
    state, _ = search(key, jnp.zeros(()), jnp.float32(1000.0), jnp.full(CHAINS, faults))
    assert least <= float(state.log_step) <= most
    assert 0 < float(jnp.exp(state.log_step)) < np.inf


def test_one_chain_that_always_fails_moves_the_step_size_little(key: Any) -> None:
    state, _ = search(key, jnp.zeros(()), jnp.zeros(()), jnp.zeros(CHAINS).at[5].set(jnp.nan))
    assert -0.15 < float(state.log_step) < 0.1


def test_autocorrelation_time_of_an_autoregression(key: Any) -> None:
    """(1 + r) / (1 - r), 3 for one half; 8,000 batches are within .26 of it in 6 standard errors. NaN is left out."""
    num_steps, dimension, length = 2000, 20, jnp.int32(20)

    @jax.jit
    def run(key: Any) -> Any:
        key_start, key_run = jax.random.split(key)

        def body(carry: Any, i: Any) -> Any:
            x, batches = carry
            noise = jax.random.normal(jax.random.fold_in(key_run, i), x.shape)
            x = 0.5 * x + np.sqrt(0.75) * noise
            # One coordinate stands still and one chain is at NaN.
            rows = (x + 50).at[:, 0].set(7.0).at[2].set(jnp.nan)
            batches = update_batches(batches, rows, jnp.arange(CHAINS) != 2, i, length)
            return (x, batches), None

        x = jax.random.normal(key_start, (CHAINS, dimension))
        (_, batches), _ = jax.lax.scan(body, (x, start_batches(x)), jnp.arange(num_steps, dtype=jnp.int32))
        return autocorrelation_time(batches, length), batches

    time, batches = run(key)
    assert abs(float(time) / 3 - 1) < 0.26
    assert [float(w.num) for w in (batches.single, batches.short, batches.long)] == [14_000, 700, 350]
    assert np.isnan(autocorrelation_time(start_batches(jnp.zeros((2, 2))), length))


class Scaled(eqx.Module):
    """Normal, with these deviations about 5."""

    scales: Any

    def __call__(self, x: Any) -> Any:
        return -0.5 * jnp.sum(((x - 5) / self.scales) ** 2)


@pytest.mark.slow
def test_warm_up_learns_all_and_a_nan_chain_disturbs_nothing(key: Any) -> None:
    """Deviations of .01 to 100. The energy variance is within a factor of 2 of what is sought."""
    scales = jnp.array([0.01, 1.0, 1.0, 1.0, 10.0, 100.0])
    target = Target(Scaled(scales))
    key_start, key_warmup, key_draws = jax.random.split(key, 3)
    positions = 5 + scales[None, :] * jax.random.normal(key_start, (CHAINS, 6))
    bad = positions.at[3].set(jnp.nan)

    def warm_up(key: Any, kernel: Any, target: Target, num_steps: int) -> Any:
        return samplers.warmup(
            key, kernel, target, num_steps=num_steps, num_chains=CHAINS, initial_position=bad, throw=False
        )

    tuned = warm_up(key_warmup, mclmc(), target, 600)
    np.testing.assert_allclose(tuned.factor / scales, 1, atol=0.4)
    assert 0.1 < float(tuned.decoherence) < 3
    draws = samplers.sample(
        key_draws, tuned, target, num_samples=1000, num_warmup=0, num_chains=CHAINS, initial_position=positions
    )
    variance = float(np.mean(draws.info["energy_change"] ** 2)) / 6
    assert 2.5e-4 < variance < 1e-3
    samples = (np.asarray(draws.samples) - 5) / np.asarray(scales)
    # Over 1000 independent draws (of 8000) in each coordinate, so 6 standard errors are .19; the bias is .03.
    assert np.all(np.abs(np.mean(samples, axis=(0, 1))) < 0.22)
    assert np.all(np.abs(np.mean(samples**2, axis=(0, 1)) - 1) < 0.3)

    other, kernel = jax.block_until_ready((Target(Scaled(2 * scales)), mclmc(0.3)))
    COMPILED.clear()
    warm_up(jax.random.key(5), kernel, other, 250)
    assert not COMPILED


@pytest.mark.parametrize("num_steps", [1, 7, 40])
@pytest.mark.parametrize("scale", [1e-15, 1e15, np.inf])
def test_short_warm_up_and_extreme_targets_end(num_steps: int, scale: float) -> None:
    """The scale is infinite for a constant density."""
    target = Target(Scaled(jnp.full(3, scale, jnp.float32)))
    positions = jnp.arange(6.0).reshape(2, 3)
    tuned = samplers.warmup(
        jax.random.key(0), mclmc(), target, num_steps=num_steps, num_chains=2, initial_position=positions
    )
    for value in (tuned.step_size, tuned.decoherence, *tuned.factor):
        assert 0 < float(value) < np.inf


def test_there_is_no_acceptance_to_aim_at() -> None:
    with pytest.raises(ValueError, match=r"`target_accept` is 0\.9, but `mclmc` accepts everything"):
        mclmc().tuner(100, 0.9)
