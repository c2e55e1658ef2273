"""State-space models for tests of filters and smoothers: one with a known answer, one in particle form."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import probinf as pb
from probinf import models

LOG_BOUND = float(-0.5 * np.log(2 * np.pi * 0.7))  # the mode of the transition density of `linear_gaussian`


def linear_gaussian(num_steps):
    """A scalar model and data for it; the Kalman smoother has the answer."""
    model = models.LinearGaussian(0.5, 2.0, 0.9, 0.7, 1.0, 0.5)
    ys = np.cumsum(np.random.default_rng(3).standard_normal((num_steps, 1)), axis=0).astype(np.float32)
    return model, jnp.asarray(ys)


class Walk(pb.FeynmanKac):
    """Particle form, a pytree of a float and a count of steps; `fault` goes into the transition density of step 2."""

    ys: jax.Array
    fault: jax.Array

    @property
    def num_steps(self):
        return self.ys.shape[0]

    def init(self, key):
        return {"x": jax.random.normal(key), "n": jnp.zeros((), jnp.int32)}

    def mutate(self, key, t, x):
        return {"x": x["x"] + jax.random.normal(key), "n": x["n"] + 1}

    def log_potential(self, t, x_prev, x):
        return -0.5 * (x["x"] - self.ys[t]) ** 2

    def log_transition(self, t, x_prev, x):
        return -0.5 * (x["x"] - x_prev["x"]) ** 2 + jnp.where(t == 2, self.fault, 0)


class HostWalk(Walk):
    """The same, run in a host loop."""

    traceable: ClassVar[bool] = False


def walk(kind=Walk, num_steps=4, fault=0.0, ys=None):
    ys = jnp.linspace(0.0, 2.0, num_steps) if ys is None else jnp.asarray(ys, jnp.float32)
    return kind(ys, jnp.float32(fault))
