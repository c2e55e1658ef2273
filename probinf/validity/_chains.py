"""What the checks of Markov kernels share: what they look at, and whether the chains were fit to be looked at."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from probinf.core import PRNGKey, Target
from probinf.validity._report import Check

Simulate = Callable[[PRNGKey], tuple[Any, Any]]
TargetOf = Callable[[Any], Target]
Statistics = Callable[[Any, Any], PyTree]
# A test of chains that hardly ever move says nothing, and its sums are of too few terms to be normal.
LARGEST_STILL = 0.9


class Looks(eqx.Module):
    """What the checks look at in a pair of position and data.

    Attributes:
        target_of: data -> target.
        statistics: (position, data) -> pytree of numbers, or None.
    """

    target_of: TargetOf
    statistics: Statistics | None

    def __call__(self, position: PyTree, data: PyTree) -> dict[str, PyTree]:
        """Log densities, the user's statistics, and the position itself."""
        target = self.target_of(data)
        prior, likelihood = target.log_prior(position), target.log_likelihood(position)
        own = () if self.statistics is None else self.statistics(position, data)
        density = {"log_prior": jnp.asarray(prior), "log_likelihood": jnp.asarray(likelihood)}
        return {"density": density, "position": position, "statistic": own}


def differs(a: PyTree, b: PyTree) -> Bool[Array, ""]:
    """Whether any leaf differs anywhere."""
    same = [jnp.all(x == y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return ~jnp.all(jnp.stack(same))


def fitness(moved: Bool[np.ndarray, " n"], fatal: Bool[np.ndarray, " n"]) -> tuple[Check, Check]:
    """That no chain met a fatal status, and that at most nine in ten stood still."""
    still = Check(
        "movement", "share of chains standing still", float(np.mean(~moved)), LARGEST_STILL, 0.0, "any excess"
    )
    return Check("health", "chains with a fatal status", float(np.sum(fatal)), 0.0, 0.0, "one"), still
