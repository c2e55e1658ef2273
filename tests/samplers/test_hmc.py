"""`hmc`: the leapfrog, its cost, bad settings, and mixing at fixed length. Laws shared by all kernels: `test_kernels`.

Planted bugs that must be caught: no flip of the momentum, a stale gradient cache, a step size that changes along the
path (each sets `BAD_INVOLUTION` in check mode). A gradient of the wrong sign must change the acceptance only.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._kernel import Point, evaluate
from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers import _hmc
from probinf.samplers._hmc import Leapfrog, Momentum, hmc
from probinf.samplers._mhg import MHGState


def quartic(x: Any) -> Any:
    """Skewed and not Gaussian."""
    return -jnp.sum(0.1 * x**4 + 0.3 * x**3 + 0.5 * x**2)


TARGET = Target(quartic)
START = jnp.array([0.4, -0.7])


def state_at(position: Any, target: Target = TARGET) -> MHGState:
    return hmc().init(jax.random.key(0), target, position)


@pytest.mark.parametrize("matrix", [None, [0.5, 2.0], [[1.0, 0.4], [0.4, 0.7]]])
def test_leapfrog_is_the_textbook_recursion(matrix: Any, x64: None) -> None:
    inverse_mass = np.eye(2) if matrix is None else np.diag(matrix) if np.ndim(matrix) == 1 else np.asarray(matrix)
    kernel = hmc(0.1, 5, inverse_mass_matrix=None if matrix is None else jnp.asarray(matrix))
    lower = np.linalg.cholesky(inverse_mass)
    momentum = np.array([0.3, -1.1])
    gradient = jax.grad(quartic)
    x, p = np.array([0.4, -0.7]), momentum
    for _ in range(5):
        p = p + 0.05 * np.asarray(gradient(jnp.asarray(x)))
        x = x + 0.1 * inverse_mass @ p
        p = p + 0.05 * np.asarray(gradient(jnp.asarray(x)))
    v = Momentum(jnp.asarray(lower.T @ momentum), jnp.int32(5))
    new, back, log_det = Leapfrog(kernel.step_size, kernel.factor)(TARGET, state_at(jnp.array([0.4, -0.7])), v)
    np.testing.assert_allclose(new.position, x, rtol=1e-12)
    np.testing.assert_allclose(back.z, -lower.T @ p, rtol=1e-12)
    assert float(log_det) == 0.0


def test_one_gradient_a_leapfrog_step(key: Any) -> None:
    calls: list[int] = []

    def density(x: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return quartic(x)

    target = Target(density)
    kernel = hmc(0.1, 7, jitter=False)
    state = kernel.init(jax.random.key(0), target, START)
    step = jax.jit(lambda k, s: kernel.step(k, target, s))
    jax.block_until_ready(step(jax.random.key(1), state))
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(step(key, state))
    jax.effects_barrier()
    assert len(calls) == 7


def test_number_of_steps_is_an_array_and_does_not_recompile() -> None:
    traced: list[int] = []

    @jax.jit
    def step(key: Any, num_steps: Any, step_size: Any, state: Any) -> Any:
        traced.append(1)
        return hmc(step_size, num_steps).step(key, TARGET, state)

    for num_steps, step_size in ((3, 0.1), (50, 0.2)):
        _, info = step(jax.random.key(1), jnp.int32(num_steps), jnp.float32(step_size), state_at(START))
        assert int(info.status) == 0
    assert len(traced) == 1


@pytest.mark.parametrize(("num_steps", "step_size"), [(0, 0.1), (-3, 0.1), (4, 0.0), (4, -0.1), (4, np.nan)])
@pytest.mark.parametrize("jitter", [False, True])
def test_traced_bad_settings_are_flagged_rejections(num_steps: int, step_size: float, jitter: bool) -> None:
    @jax.jit
    def step(num_steps: Any, step_size: Any) -> Any:
        return hmc(step_size, num_steps, jitter=jitter).step(jax.random.key(1), TARGET, state_at(START))

    state, info = step(jnp.int32(num_steps), jnp.float32(step_size))
    assert int(info.status) == int(Status.DIVERGENT)
    assert not bool(info.accepted)
    np.testing.assert_array_equal(state.position, START)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_steps": 0}, "`num_steps` must be a scalar of at least 1, but is 0"),
        ({"num_steps": jnp.ones(2, jnp.int32)}, "`num_steps` must be a scalar"),
        ({"step_size": 0.0}, "`step_size` must be finite and positive, but is 0.0"),
        ({"step_size": -0.1}, "finite and positive"),
        ({"step_size": np.nan}, "finite and positive"),
        ({"step_size": np.inf}, "finite and positive"),
        ({"step_size": jnp.ones(2)}, "scalar"),
        ({"inverse_mass_matrix": jnp.ones((2, 3))}, r"shape \[d\]"),
        ({"inverse_mass_matrix": jnp.array([1.0, -1.0])}, "positive definite"),
        ({"inverse_mass_matrix": jnp.array([[1.0, 2.0], [2.0, 1.0]])}, "positive definite"),
        ({"inverse_mass_matrix": jnp.array([[1.0, 0.5], [0.0, 1.0]])}, "symmetric"),
        ({"inverse_mass_matrix": jnp.array([1.0, np.nan])}, "positive definite"),
    ],
)
def test_static_bad_settings_raise(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        hmc(**arguments)


def test_types_are_checked() -> None:
    with pytest.raises(TypeError, match="num_steps"):
        hmc(num_steps=2.5)
    with pytest.raises(TypeError, match="floating-point positions"):
        hmc().init(jax.random.key(0), TARGET, jnp.arange(3))
    with pytest.raises(ValueError, match="positions of 3 numbers, but these have 2"):
        hmc(inverse_mass_matrix=jnp.ones(3)).step(jax.random.key(0), TARGET, state_at(START))


def test_energy_error_over_1000_is_divergent() -> None:
    target = Target(lambda x: -0.5 * jnp.sum(x * x))
    kernel = hmc(100.0, 3, jitter=False)
    state, info = kernel.step(jax.random.key(1), target, state_at(START, target))
    assert int(info.status) == int(Status.DIVERGENT)
    assert bool(info.divergent)
    assert float(info.energy_error) > 1000
    assert int(state.status) == int(Status.DIVERGENT)


def test_fixed_length_can_be_periodic_and_the_default_is_not(key: Any) -> None:
    """16 steps of 2 pi / 16 are once around a Gaussian: each draw repeats the last, unless lengths are jittered."""
    target = Target(lambda x: -0.5 * jnp.sum(x * x))

    def lag_one(key: Any, kernel: Any) -> float:
        def body(state: Any, k: Any) -> Any:
            state, _ = kernel.step(k, target, state)
            return state, state.position[0]

        start = state_at(jnp.array([1.0]), target)
        _, x = jax.jit(lambda k: jax.lax.scan(body, start, jax.random.split(k, 4000)))(key)
        x = np.asarray(x) - np.mean(x)
        return float(np.mean(x[1:] * x[:-1]) / np.var(x))

    key_fixed, key_jittered = jax.random.split(key)
    step_size = 2 * np.pi / 16
    assert lag_one(key_fixed, hmc(step_size, 16, jitter=False)) > 0.9
    # The exact value is the mean of cos(t) over the lengths, about 0; 6 standard errors of 4000 draws are .1.
    assert abs(lag_one(key_jittered, hmc(step_size, 16))) < 0.12


def _no_flip(self: Any, target: Target, state: Any, v: Any) -> Any:
    new, back, log_det = LEAPFROG(self, target, state, v)
    return new, Momentum(-back.z, back.num_steps), log_det


def _stale_gradient(self: Any, target: Target, state: Any, v: Any) -> Any:
    new, back, log_det = LEAPFROG(self, target, state, v)
    old = state.point
    p = new.point
    point = Point(p.position, p.log_prior, p.log_likelihood, p.grad_log_prior, old.grad_log_likelihood)
    return MHGState(point, new.status), back, log_det


def _growing_step(self: Any, target: Target, state: Any, v: Any) -> Any:
    one = Momentum(v.z, jnp.int32(1))
    middle, turned, _ = LEAPFROG(self, target, state, one)
    longer = Leapfrog(1.5 * self.step_size, self.factor)
    return LEAPFROG(longer, target, middle, Momentum(-turned.z, jnp.int32(1)))


LEAPFROG = Leapfrog.__call__


@pytest.mark.parametrize("bug", [_no_flip, _stale_gradient, _growing_step])
def test_check_mode_catches_planted_bugs(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, state = hmc(0.3, 4, check=True, jitter=False), state_at(START)
    assert int(kernel.step(jax.random.key(1), TARGET, state)[1].status) == 0
    monkeypatch.setattr(Leapfrog, "__call__", bug)
    assert int(kernel.step(jax.random.key(1), TARGET, state)[1].status) == int(Status.BAD_INVOLUTION)


def test_wrong_sign_of_the_gradient_costs_acceptance_and_not_the_law(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leapfrog along any field is an involution of determinant 1, so the test of the law must still pass."""
    gradient = _hmc.point_gradient
    target = Target(lambda x: -jnp.exp(x[0]) + 1.5 * x[0])
    key_start, key_right, key_wrong = jax.random.split(key, 3)
    exact = np.asarray(jnp.log(jax.random.gamma(key_start, 1.5, (20_000,))))

    def run(key: Any) -> tuple[float, np.ndarray]:
        kernel = hmc(0.4, 4, jitter=False)
        states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(jnp.asarray(exact)[:, None])
        states, info = jax.jit(jax.vmap(lambda k, s: kernel.step(k, target, s)))(jax.random.split(key, 20_000), states)
        return float(info.acceptance_rate.mean()), np.asarray(states.position[:, 0], np.float64)

    right, _ = run(key_right)
    monkeypatch.setattr(_hmc, "point_gradient", lambda target, point: -gradient(target, point))
    wrong, x = run(key_wrong)
    assert right > 0.95
    assert wrong < right - 0.1
    # digamma(1.5) and trigamma(1.5); the difference of two dependent means is within 6 standard errors of 0.
    assert abs(x.mean() - 0.03648998) < 6 * np.sqrt(0.93480220 / 20_000)


def test_dense_matrix_takes_the_order_of_ravel_pytree() -> None:
    target = Target(lambda x: -0.5 * (x["b"] / 10) ** 2 - 0.5 * jnp.sum(x["a"] ** 2))
    kernel = hmc(0.5, 4, inverse_mass_matrix=jnp.array([1.0, 1.0, 100.0]))
    position = {"b": jnp.float32(3.0), "a": jnp.ones(2)}
    state = kernel.init(jax.random.key(0), target, position)
    keys = jax.random.split(jax.random.key(1), 64)
    _, info = jax.vmap(lambda key: kernel.step(key, target, state))(keys)
    assert float(jnp.mean(info.acceptance_rate)) > 0.9  # 0 in another order
    assert evaluate(target, position, gradient=False).grad_log_prior is None
