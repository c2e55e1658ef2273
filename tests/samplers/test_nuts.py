"""`nuts` and interleaved chains: against a naive trajectory that keeps all its points, bounds, flags, driver.

Planted bugs, each seen to fail against the naive trajectory: a row too low for what is kept; sums without their first
point; the half chosen by its share of the whole; directions that change within a half.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers, validity
from probinf.core import Moments, Status, Target, _chunk, standard_normal
from probinf.samplers import _nuts
from tests._compilations import COMPILED


def log_density(x: Any) -> Any:
    """Skewed, with scales that differ by four."""
    return jnp.sum(2 * x - jnp.exp(x)) - 0.5 * jnp.sum((4 * x[:1]) ** 2)


TARGET = Target(log_density)


def naive(kernel: Any, key: Any, start: Any) -> tuple[Any, int, int]:
    """Position, number of steps and of doublings, by a list of all points and every dyadic part of it."""
    epsilon, force = float(kernel.step_size), jax.jit(jax.grad(log_density))
    density = jax.jit(log_density)
    key_z, key_tree = jax.random.split(key)
    bits = jax.random.bits(key_tree, (2,), jnp.uint32)
    momentum = np.asarray(standard_normal(key_z, start.shape, jnp.zeros(()).dtype))

    def turns(part: list[Any]) -> bool:
        first, last, total = part[0][1], part[-1][1], np.sum([z for _, z, _ in part], axis=0)
        inner = total - 0.5 * (first + last)
        return bool(first @ inner <= 0 or last @ inner <= 0)

    def step(x: np.ndarray, z: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        z = z + 0.5 * epsilon * np.asarray(force(jnp.asarray(x)))
        x = x + epsilon * z
        return x, z + 0.5 * epsilon * np.asarray(force(jnp.asarray(x)))

    energy = 0.5 * momentum @ momentum - float(density(jnp.asarray(start)))
    points, chosen, weight, count = [(start, momentum, 0.0)], start, 1.0, 0
    sign, words = 1, [0, 0]
    for depth in range(kernel.max_depth):
        half, picked, share = [], None, 0.0
        for n in range(2**depth):
            words = [int(word) for word in _nuts._words(bits, jnp.int32(count))]
            if n == 0:
                sign = 1 if words[0] % 2 else -1
            before = half[-1] if half else points[-1] if sign == 1 else points[0]
            x, z = step(before[0], before[1], sign * epsilon)
            count += 1
            point = np.exp(energy - (0.5 * z @ z - float(density(jnp.asarray(x)))))
            half.append((x, z, point))
            share += point
            if (words[0] >> 8) / 2**24 < point / share:
                picked = x
            sizes = [2**k for k in range(1, depth + 1) if (n + 1) % 2**k == 0]
            if any(turns(half[n + 1 - size :]) for size in sizes):
                return chosen, count, depth
        if (words[1] >> 8) / 2**24 < share / weight:
            chosen = picked
        weight += share
        points = points + half if sign == 1 else half[::-1] + points
        if turns(points):
            return chosen, count, depth + 1
    return chosen, count, kernel.max_depth


@pytest.mark.no_key_reuse  # the reference draws the same numbers
def test_a_transition_is_that_of_the_naive_trajectory(x64: None) -> None:
    kernel, depths = samplers.nuts(0.13, max_depth=6), set()
    step = jax.jit(lambda key, state: kernel.step(key, TARGET, state))
    for seed in range(25):
        key = jax.random.key(seed)
        start = np.random.default_rng(seed).normal(size=3)
        state, info = step(key, kernel.init(key, TARGET, jnp.asarray(start)))
        position, num_steps, depth = naive(kernel, key, start)
        assert (int(info.num_steps), int(info.tree_depth)) == (num_steps, depth)
        np.testing.assert_allclose(state.position, position, rtol=1e-9)
        depths.add(depth)
    assert len(depths) >= 3


@pytest.mark.parametrize("matrix", [None, [[1.0, 0.3], [0.3, 0.6]]])
def test_law(matrix: Any, x64: None) -> None:
    """Stationarity and reversibility, at a rate of 1e-6."""
    exact = validity.exact_target("skewed")
    kernel = samplers.nuts(0.4, inverse_mass_matrix=None if matrix is None else jnp.asarray(matrix), max_depth=4)
    options = {"num_chains": 4000, "num_steps": 2, "reversible": True}
    report = validity.stationarity(jax.random.key(0), kernel, exact.target, exact.draw, **options)
    assert report.passed, report.table


@pytest.mark.parametrize("depth", [1, 3])
def test_a_constant_density_ends_at_the_bound(depth: int) -> None:
    flat = Target(lambda x: 0.0 * jnp.sum(x))
    kernel = samplers.nuts(0.1, max_depth=depth)
    state = kernel.init(jax.random.key(0), flat, jnp.zeros(2))
    state, info = kernel.step(jax.random.key(1), flat, state)
    assert int(info.num_steps) == 2**depth - 1
    assert float(info.acceptance_rate) == 1
    assert np.all(np.isfinite(state.position))
    assert int(state.status) == 0


@pytest.mark.parametrize(
    ("density", "bit"),
    [
        (lambda x: jnp.where(jnp.sum(x) > 0.05, jnp.nan, -jnp.sum(x * x)), Status.DIVERGENT),
        (lambda x: jnp.where(jnp.sum(x) > 0.05, -1e6, -jnp.sum(x * x)), Status.DIVERGENT),
        (lambda x: jnp.where(jnp.sum(x) > 0.05, jnp.inf, -jnp.sum(x * x)), Status.POSINF_LOG_WEIGHT),
    ],
)
def test_faults_end_the_trajectory_and_are_flagged(density: Any, bit: Status) -> None:
    kernel, target = samplers.nuts(0.5), Target(density)
    states = jax.vmap(lambda key: kernel.init(key, target, jnp.zeros(1)))(jax.random.split(jax.random.key(0), 50))
    states, info = jax.vmap(kernel.step, (0, None, 0))(jax.random.split(jax.random.key(1), 50), target, states)
    flagged = np.asarray(states.status) & int(bit) != 0
    assert flagged.any()
    assert np.all(np.asarray(states.position)[:, 0] <= 0.05)
    np.testing.assert_array_equal(np.asarray(info.divergent), np.asarray(info.status) & int(Status.DIVERGENT) != 0)
    again, info = jax.vmap(kernel.step, (0, None, 0))(jax.random.split(jax.random.key(2), 50), target, states)
    if bit == Status.POSINF_LOG_WEIGHT:  # fatal: frozen where it was
        np.testing.assert_array_equal(again.position[flagged], states.position[flagged])
        assert np.all(np.asarray(info.num_steps)[flagged] == 0)


def test_a_step_size_that_is_not_positive_is_a_divergence() -> None:
    kernel = eqx.tree_at(lambda k: k.step_size, samplers.nuts(0.1), jnp.asarray(-0.1))
    state = kernel.init(jax.random.key(0), TARGET, jnp.zeros(2))
    new, info = kernel.step(jax.random.key(1), TARGET, state)
    assert bool(info.divergent)
    np.testing.assert_array_equal(new.position, state.position)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step_size": -1.0}, "`step_size` must be finite and positive"),
        ({"max_depth": 0}, "`max_depth` is 0"),
        ({"max_depth": 40}, "`max_depth` is 40; needed at most 20"),
        ({"target_accept": 1.0}, "`target_accept` is 1.0"),
    ],
)
def test_bad_arguments(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        samplers.nuts(**options)


# --- Interleaved chains ---

NUM_CHAINS = 12
STARTS = np.random.default_rng(0).normal(size=(NUM_CHAINS, 3)).astype(np.float32)


def drawn(num_samples: int = 20, **options: Any) -> Any:
    options = {"num_warmup": 0, "num_chains": NUM_CHAINS, "initial_position": jnp.asarray(STARTS)} | options
    return samplers.sample(
        jax.random.key(3), samplers.nuts(0.2, max_depth=6), TARGET, num_samples=num_samples, **options
    )


@pytest.fixture(scope="module")
def draws() -> Any:
    return drawn()


@pytest.mark.no_key_reuse
def test_interleaved_chains_are_the_chains_one_by_one(draws: Any) -> None:
    kernel = samplers.nuts(0.2, max_depth=6)
    run_key = jax.random.split(jax.random.key(3), 3)[2]
    words = jax.random.bits(jax.random.fold_in(run_key, 0), (2,), jnp.uint32)
    base = jax.random.wrap_key_data(words, impl="threefry2x32")
    keys = [jax.random.fold_in(base, chain) for chain in range(NUM_CHAINS)]
    step = jax.jit(lambda key, state: kernel.step(key, TARGET, state))
    for chain in (0, 7):
        state = kernel.init(run_key, TARGET, jnp.asarray(STARTS[chain]))
        for i in range(20):
            state, info = step(jax.random.fold_in(keys[chain], i), state)
            np.testing.assert_allclose(draws.samples[chain, i], state.position, rtol=1e-4, atol=1e-5)
            assert int(draws.info["num_steps"][chain, i]) == int(info.num_steps)
    assert np.ptp(np.asarray(draws.info["num_steps"]).sum(axis=1)) > 0


@pytest.mark.no_key_reuse
def test_chains_with_other_keys_draw_apart() -> None:
    """Keys of rbg under vmap draw for all chains from the first, which here is not always due."""
    normal = Target(lambda x: -0.5 * jnp.sum(x * x))
    start = jnp.zeros((16, 1))
    found = samplers.sample(
        jax.random.key(0, impl="rbg"),
        samplers.nuts(0.6),
        normal,
        num_samples=500,
        num_warmup=0,
        num_chains=16,
        initial_position=start,
    )
    kinetic = np.asarray(found.info["energy"])[:, 1:] + np.asarray(found.info["log_density"])[:, :-1]
    assert np.unique(kinetic.round(5)).size > 0.9 * kinetic.size
    # Of 8,000 draws, hardly dependent: 6 standard errors.
    assert abs(float(np.var(np.asarray(found.samples))) - 1) < 6 * np.sqrt(2 / 4000)


def test_float32_positions_with_a_float64_density(x64: None) -> None:
    mixed = Target(lambda x: -0.5 * jnp.sum(x.astype(jnp.float64) ** 2), lambda x: jnp.zeros((), jnp.float64))
    kernel = samplers.nuts(0.5)
    state = kernel.init(jax.random.key(0), mixed, jnp.zeros(2, jnp.float32))
    state, info = kernel.step(jax.random.key(1), mixed, state)
    assert state.position.dtype == jnp.float32
    assert info.log_density.dtype == jnp.float64


def test_warmup_learns_scales_and_does_not_depend_on_calls(tmp_path: Any) -> None:
    """A Gaussian of scales .1 and 10: within a tenth, of 16 chains and 400 steps."""
    scales = jnp.array([0.1, 10.0])
    target = Target(lambda x: -0.5 * jnp.sum((x / scales) ** 2))
    options: dict[str, Any] = {
        "num_warmup": 400,
        "num_chains": 16,
        "initial_position": jnp.zeros((16, 2)),
        "num_samples": 5,
    }
    first = samplers.sample(jax.random.key(5), samplers.nuts(), target, **options)
    np.testing.assert_allclose(first.kernel.factor, scales, rtol=0.1)
    more: dict[str, Any] = options | {"num_warmup": 0, "num_samples": 200}
    rates = np.asarray(samplers.sample(jax.random.key(6), first.kernel, target, **more).info["acceptance_rate"])
    assert 0.7 < rates.mean() < 0.95
    again = samplers.sample(jax.random.key(5), samplers.nuts(), target, checkpoint=tmp_path / "run", **options)
    np.testing.assert_array_equal(first.samples, again.samples)


def test_thinned_draws_are_every_third(draws: Any) -> None:
    thinned = drawn(6, thin=3)
    np.testing.assert_array_equal(thinned.samples, draws.samples[:, 2:18:3])
    rates = np.asarray(draws.info["acceptance_rate"])[:, :18].reshape(NUM_CHAINS, 6, 3).mean(axis=2)
    np.testing.assert_allclose(thinned.info["acceptance_rate"], rates, rtol=1e-5)


def test_interrupted_blocks_and_checkpoints_change_nothing(draws: Any, tmp_path: Any) -> None:
    first = drawn(20, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(first.samples, draws.samples)
    longer = drawn(30, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(longer.samples[:, :20], draws.samples)


def test_reducers_see_every_draw(draws: Any) -> None:
    reduced = drawn(collect=False, reducer=Moments()).attrs["reduced"]
    np.testing.assert_allclose(reduced.mean, np.asarray(draws.samples).mean(axis=1), rtol=1e-4, atol=1e-5)


def test_reducers_see_every_draw_of_buffers_that_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunk, "BUFFER_BYTES", 3000)  # five records; thinned runs are compiled here
    reduced = drawn(24, thin=2, collect=False, reducer=Moments()).attrs["reduced"]
    whole = np.asarray(drawn(24, thin=2).samples)
    np.testing.assert_allclose(reduced.mean, whole.mean(axis=1), rtol=1e-4, atol=1e-5)


def test_a_nan_chain_leaves_the_others_bit_equal(draws: Any) -> None:
    starts = STARTS.copy()
    starts[4] = np.nan
    other = drawn(initial_position=jnp.asarray(starts), throw=False)
    rest = [chain for chain in range(NUM_CHAINS) if chain != 4]
    np.testing.assert_array_equal(other.samples[np.array(rest)], draws.samples[np.array(rest)])
    assert other.status[4] != 0
    assert not np.any(other.status[np.array(rest)])


def shifted(mean: Any, x: Any) -> Any:
    return -0.5 * jnp.sum((x - mean) ** 2)


def test_a_second_call_with_new_data_compiles_nothing() -> None:
    def run(shift: float) -> Any:
        target = Target(eqx.Partial(shifted, jnp.asarray(shift)))
        start = jnp.zeros((4, 2))
        return samplers.sample(
            jax.random.key(0), samplers.nuts(), target, num_samples=30, num_warmup=30, initial_position=start
        )

    run(0.0)
    before = len(COMPILED)
    second = run(3.0)
    assert len(COMPILED) == before
    assert abs(float(np.mean(np.asarray(second.samples))) - 3) < 1
