"""`cycle`, `mixture`, `repeat`: exact matrices, which are products, mixtures, powers; shared states; jumps and steps.

Planted bugs that must be caught: probabilities of a mixture that depend on the state; a cycle that forgets a kernel;
a repetition that goes on with the same random numbers.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from probinf.core import choose
from probinf.core._choices import categorical
from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers import _combine
from probinf.samplers._birth_death import birth_death
from probinf.samplers._combine import Repeated, cycle, mixture, repeat
from probinf.samplers._hmc import hmc
from probinf.samplers._mhg import MHGState, mhg, relocate
from probinf.samplers._model_space import Components
from probinf.samplers._random_walk import random_walk
from probinf.samplers._sample import sample
from probinf.samplers._stan_tuner import TunableKernel
from probinf.samplers._trans_dimensional import TransDimensional, active_random_walk
from tests._slow import slow_after
from tests.samplers._trans_dimensional import Normal, balance_errors, run_chains, transition_matrix, z_scores

WEIGHTS = np.array([0.5, 2.0, 0.9, 1.4])
FIRST = np.array([[0.1, 0.6, 0.0, 0.3], [0.2, 0.3, 0.5, 0.0], [0.4, 0.25, 0.25, 0.1], [0.1, 0.2, 0.3, 0.4]])
SECOND = np.array([[0.0, 0.5, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.0, 0.5], [0.3, 0.3, 0.4, 0.0]])
FINITE = Target(lambda x: jnp.log(jnp.asarray(WEIGHTS))[x])
STATES = [np.int32(i) for i in range(4)]


class Candidate(eqx.Module):
    matrix: Any

    def sample(self, key: Any, target: Any, state: Any) -> Any:
        return choose(key, categorical, self.matrix[state.position][None])[0]

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        return jnp.log(self.matrix[state.position, v])


def swap(target: Any, state: Any, v: Any) -> Any:
    return relocate(target, state, v), state.position, jnp.zeros(())


def finite_kernels() -> tuple[Any, Any]:
    return mhg(Candidate(jnp.asarray(FIRST)), swap), mhg(Candidate(jnp.asarray(SECOND)), swap)


def matrix_of(kernel: Any) -> np.ndarray:
    return transition_matrix(kernel, FINITE, [jnp.asarray(x) for x in STATES])


def test_a_cycle_is_the_product_and_invariant(x64: None) -> None:
    one, two = finite_kernels()
    found = matrix_of(cycle(one, two))
    np.testing.assert_allclose(found, matrix_of(one) @ matrix_of(two), atol=1e-12)
    rows, invariance, balance = balance_errors(found, WEIGHTS)
    assert max(rows, invariance) < 1e-12
    assert balance > 1e-3  # a cycle of reversible kernels is not reversible
    assert np.abs(matrix_of(cycle(one)) - found).max() > 1e-3


def test_a_mixture_is_the_mixture_invariant_and_reversible(x64: None) -> None:
    one, two = finite_kernels()
    found = matrix_of(mixture([one, two], [0.3, 0.7]))
    np.testing.assert_allclose(found, 0.3 * matrix_of(one) + 0.7 * matrix_of(two), atol=1e-12)
    assert max(balance_errors(found, WEIGHTS)) < 1e-12
    three = mixture([one, two, cycle(two, one)])
    expected = (matrix_of(one) + matrix_of(two) + matrix_of(two) @ matrix_of(one)) / 3
    np.testing.assert_allclose(matrix_of(three), expected, atol=1e-12)


def test_probabilities_that_depend_on_the_state_are_caught(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = finite_kernels()

    def step(self: Any, key: Any, target: Any, state: Any) -> Any:
        p = 0.1 + 0.25 * state.position.astype(jnp.float64)
        key_which, key_step = jax.random.split(key)
        which = choose(key_which, categorical, jnp.stack([p, 1 - p])[None])[0]
        keys = jax.random.split(key_step)
        ends = [kernel.step(keys[i], target, state)[0] for i, kernel in enumerate(self.kernels)]
        return jax.tree.map(lambda a, b: jnp.where(which == 0, a, b), *ends), None

    monkeypatch.setattr(_combine.Mixture, "step", step)
    assert balance_errors(matrix_of(mixture([one, two])), WEIGHTS)[1] > 1e-3


def lists(p: TransDimensional) -> Any:
    """Two or fewer skewed components, log-gamma of shape 1.5 each, after tables of probabilities."""
    logs = 1.5 * p.parameters - jnp.exp(p.parameters) - jax.lax.lgamma(1.5)
    prior = jnp.log(jnp.asarray([0.2, 0.5, 0.3]))[p.model]
    return prior + jnp.sum(jnp.where(jnp.arange(2) < p.model, logs, 0))


def jumps_and_steps(combine: Any) -> Any:
    space = Components(2)
    return combine(birth_death(Normal(0.2, 1.2), space), active_random_walk(space, 1.3))


BOTH = [lambda *kernels: mixture(kernels, [0.6, 0.4]), cycle]


@pytest.mark.parametrize("combine", slow_after(1, BOTH), ids=["mixture", "cycle"])
def test_jumps_alternate_with_steps_within_a_model(combine: Any, key: Any) -> None:
    start = TransDimensional(jnp.zeros(400, jnp.int32), jnp.zeros((400, 2)))
    see = lambda p: jnp.stack([*[p.model == k for k in range(3)], p.parameters[0] > 0.4])  # noqa: E731
    states, seen = run_chains(key, jumps_and_steps(combine), Target(lists), start, 300, see)
    assert not np.any(np.asarray(states.status))
    # P(parameter > .4), for a model with components: gamma(1.5) over e^.4.
    tail = 0.8 * float(jax.scipy.special.gammaincc(1.5, np.exp(0.4)))
    # 4 means of 400 chains; 6.5 standard errors have probability below 2e-9.
    assert np.abs(z_scores(seen[60:], [0.2, 0.5, 0.3, tail])).max() < 6.5


@pytest.mark.slow
def test_info_tells_which_kernel_ran(key: Any) -> None:
    key_cycle, key_mixture = jax.random.split(key)
    position = TransDimensional(jnp.asarray(1), jnp.asarray([0.3, 0.0]))
    target = Target(lists)
    for combine, key_one in ((cycle, key_cycle), (lambda *kernels: mixture(kernels), key_mixture)):
        kernel = jumps_and_steps(combine)
        state = kernel.init(jax.random.key(0), target, position)
        new, info = jax.jit(lambda k, s, kernel=kernel: kernel.step(k, target, s))(key_one, state)
        rates = np.asarray(info.acceptance_rates)
        assert rates.shape == (2,)
        assert np.isnan(rates).sum() == (0 if combine is cycle else 1)
        assert float(info.acceptance_rate) == pytest.approx(np.nanmean(rates))
        assert float(info.log_density) == pytest.approx(float(lists(new.position)), abs=1e-5)
        assert not bool(info.divergent)


def test_kernels_with_and_without_gradients_share_a_state(key: Any) -> None:
    target = Target(lambda x: -0.5 * jnp.sum(x**2))
    for kernel in (cycle(random_walk(0.8), hmc(0.5, 3)), mixture([random_walk(0.8), hmc(0.5, 3)])):
        state = kernel.init(jax.random.key(0), target, jnp.ones(3))
        assert state.point.grad_log_likelihood is not None
        key, key_step = jax.random.split(key)
        new, _ = jax.jit(lambda k, s, kernel=kernel: kernel.step(k, target, s))(key_step, state)
        np.testing.assert_allclose(new.point.grad_log_likelihood, -new.position, rtol=1e-5)


def test_a_fault_of_any_kernel_is_kept(key: Any) -> None:
    target = Target(lambda p: jnp.where(p.model == 1, 0.0, jnp.nan))
    kernel = jumps_and_steps(cycle)
    start = TransDimensional(jnp.ones(8, jnp.int32), jnp.zeros((8, 2)))
    states, seen = run_chains(key, kernel, target, start, 3, lambda p: p.model)
    assert np.all(seen == 1)
    assert np.all(np.asarray(states.status) == int(Status.DIVERGENT))
    outside = TransDimensional(jnp.asarray(7), jnp.zeros(2))
    assert int(kernel.init(jax.random.key(0), target, outside).status) & int(Status.NONFINITE_INIT)


def test_sample_runs_a_cycle(key: Any) -> None:
    start = TransDimensional(jnp.zeros(4, jnp.int32), jnp.zeros((4, 2)))
    draws = sample(
        key,
        jumps_and_steps(cycle),
        Target(lists),
        num_samples=50,
        num_warmup=10,
        thin=2,
        initial_position=start,
    )
    assert draws.samples.model.shape == (4, 50)
    assert draws.info["acceptance_rates"].shape == (4, 50, 2)


def test_arguments_are_checked() -> None:
    kernel = random_walk(1.0)
    for bad in (cycle, lambda: mixture([])):
        with pytest.raises(ValueError, match="at least one"):
            bad()
    with pytest.raises(TypeError, match="kernels"):
        cycle(kernel, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="there are 2 kernels"):
        mixture([kernel, kernel], [1.0])
    for bad in ([0.5, 0.4], [1.5, -0.5], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="sum 1"):
            mixture([kernel, kernel], bad)

    class Other(eqx.Module):
        def init(self, key: Any, target: Any, position: Any) -> Any:
            return (position,)

        def step(self, key: Any, target: Any, state: Any) -> Any:
            return state, None

    with pytest.raises(TypeError, match="MHGState"):
        cycle(kernel, Other()).init(jax.random.key(0), Target(jnp.sum), jnp.zeros(2))
    assert isinstance(cycle(kernel).init(jax.random.key(0), Target(jnp.sum), jnp.zeros(2)), MHGState)


BAD_LAWS = [[np.nan, np.nan], [-1.0, 2.0], [-1.0, 5.0], [0.0, 0.0], [0.6, 0.6], [np.inf, 0.0]]


@pytest.mark.parametrize("bad", slow_after(2, BAD_LAWS), ids=str)
def test_a_traced_mixture_of_no_law_is_a_flagged_rejection(bad: Any, key: Any) -> None:
    target = Target(lambda x: -0.5 * jnp.sum(x**2))

    @jax.jit
    def run(probabilities: Any, key: Any) -> Any:
        kernel = mixture([random_walk(0.8), hmc(0.5, 3)], probabilities)
        key_init, key_step = jax.random.split(key)
        return kernel.step(key_step, target, kernel.init(key_init, target, jnp.ones(2)))

    key_good, key_bad = jax.random.split(key)
    state, info = run(jnp.asarray([0.3, 0.7]), key_good)
    assert int(state.status) == int(info.status) == 0
    assert float(info.acceptance_rate) > 0
    state, info = run(jnp.asarray(bad), key_bad)
    assert int(state.status) == int(info.status) == int(Status.DIVERGENT)
    assert bool(info.divergent)
    assert float(info.acceptance_rate) == 0
    assert np.all(np.isnan(info.acceptance_rates))
    np.testing.assert_array_equal(state.position, np.ones(2))


def test_a_frozen_mixture_of_no_law_gets_no_new_bits(key: Any) -> None:
    target = Target(lambda x: jnp.where(x > 0, 0.0, jnp.nan))
    start = random_walk(1.0).init(jax.random.key(0), target, jnp.asarray(-1.0))

    @jax.jit
    def step(probabilities: Any) -> Any:
        return mixture([random_walk(1.0), random_walk(2.0)], probabilities).step(key, target, start)

    state, info = step(jnp.zeros(2))
    assert int(state.status) == int(Status.NONFINITE_INIT)
    assert int(info.status) == 0


@pytest.mark.parametrize("whole", slow_after(1, [[1, 0], np.array([1, 0]), [True, False]]), ids=str)
def test_whole_probabilities_are_cast(whole: Any, key: Any) -> None:
    kernel = mixture([random_walk(1.0), random_walk(2.0)], whole)
    assert jnp.issubdtype(kernel.probabilities.dtype, jnp.floating)
    target = Target(lambda x: -0.5 * jnp.sum(x**2))
    state, info = kernel.step(key, target, kernel.init(jax.random.key(0), target, jnp.ones(2)))
    assert int(state.status) == 0
    assert np.isnan(info.acceptance_rates).tolist() == [False, True]


class NaNRate(eqx.Module):
    """A kernel whose acceptance rate is NaN."""

    def init(self, key: Any, target: Any, position: Any) -> Any:
        return random_walk(1.0).init(key, target, position)

    def step(self, key: Any, target: Any, state: Any) -> Any:
        new, info = random_walk(1.0).step(key, target, state)
        return new, info._replace(acceptance_rate=jnp.full_like(info.acceptance_rate, jnp.nan))


def test_an_acceptance_rate_of_nan_is_not_hidden(key: Any) -> None:
    target = Target(lambda x: -0.5 * jnp.sum(x**2))
    kernels = [random_walk(1.0), NaNRate()]
    combined = [cycle(*kernels), mixture(kernels, [0.0, 1.0]), mixture(kernels, [1.0, 0.0])]
    for kernel, hidden in zip(combined, (True, True, False), strict=True):
        key, key_step = jax.random.split(key)
        _, info = kernel.step(key_step, target, kernel.init(jax.random.key(0), target, jnp.ones(2)))
        assert np.isnan(info.acceptance_rate) == hidden
        assert np.isnan(info.acceptance_rates[1])


def test_what_is_no_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    kernel = random_walk(1.0)
    with pytest.raises(TypeError, match=r"`kernels\[0\]` is the class RandomWalk: give a kernel"):
        cycle(type(kernel))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"`kernels\[1\]` must be a kernel, .* but is 3"):
        mixture([kernel, 3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`kernels` is empty"):
        cycle()
    with pytest.raises(TypeError, match=r"`kernels` must be a sequence .* but is RandomWalk"):
        mixture(kernel)  # pyright: ignore[reportArgumentType]
    for bad in ("ab", ["a", "b"], [0.5j, 0.5]):
        with pytest.raises(TypeError, match="`probabilities` must be 2 real numbers"):
            mixture([kernel, kernel], bad)
    with pytest.raises(ValueError, match=r"`probabilities` has shape \(\), but there are 2 kernels"):
        mixture([kernel, kernel], 0.5)


def test_a_repetition_is_the_power_invariant_and_reversible(x64: None) -> None:
    one, two = finite_kernels()
    found = matrix_of(repeat(one, 3))
    np.testing.assert_allclose(found, np.linalg.matrix_power(matrix_of(one), 3), atol=1e-12)
    assert max(balance_errors(found, WEIGHTS)) < 1e-12
    both = matrix_of(one) @ matrix_of(two)
    np.testing.assert_allclose(matrix_of(repeat(cycle(one, two), 2)), both @ both, atol=1e-12)
    np.testing.assert_allclose(matrix_of(cycle(repeat(one, 1), two)), both, atol=1e-12)


FLAT = Target(lambda x: 0.0 * jnp.sum(x))


def variance_of_walks() -> float:
    """Of 20,000 walks of 5 steps of variance 1 where everything is accepted."""
    kernel = repeat(random_walk(1.0), 5)
    state = kernel.init(jax.random.key(0), FLAT, jnp.zeros(1))

    @jax.jit
    def walk(keys: Any) -> Any:
        return jax.vmap(lambda key: kernel.step(key, FLAT, state)[0].position[0])(keys)

    return float(np.var(np.asarray(walk(jax.random.split(jax.random.key(1), 20_000)))))


@pytest.mark.slow
def test_every_step_of_a_repetition_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # A variance of 20,000 normal numbers has a relative standard error of 1/100; 6 of them.
    assert variance_of_walks() == pytest.approx(5, abs=0.3)
    loop = _combine.loop
    monkeypatch.setattr(_combine, "loop", lambda count, body, carry: loop(count, lambda i, c: body(0 * i, c), carry))
    assert variance_of_walks() > 20


@pytest.mark.slow
@pytest.mark.no_key_reuse  # the steps one by one draw the same numbers
def test_info_of_a_repetition_is_of_all_its_steps() -> None:
    target = Target(lambda x: jnp.where(x[0] > 1.5, jnp.nan, -0.5 * jnp.sum(x**2)))
    walk, traces = random_walk(1.5), []
    start = walk.init(jax.random.key(0), target, jnp.ones(2))

    @jax.jit
    def run(key: Any, num_steps: Any) -> Any:
        traces.append(num_steps)
        return repeat(walk, num_steps).step(key, target, start)

    step = jax.jit(lambda key, state: walk.step(key, target, state))
    seen = set()
    for seed, num_steps in ((0, 4), (1, 4), (2, 1), (3, 6)):
        key, state, rates = jax.random.key(seed), start, []
        for i in range(num_steps):
            state, info = step(jax.random.fold_in(key, i), state)
            rates.append(float(info.acceptance_rate))
        found, told = run(key, jnp.int32(num_steps))
        np.testing.assert_allclose(found.position, state.position, rtol=1e-6)
        assert float(told.acceptance_rate) == pytest.approx(np.mean(rates), rel=1e-5)
        assert float(told.log_density) == pytest.approx(-0.5 * float(jnp.sum(state.position**2)), rel=1e-5)
        assert int(told.status) == int(found.status) == int(state.status)
        assert bool(told.divergent) == (int(state.status) == int(Status.DIVERGENT))
        seen.add(bool(told.divergent))
    assert len(traces) == 1
    assert seen == {True, False}


@pytest.mark.parametrize("num_steps", [0, -3])
def test_no_steps_at_all_are_refused_when_static_and_flagged_when_traced(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"`num_steps` must be a scalar of at least 1, but is {num_steps}"):
        repeat(random_walk(1.0), num_steps)

    @jax.jit
    def run(num_steps: Any) -> Any:
        kernel = repeat(random_walk(1.0), num_steps)
        return kernel.step(jax.random.key(1), FLAT, kernel.init(jax.random.key(0), FLAT, jnp.ones(2)))

    state, info = run(jnp.int32(num_steps))
    assert int(state.status) == int(info.status) == int(Status.DIVERGENT)
    assert bool(info.divergent)
    assert float(info.acceptance_rate) == 0
    np.testing.assert_array_equal(state.position, 1)


def test_a_repetition_is_as_tunable_as_its_kernel() -> None:
    tunable = repeat(hmc(0.1, 4), 3)
    assert isinstance(tunable, TunableKernel)
    assert tunable.default_target_accept == 0.8
    tuned = tunable.tuned(jnp.float32(0.5), jnp.ones(2))
    assert float(tuned.step_size) == 0.5
    np.testing.assert_array_equal(tuned.factor, 1)
    assert int(tuned.num_steps) == 3
    assert int(tuned.short().num_steps) == 1
    assert not tuned.dense
    fixed = repeat(cycle(hmc(0.1, 4), random_walk(1.0)), 3)
    assert isinstance(fixed, Repeated)
    assert not isinstance(fixed, TunableKernel)


@pytest.mark.parametrize("bad", [1.5, True, "3"])
def test_a_number_of_repetitions_is_an_integer(bad: Any) -> None:
    with pytest.raises(TypeError, match=f"`num_steps` must be an integer, but is {bad!r}"):
        repeat(random_walk(1.0), bad)


def test_what_is_repeated_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    with pytest.raises(TypeError, match="must be a kernel"):
        repeat(3, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be a scalar"):
        repeat(random_walk(1.0), jnp.array([1, 2]))
