r"""`OrderedNormal`: independent normals, restricted to increasing values.

$p(x) \propto \prod_k N(x_k; m_k, s_k)$ on $x_1 < \dots < x_K$, or on $0 < x_1 < \dots < x_K$. Unlike a `factor`, it
keeps the density in the prior, so that the likelihood alone is tempered, and it can be drawn from.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

# Of this many proposals the first in order is taken. For the models here a proposal is in order with probability 1/2 or
# more, so all of them fail with probability below 6e-20.
_NUM_PROPOSALS = 64


class OrderedNormal(dist.Distribution):
    """Independent normals given that they increase.

    `log_prob` is the sum of the normal log densities: the probability of the order, a constant, is left out. Draws that
    come out unordered `_NUM_PROPOSALS` times in a row are NaN.

    Attributes:
        loc: means [K].
        scale: standard deviations [K], positive.
        support: increasing vectors, of positive numbers where `positive` was given.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}  # noqa: RUF012
    pytree_data_fields = ("loc", "scale", "support")
    support: Any = constraints.dependent

    def __init__(self, loc: Float[Array, " k"], scale: Float[Array, " k"], *, positive: bool = False) -> None:
        self.loc, self.scale = loc, scale
        self.support = constraints.positive_ordered_vector if positive else constraints.ordered_vector
        dist.Distribution.__init__(self, event_shape=loc.shape)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape k"]:
        """Draws by rejection with a fixed number of proposals.

        Args:
            key: PRNG key.
            sample_shape: leading axes of the result.
        """
        shape = (_NUM_PROPOSALS, *sample_shape, *self.event_shape)
        proposals = self.loc + self.scale * jax.random.normal(key, shape, self.loc.dtype)
        good = jnp.asarray(self.support(proposals))
        first = jnp.argmax(good, axis=0)
        chosen = jnp.take_along_axis(proposals, first[None, ..., None], axis=0)[0]
        return jnp.where(jnp.any(good, axis=0)[..., None], chosen, jnp.nan)

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "*shape"]:
        """Sum of the normal log densities; the order is not looked at, since the support sees to it.

        Args:
            value: vectors [..., K].
            intermediates: not used.
        """
        del intermediates
        return jnp.sum(jnp.asarray(dist.Normal(self.loc, self.scale).log_prob(value)), axis=-1)
