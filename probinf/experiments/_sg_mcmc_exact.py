r"""Exact stationary moments of stochastic gradient samplers on a linear regression with known noise.

With posterior mean $\mu$ and precision H the gradient estimate is $\hat g(\theta) = -\hat H (\theta - \mu) + \xi$,
where $E \hat H = H$, $E \xi = 0$, and both come from the rows of the batch. A sampler is a linear recursion with random
coefficients, $s' = (B - U \hat H W^\top) s + U \xi + \eta$ with $s = \theta - \mu$ (and the velocity, where there is
one). Its mean is zero, its covariance S the solution of a linear equation,

$$S = M S M^\top + \sum_j m^2 \mathrm{Cov}_j(U H_i W^\top S W H_i U^\top) + U \mathrm{Cov}(\xi) U^\top + Q, \quad
M = B - U H W^\top,$$

one row of each of the n stretches of m = N/n rows being drawn. No term of higher order in the step is left out.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probinf import models, samplers
from probinf.core import Target

NUM_ROWS, DIMENSION, NOISE_SD, PRIOR_VARIANCE = 48, 3, 3.5, 25.0


class Regression(NamedTuple):
    """Data with skewed, correlated columns, and the exact posterior, in float64.

    Attributes:
        features: [N, d].
        response: [N].
        mean: [d] of the posterior.
        precision: [d, d] of the posterior.
    """

    features: np.ndarray
    response: np.ndarray
    mean: np.ndarray
    precision: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Of the posterior."""
        return np.linalg.inv(self.precision)

    def rates(self) -> np.ndarray:
        """Eigenvalues of the precision, ascending."""
        return np.linalg.eigvalsh(self.precision)


def regression() -> Regression:
    """The data, the same in every run."""
    rng = np.random.default_rng(20)
    first = rng.gamma(2.0, 0.6, NUM_ROWS) - 1.2
    features = np.stack([np.ones(NUM_ROWS), first, 0.5 * first + 0.6 * rng.standard_normal(NUM_ROWS)], axis=1)
    response = features @ np.array([1.0, -2.0, 0.5]) + NOISE_SD * rng.standard_normal(NUM_ROWS)
    # What the samplers see is float32.
    features, response = features.astype(np.float32).astype(float), response.astype(np.float32).astype(float)
    precision = features.T @ features / NOISE_SD**2 + np.eye(DIMENSION) / PRIOR_VARIANCE
    return Regression(features, response, np.linalg.solve(precision, features.T @ response / NOISE_SD**2), precision)


def _log_row(beta: Array, row: tuple[Array, Array]) -> Array:
    x, y = row
    # Not `jnp.sum(x * beta)`: jaxlib 0.10.2 miscompiles sums over a short last axis on CPU for some batch sizes, and
    # 1024 chains of 48 rows of 3 numbers are one. 0.12 does not.
    return -0.5 * ((y - x @ beta) / NOISE_SD) ** 2


def _log_prior(beta: Array) -> Array:
    return -0.5 * jnp.sum(beta * beta) / PRIOR_VARIANCE


def target(problem: Regression, batch_size: int, *, control_variates: bool = False) -> Target:
    """The posterior, with batches."""
    data = (problem.features.astype(np.float32), problem.response.astype(np.float32))
    centre = problem.mean.astype(np.float32) if control_variates else None
    return samplers.minibatch_target(_log_row, data, batch_size, log_prior=_log_prior, centre=centre)


def conjugate(problem: Regression) -> models.GaussianPosterior:
    """The posterior by the library's own least squares, to hold against `Regression`."""
    return models.known_noise_regression(
        problem.features, problem.response, noise_sd=NOISE_SD, prior_cov=PRIOR_VARIANCE
    )


class Recursion(NamedTuple):
    """B, U, W and Q of the module's docstring."""

    base: np.ndarray
    kick: np.ndarray
    read: np.ndarray
    noise: np.ndarray


def langevin(step: float, temperature: float = 1.0) -> Recursion:
    """Of `sgld`."""
    one = np.eye(DIMENSION)
    return Recursion(one, step * one, one, 2 * step * temperature * one)


def friction(step: float, gamma: float, temperature: float = 1.0) -> Recursion:
    """Of `sghmc`; the state is position and velocity."""
    one, none, left = np.eye(DIMENSION), np.zeros((DIMENSION, DIMENSION)), 1 - step * gamma
    push = np.concatenate([step * one, one])
    base = np.block([[one, step * left * one], [none, left * one]])
    return Recursion(base, step * push, np.concatenate([one, none]), 2 * gamma * step * temperature * push @ push.T)


def stationary(
    problem: Regression, recursion: Recursion, batch_size: int = NUM_ROWS, *, control_variates: bool = False
) -> np.ndarray:
    """The stationary covariance of the coefficients, [d, d].

    Raises:
        ValueError: the batches do not divide the rows, or the step is so large that there is none.
    """
    if NUM_ROWS % batch_size:
        raise ValueError(f"`batch_size` is {batch_size}; needed a divisor of {NUM_ROWS}")
    base, kick, read, noise = recursion
    size = NUM_ROWS // batch_size
    x = problem.features.reshape(batch_size, size, DIMENSION)
    residuals = problem.response.reshape(batch_size, size) - x @ problem.mean
    hessians = x[..., :, None] * x[..., None, :] / NOISE_SD**2
    hessians = hessians - hessians.mean(axis=1, keepdims=True)
    maps = (kick @ hessians @ read.T).reshape(NUM_ROWS, *base.shape)
    step = base - kick @ problem.precision @ read.T
    # Rows of a stretch are drawn with probability 1 / size and count for `size`.
    operator = np.kron(step, step) + size * sum(np.kron(a, a) for a in maps)
    if not control_variates:  # at the posterior mean those leave no noise that does not depend on the position
        scores = x * residuals[..., None] / NOISE_SD**2
        scores = (scores - scores.mean(axis=1, keepdims=True)).reshape(NUM_ROWS, DIMENSION)
        noise = noise + size * kick @ scores.T @ scores @ kick.T
    if np.abs(np.linalg.eigvals(operator)).max() >= 1:
        raise ValueError("the recursion has no stationary law: take a smaller step")
    side = base.shape[0]
    found = np.linalg.solve(np.eye(side * side) - operator, noise.ravel()).reshape(side, side)
    return found[:DIMENSION, :DIMENSION]


def preconditioned_variance(step: float, regularisation: float, *, width: float = 9.0, points: int = 1201) -> float:
    """The stationary variance of `preconditioned_sgld(decay=0)` on N(0, 1), all data, by quadrature of its kernel."""
    grid = np.linspace(-width, width, points)
    size = step / (regularisation + np.abs(grid))
    z = (grid[None, :] - (grid - size * grid)[:, None]) / np.sqrt(2 * size)[:, None]
    kernel = np.exp(-0.5 * z * z)
    kernel /= kernel.sum(axis=1, keepdims=True)
    # The left eigenvector of eigenvalue 1, as the solution of a linear system with total mass 1.
    system = kernel.T - np.eye(points)
    system[-1] = 1
    law = np.linalg.solve(system, np.eye(points)[-1])
    return float(law @ grid**2)


def preconditioned_limit(regularisation: float) -> float:
    r"""Its limit for small steps: the variance of the density $\phi(x) (\lambda + |x|)$."""
    mean = math.sqrt(2 / math.pi)
    return (regularisation + 2 * mean) / (regularisation + mean)
