"""`slice_sampling`: transitions of the textbook with the same numbers, laws under tight bounds, faults, settings.

Laws shared by all kernels: `test_kernels`. Planted bugs that must be caught (`test_planted_bugs`): all expansions to
one side, a bracket that begins at the point, a level at the density itself, cuts on the wrong side, candidates that
nobody looks at.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammainc

from probinf import samplers
from probinf.core import Target
from probinf.core._normal import standard_normal
from probinf.core._status import Status
from probinf.samplers import _bracket
from probinf.samplers._slice import slice_sampling

NUM = 10_000
# Dvoretzky, Kiefer, Wolfowitz: a distance over this has probability 1e-7.
BOUND = float(np.sqrt(np.log(2 / 1e-7) / (2 * NUM)))
MATRIX = np.array([[1.0, 0.3], [0.3, 0.6]])


def skewed(x: Any) -> Any:
    return 2 * x[0] - jnp.exp(x[0]) - 0.5 * ((x[1] - jnp.tanh(x[0])) / 0.6) ** 2


TARGET = Target(skewed)


def skewed_numpy(x: np.ndarray) -> float:
    return 2 * x[0] - np.exp(x[0]) - 0.5 * ((x[1] - np.tanh(x[0])) / 0.6) ** 2


@functools.partial(jax.jit, static_argnums=(1, 2))
def numbers(key: Any, directions: str, bound: int) -> Any:
    """The random numbers of a transition: direction, level, place, split, and those of its turns."""
    key_direction, key_bracket = jax.random.split(key)
    key_level, key_place, key_split, key_turns = jax.random.split(key_bracket, 4)
    if directions == "coordinates":
        direction = jnp.eye(2)[jax.random.randint(key_direction, (), 0, 2, jnp.int32)]
    else:
        direction = standard_normal(key_direction, (2,), jnp.float64)
    base = jax.random.wrap_key_data(jax.random.bits(key_turns, (2,), jnp.uint32), impl="threefry2x32")
    turns = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(base, i), (), jnp.float64))(jnp.arange(40))
    drop, place = jax.random.exponential(key_level, dtype=jnp.float64), jax.random.uniform(key_place, (), jnp.float64)
    return direction, drop, place, jax.random.randint(key_split, (), 0, bound + 1, jnp.int32), turns


def naive(kernel: Any, key: Any, x: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Neal (2003), figures 3 and 5, with the random numbers of the kernel: position, expansions and candidates."""
    direction, drop, place, lefts, turns = map(np.asarray, numbers(key, kernel.directions, kernel.max_expansions))
    direction = (np.eye(2) if kernel.factor is None else np.asarray(kernel.factor)) @ direction
    direction = direction / (1 if kernel.directions == "coordinates" else np.linalg.norm(direction))
    uniforms, width, level = iter(turns), float(kernel.width), skewed_numpy(x) - float(drop)

    def inside(t: float) -> bool:
        return bool(skewed_numpy(x + t * direction) >= level)

    left = -width * float(place)
    right = left + width
    rights, expansions = kernel.max_expansions - lefts, 0
    while lefts > 0:
        next(uniforms)  # one for every turn
        if not inside(left):
            break
        left, lefts, expansions = left - width, lefts - 1, expansions + 1
    while rights > 0:
        next(uniforms)
        if not inside(right):
            break
        right, rights, expansions = right + width, rights - 1, expansions + 1
    for candidate in range(1, kernel.max_shrinks + 1):
        t = left + (right - left) * float(next(uniforms))
        if inside(t):
            return x + t * direction, expansions, candidate
        left, right = (t, right) if t < 0 else (left, t)
    return x, expansions, 0


def compare_with_the_textbook(kernel: Any, num: int = 12) -> list[tuple[int, int]]:
    """Fails where a transition is another; the numbers of expansions and candidates of all."""
    seen = []
    step = jax.jit(lambda key, x: kernel.step(key, TARGET, kernel.init(key, TARGET, x)))
    for seed in range(num):
        key, start = jax.random.key(seed), np.random.default_rng(seed).normal(size=2)
        state, info = step(key, jnp.asarray(start))
        position, expansions, candidates = naive(kernel, key, start)
        np.testing.assert_allclose(state.position, position, rtol=1e-9)
        assert int(info.num_expansions) == expansions
        assert float(info.acceptance_rate) == (1 / candidates if candidates else 0)
        seen.append((expansions, candidates))
    return seen


