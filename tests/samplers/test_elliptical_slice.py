"""`elliptical_slice`: known answers with Gaussian priors, every Gaussian is right, transitions by hand, settings.

Laws shared by all kernels: `test_kernels`; faults of the loop that it shares with `slice_sampling`: `test_slice`.
Planted bugs that must be caught (`test_planted_bugs`): the Gaussian not taken off the density, an ellipse that forgets
the mean, a second axis of another covariance.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammainc

from probinf import samplers
from probinf.core import Target
from probinf.core._normal import standard_normal
from probinf.core._status import Status
from probinf.samplers import _elliptical_slice
from probinf.samplers._bracket import Ellipse
from probinf.samplers._elliptical_slice import elliptical_slice
from tests._slow import slow_after

NUM = 10_000
# Dvoretzky, Kiefer, Wolfowitz: a distance over this has probability 1e-7.
BOUND = float(np.sqrt(np.log(2 / 1e-7) / (2 * NUM)))
MEAN = np.array([0.3, -0.2])
COVARIANCE = np.array([[1.5, 0.6], [0.6, 0.8]])
SHAPE = 1.5


def log_prior(x: Any) -> Any:
    z = x - jnp.asarray(MEAN, x.dtype)
    return -0.5 * jnp.sum(z * jnp.sum(jnp.asarray(np.linalg.inv(COVARIANCE), x.dtype) * z[None, :], axis=1))


def log_likelihood(x: Any) -> Any:
    return SHAPE * x[0] - jnp.exp(x[0]) - 2 * (x[1] - 1) ** 2


TARGET = Target(log_likelihood, log_prior)
PRIOR = elliptical_slice(MEAN.astype(np.float32), COVARIANCE.astype(np.float32))


@functools.partial(jax.jit, static_argnums=1)
def numbers(key: Any, num_turns: int) -> Any:
    """The random numbers of a transition: those of the second axis, level, place, and those of its turns."""
    key_normal, key_bracket = jax.random.split(key)
    key_level, key_place, key_split, key_turns = jax.random.split(key_bracket, 4)
    base = jax.random.wrap_key_data(jax.random.bits(key_turns, (2,), jnp.uint32), impl="threefry2x32")
    draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(base, i), (), jnp.float64))
    drop, place = jax.random.exponential(key_level, dtype=jnp.float64), jax.random.uniform(key_place, (), jnp.float64)
    del key_split
    return standard_normal(key_normal, (2,), jnp.float64), drop, place, draw(jnp.arange(num_turns))


def naive(width: float, key: Any, x: np.ndarray) -> tuple[np.ndarray, int]:
    """Murray, Adams, MacKay (2010), figure 2, with a bracket of its own; the likelihood is all that is looked at."""
    normal, drop, place, turns = map(np.asarray, numbers(key, 40))
    axis, level = np.linalg.cholesky(COVARIANCE) @ normal, float(log_likelihood(x)) - drop
    left = -width * place
    right = left + width
    for count, u in enumerate(turns):
        t = left + (right - left) * u
        candidate = MEAN + (x - MEAN) * np.cos(t) + axis * np.sin(t)
        if float(log_likelihood(candidate)) >= level:
            return candidate, count + 1
        left, right = (t, right) if t < 0 else (left, t)
    return x, 0


@pytest.mark.no_key_reuse  # the reference draws the same numbers
def test_with_the_prior_a_transition_looks_at_the_likelihood_alone(x64: None) -> None:
    for width in (2 * np.pi, 1.0):
        kernel = elliptical_slice(jnp.asarray(MEAN), jnp.asarray(COVARIANCE), width=width)
        step = jax.jit(lambda key, x, kernel=kernel: kernel.step(key, TARGET, kernel.init(key, TARGET, x)))
        counts = []
        for seed in range(12):
            key, start = jax.random.key(seed), np.random.default_rng(seed).normal(size=2)
            state, info = step(key, jnp.asarray(start))
            position, count = naive(width, key, start)
            np.testing.assert_allclose(state.position, position, rtol=1e-8)
            assert int(info.num_evaluations) == count
            assert int(info.num_expansions) == 0
            counts.append(count)
        assert max(counts) >= 3


def test_at_temperature_zero_every_candidate_is_accepted_and_the_prior_is_drawn() -> None:
    kernel, prior = PRIOR, TARGET.at_temperature(0.0)
    starts = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, NUM).astype(np.float32)

    @jax.jit
    def run(keys: Any, starts: Any) -> Any:
        states = jax.vmap(lambda x: kernel.init(jax.random.key(0), prior, x))(starts)
        return jax.vmap(lambda key, state: kernel.step(key, prior, state))(keys, states)

    states, info = run(jax.random.split(jax.random.key(1), NUM), jnp.asarray(starts))
    # Rounding may make the ratio of two equal densities a little less than 1, below a level that is just under it.
    assert (np.asarray(info.num_evaluations) > 1).sum() <= 2
    np.testing.assert_allclose(info.acceptance_rate[np.asarray(info.num_evaluations) == 1], 1)
    assert not np.asarray(states.status).any()
    # Each entry has a standard error of at most 1.5 sqrt(2 / NUM); 6 of them.
    np.testing.assert_allclose(np.cov(np.asarray(states.position).T), COVARIANCE, atol=9 * np.sqrt(2 / NUM))
    np.testing.assert_allclose(np.asarray(states.position).mean(0), MEAN, atol=6 * np.sqrt(1.5 / NUM))


def log_gammas(x: Any) -> Any:
    return jnp.sum(SHAPE * x - jnp.exp(x))


def distance_of_law(max_shrinks: int = 100, width: float = 2.0) -> float:
    """Distance of gamma variables from their law, 3 steps after they had it, with a Gaussian that is no prior."""
    target, gaussian = Target(log_gammas), (MEAN.astype(np.float32), COVARIANCE.astype(np.float32))
    kernel = elliptical_slice(*gaussian, width=width, max_shrinks=max_shrinks)

    @jax.jit
    def run(data: Any, starts: Any) -> Any:
        states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(starts)
        step = jax.vmap(lambda data, state: kernel.step(jax.random.wrap_key_data(data), target, state)[0])
        return jax.lax.fori_loop(0, 3, lambda i, states: step(data[i], states), states).position

    starts = np.log(np.random.default_rng(0).gamma(SHAPE, size=(NUM, 2))).astype(np.float32)
    found = run(jax.random.key_data(jax.random.split(jax.random.key(0), (3, NUM))), jnp.asarray(starts))
    assert np.mean(np.asarray(found) != starts) > 0.5
    uniforms = np.sort(np.asarray(gammainc(SHAPE, jnp.exp(found)), np.float64), axis=0)
    return float(np.max(np.abs(uniforms - np.arange(1, NUM + 1)[:, None] / NUM)))


@pytest.mark.parametrize(
    "options", slow_after(1, [{}, {"max_shrinks": 1, "width": 1.0}]), ids=["default", "bound of one"]
)
def test_any_gaussian_leaves_any_target_invariant(options: Any) -> None:
    """False alarms have probability 2e-7 each, of two coordinates."""
    assert distance_of_law(**options) < BOUND


def _plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    call = Ellipse.__call__
    if fault == "not taken off":
        monkeypatch.setattr(Ellipse, "__call__", lambda self, t: (call(self, t)[0], jnp.zeros_like(t)))
    elif fault == "no mean":
        monkeypatch.setattr(_elliptical_slice, "_centre", lambda mean, position: 0 * jnp.asarray(position))
        monkeypatch.setattr(
            Ellipse, "__call__", lambda self, t: (call(self, t)[0], call(self, t)[1] - jnp.sum(self.first) * jnp.cos(t))
        )
    else:
        times = _elliptical_slice.times

        def broken(factor: Any, vector: Any) -> Any:
            # The root has its larger entry first, the inverse its smaller one.
            return 1.2 * times(factor, vector) if factor is not None and factor.shape == (2, 2) else vector

        monkeypatch.setattr(_elliptical_slice, "times", broken)


@pytest.mark.parametrize("fault", slow_after(1, ["not taken off", "no mean", "other covariance"]))
def test_planted_bugs(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, fault)
    assert distance_of_law() > BOUND


@pytest.mark.slow
def test_a_mean_may_be_like_the_position_or_a_vector() -> None:
    position = {"a": jnp.float32(0.4), "b": jnp.array([[1.0, -0.5]])}
    target = Target(lambda x: -(x["a"] ** 2) - jnp.sum(jnp.abs(x["b"])))

    @jax.jit
    def step(mean: Any) -> Any:
        kernel = elliptical_slice(mean, jnp.array([1.0, 2.0, 0.5]))
        return kernel.step(jax.random.key(1), target, kernel.init(jax.random.key(0), target, position))[0].position

    alike, flat = step({"a": jnp.float32(0.1), "b": jnp.array([[0.2, 0.3]])}), step(jnp.array([0.1, 0.2, 0.3]))
    assert jax.tree.all(jax.tree.map(np.array_equal, alike, flat))
    for bad in (jnp.zeros(2), {"a": jnp.float32(0.1)}, {"a": jnp.zeros(2), "b": jnp.zeros(1)}, jnp.zeros((3, 1))):
        with pytest.raises(ValueError, match=r"`mean` has leaves of shapes .* an array of 3 numbers"):
            step(bad)
    kernel = elliptical_slice(covariance=jnp.ones(2))
    state = kernel.init(jax.random.key(0), target, position)
    with pytest.raises(ValueError, match="positions of 2 numbers, but these have 3"):
        kernel.step(jax.random.key(0), target, state)


@jax.jit
def step_of(width: Any, covariance: Any) -> Any:
    kernel = elliptical_slice(jnp.zeros(2), covariance, width=width, max_shrinks=5)
    return kernel.step(jax.random.key(1), TARGET, kernel.init(jax.random.key(0), TARGET, jnp.zeros(2)))


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan])
def test_width_is_checked_when_static_and_flagged_when_traced(width: float) -> None:
    with pytest.raises(ValueError, match="`width` must be finite and positive"):
        elliptical_slice(width=width)
    new, info = step_of(jnp.float32(width), jnp.eye(2))
    assert int(info.status) == int(Status.DIVERGENT)
    np.testing.assert_array_equal(new.position, 0)


def test_a_traced_covariance_that_is_none_is_flagged() -> None:
    new, info = step_of(jnp.float32(1), jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    assert int(info.status) == int(Status.DIVERGENT | Status.NAN_LOG_WEIGHT)
    assert not bool(info.accepted)
    np.testing.assert_array_equal(new.position, 0)
    assert int(step_of(jnp.float32(1), jnp.eye(2))[1].status) == 0


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="`covariance` must be symmetric and positive definite"):
        elliptical_slice(covariance=jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="`max_shrinks` is 0; needed at least 1"):
        elliptical_slice(max_shrinks=0)
    with pytest.raises(TypeError, match="elliptical slice sampling needs floating-point positions"):
        elliptical_slice().init(jax.random.key(0), TARGET, jnp.zeros(2, jnp.int32))


@pytest.mark.slow
def test_moves_of_an_smc_sampler_and_warm_up(key: Any) -> None:
    """Evidence of a Gaussian prior and a sharp Gaussian likelihood; data that say much make the bracket narrow."""
    scale, dimension = 0.05, 4
    normal = lambda x, s: -0.5 * jnp.sum((x / s) ** 2) - dimension * jnp.log(s * np.sqrt(2 * np.pi))  # noqa: E731
    target = Target(
        lambda x: normal(x - 1, jnp.float32(scale)),
        lambda x: normal(x, jnp.float32(1)),
        lambda key: jax.random.normal(key, (dimension,)),
    )
    key_smc, key_warmup = jax.random.split(key)
    result = samplers.tempered_smc(key_smc, target, num_particles=2000, kernel=elliptical_slice())
    variance = 1 + scale**2
    exact = dimension * (-0.5 / variance - 0.5 * np.log(2 * np.pi * variance))
    assert float(result.log_evidence) == pytest.approx(exact, abs=0.4)
    tuned = samplers.warmup(key_warmup, elliptical_slice(), target, num_steps=150, num_chains=16)
    assert 0.01 < float(tuned.width) < 0.5
