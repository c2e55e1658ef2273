r"""`slice_sampling`: slice sampling along lines, in random directions (hit-and-run) or along coordinates.

In the coordinates $L^{-1}x$ a direction e is drawn, uniform on the sphere or one of the axes, and x moves to a point of
the slice $\{t : \log\pi(x + t L e) \ge \log\pi(x) - e_0\}$, $e_0 \sim \text{Exp}(1)$, that stepping out and shrinkage
find (`_bracket`). Neal (2003), sections 4 and 5; the width that is tuned: Tibbits, Groendyke, Haran, Liechty (2014).
The field calls the method slice sampling. `slice`, as in PyMC, would hide a function of Python, and `hit_and_run` is
the name of another method, which draws from the density along the line exactly.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from probinf.core._fast_key import fast_key
from probinf.core._normal import standard_normal
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._bracket import (
    BracketKernel,
    BracketNoise,
    Line,
    SliceTransition,
    begin,
    bound_of_loop,
    draw_bracket,
)
from probinf.samplers._factor import Factor, check_dimension, factor_of, require_positive, times
from probinf.samplers._mhg import MHGState

DIRECTIONS = ("random", "coordinates")


class SliceSampling(BracketKernel):
    """The kernel made by `slice_sampling`.

    Attributes:
        width: [] length of the first bracket.
        factor: L with covariance L L', `[d]`, `[d, d]`, or None for the identity.
        directions: "random" or "coordinates".
        max_expansions: how often the bracket may be widened.
        max_shrinks: how many candidates are looked at.
        dense: whether warm-up learns a full matrix.
    """

    title: ClassVar[str] = "slice sampling"
    width: Array
    factor: Factor | None = None
    directions: str = eqx.field(static=True, default="random")
    max_expansions: int = eqx.field(static=True, default=16)
    max_shrinks: int = eqx.field(static=True, default=100)
    dense: bool = eqx.field(static=True, default=False)

    def tuned(self, step_size: Array, factor: Factor | None) -> "SliceSampling":
        """The same kernel with another width and factor."""
        return dataclasses.replace(self, width=step_size, factor=factor)

    def draw(self, key: PRNGKey, state: MHGState) -> tuple[Float[Array, " d"], BracketNoise]:
        """A direction, and what decides of the bracket."""
        key_direction, key_bracket = jax.random.split(fast_key(key))
        x, _ = ravel_pytree(state.position)
        return self._direction(key_direction, x), draw_bracket(key_bracket, self.max_expansions, x.dtype)

    def start(
        self,
        noise: tuple[Float[Array, " d"], BracketNoise],
        target: Target,
        state: MHGState,
        before: SliceTransition | None = None,
    ) -> SliceTransition:
        """A level and the first bracket. It is done at once where the state is fatal."""
        del before
        direction, bracket = noise
        x, _ = ravel_pytree(state.position)
        check_dimension(self.factor, x.size)
        line = Line(x, times(self.factor, direction))
        return begin(bracket, target, state, line, self.width.astype(x.dtype), self.max_expansions)

    def _direction(self, key: PRNGKey, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """A unit vector, drawn without looking at the position."""
        if self.directions == "coordinates":
            chosen = jax.random.randint(key, (), 0, x.size, jnp.int32)
            return (jnp.arange(x.size, dtype=jnp.int32) == chosen).astype(x.dtype)
        z = standard_normal(key, x.shape, x.dtype)
        return z / jnp.maximum(jnp.sqrt(jnp.sum(z * z)), jnp.finfo(x.dtype).tiny)


def slice_sampling(
    width: Any = 3.0,
    *,
    covariance: Any = None,
    directions: Literal["random", "coordinates"] = "random",
    max_expansions: int = 16,
    max_shrinks: int = 100,
    dense: bool = False,
) -> SliceSampling:
    """Slice sampling along lines: no gradient, hardly any rejection, and little harm from a wrong width.

    Leaves any target with a density on its (continuous) position invariant, reversibly, for every width and every
    bound. A point of NaN density is outside the slice and flagged `DIVERGENT`; one of density +inf, also at an end of
    the bracket, is flagged `POSINF_LOG_WEIGHT` and freezes the chain. Chains of `sample` do not wait for those that
    take more evaluations; under `vmap`, in a `cycle` and in SMC moves all wait for the slowest.

    Args:
        width: positive scalar, the length of the first bracket; about three standard deviations are best. Warm-up
            tunes it, so that .6 of the candidates are in the slice.
        covariance: `[d]` variances or `[d, d]` matrix, in the order of `jax.flatten_util.ravel_pytree`, in whose units
            the width is and along whose factor directions are drawn; None is the identity. Warm-up learns it.
        directions: "random" moves all coordinates along a random line; "coordinates" one of them (of a full matrix,
            one column of its Cholesky factor), so that `repeat(slice_sampling(directions="coordinates"), d)` makes
            about as many moves as there are coordinates.
        max_expansions: how often the bracket may be widened, at least 0; a random share of them to each side.
        max_shrinks: how many candidates are looked at, at least 1; after the last the chain stays where it is, which
            is a rejection like any other.
        dense: whether warm-up learns a full matrix; implied by a full `covariance`.

    Returns:
        A `Kernel` with the array leaves `width` and `factor`. A traced `width` that is not positive makes every step a
        flagged rejection.

    Raises:
        ValueError: `width` not finite and positive, unknown `directions`, a bound that is too small, `covariance` of a
            wrong shape or not positive definite.
        TypeError: a bound is not an integer.
    """
    if directions not in DIRECTIONS:
        raise ValueError(f"`directions` is {directions!r}; needed one of {', '.join(map(repr, DIRECTIONS))}")
    factor = None if covariance is None else factor_of("covariance", covariance)
    return SliceSampling(
        width=require_positive("width", width),
        factor=factor,
        directions=directions,
        max_expansions=bound_of_loop("max_expansions", max_expansions, 0),
        max_shrinks=bound_of_loop("max_shrinks", max_shrinks, 1),
        dense=dense or (factor is not None and factor.ndim == 2),
    )