@pytest.mark.no_key_reuse  # the reference draws the same numbers
def test_a_transition_is_that_of_the_textbook(x64: None) -> None:
    narrow = compare_with_the_textbook(slice_sampling(0.4))
    assert max(expansions for expansions, _ in narrow) > 3
    options: Any = {"covariance": jnp.asarray(MATRIX), "max_shrinks": 2}
    wide = compare_with_the_textbook(slice_sampling(2.5, directions="coordinates", **options))
    assert {0, 1, 2} == {candidates for _, candidates in wide}


def distance_of_law(bound: int) -> float:
    """Distance between a gamma law and where NUM chains are that began there, after 3 steps with tight bounds."""
    shape, target = 1.5, Target(lambda x: jnp.sum(1.5 * x - jnp.exp(x)))
    kernel = slice_sampling(0.7, directions="coordinates", max_expansions=2, max_shrinks=bound)

    @jax.jit
    def run(keys: Any, starts: Any) -> Any:
        states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(starts)
        step = jax.vmap(lambda data, state: kernel.step(jax.random.wrap_key_data(data), target, state)[0])
        return jax.lax.fori_loop(0, 3, lambda i, states: step(keys[i], states), states).position[:, 0]

    starts = np.log(np.random.default_rng(0).gamma(shape, size=(NUM, 1))).astype(np.float32)
    found = run(jax.random.key_data(jax.random.split(jax.random.key(0), (3, NUM))), jnp.asarray(starts))
    uniforms = np.sort(np.asarray(gammainc(shape, jnp.exp(found)), np.float64))
    return float(np.max(np.abs(uniforms - np.arange(1, NUM + 1) / NUM)))


def test_law_where_all_bounds_are_met() -> None:
    """False alarms have probability 1e-7."""
    assert distance_of_law(2) < BOUND


def _plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    begin, advance = _bracket.begin, _bracket.advance

    def broken_begin(*args: Any) -> Any:
        start = begin(*args)
        if fault == "one side":
            whole = start.left_steps + start.right_steps
            return start._replace(left_steps=whole, right_steps=jnp.zeros_like(whole))
        if fault == "not placed":
            return start._replace(left=0 * start.left, right=start.width)
        if fault == "level":
            return start._replace(level=_bracket.point_log_density(args[1], args[2].point))
        return start

    def broken_advance(target: Any, position: Any, old: Any, bound: int) -> Any:
        if fault == "unseen":
            proposing = (old.left_steps <= 0) & (old.right_steps <= 0)
            return advance(target, position, old._replace(level=jnp.where(proposing, -jnp.inf, old.level)), bound)
        new = advance(target, position, old, bound)
        if fault == "wrong side":
            cut = (old.left_steps <= 0) & (old.right_steps <= 0) & ~new.accepted
            return new._replace(left=jnp.where(cut, old.left, new.left), right=jnp.where(cut, old.right, new.right))
        return new

    monkeypatch.setattr("probinf.samplers._slice.begin", broken_begin)
    monkeypatch.setattr("probinf.samplers._bracket.advance", broken_advance)


@pytest.mark.parametrize("fault", ["one side", "not placed", "level", "wrong side", "unseen"])
@pytest.mark.no_key_reuse
def test_planted_bugs(fault: str, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, fault)
    with pytest.raises(AssertionError):
        compare_with_the_textbook(slice_sampling(1.0))


@pytest.mark.slow
def test_expansions_to_one_side_would_bend_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, "one side")
    assert distance_of_law(100) > BOUND


