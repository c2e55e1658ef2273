"""`mclmc`: its bias, its energy errors, faults and settings. The flow itself: `test_microcanonical`.

The bias on a normal target is computed without Monte Carlo error: it is of second order, and vanishes.

Planted bugs that must be caught: the kinetic change left out (`test_mean_of_exponential_energy_change_is_one`), and
d instead of d - 1 in the turn (`test_bias_is_of_second_order_and_vanishes`: the flow then is that of another target).
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import roots_gegenbauer

from probinf.core._status import Status, is_fatal
from probinf.core._target import Target
from probinf.samplers import _microcanonical
from probinf.samplers._mclmc import MCLMCState, mclmc
from probinf.samplers._microcanonical import INTEGRATORS, turn
from tests._compilations import COMPILED

with_every_integrator = pytest.mark.parametrize("integrator", INTEGRATORS)
START = jnp.array([0.4, -0.7, 0.2])


def skewed(x: Any) -> Any:
    """Correlated, and a different tail on each side."""
    return 2 * x[0] - jnp.exp(x[0]) - 0.5 * (x[1] - jnp.tanh(x[0])) ** 2 - 0.3 * (x[2] - 0.8 * x[1]) ** 2


def half_square(x: Any) -> Any:
    return -0.5 * jnp.sum(x * x)


TARGET, NORMAL = Target(skewed), Target(half_square)


@eqx.filter_jit
def init(kernel: Any, target: Target, position: Any) -> Any:
    return kernel.init(jax.random.key(0), target, position)


@eqx.filter_jit
def step_once(kernel: Any, target: Target, state: Any) -> Any:
    return kernel.step(jax.random.key(1), target, state)


def squares_after_a_step(kernel: Any, x: Any, u: Any) -> Any:
    def moved(x: Any, u: Any) -> Any:
        state = kernel.init(jax.random.key(0), NORMAL, x)
        state, info = kernel.step(jax.random.key(0), NORMAL, MCLMCState(state.point, state.status, u))
        return jnp.sum(state.position**2), info.status

    return jax.vmap(moved)(x, u)


def normal_bias(moved: Any, step_size: float, integrator: str, dimension: int = 10) -> float:
    """Relative bias of the variance of N(0, I), where each step forgets the direction.

    The length of x is then a Markov chain, whose law is solved for on a grid; the cosine between x and u is integrated
    over by the rule of Gauss. Masses are shared between neighbours such that the mean square stays.
    """
    lengths = np.linspace(0, 8, 320)
    nodes, weights = roots_gegenbauer(32, dimension / 2 - 1)
    x = np.zeros((320, 32, dimension))
    u = np.zeros_like(x)
    x[..., 0], u[..., 0], u[..., 1] = lengths[:, None], nodes, np.sqrt(1 - nodes**2)
    kernel = mclmc(step_size, integrator=integrator)
    squares, statuses = moved(kernel, *(jnp.asarray(a.reshape(-1, dimension)) for a in (x, u)))
    assert not np.any(statuses)
    grid, squares = lengths**2, np.minimum(np.asarray(squares), lengths[-1] ** 2)
    lower = np.clip(np.searchsorted(grid, squares) - 1, 0, 318)
    share = (squares - grid[lower]) / (grid[lower + 1] - grid[lower])
    mass = np.tile(weights / weights.sum(), 320)
    matrix = np.zeros((320, 320))
    for column, part in ((lower, 1 - share), (lower + 1, share)):
        np.add.at(matrix, (np.repeat(np.arange(320), 32), column), mass * part)
    system = np.concatenate([matrix.T - np.eye(320), np.ones((1, 320))])
    law = np.linalg.lstsq(system, np.append(np.zeros(320), 1.0), rcond=None)[0]
    return float(law @ grid / dimension - 1)


@pytest.mark.parametrize("integrator", [pytest.param("leapfrog", marks=pytest.mark.slow), "minimal norm"])
@pytest.mark.no_key_reuse
def test_bias_is_of_second_order_and_vanishes(integrator: str, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = eqx.filter_jit(squares_after_a_step)
    biases = [normal_bias(moved, step_size, integrator) for step_size in (1.6, 0.8, 0.4)]
    assert abs(biases[0]) > 0.002
    for large, small in itertools.pairwise(biases):
        assert 3.5 < large / small < 4.5
    # With d in place of d - 1 the flow is that of the density to the power .9. Compiled afresh, to have the bug.
    monkeypatch.setattr(_microcanonical, "turn", lambda u, pull, epsilon: turn(u, 0.9 * pull, epsilon))
    moved = eqx.filter_jit(lambda kernel, x, u: squares_after_a_step(kernel, x, u))
    assert 0.1 < normal_bias(moved, 0.4, integrator) < 0.13


@pytest.mark.parametrize("integrator", ["leapfrog", pytest.param("minimal norm", marks=pytest.mark.slow)])
def test_mean_of_exponential_energy_change_is_one(integrator: str, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From exact draws and uniform directions, E exp(-energy change) is the integral of the target: 1.

    The target is a gamma law of shape 3 in logarithms, and a normal law. Bounds of 6 standard errors.
    """
    num = 20_000
    target = Target(lambda x: 3 * x[0] - jnp.exp(x[0]) - 0.5 * x[1] ** 2)

    def error(key: Any) -> tuple[float, float]:
        key_a, key_b, key_init, key_step = jax.random.split(key, 4)
        x = jnp.stack([jnp.log(jax.random.gamma(key_a, 3.0, (num,))), jax.random.normal(key_b, (num,))], axis=1)
        kernel = mclmc(0.9, integrator=integrator)

        @jax.jit
        def energy_changes(x: Any) -> Any:
            states = jax.vmap(kernel.init, (0, None, 0))(jax.random.split(key_init, num), target, x)
            return jax.vmap(kernel.step, (0, None, 0))(jax.random.split(key_step, num), target, states)[1].energy_change

        ratios = np.exp(-np.asarray(energy_changes(x), np.float64))
        assert ratios.std() > 0.05
        return abs(ratios.mean() - 1), 6 * ratios.std() / np.sqrt(num)

    key_right, key_wrong = jax.random.split(key)
    found, bound = error(key_right)
    assert found < bound
    monkeypatch.setattr(_microcanonical, "turn", lambda u, pull, epsilon: (turn(u, pull, epsilon)[0], jnp.zeros(())))
    found, bound = error(key_wrong)
    assert found > bound


