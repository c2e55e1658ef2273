"""Gradients of the evidence: exact by enumeration, and against the Kalman filter.

Planted bug that is caught: no correction for the weights of the ancestors (the default), whose gradient is biased.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import probinf as pb
from probinf import models, samplers
from probinf.core import categorical
from probinf.validity import enumerate_algorithm
from tests._slow import slow_after


class Coins(pb.FeynmanKac):
    """Two states with parameters in the potentials alone, so that only weights carry gradients."""

    batch = True
    tilt: jax.Array

    @property
    def num_steps(self):
        return 3

    def init(self, key, num_particles):
        return pb.choose(key, categorical, jnp.broadcast_to(jnp.array([0.6, 0.4]), (num_particles, 2)))

    def mutate(self, key, t, x):
        return pb.choose(key, categorical, jnp.array([[0.8, 0.2], [0.35, 0.65]])[x])

    def log_potential(self, t, x_prev, x):
        slopes, base = jnp.array([1.0, 0.5, -1.5]), jnp.log(jnp.array([0.9, 0.3]))
        return self.tilt * x.astype(slopes.dtype) * slopes[t] + base[x]


def exact_evidence(tilt):
    total = 0.0
    first, move = jnp.array([0.6, 0.4]), jnp.array([[0.8, 0.2], [0.35, 0.65]])
    for path in itertools.product(range(2), repeat=3):
        weight = first[path[0]] * move[path[0], path[1]] * move[path[1], path[2]]
        for t, x in enumerate(path):
            weight = weight * jnp.exp(tilt * x * (1.0, 0.5, -1.5)[t]) * (0.9, 0.3)[x]
        total = total + weight
    return total


@pytest.mark.parametrize(
    ("scheme", "differentiable"), slow_after(2, [("systematic", True), ("systematic", False), ("multinomial", True)])
)
def test_expected_gradient_is_the_gradient_of_the_evidence(x64, scheme, differentiable):
    def gradient(key):
        def evidence(tilt):
            out = samplers.particle_filter(
                key,
                Coins(tilt),
                num_particles=2,
                resampling=scheme,
                ess_threshold=0.95,
                differentiable=differentiable,
                throw=False,
            )
            return jnp.exp(out.log_evidence)

        return jax.grad(evidence)(jnp.asarray(0.7))

    found = float(enumerate_algorithm(gradient).expectation(lambda value: value))
    exact = float(jax.grad(exact_evidence)(jnp.asarray(0.7)))
    assert (abs(found - exact) < 1e-9) == differentiable, (found, exact)


@pytest.mark.numpyro
def test_gradient_agrees_with_kalman():
    ys = jnp.asarray(np.random.default_rng(0).normal(size=12) * 1.3, jnp.float32)

    def state_space(rho):
        return models.StateSpaceModel(
            lambda: dist.Normal(0.0, 1.0),
            jax.tree_util.Partial(lambda rho, t, x: dist.Normal(rho * x, 0.8), rho),
            lambda t, x: dist.Normal(x, 0.7),
        )

    def estimate(rho, key):
        model = state_space(rho).bootstrap(ys)
        return samplers.particle_filter(
            key, model, num_particles=500, resampling="multinomial", differentiable=True, throw=False
        ).log_evidence

    def kalman(rho):
        linear = models.LinearGaussian(
            initial_mean=jnp.zeros(1),
            initial_cov=jnp.eye(1),
            transition_matrix=rho * jnp.eye(1),
            transition_cov=0.64 * jnp.eye(1),
            observation_matrix=jnp.eye(1),
            observation_cov=0.49 * jnp.eye(1),
        )
        return models.kalman_filter(linear, ys[:, None]).log_evidence

    rho = jnp.asarray(0.6)
    gradients = jax.jit(jax.vmap(jax.grad(estimate), (None, 0)))(rho, jax.random.split(jax.random.key(1), 200))
    gradients = np.asarray(gradients, np.float64)
    step = 1e-2
    exact = (float(kalman(rho + step)) - float(kalman(rho - step))) / (2 * step)
    # 200 runs, six standard errors; the bias of the log is about half its variance, whose slope is below .05 here.
    assert abs(gradients.mean() - exact) < 6 * gradients.std(ddof=1) / np.sqrt(200) + 0.05
