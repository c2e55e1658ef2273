r"""`adjusted_mclmc`: microcanonical trajectories with a Metropolis correction, an instance of `mhg`.

The auxiliary variable is a direction u, uniform on the sphere and independent of the position (with a random number of
steps); the involution follows the microcanonical flow for that many steps and turns u round, with
$\log|\det| = -\sum\Delta K$. So a proposal is accepted with probability $\min(1, e^{-\Delta E})$, which is exact.
Robnik, Cohn-Gordon, Seljak (2025). The flow and its parts: `_microcanonical`.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import Factor, check_dimension
from probinf.samplers._hmc import MAX_ENERGY_ERROR, MomentumLaw, force, hmc
from probinf.samplers._mhg import MHG, MHGInfo, MHGState, require_floating
from probinf.samplers._microcanonical import Flow, check_integrator, check_sphere, norm, trajectory, unit_normal

NAME = "`adjusted_mclmc`"


class Direction(NamedTuple):
    """The auxiliary variable.

    Attributes:
        u: [d] unit vector.
        num_steps: [] int32, steps of this transition; independent of the position.
    """

    u: Array
    num_steps: Array


class DirectionLaw(eqx.Module):
    """u uniform on the unit sphere, and the number of steps, uniform on 1 .. num_steps if jittered."""

    num_steps: Int[Array, ""]
    jitter: bool = eqx.field(static=True)

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Direction:
        """One draw."""
        momentum = MomentumLaw(self.num_steps, self.jitter).sample(key, target, state)
        return Direction(unit_normal(momentum.z), momentum.num_steps)

    def log_prob(self, target: Target, state: MHGState, v: Direction) -> Float[Array, ""]:
        """Zero: the law of u is uniform, and that of the number of steps cancels."""
        del target, state
        return jnp.zeros((), v.u.dtype)


class Microcanonical(eqx.Module):
    """The involution: `num_steps` steps along the flow, then the direction is turned round.

    Off the unit sphere it keeps the length of u, so that its determinant over all of (x, u) is that on the sphere.
    """

    step_size: Array
    factor: Factor | None
    integrator: str = eqx.field(static=True)

    def __call__(self, target: Target, state: MHGState, v: Direction) -> tuple[MHGState, Direction, Float[Array, ""]]:
        """The end of the trajectory, the direction back, and the log-determinant."""
        flat, _ = ravel_pytree(state.point.position)
        check_sphere(NAME, flat.size)
        check_dimension(self.factor, flat.size)
        epsilon = self.step_size.astype(flat.dtype)
        length = norm(v.u)
        # A traced step size or count that is not positive would stand still and look healthy: NaN makes it a
        # flagged rejection.
        u = jnp.where((epsilon > 0) & (v.num_steps > 0), v.u / length, jnp.nan)
        start = Flow(state.point, u, force(target, self.factor, state.point), jnp.zeros((), flat.dtype))
        end = trajectory(target, self.factor, epsilon, v.num_steps, self.integrator, start)
        return MHGState(end.point, state.status), Direction(-length * end.u, v.num_steps), -end.kinetic


class AdjustedMCLMC(eqx.Module):
    """The kernel made by `adjusted_mclmc`.

    Attributes:
        step_size: [] length of a step.
        num_steps: [] int32, (largest) number of steps.
        factor: L with inverse mass matrix L L', `[d]`, `[d, d]`, or None for the identity.
        jitter: whether the number of steps is uniform on 1 .. num_steps.
        integrator: one of "minimal norm", "leapfrog".
        dense: whether warm-up learns a full matrix.
        check: as for `mhg`.
        default_target_accept: the acceptance rate that warm-up aims at.
    """

    step_size: Array
    num_steps: Int[Array, ""]
    factor: Factor | None = None
    jitter: bool = eqx.field(static=True, default=True)
    integrator: str = eqx.field(static=True, default="minimal norm")
    dense: bool = eqx.field(static=True, default=False)
    check: bool = eqx.field(static=True, default=False)
    default_target_accept: float = eqx.field(static=True, default=0.9)

    def tuned(self, step_size: Array, factor: Factor | None) -> "AdjustedMCLMC":
        """The same kernel with another step size and factor."""
        return dataclasses.replace(self, step_size=step_size, factor=factor)

    def short(self) -> "AdjustedMCLMC":
        """The cheapest kernel whose acceptance tells whether the step size is of the right order."""
        return dataclasses.replace(self, num_steps=jnp.ones_like(self.num_steps), jitter=False, check=False)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
            ValueError: `position` has fewer than two numbers.
        """
        require_floating(NAME, position)
        check_sphere(NAME, ravel_pytree(position)[0].size)
        return self.as_mhg().init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One transition."""
        return self.as_mhg().step(key, target, state)

    def as_mhg(self) -> MHG:
        """The `mhg` kernel that it is."""
        law = DirectionLaw(self.num_steps, self.jitter)
        involution = Microcanonical(self.step_size, self.factor, self.integrator)
        return MHG(law, involution, check=self.check, gradient=True, max_energy_error=MAX_ENERGY_ERROR)


def adjusted_mclmc(
    step_size: Any = 0.1,
    num_steps: Any = 8,
    *,
    inverse_mass_matrix: Any = None,
    jitter: bool = True,
    integrator: str = "minimal norm",
    dense: bool = False,
    check: bool = False,
    target_accept: float = 0.9,
) -> AdjustedMCLMC:
    """Microcanonical Monte Carlo with a Metropolis correction: trajectories of constant speed, accepted or not.

    Leaves any target with a differentiable log density invariant, reversibly; `mclmc` is the uncorrected form. A
    proposal whose energy error is NaN or over 1000 is rejected and flagged `DIVERGENT`. A trajectory of n steps moves
    n step sizes far, in all coordinates together: where those have unit scale, sqrt(d) to 2 sqrt(d) is a good length.

    Args:
        step_size: positive scalar, about sqrt(d) times that of `hmc`; warm-up tunes it to `target_accept`.
        num_steps: positive integer, traced (changing it does not recompile).
        inverse_mass_matrix: as for `hmc`; warm-up learns it.
        jitter: draws the number of steps of each transition uniformly from 1 .. num_steps, as for `hmc`.
        integrator: "minimal norm" (two gradients a step) or "leapfrog" (one).
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.
        check: as for `mhg`.
        target_accept: the acceptance rate in (0, 1) that warm-up aims at unless it is told another.

    Returns:
        A `Kernel` with the array leaves `step_size`, `num_steps` and `factor`. A traced step size or count that is
        not positive makes every step a flagged rejection. Positions of one number are refused with `ValueError`.

    Raises:
        ValueError: `step_size` not finite and positive, `num_steps` below 1, an unknown integrator, a wrong or
            indefinite matrix.
        TypeError: `num_steps` is not an integer.
    """
    check_integrator(integrator)
    like = hmc(
        step_size,
        num_steps,
        inverse_mass_matrix=inverse_mass_matrix,
        jitter=jitter,
        dense=dense,
        check=check,
        target_accept=target_accept,
    )
    return AdjustedMCLMC(
        like.step_size, like.num_steps, like.factor, jitter, integrator, like.dense, check, target_accept
    )
