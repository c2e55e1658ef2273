r"""Warm-up of `chees_hmc`: learns the trajectory length by gradient ascent on what a trajectory changes.

With y the coordinates scaled by the matrix, m their mean, and a trajectory of length t from y to y' with the velocity
z' at its end, the criterion and its gradient in $\log T$ are (Hoffman, Radul, Sountsov 2021)

$$\tfrac14 E\big[(|y' - m|^2 - |y - m|^2)^2\big], \qquad
g = t\,\big(|y' - m|^2 - |y - m|^2\big)\,(y' - m)^\top z',$$

averaged over the chains with their acceptance rates as weights. Adam climbs it. The step size is tuned by dual
averaging of the harmonic mean of the acceptance rates, so that the worst chains count most, and the matrix in the
windows of Stan.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._adaptation import KAPPA, tree_sum
from probinf.samplers._factor import ArrayFactor, as_rows, solve_rows
from probinf.samplers._hmc import HMC, Momentum, MomentumLaw
from probinf.samplers._mhg import MHG, MHGState
from probinf.samplers._stan_tuner import StanState, StanTuner
from probinf.samplers._tuner import Transition, Trial

LEARNING_RATE, BETA2, EPSILON = 0.025, 0.95, 1e-8
# The mean is remembered over about so many draws, so that a few chains are not measured from themselves.
REMEMBERED = 64.0


class MeasuredInfo(NamedTuple):
    """One transition, and the proposal of which the criterion is made.

    Attributes:
        acceptance_rate: [].
        status: [] uint32, the bits of this step.
        end: [d] where the trajectory ended, whether or not that was accepted.
        velocity: [d] momentum z' there.
        length: [] of the trajectory.
    """

    acceptance_rate: Array
    status: Array
    end: Array
    velocity: Array
    length: Array


class _Drawn(eqx.Module):
    """The auxiliary law of HMC, of which a draw was made already."""

    law: MomentumLaw
    drawn: Momentum

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Momentum:
        del key, target, state
        return self.drawn

    def log_prob(self, target: Target, state: MHGState, v: Momentum) -> Float[Array, ""]:
        return self.law.log_prob(target, state, v)


class _Mapped(eqx.Module):
    """An involution that was applied already."""

    image: tuple[MHGState, Momentum, Array]

    def __call__(self, target: Target, state: MHGState, v: Momentum) -> tuple[MHGState, Momentum, Array]:
        del target, state, v
        return self.image


def with_drawn_steps(key: PRNGKey, kernel: HMC) -> HMC:
    """The kernel with its number of leapfrog steps drawn, as `MomentumLaw` draws it for each chain."""
    drawn = jax.random.randint(key, (), 1, jnp.maximum(kernel.num_steps, 1) + 1, jnp.int32)
    fixed = jnp.minimum(drawn, kernel.num_steps)
    return HMC(kernel.step_size, fixed, kernel.factor, False, kernel.dense, False, kernel.default_target_accept)


class MeasuredHMC(eqx.Module):
    """HMC that tells where its trajectories end."""

    kernel: HMC

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`."""
        return self.kernel.init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MeasuredInfo]:
        """One transition of the kernel."""
        key_auxiliary, key_accept = jax.random.split(key)
        mhg = self.kernel.as_mhg()
        law: Any = mhg.auxiliary
        v = law.sample(key_auxiliary, target, state)
        image: Any = mhg.involution(target, state, v)
        known = MHG(_Drawn(law, v), _Mapped(image), gradient=True, max_energy_error=mhg.max_energy_error)
        moved, info = known.step(key_accept, target, state)
        proposal, back, _ = image
        end = ravel_pytree(proposal.position)[0]
        length = self.kernel.step_size.astype(end.dtype) * v.num_steps.astype(end.dtype)
        return moved, MeasuredInfo(info.acceptance_rate, info.status, end, -back.z, length)

    def shared(self, key: PRNGKey) -> "MeasuredHMC":
        """With a number of leapfrog steps drawn for all chains."""
        return MeasuredHMC(with_drawn_steps(key, self.kernel))


class CheesState(NamedTuple):
    """What `CheesTuner` learns.

    Attributes:
        stan: step size and matrix.
        log_length: [] log T to use next.
        log_average: [] its weighted average since the matrix was last changed, which is the result.
        square: [] mean of squared gradients (Adam).
        num: [] number of gradients since then.
        centre: [d] mean of positions.
        seen: [] number of steps that it is made of.
    """

    stan: StanState
    log_length: Array
    log_average: Array
    square: Array
    num: Array
    centre: Array
    seen: Array

    @property
    def due(self) -> Array:
        """Whether the step size is searched for before the next step."""
        return self.stan.due


class _Rate(NamedTuple):
    acceptance_rate: Array


def _shown(transition: Transition, number: Float[Array, ""]) -> Transition:
    """The transition with the harmonic mean of acceptance rates instead of each."""
    use, rates = transition.use, transition.infos.acceptance_rate
    harmonic = number / tree_sum(jnp.where(use, 1 / jnp.where(use, rates, 1), 0)).astype(number.dtype)
    return transition._replace(infos=_Rate(jnp.full(rates.shape, harmonic)))