def _edge(kind: float) -> Target:
    """Standard normal, but not a density where the first number is over 1."""
    return Target(lambda x: jnp.where(x[0] > 1.0, kind, half_square(x)))


def run_chains(key: Any, kernel: Any, target: Target, positions: Any, num_steps: int) -> Any:
    """The states after so many steps, and all infos."""
    key_init, key_run = jax.random.split(key)
    num = positions.shape[0]

    @jax.jit
    def run(positions: Any) -> Any:
        states = jax.vmap(kernel.init, (0, None, 0))(jax.random.split(key_init, num), target, positions)

        def body(states: Any, i: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key_run, i), num)
            return jax.vmap(kernel.step, (0, None, 0))(keys, target, states)

        return jax.lax.scan(body, states, jnp.arange(num_steps))

    return run(positions)


@pytest.mark.parametrize("kind", [np.nan, -np.inf])
def test_bad_region_is_never_entered_and_each_attempt_is_told(kind: float, key: Any) -> None:
    positions = jnp.broadcast_to(jnp.array([0.9, 0.1]), (50, 2))
    states, infos = run_chains(key, mclmc(0.4), _edge(kind), positions, 30)
    assert np.all(states.position[:, 0] <= 1)
    assert np.all(np.isfinite(states.point.log_likelihood))
    assert np.all(np.isfinite(states.u))
    divergent = np.asarray(infos.divergent)
    assert 0 < divergent.mean() < 0.5
    np.testing.assert_array_equal(divergent, np.asarray(infos.status) == int(Status.DIVERGENT))
    np.testing.assert_array_equal(divergent, np.asarray(infos.acceptance_rate) == 0)
    np.testing.assert_array_equal(np.asarray(states.status) == int(Status.DIVERGENT), divergent.any(0))
    # What stays gets a new direction, so that it does not run into the wall for ever.
    assert not np.any(np.all(divergent[-10:], axis=0))


