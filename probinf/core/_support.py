"""`IntegerInterval`: the finite support of a discrete site, by which it can be drawn, swept by Gibbs or summed out."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from probinf.core._effects import is_concrete


class IntegerInterval(eqx.Module):
    """The integers `lower` .. `upper`, both included, in each element of a site.

    The bounds are array leaves; how many values there are is static, since so many are evaluated.

    Attributes:
        lower: [...] int32, of the shape of the site.
        upper: [...] int32, at least `lower`.
        num_values: the largest number of values that an element has.
    """

    lower: Int[Array, "..."]
    upper: Int[Array, "..."]
    num_values: int = eqx.field(static=True)

    def __init__(self, lower: Any, upper: Any, shape: tuple[int, ...] | None = None) -> None:
        """Checks the bounds.

        Args:
            lower: smallest value, an integer or an array of them that broadcasts to `shape`.
            upper: largest value.
            shape: the shape of the site; None takes that of the bounds.

        Raises:
            TypeError: a bound is no integer, or is traced.
            ValueError: an upper bound is below its lower one, or the shapes do not fit.
        """
        for name, bound in {"lower": lower, "upper": upper}.items():
            if not is_concrete(bound):
                raise TypeError(f"`{name}` is traced, but the number of values must be static: make it outside `jit`")
            if not np.issubdtype(np.asarray(bound).dtype, np.integer):
                raise TypeError(f"`{name}` must be an integer or an array of integers, but is {bound!r}")
        low, high = (np.asarray(bound).astype(np.int64) for bound in (lower, upper))
        size = np.broadcast_shapes(low.shape, high.shape) if shape is None else tuple(shape)
        if np.broadcast_shapes(low.shape, high.shape, size) != size:
            raise ValueError(f"bounds of shapes {low.shape} and {high.shape} do not broadcast to `shape` {size}")
        if np.any(np.abs([np.min(low, initial=0), np.max(high, initial=0)]) >= 2**31):
            raise ValueError(f"`lower` is {lower!r} and `upper` {upper!r}: bounds must fit in 32 bits")
        if np.any(high < low):
            raise ValueError(f"`upper` is {upper!r} and below `lower`, {lower!r}: an element needs at least one value")
        # Of one dtype, whether or not 64 bits are on where it is made and where it is used.
        self.lower, self.upper = (jnp.asarray(np.broadcast_to(bound, size), jnp.int32) for bound in (low, high))
        self.num_values = int(np.max(high - low, initial=0)) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the site."""
        return self.lower.shape


def support_at(supports: dict[str, IntegerInterval], path: Any) -> IntegerInterval | None:
    """The support of the leaf of a position at a path of `jax.tree_util`; None where none is known."""
    if len(path) == 1 and isinstance(path[0], jax.tree_util.DictKey):
        return supports.get(path[0].key)
    return None