def _rescaled(log_length: Float[Array, ""], old: ArrayFactor, new: ArrayFactor) -> Float[Array, ""]:
    """The log of the length in the units of a new matrix, which suit the largest scale that the old one had not seen.

    A coordinate of scale 1, which all now are, wants a quarter of its period at least. From there the length grows to
    the first maximum of the criterion; from above it would stay at another.
    """
    spread = solve_rows(old, new.T).T if new.ndim == 2 else (new / old)[:, None]
    change = 0.5 * jnp.log(jnp.max(jnp.sum(spread * spread, axis=1)))
    return jnp.maximum(log_length - change, math.log(math.pi / 2))


class CheesTuner(eqx.Module):
    """The tuner of `chees_hmc`.

    Attributes:
        stan: tuner of the step size and the matrix, of the kernel to start from.
    """

    stan: StanTuner

    def begin(self, positions: PyTree) -> CheesState:
        """The kernel's own numbers."""
        stan, rows = self.stan.begin(positions), as_rows(positions)
        zero, length = jnp.zeros((), rows.dtype), self.stan.initial.trajectory_length.astype(rows.dtype)
        return CheesState(
            stan, jnp.log(length), jnp.log(length), zero, zero, jnp.zeros(rows.shape[1], rows.dtype), zero
        )

    def prepare(self, key: PRNGKey, trial: Trial, state: CheesState) -> CheesState:
        """A step size of the right order; at the start, as many steps a trajectory as the kernel had."""
        stan = self.stan.prepare(key, trial, state.stan)
        change = stan.averaging.log_step - state.stan.averaging.log_step
        length = state.log_length + jnp.where(state.seen == 0, change, 0)
        zero = jnp.zeros_like(state.num)
        return CheesState(stan, length, length, zero, zero, state.centre, state.seen)

    def kernel(self, state: CheesState) -> MeasuredHMC:
        """With the step size and the length to try next."""
        step_size, length = jnp.exp(state.stan.averaging.log_step), jnp.exp(state.log_length)
        return MeasuredHMC(self._tuned(state, step_size, length).as_hmc())

    def update(self, transition: Transition, state: CheesState) -> CheesState:
        """One step of Adam, and of what `StanTuner` learns."""
        use = transition.use
        before = as_rows(transition.before)
        number = tree_sum(use.astype(before.dtype))
        mean = tree_sum(jnp.where(use[:, None], before, 0)) / jnp.maximum(number, 1)
        weight = jnp.where(number > 0, jnp.maximum(1 / (state.seen + 1), number / (number + REMEMBERED)), 0)
        centre = state.centre + weight * (mean - state.centre)

        gradient = criterion_gradient(before, centre, transition.infos, state.stan.factor, use)
        count = state.num + 1
        square = BETA2 * state.square + (1 - BETA2) * gradient * gradient
        scale = jnp.sqrt(square / (1 - BETA2**count)) + EPSILON
        # Bounded by the step size that was found by search: the one in use is far off at first.
        least = state.stan.averaging.centre - math.log(10)
        most = least + math.log(self.stan.initial.max_steps)
        length = jnp.clip(state.log_length + LEARNING_RATE * gradient / scale, least, most)
        fraction = count**-KAPPA
        average = fraction * length + (1 - fraction) * state.log_average

        stan = self.stan.update(_shown(transition, number), state.stan)
        length = jax.lax.cond(stan.due, _rescaled, lambda length, *_: length, length, state.stan.factor, stan.factor)
        return CheesState(stan, length, average, square, count, centre, state.seen + 1)

    def result(self, state: CheesState) -> Any:
        """With the averages of step size and length."""
        step_size, length = jnp.exp(state.stan.averaging.log_average), jnp.exp(state.log_average)
        return self._tuned(state, step_size, length)

    def _tuned(self, state: CheesState, step_size: Array, length: Array) -> Any:
        return dataclasses.replace(
            self.stan.initial, step_size=step_size, trajectory_length=length, factor=state.stan.factor
        )


def criterion_gradient(
    before: Float[Array, "n d"], centre: Float[Array, " d"], infos: MeasuredInfo, factor: Any, use: Bool[Array, " n"]
) -> Float[Array, ""]:
    """The gradient of the criterion in log T, up to a scale; 0 where no chain tells it.

    Args:
        before: where trajectories began.
        centre: mean of positions.
        infos: of the trajectories.
        factor: of the inverse mass matrix.
        use: chains that count; what is not finite does not.
    """
    start, end = solve_rows(factor, before - centre[None, :]), solve_rows(factor, infos.end - centre[None, :])
    old, new = jnp.sum(start * start, axis=1), jnp.sum(end * end, axis=1)
    # Adam is blind to the scale, which would overflow before the matrix is learned.
    scale = tree_sum(jnp.where(use, old, 0)) / jnp.maximum(tree_sum(use.astype(old.dtype)), 1)
    scale = jnp.where(scale > 0, scale, 1)
    towards = jnp.sum(end / jnp.sqrt(scale) * infos.velocity, axis=1)
    gradients = infos.length * ((new - old) / scale) * towards
    rates = infos.acceptance_rate.astype(gradients.dtype)
    counted = use & jnp.isfinite(gradients) & (rates > 0)
    total = tree_sum(jnp.where(counted, rates, 0))
    return tree_sum(jnp.where(counted, rates * jnp.where(counted, gradients, 0), 0)) / jnp.where(total > 0, total, 1)
