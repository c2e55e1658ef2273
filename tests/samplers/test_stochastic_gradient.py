"""Stochastic gradient kernels: exact stationary laws of the discretised dynamics, and estimates by enumeration.

On Gaussian targets every kernel is a linear recursion, whose stationary variances are known at any step size. Planted
bugs that must be caught: noise of sqrt(step) for sqrt(2 step), a temperature that is not rooted, friction left out of
the noise of `sghmc`, a preconditioner left out of the noise, the factor N / n left out, the prior's gradient scaled.

Variances are those of NUM independent chains, whose relative errors are sqrt(2 / NUM): |z| > 6.5 for the at most 10
numbers of a test has probability below 1e-8. A variance that is off by 14 % is missed with less than 1e-6.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.linalg import solve_discrete_lyapunov

from probinf.core._status import Status, is_fatal
from probinf.core._target import Target
from probinf.samplers import _minibatch as minibatch
from probinf.samplers import _stochastic_gradient as module
from probinf.samplers._minibatch import StratifiedRows, gradient_estimate, minibatch_target
from probinf.samplers._random_walk import random_walk
from probinf.samplers._sample import sample
from probinf.samplers._stochastic_gradient import preconditioned_sgld, sghmc, sgld
from probinf.validity import enumerate_algorithm
from tests._slow import slow_after

NUM, STEPS, WIDE = 20_000, 60, 6.5

# --- estimates, by enumeration of all batches ---

ROWS = {"x": np.array([0.3, -1.2, 2.0, 0.7, 1.5]), "y": np.array([1.0, 0.5, -0.4, 2.2, 0.1])}
POSITION = {"slope": jnp.asarray(0.4), "shift": jnp.asarray([0.2, -0.1])}


def log_likelihood(position: Any, row: Any) -> Any:
    mean = position["slope"] * row["x"] + position["shift"][0] + position["shift"][1] * row["x"] ** 2
    return -0.5 * (row["y"] - mean) ** 2 - jnp.exp(position["slope"]) * row["y"] ** 2


def log_prior(position: Any) -> Any:
    return -jnp.sum(position["shift"] ** 4) - position["slope"] ** 2


def rows_target(batch_size: int, centre: Any = None) -> Target:
    return minibatch_target(log_likelihood, ROWS, batch_size, log_prior=log_prior, centre=centre)


def in_double(position: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), position)


def law_of_estimate(target: Target, position: Any) -> tuple[Any, Any]:
    """Mean and variance over all batches."""
    law = enumerate_algorithm(lambda key: ravel_pytree(gradient_estimate(key, target, position))[0])
    values, chances = np.asarray(law.outcomes), np.asarray(law.probabilities)
    mean = chances @ values
    return mean, chances @ (values - mean) ** 2


CENTRE = {"slope": np.array(0.5), "shift": np.array([0.1, -0.2])}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("centre", [None, CENTRE], ids=["plain", "control variates"])
def test_estimates_are_unbiased(batch_size: int, centre: Any, x64: None) -> None:
    position = in_double(POSITION)
    target = rows_target(batch_size, centre).at_temperature(0.7)
    whole = ravel_pytree(jax.grad(target.log_density)(position))[0]
    mean, variance = law_of_estimate(target, position)
    np.testing.assert_allclose(mean, whole, rtol=1e-12)
    # No more than with replacement: the variance of one row over their number.
    _, single = law_of_estimate(rows_target(1, centre).at_temperature(0.7), position)
    assert np.all(variance <= single / batch_size + 1e-12)
    assert np.all(variance > 0)


def test_control_variates_take_the_noise_away_at_their_centre(x64: None) -> None:
    _, variance = law_of_estimate(rows_target(2, CENTRE), in_double(CENTRE))
    assert variance.max() < 1e-25
    _, near = law_of_estimate(rows_target(2, CENTRE), in_double(POSITION))
    _, plain = law_of_estimate(rows_target(2), in_double(POSITION))
    assert np.all(near < 0.3 * plain)


def test_a_batch_of_all_rows_is_exact(x64: None) -> None:
    target, position = rows_target(5), in_double(POSITION)
    whole = jax.grad(target.log_density)(position)
    for a, b in zip(
        jax.tree.leaves(gradient_estimate(jax.random.key(0), target, position)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    direct = sum(log_likelihood(position, {k: v[i] for k, v in ROWS.items()}) for i in range(5)) + log_prior(position)
    assert float(target.log_density(position)) == pytest.approx(float(direct), rel=1e-12)


def test_any_other_target_gives_its_gradient() -> None:
    target = Target(lambda x: -jnp.sum(x**4), lambda x: -jnp.sum(x**2)).at_temperature(0.5)
    found = gradient_estimate(jax.random.key(0), target, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found, [-4.0, -20.0])


@pytest.mark.parametrize(("num_rows", "batch_size"), [(5, 3), (7, 1), (12, 4), (9, 8)])
def test_rows_are_equally_likely(num_rows: int, batch_size: int, x64: None) -> None:
    batches, chances = StratifiedRows(num_rows, batch_size).law()
    expected = np.bincount(np.asarray(batches).ravel(), np.repeat(chances, batch_size), num_rows)
    np.testing.assert_allclose(expected, batch_size / num_rows, rtol=1e-12)
    np.testing.assert_allclose(np.sum(chances), 1, rtol=1e-12)


def test_rows_are_drawn_from_their_law(key: Any) -> None:
    choice = StratifiedRows(5, 3)
    drawn = np.asarray(jax.vmap(choice.sample)(jax.random.split(key, NUM)))
    batches, chances = (np.asarray(a) for a in choice.law())
    counts = np.array([np.sum(np.all(drawn == batch, axis=1)) for batch in batches])
    assert counts.sum() == NUM
    chances = chances.astype(np.float64)
    assert np.abs((counts - NUM * chances) / np.sqrt(NUM * chances * (1 - chances))).max() < WIDE
    far = StratifiedRows(2_000_000_000, 1000).sample(jax.random.key(1))
    assert np.all(np.diff(np.asarray(far, np.int64)) > 0)
    assert 1_998_000_000 <= int(far[-1]) < 2_000_000_000


# --- stationary laws ---

PRECISION = np.array([1.0, 4.0])
MEAN = np.array([0.5, -1.0])


def gaussian(x: Any) -> Any:
    return -0.5 * jnp.sum(jnp.asarray(PRECISION, x.dtype) * (x - jnp.asarray(MEAN, x.dtype)) ** 2)


GAUSSIAN = Target(gaussian)


def ends(key: Any, kernel: Any, target: Target, start: Any, num_steps: int = STEPS) -> np.ndarray:
    """Positions of NUM chains after some steps."""

    @jax.jit
    def run(key: Any) -> Any:
        key_init, key_run = jax.random.split(key)
        states = jax.vmap(lambda k: kernel.init(k, target, start))(jax.random.split(key_init, NUM))

        def body(i: Any, states: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key_run, i), NUM)
            return jax.vmap(lambda k, s: kernel.step(k, target, s)[0])(keys, states)

        return jax.lax.fori_loop(0, num_steps, body, states)

    states = run(key)
    assert not np.any(np.asarray(states.status))
    return np.asarray(states.position, np.float64)


def worst(x: np.ndarray, mean: Any, variance: Any) -> float:
    """The largest |z| of means and of second moments about the known mean."""
    squares = np.mean((x - mean) ** 2, axis=0) / variance
    means = (x.mean(axis=0) - mean) / np.sqrt(variance / NUM)
    return float(max(np.abs(means).max(), np.abs((squares - 1) / math.sqrt(2 / NUM)).max()))


def langevin_variance(epsilon: Any, precision: Any, temperature: float = 1.0, noise: float = 0.0) -> Any:
    return (temperature + epsilon * noise / 2) / precision / (1 - epsilon * precision / 2)


def friction_variance(epsilon: float, gamma: float, precision: float, temperature: float, noise: float = 0.0) -> float:
    """In closed form."""
    left = 1 - epsilon * gamma
    kick = temperature + epsilon * noise / (2 * gamma)
    return kick / precision / (1 - epsilon**2 * precision / (2 * (1 + left)))


def solved_variance(epsilon: float, gamma: float, precision: float, temperature: float, noise: float = 0.0) -> float:
    """The same by solving for the covariance of position and velocity."""
    velocity = np.array([-epsilon * precision, 1 - epsilon * gamma])
    step = np.stack([np.array([1.0, 0.0]) + epsilon * velocity, velocity])
    shape = np.array([epsilon, 1.0])
    kick = (2 * gamma * epsilon * temperature + epsilon**2 * noise) * np.outer(shape, shape)
    return solve_discrete_lyapunov(step, kick)[0, 0]


START = jnp.asarray([2.0, 1.0])
CASES = {
    "sgld": (lambda: sgld(0.3), langevin_variance(0.3, PRECISION)),
    "sgld, cold": (lambda: sgld(0.3, temperature=0.1), langevin_variance(0.3, PRECISION, 0.1)),
    "sghmc": (lambda: sghmc(0.4, friction=1.0), [friction_variance(0.4, 1.0, p, 1.0) for p in PRECISION]),
    "sghmc, cold": (
        lambda: sghmc(0.4, friction=1.5, temperature=0.1),
        [friction_variance(0.4, 1.5, p, 0.1) for p in PRECISION],
    ),
    # The gradient at the start, of which the square is the preconditioner, is (1.5, 8).
    "preconditioned": (
        lambda: preconditioned_sgld(0.75, decay=1.0, regularisation=0.5),
        langevin_variance(0.75 / (0.5 + np.array([1.5, 8.0])), PRECISION),
    ),
    "preconditioned, cold": (
        lambda: preconditioned_sgld(0.75, decay=1.0, regularisation=0.5, temperature=0.1),
        langevin_variance(0.75 / (0.5 + np.array([1.5, 8.0])), PRECISION, 0.1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_stationary_law_on_a_gaussian(name: str, key: Any) -> None:
    make, variance = CASES[name]
    assert worst(ends(key, make(), GAUSSIAN, START), MEAN, np.asarray(variance)) < WIDE


def test_the_closed_form_of_friction_solves_its_equation() -> None:
    for numbers in ((0.4, 1.5, 4.0, 0.1, 3.0), (0.1, 4.0, 14.0, 1.0, 50.0)):
        assert friction_variance(*numbers) == pytest.approx(solved_variance(*numbers), rel=1e-9)


def _plant(patch: pytest.MonkeyPatch, dynamics: Any, change: Any) -> None:
    """Noise z multiplied by a number that depends on the parameters and the memory."""
    advance = dynamics.advance
    patch.setattr(dynamics, "advance", lambda self, x, m, g, z: advance(self, x, m, g, change(self, m) * z))


PLANTED = {
    "sqrt(step)": ("sgld", module.Langevin, lambda d, m: math.sqrt(0.5)),
    "temperature not rooted": ("sgld, cold", module.Langevin, lambda d, m: jnp.sqrt(d.temperature)),
    "temperature ignored": ("sghmc, cold", module.Friction, lambda d, m: 1 / jnp.sqrt(d.temperature)),
    "friction left out": ("sghmc, cold", module.Friction, lambda d, m: 1 / jnp.sqrt(d.friction)),
    "noise not preconditioned": (
        "preconditioned",
        module.PreconditionedLangevin,
        lambda d, m: jnp.sqrt(d.regularisation + jnp.sqrt(m)),
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_noise_is_caught(bug: str, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, dynamics, change = PLANTED[bug]
    make, variance = CASES[name]
    _plant(monkeypatch, dynamics, change)
    assert worst(ends(key, make(), GAUSSIAN, START), MEAN, np.asarray(variance)) > 2 * WIDE


# --- batches: y_i ~ N(x, 1), x ~ N(0, 1 / PRIOR) ---

DATA = np.sort(np.random.default_rng(0).gamma(1.5, 2.0, size=12)).astype(np.float32)
PRIOR, BATCH, EPSILON = 2.0, 3, 0.05
POSTERIOR = PRIOR + DATA.size
POSTERIOR_MEAN = float(DATA.sum(dtype=np.float64) / POSTERIOR)
# Every stretch of four rows has one row drawn, which counts for four.
NOISE = 16 * float(np.var(DATA.reshape(BATCH, -1).astype(np.float64), axis=1).sum())


def normal_row(x: Any, y: Any) -> Any:
    return -0.5 * (x - y) ** 2


def normal_prior(x: Any) -> Any:
    return -0.5 * PRIOR * x * x


def mean_target(**options: Any) -> Target:
    return minibatch_target(normal_row, DATA, BATCH, log_prior=normal_prior, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_batches_inflate_the_variance_as_computed(temperature: float, key: Any) -> None:
    x = ends(key, sgld(EPSILON, temperature=temperature), mean_target(), jnp.zeros(()))
    expected = langevin_variance(EPSILON, POSTERIOR, temperature, NOISE)
    assert expected > 1.1 * langevin_variance(EPSILON, POSTERIOR, temperature)
    if temperature:
        assert worst(x, POSTERIOR_MEAN, expected) < WIDE
    else:
        # Not normal, but the sum of many bounded terms: of less kurtosis than a normal law, so of less error.
        assert worst(x, POSTERIOR_MEAN, expected) < WIDE


def test_batches_and_momentum(key: Any) -> None:
    x = ends(key, sghmc(0.1, friction=4.0), mean_target(), jnp.zeros(()))
    assert worst(x, POSTERIOR_MEAN, friction_variance(0.1, 4.0, POSTERIOR, 1.0, NOISE)) < WIDE


def test_control_variates_take_the_inflation_away(key: Any) -> None:
    """Rows that differ by their means only have gradients that differ by constants: no noise is left."""
    x = ends(key, sgld(EPSILON), mean_target(centre=0.3), jnp.zeros(()))
    assert worst(x, POSTERIOR_MEAN, langevin_variance(EPSILON, POSTERIOR)) < WIDE


def _plant_unscaled(patch: pytest.MonkeyPatch) -> None:
    total = minibatch.RowLikelihood._total
    # Where rows are part of the data the sum is multiplied by N / n: undone here.
    patch.setattr(
        minibatch.RowLikelihood,
        "_total",
        lambda self, x, rows: total(self, x, rows) * jax.tree.leaves(rows)[0].shape[0] / self.num_rows,
    )


def _plant_scaled_prior(patch: pytest.MonkeyPatch) -> None:
    estimate = module.gradient_estimate

    def broken(key: Any, target: Target, x: Any) -> Any:
        return jax.tree.map(lambda g, p: g + 3 * p, estimate(key, target, x), jax.grad(target.log_prior)(x))

    patch.setattr(module, "gradient_estimate", broken)


@pytest.mark.parametrize("plant", [_plant_unscaled, _plant_scaled_prior])
def test_planted_gradients_are_caught(plant: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = mean_target()
    plant(monkeypatch)
    x = ends(key, sgld(EPSILON), target, jnp.zeros(()))
    assert worst(x, POSTERIOR_MEAN, langevin_variance(EPSILON, POSTERIOR, 1.0, NOISE)) > 2 * WIDE


# --- faults and forms ---

KINDS = {
    "sgld": lambda: sgld(0.05),
    "preconditioned": lambda: preconditioned_sgld(0.05, decay=0.9),
    "sghmc": lambda: sghmc(0.1, friction=2.0),
}
with_every_kind = pytest.mark.parametrize("name", KINDS)


class Edge(eqx.Module):
    """Normal up to 1, and `value` beyond, where its gradient is NaN too."""

    value: Any

    def __call__(self, x: Any) -> Any:
        return jnp.sum(x * jnp.where(x > 1, self.value, -0.5 * x))


@with_every_kind
def test_bad_starts_are_flagged(name: str) -> None:
    kernel = KINDS[name]()

    @jax.jit
    def start_and_step(value: Any) -> Any:
        target = Target(Edge(value))
        state = kernel.init(jax.random.key(0), target, jnp.full(2, 2.0))
        return state, kernel.step(jax.random.key(1), target, state)

    for value in (np.nan, -np.inf, np.inf):
        state, (after, info) = start_and_step(jnp.float32(value))
        assert int(state.status) & int(Status.NONFINITE_INIT)
        np.testing.assert_array_equal(after.position, state.position)
        assert float(info.acceptance_rate) == 0
        assert int(info.status) == 0


def test_a_start_with_nan_gradient_is_flagged(key: Any) -> None:
    root = Target(lambda x: -jnp.sum(jnp.sqrt(jnp.abs(x))))
    assert int(sgld(0.1).init(key, root, jnp.zeros(2)).status) == int(Status.NONFINITE_INIT)


@with_every_kind
def test_a_nan_gradient_is_no_step_and_flagged(name: str, key: Any) -> None:
    target = Target(Edge(jnp.float32(np.nan)))
    kernel = KINDS[name]()
    state = kernel.init(key, target, jnp.full(2, 0.9))
    bad = eqx.tree_at(lambda s: s.position, state, jnp.full(2, 1.5))
    after, info = jax.jit(lambda k, s: kernel.step(k, target, s))(jax.random.key(1), bad)
    np.testing.assert_array_equal(after.position, bad.position)
    np.testing.assert_array_equal(after.memory, bad.memory)
    assert int(info.status) == int(after.status) == int(Status.DIVERGENT)
    assert not bool(is_fatal(after.status))


def test_steps_too_large_run_away_and_are_flagged(key: Any) -> None:
    kernel = sgld(3.0)

    def body(state: Any, key: Any) -> Any:
        return kernel.step(key, GAUSSIAN, state)

    state = kernel.init(jax.random.key(0), GAUSSIAN, START)
    state, infos = jax.lax.scan(body, state, jax.random.split(key, 200))
    assert np.all(np.isfinite(state.position))
    assert int(state.status) == int(Status.DIVERGENT)
    assert bool(infos.divergent[-1])


def test_traced_parameters_that_are_not_valid_are_flagged() -> None:
    def statuses(make: Any, values: Any) -> list[int]:
        def one(value: Any) -> Any:
            kernel = make(value)
            state = kernel.init(jax.random.key(0), GAUSSIAN, START)
            return kernel.step(jax.random.key(1), GAUSSIAN, state)[1].status

        return [int(s) for s in jax.jit(jax.vmap(one))(jnp.asarray(values))]

    bad = int(Status.DIVERGENT)
    assert statuses(sgld, [0.1, 0.0, -1.0, jnp.nan]) == [0, bad, bad, bad]
    assert statuses(lambda t: sgld(0.1, temperature=t), [0.0, -1.0, jnp.nan]) == [0, bad, bad]
    assert statuses(lambda a: sghmc(0.1, friction=a), [1.0, 0.0, 11.0]) == [0, bad, bad]
    assert statuses(lambda a: preconditioned_sgld(0.1, decay=a), [0.5, 1.1, -0.1]) == [0, bad, bad]


@pytest.mark.parametrize("name", slow_after(1, KINDS))
def test_sample_runs_them(name: str, key: Any) -> None:
    draws = sample(
        key,
        KINDS[name](),
        mean_target(sample_prior=lambda key: jax.random.normal(key), constrain=jnp.exp),
        num_samples=40,
        num_warmup=5,
        num_chains=3,
    )
    assert draws.samples.shape == (3, 40)
    assert np.all(draws.samples > 0)
    assert np.all(draws.info["acceptance_rate"] == 1)
    assert draws.info["gradient_norm"].shape == (3, 40)


def test_other_kernels_see_all_data() -> None:
    target, x = mean_target(), jnp.asarray(0.7)
    state = random_walk(0.5).init(jax.random.key(0), target, x)
    assert float(state.point.log_likelihood) == pytest.approx(float(-0.5 * np.sum((0.7 - DATA) ** 2)), rel=1e-5)


@with_every_kind
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_and_shapes_are_those_of_the_position(name: str, dtype: Any, x64: None) -> None:
    rows, position = jax.tree.map(lambda a: jnp.asarray(a, dtype), (ROWS, POSITION))
    target = minibatch_target(log_likelihood, rows, 2, log_prior=log_prior)
    state = jax.eval_shape(lambda k, x: KINDS[name]().init(k, target, x), jax.random.key(0), position)
    new, info = jax.eval_shape(lambda k, s: KINDS[name]().step(k, target, s), jax.random.key(1), state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert info.gradient_norm.dtype == dtype


@with_every_kind
@pytest.mark.no_key_reuse
def test_step_lowers_for_every_platform(name: str) -> None:
    kernel, target = KINDS[name](), mean_target()
    state = kernel.init(jax.random.key(0), target, jnp.zeros(()))
    leaves, structure = jax.tree.flatten(state)

    def step(data: Any, *leaves: Any) -> Any:
        state = jax.tree.unflatten(structure, leaves)
        return jax.tree.leaves(kernel.step(jax.random.wrap_key_data(data), target, state))

    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(jnp.zeros(2, jnp.uint32), *leaves)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_arguments_are_checked() -> None:
    for bad in (0.0, -1.0, np.nan, np.inf):
        for make in (sgld, preconditioned_sgld, sghmc):
            with pytest.raises(ValueError, match="step_size"):
                make(bad)
    for make in (sgld, preconditioned_sgld, sghmc):
        for bad in (-0.1, np.nan, np.inf, np.ones(2)):
            with pytest.raises(ValueError, match="temperature"):
                make(0.1, temperature=bad)
    with pytest.raises(ValueError, match="decay"):
        preconditioned_sgld(0.1, decay=1.5)
    with pytest.raises(ValueError, match="regularisation"):
        preconditioned_sgld(0.1, regularisation=0.0)
    with pytest.raises(ValueError, match="at most 1"):
        sghmc(0.5, friction=3.0)
    with pytest.raises(TypeError, match="floating"):
        sgld().init(jax.random.key(0), GAUSSIAN, jnp.zeros(2, jnp.int32))


def test_arguments_of_targets_are_checked() -> None:
    with pytest.raises(TypeError, match="log_likelihood"):
        minibatch_target(3, DATA, 2)  # pyright: ignore[reportArgumentType]
    for bad in (0, 13):
        with pytest.raises(ValueError, match="batch_size"):
            minibatch_target(normal_row, DATA, bad)
    with pytest.raises(TypeError, match="batch_size"):
        minibatch_target(normal_row, DATA, 2.5)  # pyright: ignore[reportArgumentType]
    for data in ((DATA, DATA[:3]), jnp.zeros(()), ()):
        with pytest.raises(ValueError, match="rows"):
            minibatch_target(normal_row, data, 1)
