r"""`mclmc`: microcanonical Langevin Monte Carlo without a Metropolis correction, which is biased.

A step follows the microcanonical flow for a time $\epsilon$, then mixes noise into the direction u:

$$(x, u) \leftarrow \Phi_\epsilon(x, u), \qquad
u \leftarrow \frac{u + \nu n}{|u + \nu n|}, \quad n \sim N(0, I), \quad \nu^2 = \frac{e^{2\epsilon/\ell} - 1}{d},$$

with the decoherence length $\ell$, after which a direction is forgotten. Nothing is ever rejected, so the law of the
draws is off by $O(\epsilon^2)$; the variance of the energy error of a step tells how much, and warm-up chooses
$\epsilon$ by it. Robnik, De Luca, Silverstein, Seljak (2023); Robnik, Seljak (2024).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from probinf.core._effects import is_concrete
from probinf.core._kernel import Point, point_log_density
from probinf.core._normal import standard_normal
from probinf.core._status import Status, flag, is_fatal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import Factor, as_float, check_dimension, require_positive
from probinf.samplers._hmc import MAX_ENERGY_ERROR, force, hmc
from probinf.samplers._mclmc_tuning import MCLMCTuner, mclmc_tuner
from probinf.samplers._mhg import require_floating
from probinf.samplers._microcanonical import (
    Flow,
    check_integrator,
    check_sphere,
    partly_refreshed,
    trajectory,
    unit_normal,
)

NAME = "`mclmc`"


class MCLMCState(NamedTuple):
    """The state of a chain.

    Attributes:
        point: the position and what the target said there.
        status: [] uint32, OR of the bits of all steps so far. A fatal bit freezes the chain.
        u: [d] unit vector, the direction that the next step begins with.
    """

    point: Point
    status: Array
    u: Array

    @property
    def position(self) -> Position:
        """The position, which every kernel's state has."""
        return self.point.position


