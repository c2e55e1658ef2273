"""Warm-up's parts: dual averaging by hand, moments against NumPy, the windows of Stan, and the tuned kernels.

Planted bugs that must be caught: a mean over chains that includes a failed one (`test_a_failed_chain_...`), moments
that are not reset or not centred (`test_welford_...`), windows off by one (`test_windows_...`).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._status import InferenceError, InferenceWarning, is_fatal
from probinf.core._target import Target
from probinf.samplers import _warmup
from probinf.samplers._adaptation import (
    regularised_factor,
    stan_windows,
    start_averaging,
    start_welford,
    tree_sum,
    update_averaging,
    update_welford,
    window_ends,
)
from probinf.samplers._hmc import hmc
from probinf.samplers._initial import init_chains
from probinf.samplers._random_walk import random_walk
from probinf.samplers._warmup import prepare_warmup, warmup
from tests._slow import slow_after


def test_windows_are_those_of_stan() -> None:
    assert window_ends(1000) == (75, [100, 150, 250, 450, 950])
    assert window_ends(500) == (75, [100, 150, 250, 450])
    assert window_ends(100) == (15, [90])
    assert window_ends(150) == (75, [100])
    assert window_ends(19) == (19, [])
    assert window_ends(0)[1] == []


@pytest.mark.parametrize("num_steps", [1, 20, 149, 150, 151, 777, 10_000, 1_000_000_000])
def test_windows_tile_the_slow_phase(num_steps: int) -> None:
    start, ends = window_ends(num_steps)
    edges = [start, *ends]
    assert edges == sorted(set(edges))
    assert not ends or ends[-1] < num_steps
    arrays = stan_windows(num_steps)
    assert [int(e) + 1 for e in arrays.ends if e >= 0] == ends


def test_dual_averaging_follows_its_formula() -> None:
    state, error, log_average = start_averaging(jnp.float32(0.5)), 0.0, 0.0
    centre = np.log(5.0)
    for t, alpha in enumerate([0.3, 1.0, 0.9, float("nan"), 0.6], start=1):
        state = update_averaging(state, jnp.float32(alpha), jnp.float32(0.8))
        error = (1 - 1 / (t + 10)) * error + (0.8 - np.nan_to_num(alpha)) / (t + 10)
        log_step = centre - np.sqrt(t) / 0.05 * error
        log_average = t**-0.75 * log_step + (1 - t**-0.75) * log_average
        np.testing.assert_allclose([state.log_step, state.log_average], [log_step, log_average], rtol=1e-4)


def test_dual_averaging_finds_the_step_size_of_a_known_acceptance_curve() -> None:
    def body(_: Any, state: Any) -> Any:
        return update_averaging(state, jnp.exp(-jnp.exp(state.log_step)), jnp.float32(0.8))

    for first in (1e-3, 1.0, 1e3):
        state = jax.lax.fori_loop(0, 5000, body, start_averaging(jnp.float32(first)))
        assert np.exp(state.log_average) == pytest.approx(-np.log(0.8), rel=0.1)


@pytest.mark.parametrize("acceptance", [0.0, 1.0, float("nan")])
def test_step_size_stays_finite_and_positive(acceptance: float) -> None:
    def body(_: Any, state: Any) -> Any:
        return update_averaging(state, jnp.float32(acceptance), jnp.float32(0.8))

    state = jax.lax.fori_loop(0, 20_000, body, start_averaging(jnp.float32(1.0)))
    step = np.exp([state.log_step, state.log_average])
    assert np.all(np.isfinite(step) & (step > 0))


@pytest.mark.parametrize("dense", [False, True])
def test_welford_matches_numpy_and_skips_failed_chains(dense: bool) -> None:
    rng = np.random.default_rng(0)
    batches = (rng.gamma(1.5, size=(7, 5, 3)) * [1.0, 20.0, 0.1] + [100.0, 0.0, -5.0]).astype(np.float32)
    batches[2, 1] = np.nan
    use = np.ones((7, 5), bool)
    use[2, 1] = use[3] = False
    state = start_welford(3, dense=dense, dtype=jnp.dtype(jnp.float32))
    for batch, mask in zip(batches, use, strict=True):
        state = update_welford(state, jnp.asarray(batch), jnp.asarray(mask))
    kept = batches[use].astype(np.float64)
    covariance = np.cov(kept.T)
    expected = covariance if dense else np.diagonal(covariance)
    assert int(state.num) == len(kept)
    np.testing.assert_allclose(state.mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.sum_squares / (len(kept) - 1), expected, rtol=1e-4, atol=1e-4)
    n = len(kept)
    shrunk = n / (n + 5) * covariance + 5e-3 / (n + 5) * np.eye(3)
    factor = np.asarray(regularised_factor(state, jnp.zeros_like(state.sum_squares)), np.float64)
    found = factor @ factor.T if dense else np.diag(factor**2)
    np.testing.assert_allclose(found, shrunk if dense else np.diag(np.diagonal(shrunk)), rtol=1e-4, atol=1e-4)


def test_factor_of_no_draws_is_the_old_one() -> None:
    empty = start_welford(2, dense=True, dtype=jnp.dtype(jnp.float32))
    np.testing.assert_array_equal(regularised_factor(empty, 3 * jnp.eye(2)), 3 * np.eye(2))


@pytest.mark.parametrize("num", [1, 2, 3, 7, 64])
def test_tree_sum(num: int) -> None:
    values = jnp.arange(num * 2, dtype=jnp.float32).reshape(num, 2)
    np.testing.assert_array_equal(tree_sum(values), values.sum(0))


class Gaussian(eqx.Module):
    sd: Any

    def __call__(self, x: Any) -> Any:
        return -0.5 * jnp.sum((x / self.sd) ** 2)


def after_one_step(kernel: Any, target: Target, positions: Any) -> Any:
    chains = init_chains(jax.random.key(0), kernel, target, positions)
    step, state = prepare_warmup(kernel, target, chains, 1000, None, None)
    return eqx.filter_jit(step)(jax.random.key(1), jnp.int32(0), state)


@pytest.mark.parametrize("kind", ["constant", "nan", "huge", "tiny", "linear"])
@pytest.mark.parametrize("make", slow_after(1, [hmc, random_walk]))
def test_step_size_search_ends_finite_and_positive(kind: str, make: Any) -> None:
    densities = {
        "constant": lambda x: 0 * jnp.sum(x),
        "nan": lambda x: jnp.nan * jnp.sum(x),
        "huge": Gaussian(jnp.float32(1e18)),
        "tiny": Gaussian(jnp.float32(1e-15)),
        "linear": jnp.sum,
    }
    state, acceptance = after_one_step(make(), Target(densities[kind]), jnp.zeros((2, 3)))
    averaging = state.learned.averaging
    step = np.exp(np.asarray([averaging.log_step, averaging.centre], np.float64))
    assert np.all(np.isfinite(step) & (step > 0))
    assert 0 <= float(acceptance) <= 1
    if kind == "huge":
        assert step[1] / 10 > 1e16
    if kind == "tiny":
        assert step[1] / 10 < 1e-14


def test_a_failed_chain_is_left_out_of_what_is_pooled() -> None:
    target = Target(lambda x: jnp.where(x[0] > 50, jnp.nan, -0.5 * jnp.sum(x * x)))
    positions = jnp.array([[0.3, 0.1], [-1.0, 0.5], [100.0, 100.0]])
    state, acceptance = after_one_step(hmc(0.1, 3), target, positions)
    without, expected = after_one_step(hmc(0.1, 3), target, positions[:2])
    assert np.asarray(is_fatal(state.chains.status)).tolist() == [False, False, True]
    assert float(acceptance) == float(expected)
    np.testing.assert_array_equal(state.chains.position[:2], without.chains.position)
    assert float(state.learned.averaging.log_step) == float(without.learned.averaging.log_step)
    tuned = warmup(jax.random.key(0), hmc(0.1, 3), target, num_steps=300, num_chains=3, initial_position=positions,
                   throw=False)  # fmt: skip
    np.testing.assert_allclose(tuned.factor, 1.0, atol=0.3)


@pytest.mark.parametrize("dense", [False, True])
def test_warmup_learns_scales_and_acceptance(dense: bool, key: Any) -> None:
    # Pooled moments over 8 chains x 500 draws: the sd of 4000 correlated draws is within 20 % at far over 6 sigma.
    sd = np.array([0.1, 1.0, 10.0])
    target = Target(Gaussian(jnp.asarray(sd, jnp.float32)))
    key_tune, key_run = jax.random.split(key)
    tuned = warmup(key_tune, hmc(dense=dense), target, num_chains=8, initial_position=jnp.ones((8, 3)))
    factor = np.asarray(tuned.factor)
    np.testing.assert_allclose(np.diagonal(factor) if dense else factor, sd, rtol=0.2)
    states = init_chains(jax.random.key(0), tuned, target, jnp.ones((8, 3)))

    def body(states: Any, k: Any) -> Any:
        states, info = jax.vmap(lambda k, s: tuned.step(k, target, s))(jax.random.split(k, 8), states)
        return states, info.acceptance_rate

    _, rates = jax.jit(lambda s, k: jax.lax.scan(body, s, jax.random.split(k, 300)))(states, key_run)
    assert 0.7 < float(rates.mean()) < 0.95


def test_warmup_checks_its_arguments() -> None:
    target = Target(Gaussian(jnp.float32(1.0)))
    with pytest.raises(ValueError, match="`num_steps` is 0; needed at least 1"):
        warmup(jax.random.key(0), hmc(), target, num_steps=0)
    with pytest.raises(ValueError, match="target_accept"):
        warmup(jax.random.key(0), hmc(), target, target_accept=1.0)
    with pytest.raises(TypeError, match="nothing to tune"):
        warmup(jax.random.key(0), "hmc", target)
    with pytest.raises(ValueError, match="sample_prior"):
        warmup(jax.random.key(0), hmc(), target)
    with pytest.raises(TypeError, match=r"`warmup` runs a loop on the host.*`key` is traced"):
        jax.jit(lambda k: warmup(k, hmc(), target, initial_position=jnp.ones((4, 1))))(jax.random.key(0))


def test_warmup_raises_on_fatal_chains_at_either_end() -> None:
    bad_start = Target(lambda x: jnp.where(x[0] > 50, jnp.nan, -0.5 * jnp.sum(x * x)))
    positions = jnp.array([[0.3], [100.0]])
    options: dict[str, Any] = {"num_steps": 30, "num_chains": 2}
    with pytest.raises(InferenceError, match=r"`warmup` failed.\nNONFINITE_INIT \[members \[1\] of 2\]"):
        warmup(jax.random.key(0), hmc(0.1, 3), bad_start, initial_position=positions, **options)
    # Density +inf a little away from the start: met on the way.
    bad_end = Target(lambda x: jnp.where(jnp.abs(x[0]) > 1, jnp.inf, -0.5 * jnp.sum(x * x)))
    with pytest.raises(InferenceError, match="POSINF_LOG_WEIGHT") as caught:
        warmup(jax.random.key(0), random_walk(1.0), bad_end, initial_position=jnp.zeros((2, 1)), **options)
    assert type(caught.value.result).__name__ == "RandomWalk"


def test_warmup_warns_when_interrupted(monkeypatch: Any) -> None:
    whole = _warmup.run_steps
    monkeypatch.setattr(_warmup, "run_steps", lambda *a, **k: whole(*a, **k)._replace(interrupted=True))
    target, start = Target(Gaussian(jnp.float32(1.0))), jnp.zeros((2, 1))
    with pytest.warns(InferenceWarning, match="INTERRUPTED"):
        warmup(jax.random.key(0), hmc(0.1, 3), target, num_steps=10, num_chains=2, initial_position=start)
