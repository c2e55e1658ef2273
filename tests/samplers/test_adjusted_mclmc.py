"""`adjusted_mclmc`: its law, its involution, bad settings, warm-up. The flow itself: `test_microcanonical`.

Planted bugs that must be caught by the law of draws that start exact: the kinetic change left out, d in place of d - 1
in it (by the Jacobian too), directions that are not uniform. By check mode: no flip, and a first turn that is left out,
which makes the trajectory irreversible. No flip cannot be seen in the law, because the direction is drawn afresh at
every step; nor can d in place of d - 1 in the flow alone, whose determinant stays what is stated: this only costs
acceptance.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from probinf import samplers
from probinf.core._status import Status, is_fatal
from probinf.core._target import Target
from probinf.samplers import _adjusted_mclmc, _mhg, _microcanonical
from probinf.samplers._adjusted_mclmc import Direction, DirectionLaw, Microcanonical, adjusted_mclmc
from probinf.samplers._microcanonical import turn, unit_normal
from tests._compilations import COMPILED
from tests._slow import slow_after
from tests.samplers.test_kernels import BOUND, largest_discrepancy, run_from_uncompiled

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


def uncompiled_step(kernel: Any, target: Target, position: Any) -> Any:
    """Compile it in a test that patches something."""
    return kernel.step(jax.random.key(1), target, kernel.init(jax.random.key(0), target, position))


step_from = eqx.filter_jit(uncompiled_step)


def test_law_of_the_target_is_invariant(key: Any) -> None:
    """False alarms: see `test_kernels`, which has more of these kernels."""
    assert largest_discrepancy(key, adjusted_mclmc(0.9, 4, integrator="leapfrog", jitter=False)) < BOUND


def _plant_no_kinetic_change(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_microcanonical, "turn", lambda u, pull, epsilon: (turn(u, pull, epsilon)[0], jnp.zeros(())))


def _plant_dimension(patch: pytest.MonkeyPatch) -> None:
    def wrong(u: Any, pull: Any, epsilon: Any) -> Any:
        new, change = turn(u, pull, epsilon)
        return new, change * (u.size / (u.size - 1))

    patch.setattr(_microcanonical, "turn", wrong)


def _plant_crooked_directions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_adjusted_mclmc, "unit_normal", lambda noise: unit_normal(noise + 0.5))


ALL_PLANTED = [
    _plant_no_kinetic_change,
    pytest.param(_plant_dimension, marks=pytest.mark.slow),
    pytest.param(_plant_crooked_directions, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("plant", ALL_PLANTED)
def test_stationarity_catches_planted_bugs(plant: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)

    # Compiled afresh: a cached program would not have the bug.
    @eqx.filter_jit
    def run(*args: Any) -> Any:
        return run_from_uncompiled(*args)

    assert largest_discrepancy(key, adjusted_mclmc(0.9, 4, integrator="leapfrog", jitter=False), run) > BOUND


def jacobian_error(step_size: float, num_steps: int, integrator: str) -> float:
    """Largest difference of the stated log-determinant and that of automatic differentiation, at 40 points."""
    factor = jnp.array([1.0, 0.5, 2.0])
    involution = Microcanonical(jnp.float64(step_size), factor, integrator)
    law = DirectionLaw(jnp.int32(num_steps), False)

    @jax.jit
    @jax.vmap
    def both(key: Any) -> Any:
        key_x, key_v = jax.random.split(key)
        state = adjusted_mclmc().init(jax.random.key(0), TARGET, START.astype(float) + jax.random.normal(key_x, (3,)))
        v = law.sample(key_v, TARGET, state)
        return involution(TARGET, state, v)[2], _mhg._autodiff_log_det(involution, TARGET, state, v)

    stated, derived = both(jax.random.split(jax.random.key(0), 40))
    assert np.std(derived) > 0.1
    return float(np.max(np.abs(stated - derived)))


@pytest.mark.parametrize("integrator", ["minimal norm", pytest.param("leapfrog", marks=pytest.mark.slow)])
def test_determinant_is_that_of_automatic_differentiation(integrator: str, x64: None) -> None:
    assert jacobian_error(0.7, 3, integrator) < 1e-10


def test_determinant_catches_a_planted_bug(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant_dimension(monkeypatch)
    assert jacobian_error(0.7, 3, "leapfrog") > 0.1


def _no_flip(self: Any, target: Target, state: Any, v: Any) -> Any:
    new, back, log_det = INVOLUTION(self, target, state, v)
    return new, Direction(-back.u, back.num_steps), log_det


def _no_first_turn(self: Any, target: Target, state: Any, v: Any) -> Any:
    pull, _ = ravel_pytree(state.point.grad_log_likelihood)
    u, _ = turn(v.u, -pull, 0.5 * self.step_size)
    return INVOLUTION(self, target, state, Direction(u, v.num_steps))


INVOLUTION = Microcanonical.__call__


@pytest.mark.parametrize("bug", [_no_flip, _no_first_turn])
def test_check_mode_catches_planted_bugs(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = adjusted_mclmc(0.3, 4, check=True, jitter=False, integrator="leapfrog")
    assert int(step_from(kernel, TARGET, START)[1].status) == 0
    monkeypatch.setattr(Microcanonical, "__call__", bug)
    step = eqx.filter_jit(lambda kernel, target, position: uncompiled_step(kernel, target, position))
    assert int(step(kernel, TARGET, START)[1].status) == int(Status.BAD_INVOLUTION)


@pytest.mark.parametrize("kind", slow_after(1, ["nan", "inf", "-inf"]))
def test_bad_regions(kind: str, key: Any) -> None:
    """NaN is told, zero density is rejected, and infinite density freezes the chain where it is."""
    target = Target(lambda x: jnp.where(x[0] > 1.0, float(kind), half_square(x)))
    kernel = adjusted_mclmc(0.4, 3)
    assert int(init(kernel, target, jnp.array([2.0, 0.0])).status) & int(Status.NONFINITE_INIT)
    positions = jnp.broadcast_to(jnp.array([0.9, 0.1]), (50, 2))
    states = eqx.filter_jit(run_from_uncompiled)(key, kernel, target, positions, 20)
    assert np.all(states.position[:, 0] <= 1)
    assert np.all(np.isfinite(states.point.log_likelihood))
    fatal = np.asarray(is_fatal(states.status))
    if kind == "inf":
        assert fatal.any()
        assert np.all(np.asarray(states.status)[fatal] & int(Status.POSINF_LOG_WEIGHT))
    else:
        assert not fatal.any()
        assert np.any(np.asarray(states.status) & int(Status.DIVERGENT))


def test_constant_density_is_always_accepted() -> None:
    state, info = step_from(adjusted_mclmc(0.5, 4, jitter=False), Target(lambda x: 0.0 * jnp.sum(x)), START)
    assert bool(info.accepted)
    assert float(info.energy_error) == 0
    np.testing.assert_allclose(jnp.linalg.norm(state.position - START), 2.0, rtol=1e-5)


def test_energy_error_over_1000_is_divergent() -> None:
    state, info = step_from(adjusted_mclmc(100.0, 3, jitter=False), NORMAL, START)
    assert int(info.status) == int(state.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(state.position, START)


@pytest.mark.parametrize(("num_steps", "step_size"), [(0, 0.1), (-3, 0.1), (4, 0.0), (4, -0.1), (4, np.nan)])
def test_traced_bad_settings_are_flagged_rejections(num_steps: int, step_size: float) -> None:
    like = adjusted_mclmc()
    kernel = eqx.tree_at(
        lambda k: (k.step_size, k.num_steps), like, (jnp.float32(step_size), jnp.asarray(num_steps, jnp.int32))
    )
    state, info = step_from(kernel, TARGET, START)
    assert int(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(state.position, START)


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (ValueError, {"num_steps": 0}, "`num_steps` must be a scalar of at least 1, but is 0"),
        (TypeError, {"num_steps": 2.5}, "`num_steps` must be an integer"),
        (ValueError, {"step_size": -0.1}, "`step_size` must be finite and positive"),
        (ValueError, {"integrator": "euler"}, "`integrator` is 'euler'; needed one of 'leapfrog', 'minimal norm'"),
        (ValueError, {"inverse_mass_matrix": jnp.ones((2, 3))}, r"shape \[d\]"),
        (ValueError, {"target_accept": 1.5}, "`target_accept` is 1.5"),
    ],
)
def test_static_bad_settings_raise(error: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(error, match=words):
        adjusted_mclmc(**arguments)


def test_positions_are_checked() -> None:
    with pytest.raises(ValueError, match="`adjusted_mclmc` needs positions of at least 2 numbers, but these have 1"):
        adjusted_mclmc().init(jax.random.key(0), NORMAL, jnp.zeros(1))
    with pytest.raises(TypeError, match="floating-point positions"):
        adjusted_mclmc().init(jax.random.key(0), NORMAL, jnp.arange(3))
    with pytest.raises(ValueError, match="positions of 2 numbers, but these have 3"):
        step_from(adjusted_mclmc(inverse_mass_matrix=jnp.ones(2)), NORMAL, START)


def test_dtypes_are_those_of_the_position(x64: None) -> None:
    target, kernel = Target(lambda x: half_square(x["a"]) - x["b"] ** 2), adjusted_mclmc(0.2)
    for dtype in (jnp.float32, jnp.float64):
        position = {"b": jnp.asarray(0.3, dtype), "a": jnp.ones((2, 2), dtype)}
        state, info = jax.eval_shape(lambda x: uncompiled_step(kernel, target, x), position)
        assert {a.dtype for a in jax.tree.leaves(state.point)} == {jnp.dtype(dtype)}
        assert info.energy_error.dtype == info.log_density.dtype == dtype


def test_new_settings_compile_nothing_and_warm_up_finds_them() -> None:
    """On independent normal numbers of scales .01, 1 and 100; step size and matrix are learned."""
    scales = jnp.array([0.01, 1.0, 100.0])
    target = Target(lambda x: -0.5 * jnp.sum((x / scales) ** 2))
    positions = scales[None, :] * jax.random.normal(jax.random.key(0), (8, 3))
    tuned = samplers.warmup(
        jax.random.key(1), adjusted_mclmc(num_steps=4), target, num_steps=300, num_chains=8, initial_position=positions
    )
    np.testing.assert_allclose(tuned.factor / scales, 1, atol=0.4)
    assert 0.5 < float(tuned.step_size) < 5
    draws = samplers.sample(
        jax.random.key(2), tuned, target, num_samples=100, num_warmup=0, num_chains=8, initial_position=positions
    )
    assert 0.8 < float(np.mean(draws.info["acceptance_rate"])) < 0.98
    one, other = jax.block_until_ready((adjusted_mclmc(0.1, 3), adjusted_mclmc(0.2, 5)))
    jax.block_until_ready(step_from(one, TARGET, START))
    COMPILED.clear()
    jax.block_until_ready(step_from(other, TARGET, START))
    assert not COMPILED
