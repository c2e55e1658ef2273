r"""The two filtering problems, their data and their exact log evidence; numpy only, so that every peer can import it.

Both are $x_0 \sim N(\mu, \sigma^2 / (1 - \rho^2))$, $x_t = \mu + \rho (x_{t-1} - \mu) + \sigma \epsilon_t$, seen
through $y_t \sim N(x_t, s^2)$ (linear-Gaussian) or $y_t \sim N(0, e^{x_t})$ (stochastic volatility; Kim, Shephard,
Chib 1998).
"""

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """One model with its data.

    Attributes:
        name: "linear_gaussian" or "stochastic_volatility".
        mean, persistence, scale: mu, rho and sigma of the hidden AR(1).
        observation_scale: s; None for stochastic volatility.
        ys: observations [T], float64.
        log_evidence: log p(ys), exact (Kalman) or by quadrature with an error below 1e-6.
    """

    name: str
    mean: float
    persistence: float
    scale: float
    observation_scale: float | None
    ys: np.ndarray
    log_evidence: float

    @property
    def initial_scale(self) -> float:
        """The stationary standard deviation of the hidden state."""
        return self.scale / np.sqrt(1 - self.persistence**2)


_PARAMETERS = {
    "linear_gaussian": (0.0, 0.9, 1.0, 0.2),
    "stochastic_volatility": (-1.0, 0.95, 0.3, None),
}
NAMES = tuple(_PARAMETERS)


def make_problem(name: str, num_steps: int = 1000, *, seed: int = 1, solve: bool = True) -> Problem:
    """Simulates a problem: T state normals one by one, then T observation normals, from `default_rng(seed)`.

    Args:
        name: one of `NAMES`.
        num_steps: T.
        seed: of the data.
        solve: whether to compute the exact log evidence; else it is NaN.

    Raises:
        ValueError: `name` is not one of `NAMES`.
    """
    if name not in _PARAMETERS:
        raise ValueError(f"`name` is {name!r}, needed one of {NAMES}")
    mean, persistence, scale, observation_scale = _PARAMETERS[name]
    bare = Problem(name, mean, persistence, scale, observation_scale, np.zeros(num_steps), np.nan)
    rng = np.random.default_rng(seed)
    states = np.empty(num_steps)
    for t in range(num_steps):
        noise = rng.standard_normal()
        centre = mean if t == 0 else mean + persistence * (states[t - 1] - mean)
        states[t] = centre + (bare.initial_scale if t == 0 else scale) * noise
    noise = rng.standard_normal(num_steps)
    ys = np.exp(states / 2) * noise if observation_scale is None else states + observation_scale * noise
    exact = grid_log_evidence if observation_scale is None else kalman_log_evidence
    problem = Problem(name, mean, persistence, scale, observation_scale, ys, np.nan)
    return problem._replace(log_evidence=exact(problem)) if solve else problem


def kalman_log_evidence(problem: Problem) -> float:
    """The log evidence of the linear-Gaussian problem, by the scalar Kalman filter in float64 (Kalman 1960)."""
    if problem.observation_scale is None:
        raise ValueError(f"`problem` is {problem.name!r}, needed a linear-Gaussian one")
    mean, variance, total = problem.mean, problem.initial_scale**2, 0.0
    for y in problem.ys:
        spread = variance + problem.observation_scale**2
        total -= 0.5 * (np.log(2 * np.pi * spread) + (y - mean) ** 2 / spread)
        gain = variance / spread
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        mean = problem.mean + problem.persistence * (mean - problem.mean)
        variance = problem.persistence**2 * variance + problem.scale**2
    return float(total)


def grid_log_evidence(problem: Problem, *, num_points: int = 1200, width: float = 8.0) -> float:
    """The log evidence by the forward recursion on an even grid of `width` stationary deviations each side.

    The integrands are smooth and vanish at both ends, so the rectangle rule converges faster than any power of
    the spacing once the grid resolves the transition (Trefethen, Weideman 2014).
    """
    half = width * problem.initial_scale
    grid = np.linspace(problem.mean - half, problem.mean + half, num_points)
    spacing = grid[1] - grid[0]
    centres = problem.mean + problem.persistence * (grid - problem.mean)
    transition = np.exp(_log_normal(grid[None, :], centres[:, None], problem.scale)) * spacing
    density = np.exp(_log_normal(grid, problem.mean, problem.initial_scale)) * spacing
    total = 0.0
    for t, y in enumerate(problem.ys):
        if t > 0:
            density = density @ transition
        log_likelihood = log_observation(problem, y, grid)
        largest = log_likelihood.max()
        density = density * np.exp(log_likelihood - largest)
        mass = density.sum()
        total += largest + np.log(mass)
        density = density / mass
    return float(total)


def optimal_proposal(y, centre, scale, observation_scale):
    """Location and scale of x_t given y_t and x_{t-1}, where x_t ~ N(centre, scale^2) and y_t ~ N(x_t, s^2)."""
    precision = scale**-2 + observation_scale**-2
    return (centre * scale**-2 + y * observation_scale**-2) / precision, precision**-0.5


def log_predictive(y, centre, scale, observation_scale) -> np.ndarray:
    """The log density of y_t given x_{t-1}, with the same meanings, in numpy."""
    return _log_normal(y, centre, np.hypot(scale, observation_scale))


def log_observation(problem: Problem, y: float, x: np.ndarray) -> np.ndarray:
    """The log density of y given x, elementwise, in numpy."""
    if problem.observation_scale is None:
        return _log_normal(y, 0.0, np.exp(x / 2))
    return _log_normal(y, x, problem.observation_scale)


def _log_normal(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
