"""A Feynman-Kac model on finitely many states, whose every random choice can be enumerated."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import probinf as pb
from probinf.core import categorical


class Finite(pb.FeynmanKac):
    """States 0 .. S-1; potentials[t, s', s] may depend on the state before (potentials[0, 0] at t = 0)."""

    batch: ClassVar[bool] = True
    initial: jax.Array
    transition: jax.Array
    potentials: jax.Array

    @property
    def num_steps(self):
        return self.potentials.shape[0]

    def init(self, key, num_particles):
        return pb.choose(key, categorical, jnp.broadcast_to(self.initial, (num_particles, self.initial.shape[0])))

    def mutate(self, key, t, x):
        return pb.choose(key, categorical, self.transition[x])

    def log_potential(self, t, x_prev, x):
        before = jnp.zeros_like(x) if x_prev is None else x_prev
        return jnp.log(self.potentials[t, before, x])

    def log_transition(self, t, x_prev, x):
        return jnp.log(self.transition[x_prev, x])


class Ahead(Finite):
    """The same model, run as an auxiliary filter."""

    def look_ahead(self, t, x):
        return jnp.log(jnp.array([0.4, 1.9]))[x]


class Swapped(Finite):
    """Planted: the arguments of the transition density swapped."""

    def log_transition(self, t, x_prev, x):
        return jnp.log(self.transition[x, x_prev])


def as_kind(kind, model):
    """The same numbers in another class."""
    return kind(model.initial, model.transition, model.potentials)


def tables(model):
    """Initial law, transition matrix and potentials in double precision."""
    return tuple(np.asarray(leaf, np.float64) for leaf in (model.initial, model.transition, model.potentials))


def skewed_model(num_steps, *, path_dependent=True, dtype: type = np.float64):
    """Two states, nothing symmetric."""
    initial = np.array([0.6, 0.4])
    transition = np.array([[0.8, 0.2], [0.35, 0.65]])
    base = np.array([[0.9, 0.2], [0.3, 0.7], [0.5, 0.8], [1.7, 0.1]])[:num_steps]
    potentials = np.repeat(base[:, None, :], 2, axis=1)
    if path_dependent:
        potentials[1:, 1, :] *= np.array([0.4, 1.3])
    return Finite(*(jnp.asarray(a, dtype) for a in (initial, transition, potentials)))


def exact_evidence(model):
    """The forward algorithm in NumPy, independent of the package."""
    initial, transition, potentials = tables(model)
    if potentials.shape[0] == 0:
        return 1.0
    alpha = initial * potentials[0, 0]
    for t in range(1, potentials.shape[0]):
        alpha = alpha @ (transition * potentials[t])
    return alpha.sum()


def measure(population, num_states=2):
    """The meaning of a population of states: mass on each state."""
    weights = jnp.exp(population.log_scale + population.log_weights) / population.num_particles
    return jnp.zeros(num_states, weights.dtype).at[population.particles].add(weights)
