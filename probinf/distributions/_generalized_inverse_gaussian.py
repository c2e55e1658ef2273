# NumPyro declares supports as properties, and names types that its own distributions do not keep to.
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false
r"""The generalised inverse Gaussian distribution: any real order, density and moments through log-Bessel functions.

$$p(x) = \frac{(x / \eta)^{\lambda - 1}}{2 \eta K_\lambda(\omega)}
\exp\Bigl(-\frac\omega2 \Bigl(\frac x\eta + \frac\eta x\Bigr)\Bigr), \qquad x > 0,$$

with order $\lambda$, concentration $\omega$ and scale $\eta$; in the form $x^{\lambda - 1} e^{-(a x + b / x) / 2}$ it
is $\omega = \sqrt{a b}$, $\eta = \sqrt{b / a}$ (Jørgensen 1982).

Draws: Devroye (2014), "Random variate generation for the generalized inverse Gaussian distribution". The logarithm of
$x / \eta$ has a log-concave density, which three pieces cover, a constant and two exponentials; their areas add up to
less than 2.9 times the one below, at every $\lambda$ and $\omega$ of a wide grid in the tests.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from probinf.core import PRNGKey, fast_key, unwrap_key
from probinf.special import kv_ratio, log_kve
from probinf.special._arguments import common
from probinf.special._derivatives import slope_in_second

LOG_TWO = float(np.log(2))
# Less than 0.66 of the proposals are turned down: the 80th is with probability 1e-14.
MAX_PROPOSALS = 80


class GeneralizedInverseGaussian(Distribution):
    r"""Density proportional to y^(order - 1) e^(-concentration (y + 1/y) / 2) at y = x / scale > 0.

    Order -1/2 is the inverse Gaussian distribution. As the concentration goes to 0 with a = concentration / scale fixed
    and order > 0, it is the gamma distribution of shape `order` and rate a / 2; likewise the inverse gamma for
    order < 0.

    The log density is right to rounding, and so are its derivatives in all arguments, the order included. Draws are
    exact; only their derivative in `scale` is offered, those in order and concentration are 0.

    Args:
        order: any real number.
        concentration: positive.
        scale: positive, in the unit of x.
        validate_args: whether NumPyro checks arguments and values where they are known.

    Raises:
        TypeError: two different floating dtypes, or one that is neither float32 nor float64.
        ValueError: shapes that do not broadcast.
    """

    arg_constraints = {  # noqa: RUF012 - NumPyro's own declaration
        "order": constraints.real,
        "concentration": constraints.positive,
        "scale": constraints.positive,
    }
    support = constraints.positive
    reparametrized_params = ["scale"]  # noqa: RUF012 - NumPyro's own declaration

    def __init__(
        self,
        order: ArrayLike,
        concentration: ArrayLike,
        scale: ArrayLike = 1.0,
        *,
        validate_args: bool | None = None,
    ):
        self.order, self.concentration, self.scale = common(order=order, concentration=concentration, scale=scale)
        super().__init__(batch_shape=self.order.shape, validate_args=validate_args)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws exactly, by a rejection method whose loop is bounded.

        Args:
            key: PRNG key.
            sample_shape: leading axes of the result.

        Returns:
            Draws, `sample_shape` then the batch shape. NaN where an argument is not valid, and in the one draw out of
            1e14 whose proposals were all turned down.
        """
        shape = tuple(sample_shape) + self.batch_shape
        order, concentration, scale = (jnp.broadcast_to(a, shape) for a in (self.order, self.concentration, self.scale))
        return scale * jnp.exp(_log_draws(key, jax.lax.stop_gradient(order), jax.lax.stop_gradient(concentration)))

    @validate_sample
    def log_prob(self, value: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Computes the log density; -inf at 0 and inf.

        Args:
            value: points, at least 0.
        """
        value = jnp.asarray(value, self.scale.dtype)
        return _log_density(*common(order=self.order, concentration=self.concentration, scale=self.scale, value=value))

    @property
    def mean(self) -> Float[Array, "..."]:
        """The mean, scale K_{order+1} / K_order at the concentration."""
        return self.scale * kv_ratio(self.order, self.concentration)

    @property
    def variance(self) -> Float[Array, "..."]:
        """The variance, by whichever of two formulas cancels less."""
        return self.scale**2 * _unit_variance(self.order, self.concentration)

    @property
    def mode(self) -> Float[Array, "..."]:
        """Where the density is largest."""
        return self.scale * jnp.exp(jnp.arcsinh((self.order - 1) / self.concentration))


@jax.jit
def _log_density(
    order: Float[Array, "*shape"],
    concentration: Float[Array, "*shape"],
    scale: Float[Array, "*shape"],
    value: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    inside = (value > 0) & (value < jnp.inf)
    x = jnp.where(inside, value, scale) / scale
    # -omega (x + 1/x) / 2 = -omega - omega (x - 1)^2 / (2 x); the first part goes to K.
    spread = 0.5 * concentration * ((x - 1) * ((x - 1) / x))
    log_density = (order - 1) * jnp.log(x) - spread - (log_kve(order, concentration) + LOG_TWO + jnp.log(scale))
    return jnp.where(inside, log_density, jnp.where(jnp.isnan(value), jnp.nan, -jnp.inf))


@jax.jit
def _unit_variance(order: Float[Array, "*batch"], concentration: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The variance at scale 1: R_p (R_{p+1} - R_p) = R_p / omega - R_p', R_p = K_{p+1} / K_p."""
    ratio = kv_ratio(order, concentration)
    differences = ratio * (kv_ratio(order + 1, concentration) - ratio)
    slopes = ratio / concentration - slope_in_second(kv_ratio, order, concentration)
    return jnp.where(ratio * concentration > 1, slopes, differences)


class Pieces(NamedTuple):
    """Devroye's cover of the density exp(psi), psi(0) = 0, of log(x / mode of x p(x)) for an order of at least 0.

    Attributes:
        order, alpha: psi(t) = -alpha (cosh t - 1) - order (e^t - t - 1).
        left, right: where the constant 1 ends; the exponentials begin there.
        left_width, right_width: 1 over the rates of the exponentials.
    """

    order: Float[Array, "..."]
    alpha: Float[Array, "..."]
    left: Float[Array, "..."]
    right: Float[Array, "..."]
    left_width: Float[Array, "..."]
    right_width: Float[Array, "..."]


def pieces(order: Float[Array, "*shape"], concentration: Float[Array, "*shape"]) -> Pieces:
    """Computes the cover for an order of at least 0 (Devroye 2014, section 4)."""
    larger = jnp.maximum(order, concentration)
    quotient = jnp.minimum(order, concentration) / larger
    radius = larger * jnp.sqrt(1 + quotient * quotient)
    # Where this underflows, what it takes from the density is beyond the range of the dtype.
    alpha = jnp.maximum(concentration * (concentration / (radius + order)), jnp.finfo(order.dtype).tiny)
    one = jnp.ones_like(alpha)
    above, below = -_log_cover(alpha, order, one), -_log_cover(alpha, order, -one)
    few, many = 0.5, 2.0
    t = jnp.where(above > many, jnp.sqrt(2 / (alpha + order)), one)
    t = jnp.where(above < few, jnp.log(4 / (alpha + 2 * order)), t)
    s = jnp.where(below > many, jnp.sqrt(4 / (alpha * float(np.cosh(1)) + order)), one)
    flat = jnp.log(alpha + 1 + jnp.sqrt(1 + 2 * alpha)) - jnp.log(alpha)
    s = jnp.where(below < few, jnp.minimum(1 / jnp.where(order > 0, order, 1e-30), flat), s)
    right_width = 1 / (alpha * jnp.sinh(t) + order * jnp.expm1(t))
    left_width = 1 / (alpha * jnp.sinh(s) - order * jnp.expm1(-s))
    right = t + right_width * _log_cover(alpha, order, t)
    left = -s - left_width * _log_cover(alpha, order, -s)
    return Pieces(order, alpha, left, right, left_width, right_width)


def _log_cover(alpha: Any, order: Any, t: Any) -> Float[Array, "..."]:
    """Psi, right to a few roundings at every t."""
    half = jnp.sinh(0.5 * t)
    rise = 2 * half * half
    short = jnp.abs(t) < 1
    near = jnp.where(short, t, 0)
    square = near * near
    tail = jnp.ones_like(t)
    for k in range(9, 1, -1):
        tail = 1 + square * (1 / (2 * k * (2 * k + 1))) * tail
    # e^t - t - 1 = (cosh t - 1) + (sinh t - t) where its own terms would cancel.
    excess = jnp.where(short, rise + near * square * (1 / 6) * tail, jnp.expm1(t) - t)
    return -alpha * rise - order * excess


@jax.jit
def _log_draws(key: PRNGKey, order: Float[Array, "*shape"], concentration: Float[Array, "*shape"]) -> Array:
    """Logarithms of draws at scale 1; NaN where there is none."""
    valid = (concentration > 0) & (concentration < jnp.inf) & (jnp.abs(order) < jnp.inf)
    order = jnp.where(valid, order, 0)
    concentration = jnp.where(valid, concentration, 1)
    logs, found = _rejection(key, pieces(jnp.abs(order), concentration))
    centred = logs + jnp.arcsinh(jnp.abs(order) / concentration)
    return jnp.where(valid & found, jnp.where(order < 0, -centred, centred), jnp.nan)


def _rejection(key: PRNGKey, cover: Pieces) -> tuple[Array, Array]:
    """Numbers of density proportional to exp(psi), and whether each was found."""
    key_data, restore = unwrap_key(fast_key(key))
    shape, dtype = cover.alpha.shape, cover.alpha.dtype
    middle = cover.right - cover.left
    total = cover.left_width + middle + cover.right_width

    def propose(carry):
        step, value, found = carry
        pick, place, level = jax.random.uniform(jax.random.fold_in(restore(key_data), step), (3, *shape), dtype)
        pick = pick * total
        beyond = -jnp.log1p(-place)
        in_middle, in_right = pick < middle, pick < middle + cover.right_width
        outer = jnp.where(in_right, cover.right + cover.right_width * beyond, cover.left - cover.left_width * beyond)
        t = jnp.where(in_middle, cover.left + middle * place, outer)
        log_height = jnp.log1p(-level) - jnp.where(in_middle, 0, beyond)
        accepted = ~found & (log_height <= _log_cover(cover.alpha, cover.order, t))
        return step + 1, jnp.where(accepted, t, value), found | accepted

    def unfinished(carry):
        step, _, found = carry
        return (step < MAX_PROPOSALS) & ~jnp.all(found)

    start = (jnp.zeros((), jnp.int32), jnp.zeros(shape, dtype), jnp.zeros(shape, bool))
    _, value, found = jax.lax.while_loop(unfinished, propose, start)
    return value, found
