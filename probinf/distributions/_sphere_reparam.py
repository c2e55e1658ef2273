r"""`SphereReparam`: a direction as the direction of a vector without constraint, for NUTS and other gradient methods.

The direction $z / |z|$ of a standard normal vector is uniform, and independent of its length. So the density
$N(z; 0, I)\, f(z / |z|) / f_0$, with f the density on the sphere and $f_0$ the uniform one, has directions that follow
f and lengths that follow the chi distribution: exact, smooth but for z = 0, and with one extra number a direction.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import Distribution, constraints
from numpyro.infer.reparam import Reparam

from probinf.core._types import PRNGKey
from probinf.distributions._directional import AbstractDirectional


class _Lifted(Distribution):
    """Vectors whose directions follow `base`, and whose lengths follow the chi distribution."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pytree_data_fields = ("base",)

    def __init__(self, base: AbstractDirectional) -> None:
        self.base = base
        Distribution.__init__(self, base.batch_shape, base.event_shape, validate_args=False)

    def sample(self, key: PRNGKey | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        if key is None:
            raise ValueError("`key` is None; needed a key, as of `jax.random.key(0)`")
        length_key, direction_key = jax.random.split(key)
        x = self.base.sample(direction_key, sample_shape)
        half = jnp.full(x.shape[:-1], 0.5 * x.shape[-1], x.dtype)
        return jnp.sqrt(2 * jax.random.gamma(length_key, half, dtype=x.dtype))[..., None] * x

    def log_prob(self, value: Float[ArrayLike, "... p"], intermediates: Any = None) -> Float[Array, "..."]:
        del intermediates
        vector = jnp.asarray(value)
        square = jnp.sum(vector * vector, axis=-1)
        normal = -0.5 * square - 0.5 * vector.shape[-1] * math.log(2 * math.pi)
        return normal + self.base.log_prob_relative(_direction(vector))


class SphereReparam(Reparam):
    """Makes a latent direction of a NumPyro model the direction of an unconstrained vector.

    For sites of `VonMisesFisher` and `PowerSpherical`, also expanded or in plates; not for observed ones, which need
    nothing. The model then has a latent site `NAME_vector` of p numbers, and `NAME` is deterministic.

    Example:
        ```python
        @numpyro.handlers.reparam(config={"direction": SphereReparam()})
        def model(x):
            direction = numpyro.sample("direction", VonMisesFisher(prior_direction, 1.0))
            numpyro.sample("x", VonMisesFisher(direction, 20.0).expand([len(x)]).to_event(1), obs=x)
        ```
    """

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Float[Array, "..."]]:
        """What NumPyro's `reparam` handler calls.

        Args:
            name: of the site.
            fn: its distribution.
            obs: its observed value, None.

        Returns:
            None and the direction.

        Raises:
            TypeError: the distribution is not one on the sphere.
            ValueError: the site is observed.
        """
        if obs is not None:
            raise ValueError(f"site {name!r} is observed: `SphereReparam` is for latent directions only, leave it out")
        base, expand_shape, event_dim = self._unwrap(fn)
        if not isinstance(base, AbstractDirectional):
            raise TypeError(f"site {name!r} is a {type(base).__name__}; needed `VonMisesFisher` or `PowerSpherical`")
        vector = numpyro.sample(f"{name}_vector", self._wrap(_Lifted(base), expand_shape, event_dim))
        return None, _direction(jnp.asarray(vector))


def _direction(vector: Float[Array, "... p"]) -> Float[Array, "... p"]:
    """The unit vector; the first axis at 0, where the derivative is 0."""
    square = jnp.sum(vector * vector, axis=-1, keepdims=True)
    somewhere = square > 0
    first = (jnp.arange(vector.shape[-1]) == 0).astype(vector.dtype)
    unit = vector / jnp.sqrt(jnp.where(somewhere, square, 1))
    return jnp.where(somewhere, unit, jnp.broadcast_to(first, vector.shape))
