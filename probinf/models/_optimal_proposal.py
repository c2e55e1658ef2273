r"""The locally optimal proposal of Gaussian state-space models, and the predictive density that goes with it.

With $x_t = m(x_{t-1}) + L u$, $u \sim N(0, I)$, and the mean $h$ of the observation made linear around $m$, the
whitened residual $v = R^{-1/2} (y_t - h(m))$ has the law $v = A u + N(0, I)$, $A = R^{-1/2} h'(m) L$. So

$$ q(u) = N(b, (I + A^T A)^{-1}), \quad b = (I + A^T A)^{-1} A^T v, \quad
   -2 \log \hat p(v) = |v - A b|^2 + |b|^2 + \log |I + A^T A| + p \log 2 \pi . $$

With $\hat g$ for the linear observation, $f \hat g = \hat p q$, so that the weight $f g / q$ is $\hat p\, g / \hat g$:
nothing is inverted but $R^{1/2}$, and a transition that moves in a subspace only is no special case. A component that
is missing, or whose slope overflows, is left out of $\hat g$, and the identity stays. Doucet, Godsill and Andrieu
(2000), "On sequential Monte Carlo sampling methods for Bayesian filtering", section II.D.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import Distribution, ExpandedDistribution, Independent, MultivariateNormal, Normal

from probinf.core import map_particles, standard_normal
from probinf.core._types import PRNGKey
from probinf.models._state_space import BootstrapModel, StateSpaceModel, entry_at

_HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))
# Draws and weights must agree on A to full precision, or the weights no longer correct the draws.
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Moment(NamedTuple):
    """What is known of time t.

    Attributes:
        t: the time.
        y: the observation, missing components filled with values that occur.
        there: which components were observed, of the shape of `y`; None if the data cannot be missing.
    """

    t: Int[Array, ""]
    y: Array
    there: Bool[Array, "..."] | None


def moment_of(fk: BootstrapModel, t: Array | int) -> Moment:
    """Time t and its observation."""
    time = jnp.asarray(t, jnp.int32)
    y = entry_at(fk.observations, time)
    if fk.observed is None:
        return Moment(time, y, None)
    there = entry_at(fk.observed, time)
    return Moment(time, y, jnp.broadcast_to(there.reshape(*there.shape, *(1,) * (y.ndim - there.ndim)), y.shape))


class Gaussian(NamedTuple):
    """A normal law on n components: mean [n], and standard deviations [n] or lower roots [m, k, k] with m k = n."""

    mean: Float[Array, " n"]
    root: Float[Array, "..."]

    def color(self, white: Float[Array, " n"]) -> Float[Array, " n"]:
        """The root times a vector."""
        if self.root.ndim == 1:
            return self.root * white
        return _dot(self.root, white.reshape(*self.root.shape[:2], 1)).reshape(-1)

    def whiten(self, value: Float[Array, " n"]) -> Float[Array, " n"]:
        """The inverse of the root times a vector."""
        if self.root.ndim == 1:
            return value * (1 / self.root)  # the reciprocal is one number for all particles, where the scale is
        return solve_triangular(self.root, value.reshape(*self.root.shape[:2], 1), lower=True).reshape(-1)

    def log_scales(self) -> Float[Array, " n"]:
        """Log of the diagonal of the root."""
        diagonal = self.root if self.root.ndim == 1 else jnp.diagonal(self.root, axis1=-2, axis2=-1)
        return jnp.log(diagonal).reshape(-1)


def is_gaussian(distribution: Distribution) -> bool:
    """Whether it is Normal or MultivariateNormal, inside `Independent` and `expand` or not."""
    return type(_base(distribution)) in (Normal, MultivariateNormal)


def as_gaussian(distribution: Distribution, dtype: Any) -> Gaussian:
    """A distribution as a `Gaussian`, flattened.

    Raises:
        TypeError: it is none.
    """
    base = _base(distribution)
    shape = distribution.shape()

    def flat(leaf: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(leaf, dtype), shape).reshape(-1)

    if type(base) is Normal:
        return Gaussian(flat(base.loc), flat(base.scale))
    if type(base) is MultivariateNormal:
        size = shape[-1]
        root = jnp.broadcast_to(jnp.asarray(base.scale_tril, dtype), (*shape, size)).reshape(-1, size, size)
        return Gaussian(flat(base.loc), root if size > 1 else root.reshape(-1))
    raise TypeError(f"needed a Normal or MultivariateNormal distribution, got {type(base).__name__}")


def _base(distribution: Distribution) -> Distribution:
    while isinstance(distribution, Independent | ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


class OptimalProposal(eqx.Module):
    """Draws x_t given x_{t-1} and y_t in the linearised model; x_0 given y_0 where there is no x_{t-1}.

    Attributes:
        exact: whether the model is linear as it is, so that the weight is the predictive density of y_t.
    """

    exact: bool = eqx.field(static=True)

    def draw(self, fk: BootstrapModel, key: PRNGKey, at: Moment, x_prev: Array | None, num_particles: int) -> Array:
        """Draws one state a particle."""

        def one(key: PRNGKey, *x_prev: Array) -> Array:
            local, state = self._linearise(fk.model, at, *x_prev)
            posterior = _condition(local)
            noise = standard_normal(key, local.prior.mean.shape, state.dtype)
            white = posterior.mean + posterior.spread(noise)
            return (local.prior.mean + local.prior.color(white)).reshape(state.shape)

        return map_particles(one, key, num_particles, *_given(x_prev))

    def log_density(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log density of the proposal at `x`; not finite where the transition has no density."""

        def one(x: Array, *x_prev: Array) -> Array:
            local, _ = self._linearise(fk.model, at, *x_prev)
            posterior = _condition(local)
            white = posterior.unspread(local.prior.whiten(x.reshape(-1) - local.prior.mean) - posterior.mean)
            return posterior.log_det - jnp.sum(0.5 * white * white + local.prior.log_scales() + _HALF_LOG_2PI)

        return jax.vmap(one)(x, *_given(x_prev))

    def log_weight(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """Log of f g / q: the predictive density, times g over its linear form where they differ."""

        def one(x: Array, *x_prev: Array) -> Array:
            local, state = self._linearise(fk.model, at, *x_prev)
            if self.exact:
                return _log_predictive(local)
            moved = _slope(fk.model, at, local.prior.mean, x.reshape(-1) - local.prior.mean, state)
            left = local.residual - _only(local.noise.whiten(moved), local.there)
            return _log_predictive(local) + 0.5 * jnp.sum(left * left) + _log_constant(local)

        log_ratio = jax.vmap(one)(x, *_given(x_prev))
        return log_ratio if self.exact else log_ratio + fk.log_potential(at.t, x_prev, x)

    def log_predictive(self, fk: BootstrapModel, at: Moment, x_prev: Array) -> Float[Array, " n"]:
        """The log density of y_t given each x_{t-1} in the linearised model; 0 where y_t is missing."""
        return jax.vmap(lambda one: _log_predictive(self._linearise(fk.model, at, one)[0]))(x_prev)

    def _linearise(self, model: StateSpaceModel, at: Moment, *x_prev: Array) -> tuple["_Local", Any]:
        """The local model, and something with the shape and dtype of a state."""
        law = model.transition(at.t, *x_prev) if x_prev else model.initial()
        state = x_prev[0] if x_prev else jax.eval_shape(lambda: law.sample(jax.random.key(0)))
        prior = as_gaussian(law, state.dtype)
        noise = _observe(model, at, prior.mean, state)
        directions = jax.vmap(prior.color)(jnp.eye(prior.mean.size, dtype=state.dtype))
        matrix = jax.vmap(noise.whiten)(_slopes(model, at, prior.mean, directions, state)).T
        residual = noise.whiten(at.y.reshape(-1).astype(state.dtype) - noise.mean)
        there = None if at.there is None else at.there.reshape(-1)
        if not self.exact:
            finite = jnp.isfinite(residual) & jnp.all(jnp.isfinite(matrix), axis=1)
            there = finite if there is None else there & finite
        return _Local(prior, _only(matrix, there), _only(residual, there), noise, there), state


def is_linear(model: StateSpaceModel, state: jax.ShapeDtypeStruct, observation: jax.ShapeDtypeStruct) -> bool:
    """Whether `vmap` finds that the slope and the noise of the observation are the same for all states.

    A mean whose slope is the same everywhere is linear. "No" may be said of a linear model too; it costs time only.
    """

    def slope_and_noise(x: Array, t: Array, y: Array) -> tuple[Array, Array]:
        flat, at, directions = x.reshape(-1), Moment(t, y, None), jnp.eye(x.size, dtype=x.dtype)
        return _slopes(model, at, flat, directions, state), _observe(model, at, flat, state).root

    several = jax.ShapeDtypeStruct((2, *state.shape), state.dtype)
    try:
        jax.eval_shape(
            jax.vmap(slope_and_noise, in_axes=(0, None, None), out_axes=None),
            several,
            jax.ShapeDtypeStruct((), jnp.int32),
            observation,
        )
    except ValueError:  # what `vmap` raises for a result that depends on the state
        return False
    return True


class _Local(NamedTuple):
    """The linearised model around one particle, in white coordinates: u ~ N(0, I), v = A u + N(0, I)."""

    prior: Gaussian
    matrix: Float[Array, "p d"]  # A
    residual: Float[Array, " p"]  # v
    noise: Gaussian
    there: Bool[Array, " p"] | None  # the components that count


class _Posterior(NamedTuple):
    """u given v: N(mean, (C C^T)^{-1}) with C C^T = I + A^T A."""

    mean: Float[Array, " d"]
    factor: Float[Array, "..."]  # C; for p = 1 the row A itself
    log_det: Float[Array, ""]  # log |C|
    square: Float[Array, ""]  # |v - A b|^2 + |b|^2, a sum of squares: no digits cancel

    def spread(self, white: Float[Array, " d"]) -> Float[Array, " d"]:
        """A root of the covariance times a vector."""
        if self.factor.ndim == 2:
            return solve_triangular(self.factor, white, lower=True, trans=1)
        # (I + a a^T)^{-1/2} = I - a a^T / (c (1 + c)), c^2 = 1 + a.a: elementwise over the population.
        c = jnp.sqrt(1 + jnp.sum(self.factor * self.factor))
        return white - self.factor * (1 / (c * (1 + c))) * jnp.sum(self.factor * white)

    def unspread(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """The inverse of that root (or of another with the same square) times a vector."""
        if self.factor.ndim == 2:
            return _dot(self.factor.T, value)
        c = jnp.sqrt(1 + jnp.sum(self.factor * self.factor))
        return value + self.factor * (1 / (1 + c)) * jnp.sum(self.factor * value)


def _given(x_prev: Array | None) -> tuple[Array, ...]:
    return () if x_prev is None else (x_prev,)


def _observe(model: StateSpaceModel, at: Moment, x: Float[Array, " d"], state: Any) -> Gaussian:
    """The law of the observation at x."""
    return as_gaussian(model.observation(at.t, x.reshape(state.shape)), state.dtype)


def _slope(model: StateSpaceModel, at: Moment, x: Array, direction: Array, state: Any) -> Float[Array, " p"]:
    """The derivative of the mean of the observation at x along a direction."""
    return jax.jvp(lambda x: _observe(model, at, x, state).mean, (x,), (direction,))[1]


def _slopes(model: StateSpaceModel, at: Moment, x: Array, directions: Array, state: Any) -> Float[Array, "d p"]:
    """`_slope` along several directions."""
    if x.size == 1:  # no `vmap`, so that a scalar model stays one pass of elementwise operations
        return _slope(model, at, x, directions[0], state)[None]
    return jax.vmap(lambda one: _slope(model, at, x, one, state))(directions)


def _only(values: Float[Array, "p *d"], there: Bool[Array, " p"] | None) -> Float[Array, "p *d"]:
    """Rows that do not count set to zero: they then say nothing of u."""
    return values if there is None else jnp.where(there.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)


def _condition(local: _Local) -> _Posterior:
    matrix, residual = local.matrix, local.residual
    if matrix.shape[0] == 1:
        row = matrix[0]
        square = 1 + jnp.sum(row * row)
        mean = row * (1 / square) * residual
        return _Posterior(mean, row, 0.5 * jnp.log(square), residual[0] ** 2 * (1 / square))
    factor = jnp.linalg.cholesky(jnp.eye(matrix.shape[1], dtype=matrix.dtype) + _dot(matrix.T, matrix))
    mean = cho_solve((factor, True), _dot(matrix.T, residual))
    left = residual - _dot(matrix, mean)
    square = jnp.sum(left * left) + jnp.sum(mean * mean)
    return _Posterior(mean, factor, jnp.sum(jnp.log(jnp.diagonal(factor))), square)


def _log_predictive(local: _Local) -> Float[Array, ""]:
    posterior = _condition(local)
    return -0.5 * posterior.square - posterior.log_det - _log_constant(local)


def _log_constant(local: _Local) -> Float[Array, ""]:
    return jnp.sum(_only(local.noise.log_scales() + _HALF_LOG_2PI, local.there))
