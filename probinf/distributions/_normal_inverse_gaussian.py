# NumPyro declares supports as properties, and names types that its own distributions do not keep to.
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false
r"""The normal-inverse Gaussian distribution: a normal whose variance is inverse Gaussian, with tails of its own weight.

With $z = (x - \mu) / \delta$, $q = \sqrt{1 + z^2}$ and $\gamma = \sqrt{\alpha^2 - \beta^2}$ (Barndorff-Nielsen 1997),

$$p(x) = \frac{\alpha}{\pi \delta q} K_1(\alpha q)\, e^{\gamma + \beta z}, \qquad
\alpha q - \beta z - \gamma = \frac{(\alpha z - \beta q)^2}{\alpha q - \beta z + \gamma},$$

where the second formula does not cancel at large $\alpha$. A draw is $\mu + \delta (\beta V + \sqrt V Z)$ with V
inverse Gaussian of mean $1 / \gamma$ and shape 1 (Michael, Schucany and Haas 1976) and Z standard normal.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from probinf.core import PRNGKey, fast_key
from probinf.special import log_kve
from probinf.special._arguments import common

LOG_PI = float(np.log(np.pi))


class NormalInverseGaussian(Distribution):
    r"""Skewed, with tails |z|^(-3/2) e^(-(tailweight |z| - skewness z)), z = (x - loc) / scale.

    The arguments are those of `scipy.stats.norminvgauss`. Both tailweight and skewness large, it is close to a normal;
    tailweight to 0, to a Cauchy distribution. The log density is right to rounding at every tailweight. Draws are
    exact; their derivatives in `loc` and `scale` are offered, those in the other two are 0.

    Args:
        tailweight: alpha, positive: the smaller, the heavier the tails.
        skewness: beta, between -tailweight and tailweight; 0 is symmetric. Beyond, density and moments are NaN.
        loc: mu, the centre of symmetry if `skewness` is 0.
        scale: delta, positive, in the unit of x.
        validate_args: whether NumPyro checks arguments and values where they are known.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """

    arg_constraints = {  # noqa: RUF012 - NumPyro's own declaration
        "tailweight": constraints.positive,
        "skewness": constraints.real,
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real
    reparametrized_params = ["loc", "scale"]  # noqa: RUF012 - NumPyro's own declaration

    def __init__(
        self,
        tailweight: ArrayLike,
        skewness: ArrayLike,
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        *,
        validate_args: bool | None = None,
    ):
        arguments = common(tailweight=tailweight, skewness=skewness, loc=loc, scale=scale)
        self.tailweight, self.skewness, self.loc, self.scale = arguments
        super().__init__(batch_shape=self.loc.shape, validate_args=validate_args)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws exactly, without rejection.

        Args:
            key: PRNG key.
            sample_shape: leading axes of the result.

        Returns:
            Draws, `sample_shape` then the batch shape; NaN where an argument is not valid.
        """
        shape = tuple(sample_shape) + self.batch_shape
        arguments = (self.tailweight, self.skewness, self.loc, self.scale)
        tailweight, skewness, loc, scale = (jnp.broadcast_to(argument, shape) for argument in arguments)
        unit = _unit_draws(key, jax.lax.stop_gradient(tailweight), jax.lax.stop_gradient(skewness))
        return loc + scale * unit

    @validate_sample
    def log_prob(self, value: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Computes the log density; -inf at +-inf.

        Args:
            value: points on the line.
        """
        arguments = {"tailweight": self.tailweight, "skewness": self.skewness, "loc": self.loc, "scale": self.scale}
        return _log_density(*common(**arguments, value=jnp.asarray(value, self.loc.dtype)))

    @property
    def mean(self) -> Float[Array, "..."]:
        """The mean, loc + scale beta / gamma."""
        return self.loc + self.scale * (self.skewness / _gamma(self.tailweight, self.skewness))

    @property
    def variance(self) -> Float[Array, "..."]:
        """The variance, scale^2 alpha^2 / gamma^3."""
        gamma = _gamma(self.tailweight, self.skewness)
        return self.scale**2 * ((self.tailweight / gamma) ** 2 / gamma)


def _gamma(tailweight: Float[Array, "..."], skewness: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root of tailweight^2 - skewness^2; NaN where the law does not exist."""
    valid = (tailweight > jnp.abs(skewness)) & (tailweight < jnp.inf)
    product = (tailweight - skewness) * (tailweight + skewness)
    return jnp.where(valid, jnp.sqrt(jnp.where(valid, product, 1)), jnp.nan)


@jax.jit
def _log_density(
    tailweight: Float[Array, "*shape"],
    skewness: Float[Array, "*shape"],
    loc: Float[Array, "*shape"],
    scale: Float[Array, "*shape"],
    value: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    gamma = _gamma(tailweight, skewness)
    finite = jnp.abs(value) < jnp.inf
    z = (jnp.where(finite, value, loc) - loc) / scale
    # Not the root of 1 + z^2, which overflows early; z = 0 needs its derivatives.
    large = jnp.abs(z) > 1
    inner, outer = jnp.where(large, 0, z), jnp.where(large, z, 1)
    inverse = 1 / outer
    q = jnp.where(large, jnp.abs(outer) * jnp.sqrt(1 + inverse * inverse), jnp.sqrt(1 + inner * inner))
    total = tailweight * q - skewness * z + gamma
    difference = tailweight * z - skewness * q
    log_density = log_kve(1, tailweight * q) - difference * (difference / total) + jnp.log(tailweight / (scale * q))
    log_density = log_density - LOG_PI
    valid = (gamma == gamma) & (scale > 0)
    return jnp.where(valid & (value == value), jnp.where(finite, log_density, -jnp.inf), jnp.nan)


@jax.jit
def _unit_draws(
    key: PRNGKey, tailweight: Float[Array, "*shape"], skewness: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Draws at loc 0 and scale 1."""
    first, second, third = jax.random.split(fast_key(key), 3)
    shape, dtype = tailweight.shape, tailweight.dtype
    mean = 1 / _gamma(tailweight, skewness)
    # The two roots of (v - mean)^2 / (mean^2 v) = chi^2, their product mean^2; the smaller without cancellation.
    half = 0.5 * mean * jax.random.normal(first, shape, dtype) ** 2
    growth = 1 + half + jnp.sqrt(half * (2 + half))
    smaller = jax.random.uniform(second, shape, dtype) * (1 + 1 / growth) < 1
    variance = jnp.where(smaller, mean / growth, mean * growth)
    return skewness * variance + jnp.sqrt(variance) * jax.random.normal(third, shape, dtype)
