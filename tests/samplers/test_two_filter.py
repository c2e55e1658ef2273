"""Two-filter smoothing: its exact expectation by enumeration, known answers, faults.

The identity is E[Zhat_t 1{x_t = s}] = unnormalised smoothing mass of state s at time t, for all t, where Zhat_t is the
t-th evidence estimate with its weights. Planted bugs, shown to break it: the backward filter read one step off,
transition arguments swapped, gamma of the wrong time, gamma left out.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probinf as pb
from probinf import models
from probinf.samplers import particle_filter, two_filter_smoother
from probinf.validity import enumerate_algorithm
from tests._finite import Finite, as_kind, skewed_model, tables
from tests._walks import linear_gaussian

GAMMA = np.array([[0.5, 1.5], [2.0, 0.7], [0.9, 0.4]])
PROPOSAL = np.array([[0.6, 0.4], [0.25, 0.75]])


def reversed_model(model, gamma):
    """The backward information filter of a model on two states whose potentials do not look back."""
    _, transition, potentials = tables(model)
    g, num_steps = potentials[:, 0], potentials.shape[0]
    initial = np.array([0.3, 0.7])
    rows = [np.repeat((gamma[num_steps - 1] * g[-1] / initial)[None], 2, axis=0)]
    for t in range(num_steps - 2, -1, -1):
        # From x' = x_{t+1} (rows) to x = x_t (columns).
        rows.append(gamma[t] * transition.T * g[t] / (gamma[t + 1][:, None] * PROPOSAL))
    dtype = model.initial.dtype
    return Finite(*(jnp.asarray(a, dtype) for a in (initial, PROPOSAL, np.stack(rows))))


class LogGamma(eqx.Module):
    table: jax.Array

    def __call__(self, t, x):
        return jnp.log(self.table)[t, x]


def marginals(model):
    """Unnormalised smoothing mass of each state at each time, [T, 2]."""
    initial, transition, potentials = tables(model)
    ahead = [initial * potentials[0, 0]]
    for t in range(1, potentials.shape[0]):
        ahead.append(ahead[-1] @ (transition * potentials[t]))
    behind = [np.ones(2)]
    for t in range(potentials.shape[0] - 1, 0, -1):
        behind.append((transition * potentials[t]) @ behind[-1])
    return np.stack(ahead) * np.stack(behind[::-1])


def expected_marginals(model, num_particles, spoil=lambda out: out, gamma=GAMMA, log_transition=None, used=None):
    backward = reversed_model(model, gamma)

    def run(key):
        keys = jax.random.split(key)
        runs = [
            particle_filter(k, fk, num_particles=n, history=True, ess_threshold=0.9)
            for k, fk, n in zip(keys, (model, backward), num_particles, strict=True)
        ]
        log_gamma = LogGamma(jnp.asarray(gamma if used is None else used))
        out = two_filter_smoother(runs[0], spoil(runs[1]), log_gamma, log_transition=log_transition)
        weights = jax.vmap(lambda lw: pb.core.weigh(lw).normalised())(out.log_weights)
        assert runs[0].history is not None
        states = jax.nn.one_hot(runs[0].history.particles, 2, dtype=weights.dtype)
        return jnp.exp(out.log_evidence)[:, None] * jnp.sum(weights[..., None] * states, axis=1)

    return np.asarray(enumerate_algorithm(run).expectation(lambda value: value))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("num_particles", "num_steps"),
    [
        ((2, 2), 1),
        ((2, 2), 2),
        pytest.param((2, 3), 2, marks=pytest.mark.slow),
        pytest.param((1, 2), 3, marks=pytest.mark.slow),
    ],
)
def test_expected_marginals(num_particles, num_steps):
    model = skewed_model(num_steps, path_dependent=False)
    np.testing.assert_allclose(expected_marginals(model, num_particles), marginals(model), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bug", ["step", "swapped", "gamma_time", "no_gamma"])
def test_planted_bugs_break_the_expectation(bug):
    model = skewed_model(2, path_dependent=False)
    options = {
        "step": {
            "spoil": lambda out: eqx.tree_at(
                lambda o: o.history.particles, out, jnp.roll(out.history.particles, 1, axis=0)
            )
        },
        "swapped": {"log_transition": lambda t, x_prev, x: jnp.log(model.transition)[x, x_prev]},
        "gamma_time": {"used": np.roll(GAMMA[:2], 1, axis=0)},
        "no_gamma": {"used": np.ones_like(GAMMA)},
    }[bug]
    found = expected_marginals(model, (1, 1), **options)
    assert np.max(np.abs(found / marginals(model) - 1)) > 1e-2


class Backward(pb.FeynmanKac):
    """Backward information filter of a first-order autoregression, particle form; gamma_t = N(m_t, s_t^2)."""

    ys: jax.Array
    phi: jax.Array
    noise: jax.Array
    means: jax.Array
    scale: jax.Array

    @property
    def num_steps(self):
        return self.ys.shape[0]

    def gamma(self, t, x):
        return dist.Normal(self.means[t], self.scale).log_prob(x)

    def init(self, key):
        return self.means[-1] + self.scale * jax.random.normal(key)

    def mutate(self, key, t, x):
        return x / self.phi + self.noise * jax.random.normal(key)

    def log_potential(self, t, x_prev, x):
        time = self.num_steps - 1 - t
        log_g = dist.Normal(x, jnp.sqrt(jnp.float32(0.5))).log_prob(self.ys[time, 0])
        if x_prev is None:
            return log_g
        log_f = dist.Normal(self.phi * x, jnp.sqrt(jnp.float32(0.7))).log_prob(x_prev)
        log_m = dist.Normal(x_prev / self.phi, self.noise).log_prob(x)
        return log_g + log_f - log_m + self.gamma(time, x) - self.gamma(time + 1, x_prev)


class Gamma(eqx.Module):
    model: Backward

    def __call__(self, t, x):
        return self.model.gamma(t, x)


@pytest.mark.numpyro
def test_agrees_with_kalman():
    model, ys = linear_gaussian(8)
    exact = models.kalman_smoother(model, ys)
    backward = Backward(ys, jnp.float32(0.9), jnp.float32(0.9), 0.5 * 0.9 ** jnp.arange(8.0), jnp.float32(2.5))

    class Flat(Backward):
        """States of shape [1], as those of the forward model."""

        def gamma(self, t, x):
            return backward.gamma(t, x[0])

        def init(self, key):
            return Backward.init(self, key)[None]

        def log_potential(self, t, x_prev, x):
            return backward.log_potential(t, None if x_prev is None else x_prev[0], x[0])

        def mutate(self, key, t, x):
            return backward.mutate(key, t, x[0])[None]

    flat = Flat(*(getattr(backward, f) for f in ("ys", "phi", "noise", "means", "scale")))

    @jax.jit
    def run(keys):
        def one(key):
            first, second = jax.random.split(key)
            ahead = particle_filter(first, model.state_space().bootstrap(ys), num_particles=300, history=True)
            behind = particle_filter(second, flat, num_particles=250, history=True)
            out = two_filter_smoother(ahead, behind, Gamma(flat))
            return out.mean, out.log_evidence, out.status, out.ess

        return jax.lax.map(one, keys)

    means, log_evidence, status, ess = run(jax.random.split(jax.random.key(0), 40))
    assert not np.any(np.asarray(status))
    assert ess.shape == (40, 8)
    means = np.asarray(means, np.float64)
    # Standard errors from 40 runs: 8 of them leave 1e-9 with 39 degrees; the bias of O(1 / 250) gets 5e-3.
    spread = means.std(axis=0, ddof=1) / np.sqrt(40)
    assert np.max(spread) < 0.03
    smoothed, filtered = np.asarray(exact.smoothed_mean), np.asarray(exact.filtered.filtered_mean)
    assert np.all(np.abs(means.mean(axis=0) - smoothed) < 8 * spread + 5e-3)
    assert not np.all(np.abs(means.mean(axis=0) - filtered) < 8 * spread + 5e-3)
    # Unbiased at every time: the mean of the ratios to the truth is 1.
    ratio = np.exp(np.asarray(log_evidence, np.float64) - float(exact.log_evidence))
    assert np.all(np.abs(ratio.mean(axis=0) - 1) < 8 * ratio.std(axis=0, ddof=1) / np.sqrt(40))
    assert np.max(ratio.std(axis=0)) < 0.5


@pytest.fixture(scope="module")
def pair():
    """The two filters of a three-step model in float32."""
    model = skewed_model(3, path_dependent=False, dtype=np.float32)
    runs = [
        particle_filter(jax.random.key(i), fk, num_particles=500, history=True)
        for i, fk in enumerate((model, reversed_model(model, GAMMA)))
    ]
    return model, *runs


def log_gamma():
    return LogGamma(jnp.asarray(GAMMA, jnp.float32))


def test_agrees_with_forward_backward(pair):
    model, ahead, behind = pair
    out = two_filter_smoother(ahead, behind, log_gamma())
    exact = models.hmm_forward_backward(model.initial, model.transition, jnp.log(model.potentials[:, 0]))
    np.testing.assert_allclose(out.mean, exact.smoothed[:, 1], atol=0.15)  # 500 particles: errors of 0.02
    np.testing.assert_allclose(out.log_evidence, np.full(3, exact.log_evidence), atol=0.3)
    assert out.log_weights.shape == (3, 500)
    assert out.log_evidence[-1] == pytest.approx(float(ahead.log_evidence), abs=1e-5)


def test_jit_and_vmap(pair):
    _, ahead, behind = pair
    eager = two_filter_smoother(ahead, behind, log_gamma())
    tables = jnp.stack([log_gamma().table, jnp.full((3, 2), jnp.nan)])
    both = jax.jit(jax.vmap(lambda table: two_filter_smoother(ahead, behind, LogGamma(table))))(tables)
    np.testing.assert_allclose(both.mean[0], eager.mean, rtol=1e-5)
    assert int(both.status[0]) == 0
    assert int(both.status[1]) == pb.Status.NAN_LOG_WEIGHT | pb.Status.ALL_WEIGHTS_ZERO
    assert np.all(np.isnan(both.mean[1]))
    assert np.all(np.isnan(both.log_evidence[1]))


def test_faults_raise(pair):
    _, ahead, behind = pair
    zero = LogGamma(jnp.asarray(GAMMA, jnp.float32).at[1].set(0))
    with pytest.raises(pb.InferenceError, match="POSINF_LOG_WEIGHT"):
        two_filter_smoother(ahead, behind, zero)
    apart = lambda t, x_prev, x: jnp.full(x.shape, -jnp.inf, jnp.float32)  # noqa: E731
    with pytest.raises(pb.InferenceError, match="no backward particle can be reached") as caught:
        two_filter_smoother(ahead, behind, log_gamma(), log_transition=apart)
    result = caught.value.result
    np.testing.assert_array_equal(np.isnan(result.mean), [True, True, False])
    np.testing.assert_array_equal(result.log_evidence[:2], -np.inf)


def test_bad_arguments(pair):
    _, ahead, behind = pair
    with pytest.raises(ValueError, match="`backward` has no history"):
        two_filter_smoother(ahead, eqx.tree_at(lambda o: o.history, behind, None), log_gamma())
    shorter = eqx.tree_at(lambda o: o.ess, behind, behind.ess[:2])
    with pytest.raises(ValueError, match="`forward` has 3 time steps and `backward` 2"):
        two_filter_smoother(ahead, shorter, log_gamma())
    with pytest.raises(TypeError):
        two_filter_smoother(ahead, behind, 0.0)  # pyright: ignore[reportArgumentType]


class OnHost(Finite):
    traceable: ClassVar[bool] = False


@pytest.mark.slow
def test_host_loop_gives_the_same_weights():
    model = skewed_model(2, path_dependent=False, dtype=np.float32)
    backward = reversed_model(model, GAMMA[:2])
    runs = [
        particle_filter(jax.random.key(i), fk, num_particles=3, history=True) for i, fk in enumerate((model, backward))
    ]
    compiled = two_filter_smoother(runs[0], runs[1], log_gamma())
    host = as_kind(OnHost, model)
    hosted = two_filter_smoother(eqx.tree_at(lambda o: o.history.model, runs[0], host), runs[1], log_gamma())
    np.testing.assert_allclose(hosted.log_weights, compiled.log_weights, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_few_steps(num_steps):
    model = skewed_model(num_steps, path_dependent=False, dtype=np.float32)
    out = particle_filter(jax.random.key(0), model, num_particles=4, history=True)
    result = two_filter_smoother(out, out, log_gamma())
    assert result.mean.shape == result.log_evidence.shape == result.ess.shape == (num_steps,)
    np.testing.assert_allclose(result.mean, out.mean, rtol=1e-5)
