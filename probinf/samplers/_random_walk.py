r"""`random_walk`: Metropolis with Gaussian steps, the instance $\Phi(x, z) = (x + sLz, -z)$, $z \sim N(0, I)$ of `mhg`.

Metropolis et al. (1953); scaling $s = 2.38/\sqrt d$ with $LL^\top$ the posterior covariance, acceptance .234: Roberts,
Gelman, Gilks (1997).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from probinf.core._normal import standard_normal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import Factor, check_dimension, factor_of, require_positive, times
from probinf.samplers._mhg import MHG, MHGInfo, MHGState, relocate, require_floating


class StandardNormal(eqx.Module):
    """The auxiliary law N(0, I) on as many coordinates as the position has."""

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Float[Array, " d"]:
        """One draw; depends on the shape of the position only."""
        del target
        flat, _ = ravel_pytree(state.point.position)
        return standard_normal(key, flat.shape, flat.dtype)

    def log_prob(self, target: Target, state: MHGState, v: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density without the normalising constant."""
        del target, state
        return -0.5 * jnp.sum(v * v)


class Shift(eqx.Module):
    """The involution (x, z) -> (x + scale * L z, -z)."""

    scale: Array
    factor: Factor | None

    def __call__(
        self, target: Target, state: MHGState, v: Float[Array, " d"]
    ) -> tuple[MHGState, Float[Array, " d"], Float[Array, ""]]:
        """The shifted state, the opposite shift, and log-determinant 0."""
        flat, unravel = ravel_pytree(state.point.position)
        check_dimension(self.factor, flat.size)
        proposal = relocate(target, state, unravel(flat + self.scale.astype(flat.dtype) * times(self.factor, v)))
        # A traced scale that is not positive would stand still and look healthy: NaN makes it a flagged rejection.
        return proposal, jnp.where(self.scale > 0, -v, jnp.nan), jnp.zeros((), flat.dtype)


class RandomWalk(eqx.Module):
    """The kernel made by `random_walk`.

    Attributes:
        scale: [] factor of all steps.
        factor: L with proposal covariance scale^2 L L', `[d]`, `[d, d]`, or None for the identity.
        dense: whether warm-up learns a full matrix.
        check: as for `mhg`.
    """

    scale: Array
    factor: Factor | None = None
    dense: bool = eqx.field(static=True, default=False)
    check: bool = eqx.field(static=True, default=False)

    @property
    def step_size(self) -> Array:
        """What warm-up tunes to reach the acceptance rate."""
        return self.scale

    @property
    def default_target_accept(self) -> float:
        """The acceptance rate that warm-up aims at."""
        return 0.234

    def tuned(self, step_size: Array, factor: Factor | None) -> "RandomWalk":
        """The same kernel with another scale and factor."""
        return RandomWalk(step_size, factor, self.dense, self.check)

    def short(self) -> "RandomWalk":
        """The cheapest kernel whose acceptance tells whether the step size is of the right order."""
        return self

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array: rounded steps would bias the draws.
        """
        require_floating("a random walk", position)
        return self.as_mhg().init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One transition."""
        return self.as_mhg().step(key, target, state)

    def as_mhg(self) -> MHG:
        """The `mhg` kernel that it is."""
        return MHG(StandardNormal(), Shift(self.scale, self.factor), check=self.check)


def random_walk(scale: Any = 0.5, *, covariance: Any = None, dense: bool = False, check: bool = False) -> RandomWalk:
    """Random-walk Metropolis: proposes x + scale * L z with z standard normal, L L' = `covariance`.

    Leaves any target with a density on its (continuous) position invariant; needs no gradient. A proposal of
    density zero is rejected, one of NaN density is rejected and flagged `DIVERGENT`.

    Args:
        scale: positive scalar; warm-up tunes it to an acceptance rate of .234.
        covariance: `[d]` variances or `[d, d]` matrix, in the order of `jax.flatten_util.ravel_pytree`; None is
            the identity. Warm-up learns it.
        dense: whether warm-up learns a full matrix; implied by a full `covariance`.
        check: as for `mhg`.

    Returns:
        A `Kernel` with the array leaves `scale` and `factor`. A traced `scale` that is not positive makes every
        step a flagged rejection.

    Raises:
        ValueError: `scale` not finite and positive, `covariance` of a wrong shape or not positive definite.
    """
    factor = None if covariance is None else factor_of("covariance", covariance)
    full = dense or (factor is not None and factor.ndim == 2)
    return RandomWalk(require_positive("scale", scale), factor, full, check)
