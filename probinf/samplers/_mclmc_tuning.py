r"""Warm-up of `mclmc`, which accepts everything and is tuned by its energy errors and its memory.

The step size is sought at which $E[\Delta E^2] = v d$, with v the variance that the kernel aims at. A step of size
$\epsilon$ has $\Delta E^2 \propto \epsilon^6$, so that each says where that is: with
$\xi = \Delta E^2 / (v d)$ and weights w that distrust errors far from it, and fade with time,

$$\epsilon^{-6} \leftarrow \frac{\sum w\, \xi\, \epsilon^{-6}}{\sum w}, \qquad
w = \exp\Big(-\tfrac12\Big(\tfrac{\log\xi}{9}\Big)^2\Big).$$

The factor is learned in the windows of Stan. At last, with all of that fixed, the autocorrelation time $\tau$ of the
positions (in steps, the mean over coordinates) is measured by means of batches, and the decoherence length becomes
$0.4\,\epsilon\,\tau$. Robnik, De Luca, Silverstein, Seljak (2023), appendix; batch means of two lengths, whose leading
biases cancel: Vats, Flegal (2022). All sums are over all chains.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core._types import PRNGKey
from probinf.samplers._adaptation import (
    LARGEST_LOG_STEP,
    Welford,
    Windows,
    regularised_factor,
    stan_windows,
    start_welford,
    tree_sum,
    update_welford,
)
from probinf.samplers._factor import ArrayFactor, as_rows
from probinf.samplers._tuner import Transition, Trial

ORDER = 6  # of the square of the energy error of a step
TRUST = 9.0
REMEMBERED = 150  # transitions, but at least so many steps:
SHORTEST_MEMORY = 15
LARGEST_CHANGE = math.log(2)  # of a step size, from one step to the next
# The xi of steps that fail: if all do, as if the step were twice too long. A few, such as those of a chain that is
# stuck or at a boundary, must not outweigh the others, however long they go on.
ALL_FAILED, SOME_FAILED = 2.0**ORDER, 1.5
SMALLEST, LARGEST = 1e-12, 4.0**ORDER  # a single wild error must not, either
LEARNED_SHARE, SETTLED_SHARE = 0.75, 0.8
SHORTEST_MEASUREMENT = 16
BATCHES = 16  # pairs of batches, of all chains together
MEMORY_SHARE = 0.4


class StepSearch(NamedTuple):
    """The step size, and what tells the next one; all [].

    Attributes:
        log_step: in use.
        log_sum: log of the faded sum of w xi / step^6.
        total: faded sum of w.
    """

    log_step: Array
    log_sum: Array
    total: Array


def start_search(log_step: Float[Array, ""]) -> StepSearch:
    """Nothing known yet."""
    return StepSearch(log_step, jnp.full_like(log_step, -jnp.inf), jnp.zeros_like(log_step))


def update_search(
    search: StepSearch,
    energy_change: Float[Array, " n"],
    failed: Bool[Array, " n"],
    use: Bool[Array, " n"],
    scale: Float[Array, ""],
) -> StepSearch:
    """One step of the chains in `use`; the step size stays finite and positive, and changes by at most a factor 2.

    Where it changes by that much, it was so far off that what was learned before is forgotten.

    Args:
        search: so far.
        energy_change: energy errors of the step; not finite is as failed.
        failed: which chains could not make it.
        use: which chains count.
        scale: v d, the mean square that is sought.
    """
    failed = failed | ~jnp.isfinite(energy_change)
    change = jnp.clip(jnp.where(failed, 0, energy_change), -1e6, 1e6)
    bad = jnp.where(jnp.any(use & ~failed), SOME_FAILED, ALL_FAILED)
    xi = jnp.where(failed, bad, jnp.clip(change * change / scale, SMALLEST, LARGEST))
    weight = jnp.where(use, jnp.exp(-0.5 * (jnp.log(xi) / TRUST) ** 2), 0)
    memory = max(SHORTEST_MEMORY, REMEMBERED / use.shape[0])
    fade = (memory - 1) / (memory + 1)
    # In logarithms: sixth powers of step sizes leave the range of float32.
    added = jnp.log(tree_sum(weight * xi)) - ORDER * search.log_step
    log_sum = jnp.logaddexp(math.log(fade) + search.log_sum, added)
    total = fade * search.total + tree_sum(weight)
    known = (total > 0) & jnp.isfinite(log_sum)
    wanted = (jnp.log(jnp.where(known, total, 1)) - jnp.where(known, log_sum, 0)) / ORDER
    move = jnp.where(known, wanted - search.log_step, 0)
    far = jnp.abs(move) > 0.99 * LARGEST_CHANGE
    log_step = search.log_step + jnp.clip(move, -LARGEST_CHANGE, LARGEST_CHANGE)
    log_step = jnp.clip(log_step, -LARGEST_LOG_STEP, LARGEST_LOG_STEP)
    return StepSearch(log_step, jnp.where(far, -jnp.inf, log_sum), jnp.where(far, 0, total))


class Batches(NamedTuple):
    """Moments of positions and of their means over batches of b and of 2b steps.

    Attributes:
        single, short, long: moments, diagonal.
        running: [n, d] sum over the present batch.
        last: [n, d] mean of the batch before.
    """

    single: Welford
    short: Welford
    long: Welford
    running: Array
    last: Array


def start_batches(rows: Float[Array, "n d"]) -> Batches:
    """No positions yet."""
    none = start_welford(rows.shape[1], dense=False, dtype=rows.dtype)
    return Batches(none, none, none, jnp.zeros_like(rows), jnp.zeros_like(rows))


def update_batches(
    batches: Batches, rows: Float[Array, "n d"], use: Bool[Array, " n"], number: Int[Array, ""], length: Int[Array, ""]
) -> Batches:
    """Adds position `number`, counted from 0, of the chains in `use`; short batches have `length` of them."""
    running = batches.running + rows
    full = (number + 1) % length == 0
    mean = running / length.astype(rows.dtype)
    second = full & ((number + 1) // length % 2 == 0)
    return Batches(
        update_welford(batches.single, rows, use),
        update_welford(batches.short, mean, use & full),
        update_welford(batches.long, 0.5 * (mean + batches.last), use & second),
        jnp.where(full, 0, running),
        jnp.where(full, mean, batches.last),
    )


def autocorrelation_time(batches: Batches, length: Int[Array, ""]) -> Float[Array, ""]:
    """Steps a draw is worth of one independent one, the mean over coordinates; NaN where that is not known."""
    variances = [w.sum_squares / jnp.maximum(w.num - 1, 1) for w in (batches.single, batches.short, batches.long)]
    single, short, long = variances
    # A coordinate that stands still varies by rounding, whose batch means mean nothing.
    moves = single > (16 * jnp.finfo(single.dtype).eps * batches.single.mean) ** 2
    ratio = (4 * long - short) / jnp.where(moves, single, 1) * length.astype(single.dtype)
    time = jnp.sum(jnp.where(moves, ratio, 0)) / jnp.maximum(jnp.sum(moves), 1).astype(single.dtype)
    return jnp.where(jnp.any(moves) & (batches.long.num >= 2), jnp.maximum(time, 1), jnp.nan)


class Learned(NamedTuple):
    """What warm-up of `mclmc` carries.

    Attributes:
        search: of the step size.
        welford: moments of the present window.
        factor: in use.
        batches: of the last part.
        due: [] bool, never.
    """

    search: StepSearch
    welford: Welford
    factor: Array
    batches: Batches
    due: Array


class MCLMCTuner(eqx.Module):
    """The `Tuner` of `mclmc`.

    Attributes:
        start: kernel to start from.
        windows: of the factor.
        settled: [] int32, step from which the step size is fixed too and batches are measured.
        num_steps: [] int32.
    """

    start: Any
    windows: Windows
    settled: Int[Array, ""]
    num_steps: Int[Array, ""]

    def begin(self, positions: PyTree) -> Learned:
        """Starts from the step size and the matrix of the kernel."""
        rows = as_rows(positions)
        dimension, dtype = rows.shape[1], rows.dtype
        factor = jnp.ones(dimension, dtype) if self.start.factor is None else self.start.factor.astype(dtype)
        if self.start.dense and factor.ndim == 1:
            factor = jnp.diag(factor)
        welford = start_welford(dimension, dense=self.start.dense, dtype=dtype)
        search = start_search(jnp.log(self.start.step_size.astype(dtype)))
        return Learned(search, welford, factor, start_batches(rows), jnp.zeros((), bool))

    def prepare(self, key: PRNGKey, trial: Trial, state: Learned) -> Learned:
        """Is not needed: the first steps find the order of the step size."""
        del key, trial
        return state

    def kernel(self, state: Learned) -> Any:
        """With the present step size and factor."""
        return dataclasses.replace(self.start, step_size=jnp.exp(state.search.log_step), factor=state.factor)

    def update(self, transition: Transition, state: Learned) -> Learned:
        """The state after a step."""
        index, use, infos = transition.index, transition.use, transition.infos
        rows = as_rows(transition.positions)
        measuring = index >= self.settled
        scale = self.start.energy_variance.astype(rows.dtype) * rows.shape[1]
        search = update_search(
            state.search, infos.energy_change.astype(rows.dtype), infos.divergent, use & ~measuring, scale
        )
        log_step = jnp.where(measuring, state.search.log_step, search.log_step)

        learning = (index >= self.windows.start) & (index < self.windows.stop)
        welford = update_welford(state.welford, rows, use & learning)
        at_end = jnp.any(index == self.windows.ends)
        factor = jax.lax.cond(at_end, regularised_factor, lambda _, old: old, welford, state.factor)
        welford = jax.tree.map(lambda a: jnp.where(at_end, jnp.zeros_like(a), a), welford)
        # A step is measured in the coordinates of the factor. With new ones what was known of it no longer holds.
        log_step = log_step + _log_size(state.factor) - _log_size(factor)
        fresh = start_search(jnp.clip(log_step, -LARGEST_LOG_STEP, LARGEST_LOG_STEP))
        search = jax.tree.map(lambda a, b: jnp.where(at_end, a, b), fresh, search._replace(log_step=log_step))

        batches = update_batches(
            state.batches, rows, use & measuring, jnp.maximum(index - self.settled, 0), self._length(rows.shape[0])
        )
        # What is summed before the measurement begins is no part of its first batch.
        batches = batches._replace(running=jnp.where(measuring, batches.running, 0))
        return Learned(search, welford, factor, batches, state.due)

    def result(self, state: Learned) -> Any:
        """The tuned kernel; with few steps or chains that stand still it keeps its decoherence length."""
        step_size = jnp.exp(state.search.log_step)
        rows = state.batches.running
        time = autocorrelation_time(state.batches, self._length(rows.shape[0]))
        length = MEMORY_SHARE * step_size * time / math.sqrt(rows.shape[1])
        known = jnp.isfinite(length) & (self.num_steps - self.settled >= SHORTEST_MEASUREMENT)
        decoherence = jnp.where(known, length.astype(self.start.decoherence.dtype), self.start.decoherence)
        return dataclasses.replace(self.start, step_size=step_size, decoherence=decoherence, factor=state.factor)

    def _length(self, num_chains: int) -> Int[Array, ""]:
        """Of a short batch: two of them are at most half of the measurement."""
        measured = jnp.maximum(self.num_steps - self.settled, 4)
        return jnp.clip(measured * num_chains // (2 * BATCHES), 1, measured // 4)


def mclmc_tuner(start: Any, num_steps: int) -> MCLMCTuner:
    """The tuner of a warm-up of `num_steps` steps that starts from the kernel `start`."""
    windows = stan_windows(int(LEARNED_SHARE * num_steps))
    settled = int(SETTLED_SHARE * num_steps)
    return MCLMCTuner(start, windows, jnp.asarray(settled, jnp.int32), jnp.asarray(num_steps, jnp.int32))


def _log_size(factor: ArrayFactor) -> Float[Array, ""]:
    """Mean log of the scales of a factor."""
    return jnp.mean(jnp.log(factor if factor.ndim == 1 else jnp.diagonal(factor)))
