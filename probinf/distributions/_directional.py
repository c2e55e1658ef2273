r"""`AbstractDirectional`: distributions on the unit sphere whose density depends on the cosine to one direction alone.

Such a distribution is told by its mean direction and by five functions of dimension, concentration and cosine,
`Rules`; everything else is here.
"""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from probinf.core import standard_normal
from probinf.core._types import PRNGKey
from probinf.distributions._sphere import (
    batch_of,
    check_concentration,
    check_unit,
    cosine,
    cosine_deficit,
    floating_pair,
    is_unit,
    lead,
    log_area,
    place,
)

Numbers = Float[Array, "..."]


class Moments(NamedTuple):
    """Of the cosine to the mean direction, for one concentration or many.

    Attributes:
        length: the mean, that is the mean resultant length.
        complement: 1 - length, without cancellation.
        variance: the variance.
        across: the variance of a coordinate across the mean direction.
    """

    length: Numbers
    complement: Numbers
    variance: Numbers
    across: Numbers


class Rules(NamedTuple):
    """What a family is, for concentrations from 0 to inf and NaN for others; the first argument is the dimension.

    Attributes:
        relative_log_prob: `(dimension, concentration, cosines, deficits)`, the log density relative to the uniform one;
            `deficits` are 1 - cosine.
        is_large: `(dimension, concentration)`, where `deficits` are used and must be accurate.
        draw_angle: `(key, dimension, concentration)`, exact draws of the angle, differentiable in the concentration.
        moments: `(dimension, concentration)`.
        kl_to_uniform: `(dimension, concentration)`, the Kullback-Leibler divergence to the uniform distribution.
    """

    relative_log_prob: Callable[[int, Numbers, Numbers, Numbers], Numbers]
    is_large: Callable[[int, Numbers], Bool[Array, "..."]]
    draw_angle: Callable[[PRNGKey, int, Numbers], Numbers]
    moments: Callable[[int, Numbers], Moments]
    kl_to_uniform: Callable[[int, Numbers], Numbers]