class MCLMCInfo(NamedTuple):
    """One transition.

    Attributes:
        acceptance_rate: [] 1 where the chain moved; 0 where a fault kept it.
        log_density: [] of the new state, up to the constant of the target.
        energy_change: [] the energy error of the step, of which an exact flow would have none; NaN or infinite where
            the step failed.
        divergent: [] bool: the step led to no finite density or gradient, or its energy error was over 1000.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    log_density: Array
    energy_change: Array
    divergent: Array
    status: Array


class MCLMC(eqx.Module):
    """The kernel made by `mclmc`.

    Attributes:
        step_size: [] length of a step.
        decoherence: [] length after which the direction is forgotten, in units of sqrt(d).
        energy_variance: [] variance of the energy error of a step, over d, that warm-up aims at.
        factor: L with inverse mass matrix L L', `[d]`, `[d, d]`, or None for the identity.
        integrator: one of "minimal norm", "leapfrog".
        dense: whether warm-up learns a full matrix.
    """

    step_size: Array
    decoherence: Array
    energy_variance: Array
    factor: Factor | None = None
    integrator: str = eqx.field(static=True, default="minimal norm")
    dense: bool = eqx.field(static=True, default=False)

    def tuner(self, num_steps: int, target_accept: float | None) -> MCLMCTuner:
        """The tuner of a warm-up of `num_steps` steps; see `_mclmc_tuning`.

        Raises:
            ValueError: a `target_accept` is given.
        """
        if target_accept is not None:
            raise ValueError(
                f"`target_accept` is {target_accept}, but `mclmc` accepts everything: leave it out, and choose "
                "`mclmc(energy_variance=...)`"
            )
        return mclmc_tuner(self, num_steps)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MCLMCState:
        """The state at `position` with a random direction; `NONFINITE_INIT` as for `hmc`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
            ValueError: `position` has fewer than two numbers.
        """
        require_floating(NAME, position)
        flat, _ = ravel_pytree(position)
        check_sphere(NAME, flat.size)
        key_point, key_u = jax.random.split(key)
        point, status = hmc().init(key_point, target, position)
        return MCLMCState(point, status, unit_normal(standard_normal(key_u, flat.shape, flat.dtype)))

    def step(self, key: PRNGKey, target: Target, state: MCLMCState) -> tuple[MCLMCState, MCLMCInfo]:
        """One transition. Does not leave the target invariant, but nearly so where the step size is small."""
        flat, _ = ravel_pytree(state.point.position)
        check_sphere(NAME, flat.size)
        check_dimension(self.factor, flat.size)
        epsilon = self.step_size.astype(flat.dtype)
        length = self.decoherence.astype(flat.dtype) * math.sqrt(flat.size)
        # A traced length that is not positive makes the step a flagged failure, as NaN does.
        u = jnp.where((epsilon > 0) & (length > 0), state.u, jnp.nan)
        start = Flow(state.point, u, force(target, self.factor, state.point), jnp.zeros((), flat.dtype))
        end = trajectory(target, self.factor, epsilon, 1, self.integrator, start)

        before, after = point_log_density(target, state.point), point_log_density(target, end.point)
        energy_change = end.kinetic.astype(after.dtype) - (after - before)
        # From probability zero any possible state will do, and a NaN density counts as zero, as for `mhg`.
        impossible_now = jnp.isnan(before) | (before == -jnp.inf)
        possible = jnp.isfinite(after) & jnp.isfinite(end.kinetic) & jnp.all(jnp.isfinite(end.pull))
        fits = impossible_now | (energy_change <= MAX_ENERGY_ERROR)
        infinite, frozen = after == jnp.inf, is_fatal(state.status)
        divergent = ~(possible & fits) & ~infinite & ~frozen
        bits = flag(Status.DIVERGENT, divergent) | flag(Status.POSINF_LOG_WEIGHT, infinite & ~frozen)
        bits |= flag(Status.NAN_LOG_WEIGHT, jnp.isnan(before) & ~frozen)

        moved = possible & fits & ~infinite & ~frozen
        noise = standard_normal(key, flat.shape, flat.dtype)
        # The same noise serves both, of which one is used. A new direction leads away from what went wrong.
        u = jnp.where(moved, partly_refreshed(end.u, noise, epsilon, length), unit_normal(noise))
        stays = frozen | infinite
        point = jax.tree.map(lambda new, old: jnp.where(moved, new, old), end.point, state.point)
        info = MCLMCInfo(
            acceptance_rate=moved.astype(after.dtype),
            log_density=jnp.where(moved, after, before),
            energy_change=energy_change,
            divergent=divergent,
            status=bits,
        )
        return MCLMCState(point, state.status | bits, jnp.where(stays, state.u, u)), info


def mclmc(
    step_size: Any = 0.1,
    *,
    decoherence: Any = 1.0,
    inverse_mass_matrix: Any = None,
    energy_variance: Any = 5e-4,
    integrator: str = "minimal norm",
    dense: bool = False,
) -> MCLMC:
    """Microcanonical Langevin Monte Carlo, unadjusted: fast, and BIASED.

    There is no Metropolis correction: the draws are of a law that differs from the target by about the square of the
    step size, however long it runs, and `validity.check` rightly fails it at large steps. `adjusted_mclmc`, `hmc` and
    `nuts` are exact. The variance of `info.energy_change` tells how biased they are: at 5e-4 times d, which warm-up
    aims at (Robnik et al. 2023), the variances of a standard normal target in 10 dimensions are off by 2 %, by 3.5 %
    with leapfrog.

    A step that leads to no finite density or gradient, or has an energy error over 1000, is not made: the chain stays,
    takes a new direction and is flagged `DIVERGENT`. A density of +inf freezes it, flagged `POSINF_LOG_WEIGHT`.

    Args:
        step_size: positive scalar, the length of a step in all coordinates together.
        decoherence: positive scalar, the length after which the direction is forgotten, in units of sqrt(d): the L of
            the papers over sqrt(d). 1 suits coordinates of unit scale; infinity never forgets, and may not mix.
        inverse_mass_matrix: `[d]` or `[d, d]`, as for `hmc`; warm-up learns it.
        energy_variance: positive scalar, Var(energy change) / d, by which warm-up chooses the step size: the bias is
            about in proportion to its cube root.
        integrator: "minimal norm" (two gradients a step) or "leapfrog" (one).
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.

    Returns:
        A `Kernel` with the array leaves `step_size`, `decoherence`, `energy_variance` and `factor`, and the state
        `MCLMCState`, whose direction persists. A traced length that is not positive makes every step a flagged
        failure. Positions of one number are refused with `ValueError`.

    Raises:
        ValueError: a length that is not positive, an infinite `step_size`, an unknown integrator, a wrong or
            indefinite matrix.
    """
    check_integrator(integrator)
    like = hmc(step_size, 1, inverse_mass_matrix=inverse_mass_matrix, dense=dense)
    variance = require_positive("energy_variance", energy_variance)
    return MCLMC(like.step_size, _length(decoherence), variance, like.factor, integrator, like.dense)


def _length(value: Any) -> Float[Array, ""]:
    if jnp.ndim(value) != 0 or (is_concrete(value) and not value > 0):
        raise ValueError(
            f"`decoherence` must be a scalar above 0, infinity included, but is {value}: try 1, the square root of the "
            "number of coordinates"
        )
    return as_float(value)
