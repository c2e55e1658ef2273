r"""`chees_hmc`: HMC whose trajectory length is learned, for many chains side by side.

The trajectory has $n \sim \text{unif}\{1, \dots, \lceil T / \epsilon \rceil\}$ leapfrog steps: the instance of `mhg`
that `hmc` is too. In `sample` and `warmup` all chains draw n in common, so that none waits for another. Warm-up
(`_chees_tuner`) learns T. Hoffman, Radul, Sountsov (2021).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from probinf.core._arguments import whole_number
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._chees_tuner import CheesTuner, with_drawn_steps
from probinf.samplers._factor import Factor, require_positive
from probinf.samplers._hmc import HMC, hmc
from probinf.samplers._mhg import MHG, MHGInfo, MHGState, require_floating
from probinf.samplers._stan_tuner import stan_tuner


class ChEESHMC(eqx.Module):
    """The kernel made by `chees_hmc`.

    Attributes:
        step_size: [] leapfrog step.
        trajectory_length: [] largest length T of a trajectory, in units of the step size.
        factor: L with inverse mass matrix L L', `[d]`, `[d, d]`, or None for the identity.
        max_steps: bound of the leapfrog steps of a trajectory.
        dense: whether warm-up learns a full matrix.
        default_target_accept: harmonic mean of acceptance rates that warm-up aims at.
    """

    step_size: Array
    trajectory_length: Array
    factor: Factor | None = None
    max_steps: int = eqx.field(static=True, default=1000)
    dense: bool = eqx.field(static=True, default=False)
    default_target_accept: float = eqx.field(static=True, default=0.651)

    def tuned(self, step_size: Array, factor: Factor | None) -> "ChEESHMC":
        """The same kernel with another step size and factor."""
        return dataclasses.replace(self, step_size=step_size, factor=factor)

    def short(self) -> HMC:
        """One leapfrog step, whose acceptance tells whether the step size is of the right order."""
        return self.as_hmc().short()

    def tuner(self, num_steps: int, target_accept: float | None) -> CheesTuner:
        """Learns the trajectory length too."""
        return CheesTuner(stan_tuner(self, num_steps, target_accept))

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
        """
        require_floating("ChEESHMC", position)
        return self.as_hmc().init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One transition. Leaves the target invariant; reversible."""
        return self.as_hmc().step(key, target, state)

    def shared(self, key: PRNGKey) -> HMC:
        """With a number of leapfrog steps drawn for all chains."""
        return with_drawn_steps(key, self.as_hmc())

    def as_hmc(self) -> HMC:
        """The `hmc` kernel that it is."""
        return HMC(self.step_size, self.num_steps(), self.factor, True, self.dense, False, self.default_target_accept)

    def as_mhg(self) -> MHG:
        """The `mhg` kernel that it is."""
        return self.as_hmc().as_mhg()

    def num_steps(self) -> Int[Array, ""]:
        """The largest number of leapfrog steps; 0, which is flagged at every step, where the length is not positive."""
        ratio = self.trajectory_length / self.step_size.astype(self.trajectory_length.dtype)
        usual = jnp.clip(jnp.ceil(jnp.where(ratio > 0, ratio, 1)), 1, self.max_steps).astype(jnp.int32)
        return jnp.where(ratio > 0, usual, 0)


def chees_hmc(
    step_size: Any = 0.1,
    trajectory_length: Any = None,
    *,
    inverse_mass_matrix: Any = None,
    max_steps: int = 1000,
    dense: bool = False,
    target_accept: float = 0.651,
) -> ChEESHMC:
    """Hamiltonian Monte Carlo with a learned trajectory length, for many chains.

    Leaves any target with a differentiable log density invariant, reversibly. Every transition has a random number of
    leapfrog steps, uniform on 1 .. ceil(trajectory_length / step_size). `sample` and `warmup` draw it once for all
    chains, so that none waits for another; given these numbers the chains are independent. Warm-up learns the length
    that makes squared distances from the mean change most, and does so better with more chains: use at least 16.

    A proposal whose energy error is NaN or over 1000 is rejected and flagged `DIVERGENT`.

    Args:
        step_size: positive scalar; warm-up tunes it until the harmonic mean of the chains' acceptance rates is
            `target_accept`.
        trajectory_length: positive scalar, in the units of the step size; None is one step. Warm-up starts at
            `trajectory_length / step_size` steps and learns it.
        inverse_mass_matrix: as for `hmc`; warm-up learns it.
        max_steps: bound of the leapfrog steps of a trajectory, at least 1; static.
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.
        target_accept: the harmonic mean in (0, 1) that warm-up aims at unless it is told another.

    Returns:
        A `Kernel` with the array leaves `step_size`, `trajectory_length` and `factor`. A traced step size or length
        that is not positive makes every step a flagged rejection.

    Raises:
        ValueError: `step_size` or `trajectory_length` not finite and positive, `max_steps` below 1, `target_accept`
            outside (0, 1), a wrong or indefinite matrix.
        TypeError: `max_steps` is not an integer.
    """
    like = hmc(step_size, 1, inverse_mass_matrix=inverse_mass_matrix, dense=dense, target_accept=target_accept)
    length = like.step_size if trajectory_length is None else require_positive("trajectory_length", trajectory_length)
    most = whole_number("max_steps", max_steps, 1)
    return ChEESHMC(like.step_size, length, like.factor, most, like.dense, target_accept)
