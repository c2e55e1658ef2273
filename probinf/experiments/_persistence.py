r"""Stationary Gaussian processes that keep their sign: their exact simulation, and the independent-interval equation.

A process X with correlation r keeps its sign on [0, T] with probability about $e^{-\theta T}$; $\theta$ is its
persistence exponent. Here each process is read off a linear recursion $z_{n+1} = (z_n, \varepsilon_n) S$, so that
"no crossing" is a Feynman-Kac model whose evidence up to T is the probability of survival.

*Random acceleration* ($\ddot x$ white, $X(t) = \sqrt3 e^{-3t/2} x(e^t)$, $r = \frac32 e^{-t/2} - \frac12 e^{-3t/2}$)
is Markov in (x, v), with exact Gaussian steps. Burkhardt (1993); Sinai (1992): $\theta = 1/4$.

*Diffusion fields* ($r = sech(t/2)^{d/2}$) are no finite-dimensional Markov process, but a moving average,
$X(t) = \int k(u - t) dB(u)$ with $k(v) = c \exp(dv/4 - e^v)$: put $s = e^u$ in $\int s^{d/2-1} e^{-s(1 + e^{-t})} ds$.
As k is analytic in the strip $|Im v| < \pi/2$, a sum over a grid of spacing h in place of the integral makes r wrong
by at most $2 |\Gamma(d/2 + 2 \pi i / h)| / \Gamma(d/2)$, at *every* pair of times: $2 \cdot 10^{-7}$ for d = 3 and
h = 1/2. So one normal number a step of 1/2 gives a smooth path that can be looked at as closely as one likes. The past
of k is its series in $e^v$: a few decaying sums.
Majumdar, Sire, Bray and Cornell (1996); Derrida, Hakim and Zeitak (1996).
"""

import itertools
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.optimize
from jaxtyping import Array, Float

from probinf.core import FeynmanKac, PRNGKey, fast_key

STEP = 0.5  # time between two resamplings, and the spacing h of the noise of a diffusion field
LEAD, LAG, TAIL = 5, 6, 5  # noise kept ahead of and behind the present; terms of the series for what is older


class Linear(NamedTuple):
    """A stationary Gaussian sequence of blocks: `step` turns (state, noise) into (new state, values of X in the step).

    Attributes:
        start: [k, p + 1]; k standard normals times it are the first state and X(0).
        step: [p + q, p + m]; q standard normals a step, X at m equally spaced points, the last at its end.
    """

    start: np.ndarray
    step: np.ndarray

    @property
    def num_states(self) -> int:
        """The length p of the state."""
        return self.start.shape[1] - 1

    @property
    def num_points(self) -> int:
        """The number m of points in a step."""
        return self.step.shape[1] - self.num_states


def diffusion(dimension: int, points: int) -> Linear:
    """The diffusion field at a point of d-dimensional space, in logarithmic time.

    Args:
        dimension: d >= 1.
        points: where to look in each step, m >= 1.
    """
    window = LEAD + LAG + 1
    rates = dimension / 4 + np.arange(TAIL)
    decay = np.exp(-rates * STEP)
    # State: the noise from LEAD steps ahead to LAG steps behind, newest first, then the sums of all that is older.
    advance = np.zeros((window + TAIL + 1, window + TAIL))
    advance[-1, 0] = 1
    advance[: window - 1, 1:window] = np.eye(window - 1)
    advance[window - 1, window:] = decay ** (LAG + 1)
    advance[window:-1, window:] = np.diag(decay)
    before = STEP * (points - 1 - np.arange(points)) / points  # from each point to the end of the step
    place = STEP * (LEAD - np.arange(window))[:, None] + before
    signs = (-1.0) ** np.arange(TAIL) / np.array([math.factorial(m) for m in range(TAIL)])
    scale = math.sqrt(STEP * 2 ** (dimension / 2) / math.gamma(dimension / 2))
    recent = np.exp(dimension / 4 * place - np.exp(place))
    older = signs[:, None] * np.exp(rates[:, None] * before)
    read = scale * np.concatenate([recent, older])
    return _stationary(np.concatenate([advance, advance @ read], axis=1), read[:, -1])


def random_acceleration(points: int) -> Linear:
    """Integrated Brownian motion in logarithmic time, scaled to variance one; state (x, v).

    Args:
        points: grid points in each step, m >= 1.
    """
    width = STEP / points
    time = math.expm1(width)  # from 1 to e^width on the clock of the Brownian motion
    shrink = np.exp([-1.5 * width, -0.5 * width])
    flow = np.array([[1, 0], [time, 1]]) * shrink
    noise = np.linalg.cholesky([[time**3 / 3, time**2 / 2], [time**2 / 2, time]]).T * shrink
    state = np.eye(2 + 2 * points, 2)
    values = []
    for i in range(points):
        state = state @ flow
        state[2 + 2 * i : 4 + 2 * i] = noise
        values.append(math.sqrt(3) * state[:, 0])
    return _stationary(np.column_stack([state, *values]), math.sqrt(3) * np.array([1.0, 0.0]))


def _stationary(step: np.ndarray, read: np.ndarray) -> Linear:
    """Adds the start: the state's stationary law, and X(0) = state . read."""
    advance, noise = step[: read.size, : read.size], step[read.size :, : read.size]
    values, vectors = np.linalg.eigh(scipy.linalg.solve_discrete_lyapunov(advance.T, noise.T @ noise))
    factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return Linear(np.column_stack([factor, factor @ read]), step)


