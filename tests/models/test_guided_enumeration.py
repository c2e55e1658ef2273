"""Auxiliary filters with a proposal on two states, every random choice enumerated: the evidence is exactly unbiased.

Planted bugs, each seen to fail: the density of the proposal forgotten; a look-ahead that is not divided out.
"""

import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf.core import categorical
from probinf.samplers import ALL_SCHEMES, particle_filter
from probinf.validity import enumerate_algorithm
from tests._finite import Finite, exact_evidence, skewed_model


class GuidedFinite(pb.FeynmanKac):
    """A `Finite` model moved by `proposal[t, s', s]`, G = f g / q, with a look-ahead `psi[t, s']`."""

    batch: ClassVar[bool] = True
    model: Finite
    proposal: jax.Array
    psi: jax.Array
    bug: str = eqx.field(static=True, default="none")

    @property
    def num_steps(self):
        return self.model.num_steps

    def init(self, key, num_particles):
        return self.model.init(key, num_particles)

    def mutate(self, key, t, x):
        return pb.choose(key, categorical, self.proposal[t, x])

    def log_potential(self, t, x_prev, x):
        log_g = self.model.log_potential(t, x_prev, x)
        if x_prev is None:
            return log_g
        log_f = self.model.log_transition(t, x_prev, x)
        log_q = 0 if self.bug == "proposal forgotten" else jnp.log(self.proposal[t, x_prev, x])
        undivided = jnp.log(self.psi[t, x_prev]) if self.bug == "look-ahead not divided out" else 0
        return log_f + log_g - log_q + undivided

    def look_ahead(self, t, x):
        return jnp.log(self.psi[t, x])


def guided_finite(num_steps, bug="none", fully_adapted=False):
    model = skewed_model(num_steps)
    joint = model.transition[None] * model.potentials
    if fully_adapted:
        psi = joint.sum(axis=2)
        return GuidedFinite(model, joint / psi[:, :, None], psi, bug)
    proposal = jnp.array([[[0.5, 0.5], [0.5, 0.5]], [[0.3, 0.7], [0.8, 0.2]], [[0.6, 0.4], [0.1, 0.9]]])[:num_steps]
    return GuidedFinite(model, proposal, jnp.array([[1.0, 1.0], [0.4, 3.0], [2.5, 0.7]])[:num_steps], bug)


def expected_evidence(fk, num_particles, name, ess_threshold):
    def run(key):
        out = particle_filter(
            key, fk, num_particles=num_particles, resampling=name, ess_threshold=ess_threshold, throw=False
        )
        return jnp.exp(out.log_evidence)

    return float(enumerate_algorithm(run).expectation(lambda z: z))


@pytest.mark.parametrize(
    ("num_particles", "num_steps", "ess_threshold"),
    [
        (2, 3, 0.8),
        pytest.param(2, 3, 1.0, marks=pytest.mark.slow),
        pytest.param(3, 2, 1.0, marks=pytest.mark.slow),
        pytest.param(3, 3, 0.8, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_auxiliary_filter_is_exactly_unbiased(name, num_particles, num_steps, ess_threshold, x64):
    fk = guided_finite(num_steps)
    found = expected_evidence(fk, num_particles, name, ess_threshold)
    assert found == pytest.approx(exact_evidence(fk.model), rel=1e-6)


@pytest.mark.parametrize("bug", ["proposal forgotten", "look-ahead not divided out"])
def test_planted_bugs_are_biased(bug, x64):
    fk = guided_finite(2, bug)
    assert abs(expected_evidence(fk, 2, "systematic", 1.0) / exact_evidence(fk.model) - 1) > 0.01


def test_full_adaption_leaves_the_first_step_only(x64):
    # psi = p(y | x_prev) and q = p(x | x_prev, y): all weights after a resampling are 1.
    fk = guided_finite(2, fully_adapted=True)
    out = particle_filter(jax.random.key(0), fk, num_particles=50, ess_threshold=1.0)
    assert bool(out.resampled[1])
    np.testing.assert_allclose(out.ess[1], 50, rtol=1e-12)


def test_the_enumerated_model_is_what_it_says():
    # The exact evidence of the finite model by summing over all paths.
    model = skewed_model(3, dtype=np.float32)
    total = 0.0
    for path in itertools.product(range(2), repeat=3):
        weight = float(model.initial[path[0]] * model.potentials[0, 0, path[0]])
        for t in (1, 2):
            weight *= float(model.transition[path[t - 1], path[t]] * model.potentials[t, path[t - 1], path[t]])
        total += weight
    assert exact_evidence(model) == pytest.approx(total, rel=1e-6)
