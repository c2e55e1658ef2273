"""`chees_hmc`: exact draws stay exact, its gradient is that of the criterion, and it learns the length of a Gaussian.

False alarms of the Monte Carlo tests: at most 1e-6 each. Planted bugs that must be caught: a gradient without the start
(`test_the_gradient_...`), a velocity flipped (`test_longer_trajectories_...`), numbers of steps from 0 or to n - 1
(`test_shared_lengths_...`), a failed chain in a sum (`test_a_failed_chain_...`).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from probinf.core._status import Status, is_fatal
from probinf.core._target import Target
from probinf.samplers._chees import ChEESHMC, chees_hmc
from probinf.samplers._chees_tuner import MeasuredHMC, MeasuredInfo, criterion_gradient
from probinf.samplers._hmc import hmc
from probinf.samplers._initial import init_chains
from probinf.samplers._sample import sample
from probinf.samplers._shared import SharingKernel
from probinf.samplers._warmup import prepare_warmup, warmup
from tests._slow import slow_after


def skewed(x: Any) -> Any:
    """The logarithm of a standard exponential variable, in each coordinate."""
    return jnp.sum(x - jnp.exp(x))


def test_exact_draws_stay_exact() -> None:
    """Given the shared lengths, chains from exact draws are independent and exact: a DKW bound at 1e-6 is .019."""
    num = 20_000
    rng = np.random.default_rng(0)
    start = jnp.asarray(np.log(rng.exponential(size=(num, 2))), jnp.float32)
    draws = sample(
        jax.random.key(0),
        chees_hmc(0.7, 2.0),
        Target(skewed),
        num_samples=1,
        num_warmup=0,
        num_chains=num,
        thin=4,
        initial_position=start,
    )
    samples = np.exp(np.asarray(draws.samples)[:, 0])
    bound = np.sqrt(np.log(2 * 2 / 1e-6) / (2 * num))
    for i in range(2):
        assert scipy.stats.kstest(samples[:, i], "expon").statistic < bound
    assert np.mean(np.abs(samples - np.exp(np.asarray(start))) > 0.1) > 0.5


def test_shared_lengths_have_the_law_of_each_chain() -> None:
    """Uniform on 1 .. 5 both ways, by chi-square at 1e-6; and no more than `max_steps`."""
    kernel = chees_hmc(0.25, 1.1)
    assert isinstance(kernel, SharingKernel)
    assert int(kernel.num_steps()) == 5
    assert int(chees_hmc(0.25, 1.1, max_steps=3).num_steps()) == 3
    state = kernel.init(jax.random.key(0), Target(skewed), jnp.zeros(1))
    law: Any = kernel.as_mhg().auxiliary
    own = jax.vmap(lambda k: law.sample(k, Target(skewed), state).num_steps)(jax.random.split(jax.random.key(1), 5000))
    shared = jax.vmap(lambda k: kernel.shared(k).num_steps)(jax.random.split(jax.random.key(2), 5000))
    for lengths in (own, shared):
        counts = np.bincount(np.asarray(lengths), minlength=6)
        assert counts[0] == 0
        assert counts.size == 6
        assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-6
    assert not kernel.shared(jax.random.key(3)).jitter


@pytest.mark.parametrize("kind", ["identity", "diagonal", "full"])
def test_the_gradient_is_that_of_the_criterion(kind: str, x64: None) -> None:
    """Trajectories of a Gaussian are known: y cos t + z sin t in the coordinates of the factor, if it is the right one.

    The criterion of the scaled coordinates, averaged with weights, against its derivative in log T.
    """
    rng = np.random.default_rng(1)
    num, d = 7, 3
    factor = {
        "identity": None,
        "diagonal": jnp.asarray([0.5, 2.0, 5.0]),
        "full": jnp.asarray(np.tril(rng.normal(size=(d, d))) + 2 * np.eye(d)),
    }[kind]
    matrix = np.eye(d) if factor is None else np.diag(factor) if factor.ndim == 1 else np.asarray(factor)
    y, z = rng.gamma(2.0, size=(2, num, d)) - 1
    centre = rng.normal(size=d)
    weights, use = rng.uniform(0.1, 1, size=num), np.arange(num) != 4
    fraction = 0.8

    log_length, shift = 0.3, np.linalg.solve(matrix, centre)[None]

    def criterion(log_length: Any) -> Any:
        t = fraction * jnp.exp(log_length)
        moved = y * jnp.cos(t) + z * jnp.sin(t)
        change = jnp.sum((moved - shift) ** 2, axis=1) - np.sum((y - shift) ** 2, axis=1)
        return jnp.sum(jnp.where(use, weights * change**2, 0)) / (4 * np.sum(weights[use]))

    t = fraction * np.exp(log_length)
    infos = MeasuredInfo(
        jnp.asarray(weights),
        jnp.zeros(num, jnp.uint32),
        jnp.asarray((y * np.cos(t) + z * np.sin(t)) @ matrix.T),
        jnp.asarray(z * np.cos(t) - y * np.sin(t)),
        jnp.full(num, t),
    )
    infos = infos._replace(end=infos.end.at[4].set(jnp.nan))
    found = criterion_gradient(jnp.asarray(y @ matrix.T), jnp.asarray(centre), infos, factor, jnp.asarray(use))
    scale = np.mean(np.sum((y - shift)[use] ** 2, axis=1)) ** 1.5
    assert float(found) * scale == pytest.approx(float(jax.grad(criterion)(log_length)), rel=1e-6)


def test_measured_transitions_are_those_of_hmc() -> None:
    kernel, target = hmc(0.3, 5, jitter=False), Target(skewed)
    state = kernel.init(jax.random.key(0), target, jnp.array([0.2, -1.0]))
    for seed in range(5):
        plain, info = kernel.step(jax.random.key(seed), target, state)
        measured, told = MeasuredHMC(kernel).step(jax.random.key(seed), target, state)
        np.testing.assert_allclose(measured.position, plain.position, rtol=1e-5)
        np.testing.assert_allclose(told.acceptance_rate, info.acceptance_rate, rtol=1e-5)
        assert float(told.length) == pytest.approx(1.5)
        if bool(info.accepted):
            np.testing.assert_allclose(told.end, plain.position, rtol=1e-5)


@pytest.mark.parametrize("dense", slow_after(1, [False, True]))
def test_warmup_learns_the_length_of_a_gaussian(dense: bool) -> None:
    """With lengths uniform on (0, T) the criterion of N(0, I) is largest where tan 2T = 2T, at T = 2.247.

    Whole numbers of steps are longer by half a step in the mean, so that what is learned is T or up to a step less.
    Scales within 8 % (64 chains x 200 draws and more). The harmonic mean of acceptance rates is that of steps that vary
    around their average, and larger for the average: within .2 of .651.
    """
    sd = jnp.exp(jnp.linspace(-2.0, 2.0, 20))
    target, start = Target(Gaussian(sd)), jnp.ones((64, 20))
    tuned = warmup(
        jax.random.key(0), chees_hmc(dense=dense), target, num_steps=500, num_chains=64, initial_position=start
    )
    assert isinstance(tuned, ChEESHMC)
    factor = np.asarray(tuned.factor)
    np.testing.assert_allclose(np.sqrt(np.diag(factor @ factor.T)) if dense else factor, sd, rtol=0.08)
    assert 1.3 < float(tuned.trajectory_length) < 3.2
    if dense:
        return
    options: dict[str, Any] = {"num_warmup": 0, "num_chains": 64, "initial_position": start}
    draws = sample(jax.random.key(1), tuned, target, num_samples=150, **options)
    rates = np.asarray(draws.info["acceptance_rate"])[:, 50:]
    assert np.mean(1 / np.mean(1 / np.maximum(rates, 1e-9), axis=0)) == pytest.approx(0.651, abs=0.2)


def test_longer_trajectories_where_coordinates_are_correlated() -> None:
    """A direction of standard deviation 3.6 beside others of .71: lengths of 2.247 times that are best."""
    precision = jnp.asarray(np.linalg.inv(0.5 * np.eye(25) + 0.5), jnp.float32)
    target, start = Target(Correlated(precision)), jnp.ones((64, 25))
    tuned = warmup(jax.random.key(0), chees_hmc(), target, num_steps=800, num_chains=64, initial_position=start)
    assert 4 < float(tuned.trajectory_length) < 12


class Gaussian(eqx.Module):
    sd: Any

    def __call__(self, x: Any) -> Any:
        return -0.5 * jnp.sum((x / self.sd) ** 2)


class Correlated(eqx.Module):
    precision: Any

    def __call__(self, x: Any) -> Any:
        return -0.5 * jnp.dot(x, self.precision @ x)


class Degenerate(eqx.Module):
    kind: Any

    def __call__(self, x: Any) -> Any:
        return jax.lax.switch(self.kind, list(DEGENERATE.values()), x)


DEGENERATE = {
    "constant": lambda x: 0 * jnp.sum(x),
    "nan": lambda x: jnp.nan * jnp.sum(x),
    "huge": lambda x: -0.5 * jnp.sum((x / 1e18) ** 2),
    "tiny": lambda x: -0.5 * jnp.sum((x / 1e-15) ** 2),
    "linear": jnp.sum,
}


@eqx.filter_jit
def one_step(step: Any, key: Any, index: Any, state: Any) -> Any:
    return step(key, index, state)[0]


def after(num_steps: int, target: Target, positions: Any) -> Any:
    kernel = chees_hmc(0.1, 0.3)
    chains = init_chains(jax.random.key(0), kernel, target, positions)
    step, state = prepare_warmup(kernel, target, chains, 1000, None, None)
    for index in range(num_steps):
        state = one_step(step, jax.random.key(10 + index), jnp.int32(index), state)
    return step, state


@pytest.mark.parametrize("kind", DEGENERATE)
def test_lengths_and_steps_stay_finite_and_positive(kind: str) -> None:
    target = Target(Degenerate(jnp.int32(list(DEGENERATE).index(kind))))
    step, state = after(3, target, jnp.zeros((2, 3)))
    tuned = step.result(state)
    for number in (tuned.step_size, tuned.trajectory_length, np.exp(state.learned.log_length)):
        assert np.isfinite(number)
        assert number > 0
    assert 1 <= int(tuned.num_steps()) <= 1000


@pytest.mark.slow
def test_a_failed_chain_is_left_out_of_what_is_learned() -> None:
    target = Target(lambda x: jnp.where(x[0] > 50, jnp.nan, skewed(x)))
    positions = jnp.array([[0.3, 0.1], [-1.0, 0.5], [100.0, 100.0]])
    (_, whole), (_, without) = after(4, target, positions), after(4, target, positions[:2])
    assert np.asarray(is_fatal(whole.chains.status)).tolist() == [False, False, True]
    for one, two in zip(jax.tree.leaves(whole.learned), jax.tree.leaves(without.learned), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(whole.chains.position[:2], without.chains.position)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="`trajectory_length` must be finite and positive, but is -1"):
        chees_hmc(0.1, -1.0)
    with pytest.raises(ValueError, match="step_size"):
        chees_hmc(0.0)
    with pytest.raises(ValueError, match="max_steps"):
        chees_hmc(max_steps=0)
    with pytest.raises(ValueError, match="target_accept"):
        chees_hmc(target_accept=1.0)
    with pytest.raises(TypeError, match="floating-point"):
        chees_hmc().init(jax.random.key(0), Target(skewed), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan")])
def test_a_traced_length_that_is_not_positive_is_flagged(length: float) -> None:
    @jax.jit
    def run(length: Any) -> Any:
        kernel, target = ChEESHMC(jnp.float32(0.1), length), Target(skewed)
        state = kernel.init(jax.random.key(0), target, jnp.zeros(2))
        own = kernel.step(jax.random.key(1), target, state)
        return state, own, kernel.shared(jax.random.key(2)).step(jax.random.key(3), target, state)

    start, *ends = run(jnp.float32(length))
    for state, info in ends:
        np.testing.assert_array_equal(state.position, start.position)
        assert int(info.status) == int(Status.DIVERGENT)