def test_a_constant_density_ends_at_the_bound() -> None:
    flat = Target(lambda x: 0.0 * jnp.sum(x))
    kernel = slice_sampling(0.5, max_expansions=5)

    @jax.jit
    def step(key: Any, x: Any) -> Any:
        return kernel.step(key, flat, kernel.init(key, flat, x))

    state, info = step(jax.random.key(1), jnp.zeros(3))
    assert int(info.num_expansions) == 5
    assert int(info.num_evaluations) == 6
    assert float(info.acceptance_rate) == 1
    assert 0 < float(jnp.linalg.norm(state.position)) <= 3
    assert int(state.status) == 0


def bounded(value: Any, x: Any) -> Any:
    return jnp.where(jnp.sum(x) > 1, value, -jnp.sum(x * x))


@jax.jit
def step_by_the_bound(keys: Any, value: Any, positions: Any, status: Any) -> Any:
    target, kernel = Target(jax.tree_util.Partial(bounded, value)), slice_sampling(1.0)
    states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(positions)
    return jax.vmap(kernel.step, (0, None, 0))(keys, target, states._replace(status=states.status | status))


FAULTY = [(jnp.nan, Status.DIVERGENT), (jnp.inf, Status.POSINF_LOG_WEIGHT)]


@pytest.mark.parametrize(("value", "bit"), FAULTY, ids=["nan", "inf"])
def test_faults_are_outside_the_slice_and_flagged(value: float, bit: Status) -> None:
    def step(seed: int, positions: Any, status: Any) -> Any:
        return step_by_the_bound(jax.random.split(jax.random.key(seed), 50), jnp.float32(value), positions, status)

    states, info = step(1, jnp.zeros((50, 1)), jnp.zeros(50, jnp.uint32))
    flagged = np.asarray(states.status) & int(bit) != 0
    assert flagged.any()
    assert not flagged.all()
    assert np.all(np.asarray(states.position)[:, 0] <= 1)
    np.testing.assert_array_equal(info.divergent, np.asarray(info.status) & int(Status.DIVERGENT) != 0)
    again, info = step(2, states.position, states.status)
    if bit == Status.POSINF_LOG_WEIGHT:  # fatal: frozen where it was
        np.testing.assert_array_equal(again.position[flagged], states.position[flagged])
        assert np.all(np.asarray(info.num_evaluations)[flagged] == 0)
        assert np.all(np.asarray(info.acceptance_rate)[flagged] == 0)
    else:
        assert np.asarray(info.accepted).all()


def test_a_state_of_infinite_density_is_flagged_and_stays() -> None:
    """As where a likelihood of +inf, which did not count at temperature zero, comes to count."""
    hot, kernel = Target(lambda x: jnp.where(x[0] > 0, jnp.inf, 0.0)), slice_sampling()

    @jax.jit
    def step(key: Any, x: Any) -> Any:
        state = kernel.init(key, hot.at_temperature(0.0), x)
        return state, *kernel.step(key, hot, state)

    state, new, info = step(jax.random.key(1), jnp.ones(1))
    assert int(state.status) == 0
    assert int(new.status) == int(info.status) == int(Status.POSINF_LOG_WEIGHT)
    assert float(new.position[0]) == 1


def test_gradients_of_a_shared_state_are_fresh() -> None:
    @jax.jit
    def step(key: Any, x: Any) -> Any:
        state = samplers.hmc(0.3, 2).init(key, TARGET, x)
        return slice_sampling(2.0).step(key, TARGET, state)[0]

    state = step(jax.random.key(1), jnp.array([0.2, 0.5]))
    assert float(state.position[0]) != pytest.approx(0.2)
    np.testing.assert_allclose(state.point.grad_log_likelihood, jax.grad(skewed)(state.position), rtol=1e-5)
    assert slice_sampling().init(jax.random.key(0), TARGET, jnp.zeros(2)).point.grad_log_prior is None


