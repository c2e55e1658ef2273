r"""`Population`: weighted particles, read as one unnormalised measure."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt32

from probinf.core._status import is_fatal
from probinf.core._sums import largest


class Population(eqx.Module):
    r"""N weighted particles, log weights $l_i$, log scale $s$; meaning: $e^s \frac1N \sum_i e^{l_i} \delta_{x_i}$.

    Attributes:
        particles: pytree, leading axis N.
        log_weights: unnormalised; -inf is weight zero; never NaN (NaN is turned into -inf and flagged).
        log_scale: log evidence banked so far.
        log_scale_low: what rounding took from `log_scale` (compensated sum): add it for the full value.
        eve: index of each particle's ancestor at time 0 (Lee, Whiteley 2018).
        num_resampled: how often the population was resampled.
        status: OR of all `Status` bits so far.
        context: population-level pytree (temperature, tuned kernel); never gathered, not part of the meaning.
    """

    particles: PyTree[Any]
    log_weights: Float[Array, " n"]
    log_scale: Float[Array, ""]
    eve: Int[Array, " n"]
    num_resampled: Int[Array, ""]
    status: UInt32[Array, ""]
    log_scale_low: Float[Array, ""]
    context: PyTree[Any] = None

    @property
    def num_particles(self) -> int:
        """N."""
        return self.log_weights.shape[0]

    @property
    def log_evidence(self) -> Float[Array, ""]:
        """Log of the total mass; NaN after a fatal fault, -inf when all weights are zero."""
        return jnp.where(
            is_fatal(self.status), jnp.nan, self.log_scale + (self.log_scale_low + weigh(self.log_weights).log_mean)
        )

    @property
    def weights(self) -> Float[Array, " n"]:
        """Weights that sum to 1, or all 0 when every weight is zero."""
        return weigh(self.log_weights).normalised()

    @property
    def ess(self) -> Float[Array, ""]:
        """Effective sample size, 1 / sum of squared normalised weights; 0 when every weight is zero."""
        return weigh(self.log_weights).ess


class Weighed(NamedTuple):
    """What one exponential pass over log weights gives; every public reading is derived from it."""

    relative: Float[Array, " n"]  # exp(log_weights - max), zeros when all are -inf
    shift: Float[Array, ""]  # that max, 0 when all are -inf
    total: Float[Array, ""]
    log_mean: Float[Array, ""]
    ess: Float[Array, ""]

    def normalised(self) -> Float[Array, " n"]:
        """Weights that sum to 1, or all 0."""
        return self.relative / jnp.where(self.total > 0, self.total, 1)


def weigh(log_weights: Float[Array, " n"]) -> Weighed:
    """Relative weights, their sum, the log of their mean and the ESS, from one exponential pass.

    All -inf gives zeros, `log_mean` -inf and ESS 0, with finite gradients (jax#6811).

    Raises:
        ValueError: `log_weights` is not a vector (use `vmap` for several populations).
    """
    if log_weights.ndim != 1:
        raise ValueError(f"`log_weights` has shape {log_weights.shape}; needed (N,): `vmap` over several populations")
    count = log_weights.shape[0]
    top = largest(jax.lax.stop_gradient(log_weights))
    shift = jnp.where(jnp.isfinite(top), top, 0)
    relative = jnp.exp(log_weights - shift)
    total = jnp.sum(relative)
    squares = jnp.vdot(relative, relative, precision=jax.lax.Precision.HIGHEST)
    some = total > 0
    safe = jnp.where(some, total, 1)
    log_mean = jnp.where(some, shift + jnp.log(safe / count), -jnp.inf)
    ess = jnp.where(some, safe * safe / jnp.where(some, squares, 1), 0)
    return Weighed(relative, shift, total, log_mean, ess)


def bank(scale: Float[Array, ""], low: Float[Array, ""], amount: Float[Array, ""]) -> tuple[Array, Array]:
    """Adds `amount` to a compensated sum: the new value and what rounding took from it so far (Knuth's two-sum)."""
    total = scale + amount
    back = total - scale
    return total, low + ((scale - (total - back)) + (amount - back))


def weight_dtype(*dtypes: Any) -> Any:
    """The widest of some floating dtypes, at least float32: 16 bits cannot sum a thousand weights.

    Args:
        *dtypes: floating dtypes, such as those of the particles' leaves.

    Returns:
        A NumPy dtype; the default floating one if none is given.
    """
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.zeros(()).dtype)
    return widest if jnp.finfo(widest).bits >= 32 else jnp.dtype(jnp.float32)


def with_changes(population: Population, **changes: Any) -> Population:
    """The population with some fields replaced.

    Args:
        population: a `Population`.
        **changes: new values of its fields.
    """
    fields = ("particles", "log_weights", "log_scale", "log_scale_low", "eve", "num_resampled", "status", "context")
    return Population(**{name: changes.get(name, getattr(population, name)) for name in fields})


def freeze(status: Array, old: PyTree, new: PyTree) -> PyTree:
    """The old value where the status is fatal, so that later numbers cannot look healthy."""
    fatal = is_fatal(status)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (old, new)]
    if shapes[0] != shapes[1]:
        raise TypeError(f"particles were {shapes[0]} and moved to {shapes[1]}: shapes and dtypes must stay the same")
    return jax.tree.map(lambda before, after: jnp.where(fatal, before, after), old, new)