class AbstractDirectional(Distribution):
    """A distribution on the unit sphere, symmetric about its mean direction.

    Attributes:
        mean_direction: [..., p] unit vectors.
        concentration: [...] at least 0.
    """

    arg_constraints = {"mean_direction": constraints.sphere, "concentration": constraints.nonnegative}  # noqa: RUF012
    reparametrized_params = ["mean_direction", "concentration"]  # noqa: RUF012
    support = constraints.sphere  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pytree_data_fields = ("mean_direction", "concentration")
    rules: ClassVar[Rules]

    def __init__(self, mean_direction: Any, concentration: Any, *, validate_args: bool | None = None) -> None:
        """Checks the parameters.

        Args:
            mean_direction: [..., p] unit vectors, p at least 2.
            concentration: [...] at least 0; batch axes broadcast with those of `mean_direction`.
            validate_args: NumPyro's switch, which here decides only whether `log_prob` looks at its argument.

        Raises:
            TypeError: the two differ in their floating dtype.
            ValueError: p < 2, a direction is not of norm 1 to rounding, a concentration is negative or NaN, or the
                shapes do not broadcast. Values are looked at where they are not traced.
        """
        direction, kappa = floating_pair(mean_direction=mean_direction, concentration=concentration)
        check_unit("mean_direction", direction)
        check_concentration(kappa)
        batch_shape = batch_of(direction, kappa)
        self.mean_direction = lead(direction, len(batch_shape) + 1)
        self.concentration = lead(kappa, len(batch_shape))
        Distribution.__init__(self, batch_shape, direction.shape[-1:], validate_args=validate_args)

    @staticmethod
    @abc.abstractmethod
    def fit(x: Any, weights: Any = None) -> "AbstractDirectional":
        """The distribution of highest likelihood."""

    @property
    def dimension(self) -> int:
        """The dimension p of the space around the sphere."""
        return self.event_shape[0]

    @staticmethod
    def infer_shapes(
        mean_direction: tuple[int, ...], concentration: tuple[int, ...] = ()
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shape from the shapes of the parameters."""
        return jnp.broadcast_shapes(mean_direction[:-1], concentration), mean_direction[-1:]

    @validate_sample
    def log_prob(self, value: Float[ArrayLike, "... p"], intermediates: Any = None) -> Float[Array, "..."]:
        """The log density with respect to area.

        In float64 within 1e-9 at p = 32768. In float32 the constant of the uniform distribution alone, 123847 there,
        is rounded to 8e-3: take `log_prob_relative`, which has no such constant.

        Args:
            value: [..., p] unit vectors.
            intermediates: not used.
        """
        del intermediates
        return self.log_prob_relative(value) - log_area(self.dimension)

    def log_prob_relative(self, value: Float[ArrayLike, "... p"]) -> Float[Array, "..."]:
        """The log density relative to the uniform distribution on the sphere.

        In float32 within 1e-3 at p = 32768 up to concentration p / 4; beyond, within a few rounding units of the
        concentration, and where points keep near the mean direction, of p.

        Args:
            value: [..., p] unit vectors.
        """
        return _log_prob_relative(self.rules, self.mean_direction, self.checked_concentration, jnp.asarray(value))

    def sample(self, key: PRNGKey | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact draws, differentiable in both parameters: an angle, and one reflection for the direction.

        Args:
            key: PRNG key.
            sample_shape: of independent draws.

        Returns:
            Unit vectors [*sample_shape, *batch_shape, p].
        """
        if key is None:
            raise ValueError("`key` is None; needed a key, as of `jax.random.key(0)`")
        return _sample(
            self.rules, sample_shape + self.batch_shape, key, self.mean_direction, self.checked_concentration
        )

    @property
    def moments(self) -> Moments:
        """Mean and variance of the cosine to the mean direction, and the variance of coordinates across."""
        return _moments(self.rules, self.dimension, self.checked_concentration)

    @property
    def mean(self) -> Float[Array, "... p"]:
        """The mean in the space around the sphere: the mean direction, times a number between 0 and 1."""
        return self.moments.length[..., None] * self._all_directions()

    @property
    def variance(self) -> Float[Array, "... p"]:
        """The variance of each coordinate."""
        moments, square = self.moments, self._all_directions() ** 2
        return moments.variance[..., None] * square + moments.across[..., None] * (1 - square)

    def entropy(self) -> Float[Array, "..."]:
        """The differential entropy with respect to area, in nats."""
        return log_area(self.dimension) - self.kl_to_uniform()

    def kl_to_uniform(self) -> Float[Array, "..."]:
        """The Kullback-Leibler divergence from this distribution to the uniform one, in nats."""
        return _kl_to_uniform(self.rules, self.dimension, self.checked_concentration)

    @property
    def checked_concentration(self) -> Float[Array, "..."]:
        """The concentration in the batch shape, NaN where a parameter is bad."""
        unit = jnp.broadcast_to(is_unit(self.mean_direction), self.batch_shape)
        kappa = jnp.broadcast_to(self.concentration, self.batch_shape)
        return jnp.where(unit & (kappa >= 0), kappa, jnp.nan)

    def _all_directions(self) -> Array:
        return jnp.broadcast_to(self.mean_direction, self.batch_shape + self.event_shape)


@partial(jax.jit, static_argnums=0)
def _log_prob_relative(rules: Rules, direction: Array, concentration: Array, x: Array) -> Array:
    p = direction.shape[-1]
    cosines = cosine(x, direction)
    shape = jnp.broadcast_shapes(cosines.shape, concentration.shape)
    cosines, kappa = (jnp.broadcast_to(lead(one, len(shape)), shape) for one in (cosines, concentration))

    def accurate():
        return jnp.broadcast_to(lead(cosine_deficit(x, direction), len(shape)), shape)

    # A second pass over the coordinates, only where a concentration asks for it.
    deficits = jax.lax.cond(jnp.any(rules.is_large(p, concentration)), accurate, lambda: 1 - cosines)
    return rules.relative_log_prob(p, kappa, cosines, deficits)


@partial(jax.jit, static_argnums=(0, 1))
def _sample(rules: Rules, shape: tuple[int, ...], key: PRNGKey, direction: Array, concentration: Array) -> Array:
    p = direction.shape[-1]
    angle_key, normal_key = jax.random.split(key)
    angle = rules.draw_angle(angle_key, p, jnp.broadcast_to(lead(concentration, len(shape)), shape))
    normal = standard_normal(normal_key, (*shape, p), direction.dtype)
    return place(normal, angle, lead(direction, len(shape) + 1))


@partial(jax.jit, static_argnums=(0, 1))
def _moments(rules: Rules, dimension: int, concentration: Array) -> Moments:
    return rules.moments(dimension, concentration)


@partial(jax.jit, static_argnums=(0, 1))
def _kl_to_uniform(rules: Rules, dimension: int, concentration: Array) -> Array:
    return rules.kl_to_uniform(dimension, concentration)
