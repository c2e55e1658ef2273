"""Targets whose posterior is known in closed form, for tests of `sample`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probinf.core._target import Target


class Normals(eqx.Module):
    """A standard normal prior draw of the given shape."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        return jax.random.normal(key, self.shape)


class Regression(eqx.Module):
    x: Any
    y: Any

    def __call__(self, beta: Any) -> Any:
        return -0.5 * jnp.sum((self.y - self.x @ beta) ** 2)


def half_square(x: Any) -> Any:
    return -0.5 * jnp.sum(x * x)


def regression(offset: float = 0.0) -> tuple[Target, np.ndarray, np.ndarray]:
    """Unit noise, standard normal prior: the posterior is N(mean, covariance)."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 3)) * [1.0, 2.0, 0.3]
    y = x @ [0.5, -1.0, 2.0] + rng.normal(size=20) + offset
    covariance = np.linalg.inv(np.eye(3) + x.T @ x)
    target = Target(Regression(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)), half_square, Normals((3,)))
    return target, covariance @ (x.T @ y), covariance


def skewed_log_density(x: Any) -> Any:
    """Of a pair `{"a": [], "b": [2]}`: skewed, and the coordinates depend on each other."""
    return (
        1.5 * x["a"]
        - jnp.exp(x["a"])
        - jnp.sum(jnp.exp(-x["b"]) + x["b"])
        - 0.1 * jnp.exp(x["a"]) * jnp.sum(x["b"] ** 2)
    )