def test_infinite_density_freezes_the_chain_at_its_last_good_state(key: Any) -> None:
    target, kernel = _edge(np.inf), mclmc(0.4)
    positions = jnp.broadcast_to(jnp.array([0.9, 0.1]), (20, 2))
    states, infos = run_chains(key, kernel, target, positions, 30)
    frozen = np.asarray(is_fatal(states.status))
    assert frozen.any()
    assert np.all(np.asarray(states.status)[frozen] & int(Status.POSINF_LOG_WEIGHT))
    assert np.all(states.position[:, 0] <= 1)
    index = int(np.argmax(frozen))
    state = jax.tree.map(lambda a: a[index], states)
    after, info = step_once(kernel, target, state)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(info.acceptance_rate) == int(info.status) == 0
    assert not bool(info.divergent)
    assert (np.asarray(infos.status)[:, index] != 0).sum() == 1


def test_nan_gradient_is_a_failure_though_the_density_is_finite() -> None:
    """A kink at the end of the step: its square root has a finite value and no slope."""
    target = Target(lambda x: -jnp.sqrt(jnp.abs(x[0] - 1.0)) - 0.0 * x[1])
    kernel = mclmc(0.5, integrator="leapfrog")
    state = init(kernel, target, jnp.array([0.5, 0.0]))
    state = MCLMCState(state.point, state.status, jnp.array([1.0, 0.0]))
    after, info = step_once(kernel, target, state)
    assert int(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(after.position, [0.5, 0.0])
    assert not np.array_equal(after.u, state.u)
    assert int(init(kernel, target, jnp.array([1.0, 0.0])).status) == int(Status.NONFINITE_INIT)


def test_energy_error_over_1000_is_divergent() -> None:
    kernel = mclmc(100.0, integrator="leapfrog")
    after, info = step_once(kernel, NORMAL, init(kernel, NORMAL, START))
    assert float(info.energy_change) > 1000
    assert int(info.status) == int(after.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(after.position, START)


def test_a_state_of_density_zero_takes_any_possible_step(key: Any) -> None:
    cold, kernel = _edge(-np.inf), mclmc(0.3)
    state = init(kernel, cold.at_temperature(0.0), jnp.array([1.01, 0.3]))
    assert int(state.status) == 0
    angles = 2 * np.pi * jax.random.uniform(key, (40,))

    @jax.jit
    @jax.vmap
    def step(angle: Any) -> Any:
        u = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return kernel.step(jax.random.key(1), cold, MCLMCState(state.point, state.status, u))

    states, infos = step(angles)
    rates = np.asarray(infos.acceptance_rate)
    assert set(rates) == {0.0, 1.0}
    np.testing.assert_array_equal(rates == 1, np.asarray(states.position)[:, 0] <= 1)


def test_constant_density_is_crossed_in_a_straight_line() -> None:
    target, kernel = Target(lambda x: 0.0 * jnp.sum(x)), mclmc(0.5, decoherence=np.inf)
    moved = state = init(kernel, target, START)
    for _ in range(3):
        moved, info = step_once(kernel, target, moved)
        assert float(info.energy_change) == 0
    np.testing.assert_allclose(moved.position, START + 1.5 * state.u, rtol=1e-5)


@with_every_integrator
def test_one_gradient_a_move(integrator: str) -> None:
    calls: list[int] = []

    def density(x: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return half_square(x)

    target, kernel = Target(density), mclmc(0.1, integrator=integrator)
    state = kernel.init(jax.random.key(0), target, START)
    step = jax.jit(lambda k, s: kernel.step(k, target, s))
    jax.block_until_ready(step(jax.random.key(1), state))
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(step(jax.random.key(2), state))
    jax.effects_barrier()
    assert len(calls) == {"leapfrog": 1, "minimal norm": 2}[integrator]


@pytest.mark.parametrize("bad", [{"step_size": -0.1}, {"step_size": np.nan}, {"decoherence": 0.0}])
def test_traced_bad_settings_are_flagged_failures(bad: dict[str, float]) -> None:
    state = init(mclmc(0.1), TARGET, START)

    @jax.jit
    def step(value: Any) -> Any:
        return mclmc(**{name: value for name in bad}).step(jax.random.key(1), TARGET, state)

    after, info = step(jnp.float32(*bad.values()))
    assert int(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(after.position, START)
    assert np.all(np.isfinite(after.u))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step_size": 0.0}, "`step_size` must be finite and positive"),
        ({"step_size": np.inf}, "`step_size` must be finite and positive"),
        ({"decoherence": 0.0}, "`decoherence` must be a scalar above 0"),
        ({"decoherence": np.nan}, "`decoherence` must be a scalar above 0"),
        ({"decoherence": np.ones(2)}, "`decoherence` must be a scalar above 0"),
        ({"energy_variance": -1.0}, "`energy_variance` must be finite and positive"),
        ({"integrator": "verlet"}, "`integrator` is 'verlet'; needed one of 'leapfrog', 'minimal norm'"),
        ({"inverse_mass_matrix": jnp.array([1.0, -1.0])}, "positive definite"),
    ],
)
def test_static_bad_settings_raise(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mclmc(**arguments)


def test_positions_are_checked() -> None:
    with pytest.raises(ValueError, match="`mclmc` needs positions of at least 2 numbers, but these have 1"):
        mclmc().init(jax.random.key(0), NORMAL, jnp.zeros(1))
    with pytest.raises(TypeError, match="floating-point positions"):
        mclmc().init(jax.random.key(0), NORMAL, jnp.arange(3))
    state = init(mclmc(), NORMAL, START)
    with pytest.raises(ValueError, match="positions of 2 numbers, but these have 3"):
        mclmc(inverse_mass_matrix=jnp.ones(2)).step(jax.random.key(0), NORMAL, state)
    assert int(init(mclmc(), NORMAL, START * jnp.nan).status) & int(Status.NONFINITE_INIT)


def test_dtypes_are_those_of_the_position_and_pytrees_work(x64: None) -> None:
    target, kernel = Target(lambda x: half_square(x["a"]) - x["b"] ** 2), mclmc(0.2)
    for dtype in (jnp.float32, jnp.float64):
        position = {"b": jnp.asarray(0.3, dtype), "a": jnp.ones((2, 2), dtype)}
        state = init(kernel, target, position)
        new, info = jax.eval_shape(lambda k, s: kernel.step(k, target, s), jax.random.key(1), state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
        assert {a.dtype for a in jax.tree.leaves((new.point, new.u))} == {jnp.dtype(dtype)}
        assert info.energy_change.dtype == info.log_density.dtype == dtype


def test_new_settings_compile_nothing() -> None:
    @eqx.filter_jit
    def step(kernel: Any, key: Any, state: Any) -> Any:
        return kernel.step(key, TARGET, state)

    kernels = [mclmc(0.1, decoherence=1.0), mclmc(0.2, decoherence=3.0, energy_variance=1e-3)]
    keys = jax.random.split(jax.random.key(2))
    state = jax.block_until_ready(init(kernels[0], TARGET, START))
    first, _ = step(kernels[0], keys[0], state)
    jax.block_until_ready(first)
    other = keys[1]
    COMPILED.clear()
    jax.block_until_ready(step(kernels[1], other, first))
    assert not COMPILED
