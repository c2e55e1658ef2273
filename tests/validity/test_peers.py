"""Faults of released peers, seen by our checks; they run where the peer is installed beside us.

cuthbert 0.1.1 splits the key of the initial particles again at the first step. particles 0.4's particle Gibbs updates
the states given the parameter before last: of a toy whose posterior is normal, E x = 2 and cov(theta, x) = 1/3, it
gives 2.08 and .245.
"""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from probinf import validity
from probinf.validity import Check

pytestmark = [pytest.mark.slow, pytest.mark.no_key_reuse, pytest.mark.numpyro]


def test_the_key_reuse_of_cuthbert() -> None:
    cuthbert = pytest.importorskip("cuthbert", reason="cuthbert is not installed here")
    from cuthbert.smc import particle_filter  # pyright: ignore[reportMissingImports]
    from cuthbertlib.resampling import systematic  # pyright: ignore[reportMissingImports]

    built = particle_filter.build_filter(
        init_sample=lambda key: jax.random.normal(key, ()),
        propagate_sample=lambda key, x, y: 0.9 * x + jax.random.normal(key, ()),
        log_potential=lambda before, x, y: -0.5 * (y - x) ** 2,
        n_filter_particles=8,
        resampling_fn=systematic.resampling,
    )

    def first_step(key: jax.Array) -> jax.Array:
        first, rest = jax.random.split(key)
        state = built.init_prepare(key=first)
        return built.filter_combine(state, built.filter_prepare(np.float32(0.3), key=rest)).log_normalizing_constant

    del cuthbert
    assert not validity.key_reuse(first_step, jax.random.key(0)).passed


NUM_RUNS, NUM_ITERATIONS = 4, 20_000


def known_mean(values: np.ndarray, exact: float, subject: str) -> Check:
    """Independent chains [runs, iterations] against a known mean, by means of batches of 500."""
    batches = values.reshape(-1, 500).mean(axis=1)
    error = batches.std(ddof=1) / math.sqrt(batches.size)
    bound = float(scipy.stats.t.isf(0.5e-6, batches.size - 1))
    return Check("known mean", subject, float(abs(batches.mean() - exact) / error), bound, 1e-6, "")


def test_the_biased_particle_gibbs_of_particles() -> None:
    pytest.importorskip("particles", reason="particles is not installed here")
    from particles import distributions, mcmc, state_space_models  # pyright: ignore[reportMissingImports]

    class Toy(state_space_models.StateSpaceModel):
        default_params = {"theta": 0.0}  # noqa: RUF012

        def PX0(self):
            return distributions.Normal(loc=self.theta, scale=1.0)

        def PX(self, t, xp):
            return distributions.Normal(loc=xp, scale=1.0)

        def PY(self, t, xp, x):
            return distributions.Normal(loc=x, scale=1.0)

    class Gibbs(mcmc.ParticleGibbs):
        def update_theta(self, theta, x):
            new = theta.copy()
            new["theta"] = np.random.normal(np.ravel(x[0])[0] / 2, math.sqrt(0.5))  # noqa: NPY002
            return new

    prior = distributions.StructDist({"theta": distributions.Normal()})
    states = []
    for seed in range(NUM_RUNS):
        np.random.seed(seed)  # noqa: NPY002
        gibbs = Gibbs(ssm_cls=Toy, data=np.array([3.0]), prior=prior, Nx=2, niter=NUM_ITERATIONS, store_x=True)
        gibbs.run()
        states.append(np.ravel(gibbs.chain.x))
    check = known_mean(np.stack(states)[:, 500:].reshape(NUM_RUNS, -1), 2.0, "E x")
    assert not check.passed, check


def test_the_same_gibbs_sampler_done_right_passes() -> None:
    """Conditional SMC of two particles at one time, then theta given the new state."""
    rng = np.random.default_rng(0)
    x, theta, states = 2.0, 1.0, []
    for _ in range(NUM_RUNS * NUM_ITERATIONS):
        theta = rng.normal(x / 2, math.sqrt(0.5))
        other = rng.normal(theta)
        odds = math.exp(min(0.5 * ((3 - x) ** 2 - (3 - other) ** 2), 700))
        x = other if rng.random() < odds / (1 + odds) else x
        states.append(x)
    assert known_mean(np.asarray(states), 2.0, "E x").passed
