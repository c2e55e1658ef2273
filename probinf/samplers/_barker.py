r"""`barker`: the Barker proposal, an instance $\Phi(x, w) = (x + \epsilon L w, -w)$ of `mhg`.

With $LL^\top$ the inverse mass matrix and $g = L^\top \nabla\log\pi(x)$, each coordinate draws $z_i \sim N(0, 1)$ and
keeps its sign with probability $F(\epsilon g_i z_i)$, F the logistic function, so that its law is

$$q(w_i \mid x) = 2 \phi(w_i) F(\epsilon g_i w_i), \qquad
\log F(a) = -\log(1 + e^{-a}).$$

The gradient chooses only the sign of a step and never its length: a step size that is too large, or a gradient that
explodes, costs acceptances and no more. Livingstone, Zanella (2022), algorithms 1 and 2; acceptance .4: Vogrinc,
Livingstone, Zanella (2023).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from probinf.core._normal import standard_normal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import Factor, check_dimension, factor_of, require_positive
from probinf.samplers._hmc import force
from probinf.samplers._mhg import MHG, MHGInfo, MHGState, require_floating
from probinf.samplers._random_walk import Shift


class BarkerLaw(eqx.Module):
    """Standard normal numbers whose signs lean to where the density grows."""

    step_size: Array
    factor: Factor | None

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Float[Array, " d"]:
        """One draw."""
        flat, _ = ravel_pytree(state.point.position)
        check_dimension(self.factor, flat.size)
        key_size, key_sign = jax.random.split(key)
        z = standard_normal(key_size, flat.shape, flat.dtype)
        kept = jax.random.uniform(key_sign, flat.shape, flat.dtype) < jax.nn.sigmoid(self._slope(target, state) * z)
        return jnp.where(kept, z, -z)

    def log_prob(self, target: Target, state: MHGState, v: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density without constants; a gradient of NaN makes it NaN."""
        # Not the log of the logistic function, which is zero in floating point from 100 on.
        return -jnp.sum(0.5 * v * v + jax.nn.softplus(-self._slope(target, state) * v))

    def _slope(self, target: Target, state: MHGState) -> Float[Array, " d"]:
        """By how much the log density grows, to first order, with a step of one in each coordinate."""
        slope = force(target, self.factor, state.point)
        return self.step_size.astype(slope.dtype) * slope


class Barker(eqx.Module):
    """The kernel made by `barker`.

    Attributes:
        step_size: [] factor of all steps.
        factor: L with inverse mass matrix L L', `[d]`, `[d, d]`, or None for the identity.
        dense: whether warm-up learns a full matrix.
        check: as for `mhg`.
        default_target_accept: the acceptance rate that warm-up aims at.
    """

    step_size: Array
    factor: Factor | None = None
    dense: bool = eqx.field(static=True, default=False)
    check: bool = eqx.field(static=True, default=False)
    default_target_accept: float = eqx.field(static=True, default=0.4)

    def tuned(self, step_size: Array, factor: Factor | None) -> "Barker":
        """The same kernel with another step size and factor."""
        return dataclasses.replace(self, step_size=step_size, factor=factor)

    def short(self) -> "Barker":
        """The cheapest kernel whose acceptance tells whether the step size is of the right order."""
        return self

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
        """
        require_floating("the Barker proposal", position)
        return self.as_mhg().init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One transition."""
        return self.as_mhg().step(key, target, state)

    def as_mhg(self) -> MHG:
        """The `mhg` kernel that it is."""
        law, involution = BarkerLaw(self.step_size, self.factor), Shift(self.step_size, self.factor)
        return MHG(law, involution, check=self.check, gradient=True)


def barker(
    step_size: Any = 0.5,
    *,
    inverse_mass_matrix: Any = None,
    dense: bool = False,
    check: bool = False,
    target_accept: float = 0.4,
) -> Barker:
    """The Barker proposal: random-walk steps whose signs, coordinate by coordinate, follow the gradient.

    Leaves any target with a differentiable log density invariant; one gradient a step. Forgives a step size of the
    wrong order and gradients that grow fast, which stop `mala`. A proposal of density zero is rejected, one of NaN
    density or gradient is rejected and flagged `DIVERGENT`.

    Args:
        step_size: positive scalar; warm-up tunes it to `target_accept`.
        inverse_mass_matrix: the preconditioner, `[d]` or `[d, d]`, in the order of `jax.flatten_util.ravel_pytree`,
            close to the variances or the covariance of the target; None is the identity. Warm-up learns it.
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.
        check: as for `mhg`.
        target_accept: the acceptance rate in (0, 1) that warm-up aims at unless it is told another; .4 is the best in
            high dimension (Vogrinc, Livingstone, Zanella 2023).

    Returns:
        A `Kernel` with the array leaves `step_size` and `factor`. A traced step size that is not positive makes every
        step a flagged rejection.

    Raises:
        ValueError: `step_size` not finite and positive, a wrong or indefinite matrix, a rate outside (0, 1).
    """
    factor = None if inverse_mass_matrix is None else factor_of("inverse_mass_matrix", inverse_mass_matrix)
    full = dense or (factor is not None and factor.ndim == 2)
    if not isinstance(target_accept, float) or not 0 < target_accept < 1:
        raise ValueError(f"`target_accept` is {target_accept!r}; needed a number between 0 and 1, such as 0.4")
    return Barker(require_positive("step_size", step_size), factor, full, check, target_accept)
