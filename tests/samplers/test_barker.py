"""`barker`: acceptance by the formula of the paper, the law of its steps, exploding gradients, settings.

Laws shared by all kernels: `test_kernels`. Planted bugs that must be caught (`test_planted_bugs`): signs that lean
against the gradient, signs that ignore it, a density of the steps that forgets the way back.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers, validity
from probinf.core import Target
from probinf.core._status import Status
from probinf.samplers._barker import BarkerLaw, barker
from probinf.samplers._factor import factor_of

MATRIX = np.array([[1.3, 0.4], [0.4, 0.7]])
NUM = 40_000
# Dvoretzky, Kiefer, Wolfowitz: a distance over this has probability 1e-7.
BOUND = float(np.sqrt(np.log(2 / 1e-7) / (2 * NUM)))


def log_density(x: Any) -> Any:
    """Skewed and correlated."""
    return 2 * x[0] - jnp.exp(x[0]) - 0.5 * ((x[1] - jnp.tanh(x[0])) / 0.6) ** 2


TARGET = Target(log_density)


@pytest.mark.parametrize("matrix", [None, np.diagonal(MATRIX), MATRIX], ids=["none", "diagonal", "dense"])
def test_acceptance_is_that_of_the_paper(matrix: Any, x64: None) -> None:
    """Livingstone, Zanella (2022), with the product over the coordinates in which the steps are independent."""
    kernel = barker(0.8, inverse_mass_matrix=None if matrix is None else jnp.asarray(matrix))
    factor = np.eye(2) if matrix is None else np.diag(np.sqrt(matrix)) if matrix.ndim == 1 else factor_of("m", matrix)
    compare_with_the_paper(kernel, np.asarray(factor))


def compare_with_the_paper(kernel: Any, factor: np.ndarray) -> None:
    """Fails where an acceptance rate is another."""
    x = np.array([0.4, -0.3])
    state = kernel.init(jax.random.key(0), TARGET, jnp.asarray(x))
    new, info = jax.jit(jax.vmap(lambda key: kernel.step(key, TARGET, state)))(jax.random.split(jax.random.key(1), 20))
    gradient, rates = jax.jit(jax.grad(log_density)), np.asarray(info.acceptance_rate)
    moved = np.asarray(info.accepted)
    assert (rates[moved] < 1).sum() >= 3
    for y, rate in zip(np.asarray(new.position)[moved], rates[moved], strict=True):
        u = np.linalg.solve(factor, y - x)  # along these the law is a product
        there, back = factor.T @ gradient(x), factor.T @ gradient(y)
        ratio = np.exp(log_density(y) - log_density(x)) * np.prod((1 + np.exp(-u * there)) / (1 + np.exp(u * back)))
        assert float(rate) == pytest.approx(min(1.0, ratio), rel=1e-9)


def law_of_steps(step_size: float, slope: float) -> float:
    """The distance between steps in one coordinate, where the gradient is `slope`, and their law."""
    target = Target(lambda x: slope * x[0])
    state = barker(step_size).init(jax.random.key(0), target, jnp.zeros(1))
    law = BarkerLaw(jnp.float32(step_size), None)

    @jax.jit
    def draw(keys: Any) -> Any:
        return jax.vmap(lambda key: law.sample(key, target, state)[0])(keys)

    steps = np.sort(np.asarray(draw(jax.random.split(jax.random.key(1), NUM)), np.float64))
    grid = np.linspace(-8, 8, 20_001)
    density = 2 * np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi) / (1 + np.exp(-step_size * slope * grid))
    cdf = np.cumsum(density) * (grid[1] - grid[0])
    np.testing.assert_allclose(cdf[-1], 1, atol=1e-6)
    exact = np.interp(steps, grid, cdf)
    return float(np.max(np.abs(exact - np.arange(1, NUM + 1) / NUM)))


def test_steps_have_their_law() -> None:
    """False alarms have probability 1e-7 each."""
    assert law_of_steps(0.7, 2.0) < BOUND
    assert law_of_steps(0.7, -30.0) < BOUND


def test_is_in_balance_at_every_point() -> None:
    exact = validity.exact_target("skewed")
    report = validity.balance(jax.random.key(0), barker(0.8), exact.target, exact.draw)
    assert report.passed, report.table


def _plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    slope, sample = BarkerLaw._slope, BarkerLaw.sample
    if fault == "against":
        monkeypatch.setattr(BarkerLaw, "sample", lambda self, *args: -sample(self, *args))
    elif fault == "ignored":
        monkeypatch.setattr(BarkerLaw, "_slope", lambda self, target, state: 0 * slope(self, target, state))
    else:
        monkeypatch.setattr(BarkerLaw, "log_prob", lambda self, target, state, v: -0.5 * jnp.sum(v * v))


@pytest.mark.parametrize("fault", ["against", "ignored", "no way back"])
def test_planted_bugs(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, fault)
    if fault == "no way back":
        with jax.enable_x64(True), pytest.raises(AssertionError):
            compare_with_the_paper(barker(0.8), np.eye(2))
    else:
        assert law_of_steps(0.7, 2.0) > BOUND


def steep(steepness: Any, x: Any) -> Any:
    return -steepness * jnp.sum(jnp.abs(x))


@jax.jit
def step_on_steep(keys: Any, steepness: Any) -> Any:
    target, kernel = Target(jax.tree_util.Partial(steep, steepness)), barker(0.5)
    states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(jnp.full((keys.shape[0], 3), 2.0))
    return jax.vmap(kernel.step, (0, None, 0))(keys, target, states)


@pytest.mark.parametrize("steepness", [1e3, 1e12, 1e30])
def test_exploding_gradients_neither_overflow_nor_diverge(steepness: float) -> None:
    new, info = step_on_steep(jax.random.split(jax.random.key(1), 64), jnp.float32(steepness))
    assert np.all(np.isfinite(info.acceptance_rate))
    assert not np.any(np.asarray(new.status))
    # The gradient decides the signs of all but tiny steps: they lead towards the mode.
    moved = np.asarray(info.accepted)
    assert moved.any()
    assert np.all(np.abs(np.asarray(new.position)[moved]) < 2.05)


def test_a_gradient_of_nan_is_a_flagged_rejection() -> None:
    # Right of 0 the density is 1, and its gradient, as automatic differentiation has it, NaN.
    target = Target(lambda x: jnp.where(x[0] > 0, 1 + jnp.sqrt(0 * jnp.where(x[0] > 0, x[0], 1.0)), 0.0))
    kernel = barker(1.0)

    @jax.jit
    def step(keys: Any) -> Any:
        state = kernel.init(jax.random.key(0), target, jnp.array([-0.5]))
        return state, *jax.vmap(lambda key: kernel.step(key, target, state))(keys)

    state, new, info = step(jax.random.split(jax.random.key(1), 50))
    assert int(state.status) == 0
    assert np.all(new.position <= 0)
    flagged = np.asarray(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(flagged, ~np.asarray(info.accepted))
    assert 0 < flagged.sum() < 50


@jax.jit
def step_of_size(step_size: Any) -> Any:
    kernel = barker(step_size)
    state = kernel.init(jax.random.key(0), TARGET, jnp.zeros(2))
    return kernel.step(jax.random.key(1), TARGET, state)


@pytest.mark.parametrize("step_size", [0.0, -1.0, np.nan])
def test_step_size_is_checked_when_static_and_flagged_when_traced(step_size: float) -> None:
    with pytest.raises(ValueError, match="`step_size` must be finite and positive"):
        barker(step_size)
    new, info = step_of_size(jnp.float32(step_size))
    assert int(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(new.position, 0)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"`target_accept` is 1\.5"):
        barker(target_accept=1.5)
    with pytest.raises(ValueError, match="`inverse_mass_matrix` must be symmetric and positive definite"):
        barker(inverse_mass_matrix=jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    state = barker().init(jax.random.key(0), TARGET, jnp.zeros(2))
    with pytest.raises(ValueError, match="positions of 3 numbers"):
        barker(inverse_mass_matrix=jnp.ones(3)).step(jax.random.key(0), TARGET, state)
    with pytest.raises(TypeError, match="the Barker proposal needs floating-point positions"):
        barker().init(jax.random.key(0), TARGET, jnp.zeros(2, jnp.int32))


@pytest.mark.slow
def test_warm_up_reaches_the_acceptance_rate(key: Any) -> None:
    scales = jnp.array([0.1, 1.0, 10.0])
    target = Target(lambda x: -0.5 * jnp.sum((x / scales) ** 2))
    start = scales[None] * jax.random.normal(jax.random.key(1), (32, 3))
    tuned = samplers.warmup(key, barker(), target, num_steps=200, num_chains=32, initial_position=start)
    # Scales are learned from 32 chains over a hundred steps.
    np.testing.assert_allclose(tuned.factor / tuned.factor[1], scales, rtol=0.35)

    @eqx.filter_jit
    def rates(kernel: Any, keys: Any) -> Any:
        states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(start)
        return jax.vmap(kernel.step, (0, None, 0))(keys, target, states)[1].acceptance_rate

    found = np.asarray([rates(tuned, jax.random.split(jax.random.key(i), 32)).mean() for i in range(2, 22)])
    assert found.mean() == pytest.approx(0.4, abs=0.1)
