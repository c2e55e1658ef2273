r"""`hmc`: Hamiltonian Monte Carlo, the instance $\Phi = \text{flip} \circ \text{leapfrog}^n$ of `mhg`.

With the inverse mass matrix $M^{-1} = LL^\top$ and the momentum $p = L^{-\top} z$, $z \sim N(0, I)$, everything is
written in z, whose law does not depend on L: $z \mathrel{+}= \tfrac\epsilon2 L^\top g(x)$,
$x \mathrel{+}= \epsilon L z$, $z \mathrel{+}= \tfrac\epsilon2 L^\top g(x)$ with $g = \nabla\log\pi$; each part
shears, so the determinant is 1. Duane et al. (1987); Neal (2011).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from probinf.core._arguments import whole_number
from probinf.core._effects import is_concrete
from probinf.core._fast_key import fast_key
from probinf.core._kernel import Point, evaluate, point_gradient
from probinf.core._normal import standard_normal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import (
    Factor,
    check_dimension,
    factor_of,
    require_positive,
    times,
    transposed_times,
)
from probinf.samplers._mhg import MHG, MHGInfo, MHGState, require_floating

MAX_ENERGY_ERROR = 1000.0


class Momentum(NamedTuple):
    """The auxiliary variable of HMC.

    Attributes:
        z: [d] standard normal.
        num_steps: [] int32, leapfrog steps of this transition; independent of the position.
    """

    z: Array
    num_steps: Array


class MomentumLaw(eqx.Module):
    """z ~ N(0, I), and the number of steps, uniform on 1 .. num_steps if jittered."""

    num_steps: Int[Array, ""]
    jitter: bool = eqx.field(static=True)

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Momentum:
        """One draw."""
        del target
        flat, _ = ravel_pytree(state.point.position)
        if not self.jitter:
            return Momentum(standard_normal(key, flat.shape, flat.dtype), self.num_steps)
        key_z, key_steps = jax.random.split(fast_key(key))
        # With no legal count the draw keeps the bad one, which the leapfrog turns into a flagged rejection.
        num_steps = jax.random.randint(key_steps, (), 1, jnp.maximum(self.num_steps, 1) + 1, jnp.int32)
        num_steps = jnp.minimum(num_steps, self.num_steps)
        return Momentum(standard_normal(key_z, flat.shape, flat.dtype), num_steps)

    def log_prob(self, target: Target, state: MHGState, v: Momentum) -> Float[Array, ""]:
        """Log density without constants; the law of the number of steps cancels."""
        del target, state
        return -0.5 * jnp.sum(v.z * v.z)


def force(target: Target, factor: Factor | None, point: Point) -> Float[Array, " d"]:
    """The gradient in the coordinates of z."""
    return transposed_times(factor, ravel_pytree(point_gradient(target, point))[0])


def flattened(point: Point) -> Point:
    """The point with its position and its gradients as vectors: so a loop carries few arrays, whatever the sites."""
    return Point(
        ravel_pytree(point.position)[0],
        point.log_prior,
        point.log_likelihood,
        ravel_pytree(point.grad_log_prior)[0],
        ravel_pytree(point.grad_log_likelihood)[0],
    )


def unflattened(point: Point, unravel: Callable[[Array], Position]) -> Point:
    """The point that `flattened` was given."""
    x, log_prior, log_likelihood, prior_pull, likelihood_pull = point
    return Point(unravel(x), log_prior, log_likelihood, unravel(prior_pull), unravel(likelihood_pull))


def leapfrog(
    target: Target,
    factor: Factor | None,
    epsilon: Float[Array, ""],
    unravel: Callable[[Array], Position],
    x: Float[Array, " d"],
    z: Float[Array, " d"],
    pull: Float[Array, " d"],
) -> tuple[Point, Float[Array, " d"], Float[Array, " d"]]:
    """One leapfrog step of size `epsilon`, which may be negative: the flattened point, its momentum and its force."""
    z = z + 0.5 * epsilon * pull
    point = flattened(evaluate(target, unravel(x + epsilon * times(factor, z)), gradient=True))
    pull = force(target, factor, point)
    return point, z + 0.5 * epsilon * pull, pull


class Leapfrog(eqx.Module):
    """The involution: `num_steps` leapfrog steps, then the momentum is flipped. One gradient a step."""

    step_size: Array
    factor: Factor | None

    def __call__(self, target: Target, state: MHGState, v: Momentum) -> tuple[MHGState, Momentum, Float[Array, ""]]:
        """The end of the trajectory, the flipped momentum, and log-determinant 0."""
        flat, unravel = ravel_pytree(state.point.position)
        check_dimension(self.factor, flat.size)
        epsilon = self.step_size.astype(flat.dtype)
        # A traced step size or count that is not positive would stand still and look healthy: NaN makes it a
        # flagged rejection.
        z = jnp.where((epsilon > 0) & (v.num_steps > 0), v.z, jnp.nan)

        def step(_: Array, carry: tuple[Point, Array, Array]) -> tuple[Point, Array, Array]:
            point, z, pull = carry
            return leapfrog(target, self.factor, epsilon, unravel, point.position, z, pull)

        start = (flattened(state.point), z, force(target, self.factor, state.point))
        point, z, _ = jax.lax.fori_loop(jnp.zeros_like(v.num_steps), v.num_steps, step, start)
        end = MHGState(unflattened(point, unravel), state.status)
        return end, Momentum(-z, v.num_steps), jnp.zeros((), flat.dtype)


class HMC(eqx.Module):
    """The kernel made by `hmc`.

    Attributes:
        step_size: [] leapfrog step.
        num_steps: [] int32, (largest) number of leapfrog steps.
        factor: L with inverse mass matrix L L', `[d]`, `[d, d]`, a `LowRankFactor`, or None for the identity.
        jitter: whether the number of steps is uniform on 1 .. num_steps.
        dense: whether warm-up learns a full matrix.
        check: as for `mhg`.
        default_target_accept: the acceptance rate that warm-up aims at.
        rank: how many directions warm-up learns beside the diagonal.
    """

    step_size: Array
    num_steps: Int[Array, ""]
    factor: Factor | None = None
    jitter: bool = eqx.field(static=True, default=True)
    dense: bool = eqx.field(static=True, default=False)
    check: bool = eqx.field(static=True, default=False)
    default_target_accept: float = eqx.field(static=True, default=0.8)
    rank: int = eqx.field(static=True, default=0)

    def tuned(self, step_size: Array, factor: Factor | None) -> "HMC":
        """The same kernel with another step size and factor."""
        return dataclasses.replace(self, step_size=step_size, factor=factor)

    def short(self) -> "HMC":
        """The cheapest kernel whose acceptance tells whether the step size is of the right order."""
        return dataclasses.replace(self, num_steps=jnp.ones_like(self.num_steps), jitter=False, check=False)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
        """
        require_floating("HMC", position)
        return self.as_mhg().init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One transition."""
        return self.as_mhg().step(key, target, state)

    def as_mhg(self) -> MHG:
        """The `mhg` kernel that it is."""
        law, involution = MomentumLaw(self.num_steps, self.jitter), Leapfrog(self.step_size, self.factor)
        return MHG(law, involution, check=self.check, gradient=True, max_energy_error=MAX_ENERGY_ERROR)


def hmc(
    step_size: Any = 0.1,
    num_steps: Any = 16,
    *,
    inverse_mass_matrix: Any = None,
    jitter: bool = True,
    dense: bool = False,
    rank: int = 0,
    check: bool = False,
    target_accept: float = 0.8,
) -> HMC:
    """Hamiltonian Monte Carlo with leapfrog trajectories and a Metropolis correction.

    Leaves any target with a differentiable log density invariant. A proposal whose energy error is NaN or over 1000
    is rejected and flagged `DIVERGENT`. Gradients are cached, so a transition of n steps costs n of them.

    Args:
        step_size: positive scalar; warm-up tunes it to `target_accept`.
        num_steps: positive integer, traced (changing it does not recompile).
        inverse_mass_matrix: `[d]` or `[d, d]`, in the order of `jax.flatten_util.ravel_pytree`, close to the
            variances or the covariance of the target; None is the identity. Warm-up learns it.
        jitter: draws the number of steps of each transition uniformly from 1 .. num_steps. A fixed length can be a
            multiple of a period of the target, whose coordinates then never move (Gaussians).
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.
        rank: how many directions warm-up learns beside the diagonal, from draws and gradients (nutpie's matrix); for
            many correlated coordinates, where a full matrix would cost d^2 numbers. 0 is none.
        check: as for `mhg`.
        target_accept: the acceptance rate in (0, 1) that warm-up aims at unless it is told another.

    Returns:
        A `Kernel` with the array leaves `step_size`, `num_steps` and `factor`. A traced step size or count that is
        not positive makes every step a flagged rejection.

    Raises:
        ValueError: `step_size` not finite and positive, `num_steps` below 1, a wrong or indefinite matrix, `rank` below
            0, or above it with a full matrix.
        TypeError: `num_steps` or `rank` is not an integer.
    """
    if not jnp.issubdtype(jnp.result_type(num_steps), jnp.integer) or isinstance(num_steps, bool):
        raise TypeError(f"`num_steps` must be an integer, but is {num_steps!r}")
    if jnp.ndim(num_steps) != 0 or (is_concrete(num_steps) and not 1 <= int(num_steps) < np.iinfo(np.int32).max):
        raise ValueError(f"`num_steps` must be a scalar of at least 1, but is {num_steps}: try 16")
    factor = None if inverse_mass_matrix is None else factor_of("inverse_mass_matrix", inverse_mass_matrix)
    full = dense or (factor is not None and factor.ndim == 2)
    if not isinstance(target_accept, float) or not 0 < target_accept < 1:
        raise ValueError(f"`target_accept` is {target_accept!r}; needed a number between 0 and 1, such as 0.8")
    rank = whole_number("rank", rank)
    if rank and full:
        raise ValueError(f"`rank` is {rank}, but a full matrix is learned: take one of `rank` and `dense`")
    size = require_positive("step_size", step_size)
    return HMC(size, jnp.asarray(num_steps, jnp.int32), factor, jitter, full, check, target_accept, rank)