@pytest.mark.slow
@pytest.mark.no_key_reuse
def test_interleaved_chains_are_the_chains_one_by_one() -> None:
    kernel, num = slice_sampling(0.5), 6
    starts = np.random.default_rng(0).normal(size=(num, 2)).astype(np.float32)
    options: Any = {"num_warmup": 0, "num_chains": num, "initial_position": jnp.asarray(starts)}
    draws = samplers.sample(jax.random.key(3), kernel, TARGET, num_samples=10, **options)
    run_key = jax.random.split(jax.random.key(3), 3)[2]
    words = jax.random.bits(jax.random.fold_in(run_key, 0), (2,), jnp.uint32)
    base = jax.random.wrap_key_data(words, impl="threefry2x32")
    step = jax.jit(lambda key, state: kernel.step(key, TARGET, state))
    for chain in (0, 4):
        state, key = kernel.init(run_key, TARGET, jnp.asarray(starts[chain])), jax.random.fold_in(base, chain)
        for i in range(10):
            state, info = step(jax.random.fold_in(key, i), state)
            np.testing.assert_allclose(draws.samples[chain, i], state.position, rtol=1e-4, atol=1e-5)
            assert int(draws.info["num_evaluations"][chain, i]) == int(info.num_evaluations)


@pytest.mark.no_key_reuse
def test_chains_with_other_keys_draw_apart() -> None:
    """Keys of rbg under vmap draw for all chains from the first, which here may be done already."""
    narrow = Target(lambda x: -0.5 * jnp.sum((x / 0.01) ** 2))
    kernel = slice_sampling(50.0)
    states = jax.vmap(lambda x: kernel.init(jax.random.key(0), narrow, x))(jnp.zeros((64, 1)))
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 64)
    states, info = jax.jit(jax.vmap(lambda key, state: kernel.step(key, narrow, state)))(keys, states)
    assert np.asarray(info.accepted).all()
    assert len(np.unique(np.asarray(states.position))) == 64


@jax.jit
def step_of_width(width: Any) -> Any:
    kernel = slice_sampling(width)
    return kernel.step(jax.random.key(1), TARGET, kernel.init(jax.random.key(0), TARGET, jnp.zeros(2)))


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan])
def test_width_is_checked_when_static_and_flagged_when_traced(width: float) -> None:
    with pytest.raises(ValueError, match="`width` must be finite and positive"):
        slice_sampling(width)
    new, info = step_of_width(jnp.float32(width))
    assert int(info.status) == int(Status.DIVERGENT)
    assert not bool(info.accepted)
    np.testing.assert_array_equal(new.position, 0)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"directions": "sideways"}, ValueError, "`directions` is 'sideways'; needed one of 'random', 'coordinates'"),
    ({"max_expansions": -1}, ValueError, "`max_expansions` is -1; needed at least 0"),
    ({"max_shrinks": 0}, ValueError, "`max_shrinks` is 0; needed at least 1"),
    ({"max_shrinks": 2**30}, ValueError, "`max_shrinks` is 1073741824; needed less than"),
    ({"max_shrinks": 1.5}, TypeError, "`max_shrinks` must be an integer"),
    ({"covariance": jnp.array([[1.0, 2.0], [2.0, 1.0]])}, ValueError, "symmetric and positive definite"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_bad_arguments(options: Any, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the hook of the tests would answer first
    with pytest.raises(error, match=words):
        slice_sampling(**options)


@pytest.mark.slow
def test_warm_up_reaches_the_share_of_candidates(key: Any) -> None:
    scales = jnp.array([0.1, 1.0, 10.0])
    target = Target(lambda x: -0.5 * jnp.sum((x / scales) ** 2))
    start = scales[None] * jax.random.normal(jax.random.key(1), (32, 3))
    tuned = samplers.warmup(key, slice_sampling(0.05), target, num_steps=200, num_chains=32, initial_position=start)
    np.testing.assert_allclose(tuned.factor / tuned.factor[1], scales, rtol=0.35)

    @eqx.filter_jit
    def rates(kernel: Any, keys: Any) -> Any:
        states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(start)
        return jax.vmap(kernel.step, (0, None, 0))(keys, target, states)[1].acceptance_rate

    found = np.asarray([rates(tuned, jax.random.split(jax.random.key(i), 32)).mean() for i in range(2, 22)])
    assert found.mean() == pytest.approx(0.6, abs=0.1)
    assert 2 < float(tuned.width) * float(tuned.factor[1]) < 15  # in standard deviations