def looked_at(linear: Linear, every: int) -> Linear:
    """The same paths, looked at only at every so-many-th point; of the same shape, so that it runs as it is compiled.

    Raises:
        ValueError: the number of points is no multiple of `every`.
    """
    p, m = linear.num_states, linear.num_points
    if m % every:
        raise ValueError(f"the number of points in a step is {m}; needed a multiple of {every}")
    kept = p + (np.arange(m) // every + 1) * every - 1
    return Linear(linear.start, linear.step[:, np.concatenate([np.arange(p), kept])])


def covariance_error(linear: Linear, correlation: Callable[[np.ndarray], np.ndarray], num_steps: int) -> float:
    """The largest difference between the covariance of X at two points of the grid, and its correlation function.

    Over all pairs of points in `num_steps` steps, from the matrices as they are used (JAX's default precision).
    """
    start, step = (np.asarray(matrix, jnp.zeros(()).dtype).astype(float) for matrix in linear)
    p, m = linear.num_states, linear.num_points
    noise = np.eye(step.shape[0] - p)
    joint = start.T @ start
    state, crossed = joint[:p, :p], joint[p:, :p]  # of the state, and of all X so far with the state
    times = np.zeros(1)
    worst = abs(joint[p, p] - 1)
    for n in range(num_steps):
        grid = n * STEP + STEP * np.arange(1, m + 1) / m
        inputs = scipy.linalg.block_diag(state, noise)
        outputs = step.T @ inputs @ step
        earlier = crossed @ step[:p]  # of all X so far with (new state, new X)
        worst = max(
            worst,
            np.max(np.abs(earlier[:, p:] - correlation(grid - times[:, None]))),
            np.max(np.abs(outputs[p:, p:] - correlation(grid - grid[:, None]))),
        )
        state = outputs[:p, :p]
        crossed = np.concatenate([earlier[:, :p], outputs[p:, :p]])
        times = np.concatenate([times, grid])
    return float(worst)


class Particle(NamedTuple):
    """A path that has kept its sign: its state, and the lowest value in the step just made."""

    state: Float[Array, "n p"]
    lowest: Float[Array, " n"]


class Survival(FeynmanKac):
    """The path extended step by step, killed when a value in the step is not positive.

    Its evidence up to step n is the probability that X keeps the sign that it had at time 0: by symmetry the path is
    turned over at the start where X(0) is negative.

    Attributes:
        start, step: as in `Linear`.
        num_moves: steps after the start.
    """

    batch: ClassVar[bool] = True
    start: Float[Array, "k p_plus_1"]
    step: Float[Array, "p_plus_q p_plus_m"]
    num_moves: int = eqx.field(static=True)

    @property
    def num_steps(self) -> int:
        """The start and all moves."""
        return self.num_moves + 1

    def init(self, key: PRNGKey, num_particles: int) -> Particle:
        """The stationary law given X(0) > 0."""
        normal = jax.random.normal(fast_key(key), (num_particles, self.start.shape[0]), self.start.dtype)
        drawn = self._apply(normal, self.start)
        return Particle(drawn[:, :-1] * jnp.sign(drawn[:, -1:]), jnp.abs(drawn[:, -1]))

    def mutate(self, key: PRNGKey, t: int | Array, x: Particle) -> Particle:
        """One step of all paths."""
        num_states = x.state.shape[1]
        shape = (x.state.shape[0], self.step.shape[0] - num_states)
        noise = jax.random.normal(fast_key(key), shape, x.state.dtype)
        moved = self._apply(jnp.concatenate([x.state, noise], axis=1), self.step)
        return Particle(moved[:, :num_states], jnp.min(moved[:, num_states:], axis=1))

    def log_potential(self, t: int | Array, x_prev: Particle | None, x: Particle) -> Float[Array, " n"]:
        """0 for a path above zero, -inf for one that crossed."""
        return jnp.where(x.lowest > 0, 0, -jnp.inf).astype(x.lowest.dtype)

    def _apply(self, rows: Array, matrix: Array) -> Array:
        # Accelerators round the factors of a product to 10 bits unless told not to: a wrong covariance.
        return jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)


def survival(linear: Linear, num_steps: int) -> Survival:
    """The model over `num_steps` steps after the start, in JAX's default precision."""
    start, step = (jnp.asarray(matrix, jnp.zeros(()).dtype) for matrix in linear)
    return Survival(start, step, num_steps)


def independent_intervals(correlation: Callable[[np.ndarray], np.ndarray], mean_interval: float, rate: float) -> float:
    r"""The exponent if the intervals between zeros were independent.

    The root of $1 - \frac T2 \theta [1 + \theta \int_0^\infty A(t) e^{\theta t} dt] = 0$, with T the mean interval and
    $A = \frac2\pi \arcsin r$ the correlation of the signs.

    Args:
        correlation: r, a function of t >= 0.
        mean_interval: T, which is $\pi / \sqrt{-r''(0)}$ for a smooth Gaussian process.
        rate: r decays as exp(-rate t); the root lies below it.
    """

    def equation(theta: float) -> float:
        def integrand(t: float) -> float:
            return 2 / math.pi * math.asin(min(float(correlation(np.asarray(t))), 1.0)) * math.exp(theta * t)

        # In pieces, so that the short range in which most of it lies is not overlooked.
        pieces = (0, 5, 20, 100, 400)
        area = sum(
            scipy.integrate.quad(integrand, low, high, epsabs=1e-11, epsrel=1e-10, limit=200)[0]
            for low, high in itertools.pairwise(pieces)
        )
        return 1 - mean_interval / 2 * theta * (1 + theta * area)

    bracket = (1e-3, 0.999 * rate)
    return float(scipy.optimize.root_scalar(equation, bracket=bracket, method="brentq", xtol=1e-12).root)
