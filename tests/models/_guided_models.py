"""State-space models and data for the tests of guided filters; `noise` scales the noise of the transition."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from probinf.models import StateSpaceModel


def local_level(noise=1.0):
    """Informative: the observation is fourteen times as precise as the move."""
    return StateSpaceModel(
        lambda: dist.Normal(0.5, 1.0),
        lambda t, x: dist.Normal(0.9 * x, 0.7 * noise),
        lambda t, x: dist.Normal(2 * x + 0.3, 0.1),
    )


def user_proposal(t, x, y):
    return dist.Normal(0.9 * x + 0.49 * (y - 0.3 - 1.8 * x), 0.06)


def bent(noise=1.0):
    """Nonlinear in mean and in noise."""
    return StateSpaceModel(
        lambda: dist.Normal(0.5, 1.0),
        lambda t, x: dist.Normal(0.9 * x + 0.3 * jnp.sin(x), noise * (0.4 + 0.1 * jnp.abs(x))),
        lambda t, x: dist.Normal(jnp.exp(0.5 * x), 0.3 + 0.1 * jnp.abs(x)),
    )


def volatility(noise=1.0):
    """Skewed: the observation tells of the size of noise only."""
    return StateSpaceModel(
        lambda: dist.Normal(-0.5, 0.8),
        lambda t, x: dist.Normal(0.9 * x - 0.1, 0.5 * noise),
        lambda t, x: dist.Normal(0.0, jnp.exp(x / 2)),
    )


def volatility_proposal(t, x, y):
    """With heavier tails than the transition, and shifted the way that y^2 says."""
    mean = 0.9 * x - 0.1
    return dist.Logistic(mean + 0.12 * (y**2 * jnp.exp(-mean) - 1).clip(-1, 8), 0.3)


def volatility_look_ahead(t, x, y):
    return dist.StudentT(4.0, 0.0, jnp.exp(0.45 * x)).log_prob(y)


def vector(kind="joint", singular=False, noise=1.0):
    """Two states, one or three observations, linear."""
    matrix = jnp.array([[0.9, 0.3], [-0.2, 0.7]])
    root = noise * jnp.array([[0.5, 0.0], [0.3, 0.0 if singular else 0.4]])
    initial_root = jnp.array([[1.0, 0.0], [0.0, 0.0 if singular else 0.5]])
    seen = jnp.array([[1.0, 0.5], [0.3, -1.0], [0.2, 0.4]])[: 1 if kind == "one" else 3]
    noise_root = jnp.array([[0.3, 0.0, 0.0], [0.1, 0.4, 0.0], [0.0, 0.2, 0.5]])

    def observation(t, x):
        mean = seen @ x + 0.1
        if kind == "joint":
            return dist.MultivariateNormal(mean, scale_tril=noise_root)
        return dist.Normal(mean, 0.3).to_event(1)

    return StateSpaceModel(
        lambda: dist.MultivariateNormal(jnp.array([0.2, -0.1]), scale_tril=initial_root, validate_args=False),
        lambda t, x: dist.MultivariateNormal(matrix @ x, scale_tril=root, validate_args=False),
        observation,
    )


def expanded(noise=1.0):
    """Independent and expanded components, a matrix of states."""
    return StateSpaceModel(
        lambda: dist.Normal(0.2, 1.0).expand((2, 2)).to_event(2),
        lambda t, x: dist.Normal(0.8 * x, 0.5 * noise).to_event(1),
        lambda t, x: dist.Normal(jnp.sum(x), 0.3).expand((3,)),
    )


NAN = np.nan
SCALARS = np.array([0.4, NAN, 2.5, -1.0], np.float32)
PARTS = np.array([[0.4, 1.0, NAN], [NAN, 0.5, 0.3], [NAN, NAN, NAN], [-1.0, 0.0, 0.1]], np.float32)

# name: model of a scale of its noise, data, options of `guided`, whether it must be found to be linear
MODELS = {
    "local_level": (local_level, SCALARS, {}, True),
    "bent": (bent, SCALARS, {}, False),
    "volatility": (volatility, SCALARS, {"proposal": volatility_proposal}, None),
    "joint": (
        lambda noise=1.0: vector("joint", noise=noise),
        np.array([[0.4, 1.0, -0.2], [2.0, 0.5, 0.3], [NAN, NAN, NAN], [-1.0, 0.0, 0.1]], np.float32),
        {},
        True,
    ),
    "parts": (lambda noise=1.0: vector("parts", noise=noise), PARTS, {}, True),
    "one": (lambda noise=1.0: vector("one", noise=noise), SCALARS[:, None], {}, True),
    "expanded": (expanded, PARTS, {}, True),
}
