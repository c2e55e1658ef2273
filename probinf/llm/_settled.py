"""`settled`: a resampling scheme whose ancestors stand where they were, for rules that remember things by slot."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float, Int

from probinf.core import PRNGKey
from probinf.llm._gather import settle


class settled(eqx.Module):
    """A scheme with its slots in another order: a row that goes on keeps its own.

    Law: the multiset of ancestors is that of `scheme`, so that the measure of a population is too. With `pinned` slot 0
    keeps ancestor 0, as in every scheme.
    """

    scheme: Callable[..., Int[Array, " n"]]

    def __call__(self, key: PRNGKey, weights: Float[Array, " n"], pinned: bool = False) -> Int[Array, " n"]:
        """Draws ancestors."""
        ancestors = self.scheme(key, weights, pinned=pinned)
        return ancestors[settle(ancestors)]
