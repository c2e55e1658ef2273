r"""Parts of warm-up: dual averaging of the step size, Welford moments, the windows of Stan.

Dual averaging (Nesterov 2009; Hoffman, Gelman 2014, section 3.2), with $\alpha_t$ the acceptance rate of step t:

$$\bar H_t = \Big(1 - \tfrac1{t+t_0}\Big) \bar H_{t-1} + \frac{\delta - \alpha_t}{t + t_0}, \quad
\log\epsilon_t = \mu - \frac{\sqrt t}{\gamma}\bar H_t, \quad
\log\bar\epsilon_t = t^{-\kappa}\log\epsilon_t + (1 - t^{-\kappa})\log\bar\epsilon_{t-1}.$$

Windows and regularisation: Stan reference manual, "HMC algorithm parameters" (Carpenter et al. 2017). Moments of
many chains at once: Chan, Golub, LeVeque (1983).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from probinf.samplers._factor import ArrayFactor

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75
MAX_WINDOWS = 32
SHORTEST_LEARNING_RUN = 20
LARGEST_LOG_STEP = 80


class DualAveraging(NamedTuple):
    """State of the step-size search.

    Attributes:
        log_step: [] the step size to use next.
        log_average: [] the weighted average, which is the result.
        error: [] running mean of target minus acceptance.
        num: [] number of updates since the restart.
        centre: [] mu, the point that the search is pulled to.
    """

    log_step: Array
    log_average: Array
    error: Array
    num: Array
    centre: Array


def start_averaging(step_size: Float[Array, ""]) -> DualAveraging:
    """A fresh search that starts at `step_size` and is pulled to ten times it."""
    log_step, zero = jnp.log(step_size), jnp.zeros_like(step_size)
    return DualAveraging(log_step, zero, zero, zero, log_step + jnp.log(jnp.full_like(step_size, 10)))


def update_averaging(state: DualAveraging, acceptance: Float[Array, ""], target_accept: Array) -> DualAveraging:
    """One update with the acceptance rate of one step (NaN counts as 0); the step stays finite and positive."""
    acceptance = jnp.where(jnp.isnan(acceptance), 0, acceptance).astype(state.error.dtype)
    count = state.num + 1
    weight = 1 / (count + T0)
    error = (1 - weight) * state.error + weight * (target_accept.astype(acceptance.dtype) - acceptance)
    # Within these bounds a float32 step size is neither 0 nor infinite.
    log_step = jnp.clip(state.centre - jnp.sqrt(count) / GAMMA * error, -LARGEST_LOG_STEP, LARGEST_LOG_STEP)
    fraction = count**-KAPPA
    log_average = fraction * log_step + (1 - fraction) * state.log_average
    return DualAveraging(log_step, log_average, error, count, state.centre)


class Welford(NamedTuple):
    """Running moments of positions.

    Attributes:
        num: [] number of positions.
        mean: [d].
        sum_squares: [d], or [d, d] for the full matrix: centred.
    """

    num: Array
    mean: Array
    sum_squares: Array


def start_welford(dimension: int, *, dense: bool, dtype: jnp.dtype) -> Welford:
    """No positions yet."""
    shape = (dimension, dimension) if dense else (dimension,)
    return Welford(jnp.zeros((), dtype), jnp.zeros(dimension, dtype), jnp.zeros(shape, dtype))


def update_welford(state: Welford, positions: Float[Array, "n d"], use: Bool[Array, " n"]) -> Welford:
    """Adds the positions of the chains in `use` at once."""
    number = tree_sum(use.astype(positions.dtype))
    divisor = jnp.maximum(number, 1)
    kept = jnp.where(use[:, None], positions, 0)
    mean = tree_sum(kept) / divisor
    centred = jnp.where(use[:, None], positions - mean[None, :], 0)
    total = jnp.maximum(state.num + number, 1)
    shift = mean - state.mean
    if state.sum_squares.ndim == 1:
        within, between = tree_sum(centred * centred), shift * shift
    else:
        within, between = centred.T @ centred, shift[:, None] * shift[None, :]
    sum_squares = state.sum_squares + within + between * (state.num * number / total)
    return Welford(state.num + number, state.mean + shift * (number / total), sum_squares)


def tree_sum(values: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """The sum over the leading axis, as a binary tree of additions: its order depends on nothing but n.

    A plain sum is free to add in another order when the axis is split over devices.
    """
    while values.shape[0] > 1:
        half = values.shape[0] // 2
        head, tail = values[: 2 * half], values[2 * half :]
        values = jnp.concatenate([head[0::2] + head[1::2], tail])
    return values[0]


def regularised_factor(state: Welford, fallback: ArrayFactor) -> ArrayFactor:
    r"""The factor of $n/(n+5)\,S + 10^{-3}\,5/(n+5)\,I$; `fallback` where that is not finite or n < 2."""
    n = state.num
    sample = state.sum_squares / jnp.maximum(n - 1, 1)
    shrunk = sample * (n / (n + 5))
    floor = 5e-3 / (n + 5)
    if sample.ndim == 1:
        factor = jnp.sqrt(shrunk + floor)
    else:
        factor = jnp.linalg.cholesky(shrunk + floor * jnp.eye(sample.shape[0], dtype=sample.dtype))
    return jnp.where(jnp.all(jnp.isfinite(factor)) & (n >= 2), factor, fallback)


class Windows(NamedTuple):
    """When warm-up learns the matrix.

    Attributes:
        start, stop: [] int32, positions of steps start .. stop - 1 are used.
        ends: [MAX_WINDOWS] int32, last steps of the windows, then -1.
    """

    start: Array
    stop: Array
    ends: Array


def window_ends(num_steps: int) -> tuple[int, list[int]]:
    """First step of the slow phase and the step after each of its windows.

    Fast 75, slow windows of 25, 50, 100 ... (one whose successor would not fit is extended), fast 50. Below 150
    steps 15 % / 75 % / 10 %, below 20 no windows.

    Args:
        num_steps: length of the warm-up.

    Returns:
        `(start, ends)`; no ends below 20 steps.
    """
    if num_steps < SHORTEST_LEARNING_RUN:
        return num_steps, []
    if num_steps < 150:
        start, last, width = int(0.15 * num_steps), int(0.1 * num_steps), num_steps
    else:
        start, last, width = 75, 50, 25
    stop, at, ends = num_steps - last, start, []
    while at < stop:
        # The next window is twice as long: if it does not fit behind this one, this one takes the rest.
        at = at + width if at + 3 * width <= stop else stop
        ends.append(at)
        width *= 2
    return start, ends


def stan_windows(num_steps: int) -> Windows:
    """The windows as arrays of fixed shape, so that another length does not recompile."""
    start, ends = window_ends(num_steps)
    padded = [end - 1 for end in ends] + [-1] * (MAX_WINDOWS - len(ends))
    stop = ends[-1] if ends else start
    return Windows(*(jnp.asarray(x, jnp.int32) for x in (start, stop, padded)))
