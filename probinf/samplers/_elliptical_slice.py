r"""`elliptical_slice`: elliptical slice sampling, for targets that are a Gaussian times something.

For any Gaussian N(m, S) the target is $N(x; m, S) \, R(x)$ with $R = \pi / N(\cdot; m, S)$. Draw $\nu \sim N(0, S)$,
and move along the ellipse

$$x(\theta) = m + (x - m) \cos\theta + \nu \sin\theta, \qquad \theta \in [-\omega u, \omega (1 - u)],\ u \sim U(0, 1),$$

to a point of the slice $\log R(x(\theta)) \ge \log R(x) - e$, $e \sim \text{Exp}(1)$, that shrinkage finds
(`_bracket`). Murray, Adams, MacKay (2010). Their first bracket is all of the ellipse, cut at the first candidate; here
it has a width $\omega \le 2\pi$ and a random place around the current point (Neal 2003, without stepping out), so that
data that say much need not be paid for with many cuts. Of a target $p(x) L(x)^\lambda$ with prior p = N(m, S) R is
$L^\lambda$ up to a constant. Of any other it is what it is, so that no Gaussian is wrong (Nishihara, Murray, Adams
2014, use that for a Gaussian near the posterior).
"""

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from probinf.core._fast_key import fast_key
from probinf.core._normal import standard_normal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._bracket import (
    BracketKernel,
    BracketNoise,
    Ellipse,
    SliceTransition,
    begin,
    bound_of_loop,
    draw_bracket,
)
from probinf.samplers._factor import ArrayFactor, Factor, check_dimension, factor_of, require_positive, times
from probinf.samplers._mhg import MHGState

FULL_TURN = 2 * math.pi


class EllipticalSlice(BracketKernel):
    """The kernel made by `elliptical_slice`.

    Attributes:
        width: [] angle of the first bracket; all of the ellipse from 2 pi on.
        mean: m, a pytree like the position or `[d]`; None for zero.
        root: L with S = L L', `[d]`, `[d, d]`, or None for the identity.
        whitening: the inverse of L, in the same form.
        max_shrinks: how many candidates are looked at.
    """

    title: ClassVar[str] = "elliptical slice sampling"
    width: Array
    mean: Any = None
    root: Factor | None = None
    whitening: Factor | None = None
    max_shrinks: int = eqx.field(static=True, default=100)

    @property
    def factor(self) -> None:
        """None: the Gaussian is given, not learned."""
        return None

    @property
    def dense(self) -> bool:
        """Whether warm-up learns a full matrix: it learns none."""
        return False

    def tuned(self, step_size: Array, factor: Any) -> "EllipticalSlice":
        """The same kernel with another width; it has no use for the factor."""
        del factor
        return dataclasses.replace(self, width=step_size)

    def draw(self, key: PRNGKey, state: MHGState) -> tuple[Float[Array, " d"], BracketNoise]:
        """Standard normal numbers, and what decides of the bracket."""
        key_normal, key_bracket = jax.random.split(fast_key(key))
        x, _ = ravel_pytree(state.position)
        return standard_normal(key_normal, x.shape, x.dtype), draw_bracket(key_bracket, 0, x.dtype)

    def start(
        self,
        noise: tuple[Float[Array, " d"], BracketNoise],
        target: Target,
        state: MHGState,
        before: SliceTransition | None = None,
    ) -> SliceTransition:
        """An ellipse, a level and the first bracket. It is done at once where the state is fatal."""
        del before
        n, bracket = noise
        x, _ = ravel_pytree(state.position)
        check_dimension(self.root, x.size)
        centre = _centre(self.mean, state.position).astype(x.dtype)
        u = times(self.whitening, x - centre)
        # The axes stand in the coordinates of the position, so that rounding in L and its inverse moves no point.
        squares = jnp.stack([jnp.sum(u * u), jnp.sum(u * n), jnp.sum(n * n)])
        ellipse = Ellipse(centre, x - centre, times(self.root, n), squares)
        return begin(bracket, target, state, ellipse, jnp.minimum(self.width.astype(x.dtype), FULL_TURN), 0)


def elliptical_slice(
    mean: Any = None, covariance: Any = None, *, width: Any = FULL_TURN, max_shrinks: int = 100
) -> EllipticalSlice:
    """Elliptical slice sampling: for a Gaussian prior, of any dimension and with any correlations.

    Leaves any target with a density on its (continuous) position invariant, reversibly, whatever the Gaussian: the
    target divided by it counts as the likelihood. It is efficient where the Gaussian is the prior and the data say
    little about each of many numbers, as in Gaussian processes; no gradient is needed. A point of NaN density is
    outside the slice and flagged `DIVERGENT`; one of density +inf is flagged `POSINF_LOG_WEIGHT` and freezes the chain.
    Chains of `sample` do not wait for those that take more evaluations; under `vmap`, in a `cycle` and in SMC moves all
    wait for the slowest.

    Args:
        mean: of the Gaussian, a pytree like the position, or `[d]` in the order of `jax.flatten_util.ravel_pytree`;
            None is zero.
        covariance: of the Gaussian, `[d]` variances or `[d, d]`, in that order; None is the identity. Warm-up leaves
            mean and covariance as they are.
        width: positive scalar, the angle of the first bracket in radians; from 2 pi on it is the whole ellipse. Warm-up
            tunes it, so that .6 of the candidates are in the slice: where the data say much, the whole ellipse takes
            several times as many evaluations for the same moves.
        max_shrinks: how many candidates are looked at, at least 1; after the last the chain stays where it is, which
            is a rejection like any other.

    Returns:
        A `Kernel` with the array leaves `width`, `mean`, `root` and `whitening`. A traced `width` that is not positive
        makes every step a flagged rejection.

    Raises:
        ValueError: `width` not finite and positive, a bound that is too small, `covariance` of a wrong shape or not
            positive definite; at `step`, a mean that is not like the position.
        TypeError: `max_shrinks` is not an integer.
    """
    root = None if covariance is None else factor_of("covariance", covariance)
    mean = None if mean is None else jax.tree.map(jnp.asarray, mean)
    bound = bound_of_loop("max_shrinks", max_shrinks, 1)
    return EllipticalSlice(
        width=require_positive("width", width), mean=mean, root=root, whitening=_inverse(root), max_shrinks=bound
    )


def _inverse(root: ArrayFactor | None) -> ArrayFactor | None:
    if root is None or root.ndim == 1:
        return None if root is None else 1 / root
    # Once, here, and not a solve at every step: the products are those of `times`, for the reasons that stand there.
    return jax.scipy.linalg.solve_triangular(root, jnp.eye(root.shape[0], dtype=root.dtype), lower=True)


def _centre(mean: Any, position: Position) -> Float[Array, " d"]:
    x, _ = ravel_pytree(position)
    if mean is None:
        return jnp.zeros_like(x)
    alike = jax.tree.structure(mean) == jax.tree.structure(position)
    leaves = jax.tree.leaves(mean)
    if alike and [jnp.shape(leaf) for leaf in leaves] == [jnp.shape(leaf) for leaf in jax.tree.leaves(position)]:
        return ravel_pytree(mean)[0]
    if len(leaves) == 1 and leaves[0] is mean and jnp.shape(mean) == x.shape:
        return mean
    raise ValueError(
        f"`mean` has leaves of shapes {[jnp.shape(leaf) for leaf in leaves]}, but positions have "
        f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(position)]}: pass a pytree like the position, or an array of "
        f"{x.size} numbers"
    )
