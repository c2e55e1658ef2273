r"""`ConditionallyLinear`: models that are linear and Gaussian once a part of the state is known.

$u_0 \sim \mathrm{initial}$, $u_t \sim \mathrm{transition}(t, u_{t-1})$; given the path of u, the rest of the state
and the observations are a `LinearGaussian` with matrices that depend on $u_t$:
$z_t = F_t z_{t-1} + b_t + N(0, Q_t)$, $y_t = H_t z_t + c_t + N(0, R_t)$. The Rao-Blackwellised filter samples u only
and carries a Kalman filter in each particle: $M_t$ draws $u_t$ and $G_t = p(y_t \mid u_{0:t}, y_{0:t-1})$. Chen and
Liu (2000), "Mixture Kalman filters"; Doucet, Godsill and Andrieu (2000), section III.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution

from probinf.core import FeynmanKac, PRNGKey, is_concrete, map_particles, standard_normal, whole_number
from probinf.models._linear_gaussian import LinearGaussian
from probinf.models._observations import prepare_observations
from probinf.models._state_space import abstract_draw, as_pytree, check_arguments, entry_at
from probinf.models._types import Numbers


class RaoBlackwellised(NamedTuple):
    """A particle: a draw of u, and the exact law N(mean, cov) of z given the path of u and the observations so far.

    With a leading axis N in a population. The mean of `mean` over the population estimates the filtering mean of z,
    and its variance is the mean of `cov` plus the covariance of `mean`.

    Attributes:
        state: u_t, of any shape.
        mean: filtered mean of z_t, [d].
        cov: filtered covariance of z_t, [d, d].
        log_predictive: log density of y_t given the path and the observations before; 0 where y_t is missing.
    """

    state: Array
    mean: Float[Array, "*n d"]
    cov: Float[Array, "*n d d"]
    log_predictive: Float[Array, "*n"]


class ConditionallyLinear(eqx.Module):
    """A state-space model with a part u that is sampled and a part z that is linear and Gaussian given u.

    As in `StateSpaceModel`, the functions see one state, and parameters belong in array leaves of modules.

    Attributes:
        initial: `initial()`, the law of u_0, discrete or continuous, of any shape.
        transition: `transition(t, u)`, the law of u_t given u_{t-1} = `u`; `t` is an int32 scalar >= 1.
        dynamics: `dynamics(t, u)`, a `LinearGaussian` with d states and p observations whose arrays at time t lead to
            z_t and y_t when u_t = `u`; of its `initial_mean` [d] and `initial_cov` [d, d], only those for t = 0 are
            read, and they are the law of z_0 given u_0. Covariances may be singular, but not that of an observation
            given the past.

    Raises:
        TypeError: a function does not take these arguments or returns something else, or `transition` draws another
            dtype than `initial`.
        ValueError: `transition` draws another shape than `initial`, or the arrays of `dynamics` do not fit together.
    """

    initial: Callable[[], Distribution] = eqx.field(converter=as_pytree)
    transition: Callable[[Array, Array], Distribution] = eqx.field(converter=as_pytree)
    dynamics: Callable[[Array, Array], LinearGaussian] = eqx.field(converter=as_pytree)

    def __check_init__(self) -> None:
        """Traces the three functions once, on abstract values."""
        _layout_of(self)

    def simulate(self, key: PRNGKey, num_steps: int) -> tuple[Array, Float[Array, "t d"], Float[Array, "t p"]]:
        """Draws both parts of the state, and observations.

        Args:
            key: PRNG key, consumed.
            num_steps: number of time steps T >= 1.

        Returns:
            `(u, z, observations)`, each with leading axis T.

        Raises:
            ValueError: `num_steps` is less than 1.
            TypeError: `num_steps` is not an integer.
        """
        return _simulate(self, key, whole_number("num_steps", num_steps, 1))

    def rao_blackwellised(self, ys: Numbers) -> "RaoBlackwellisedModel":
        """The Feynman-Kac model of the Rao-Blackwellised filter, whose particles are `RaoBlackwellised`.

        Args:
            ys: observations [T, p], or [T] where p = 1; T may be 0. A NaN component is missing: it is left out of the
                evidence and changes nothing.

        Returns:
            A `FeynmanKac` in batch form with `num_steps` = T, data and parameters as array leaves. Its normalising
            constant is the likelihood of the observations that are there.

        Raises:
            ValueError: `ys` has the wrong shape or, where its values are known, holds inf.
            TypeError: `ys` is not numeric.
        """
        layout = _layout_of(self)
        data = np.asarray(ys) if is_concrete(ys) else jnp.asarray(ys)
        if data.ndim == 1 and layout.observation.shape == (1,):
            data = data[:, None]
        blank = jnp.zeros(layout.observation.shape, layout.observation.dtype)
        observations, observed = prepare_observations(data, layout.observation, 0, lambda: blank)
        if observed is None:
            observed = jnp.ones(observations.shape, bool)
        return RaoBlackwellisedModel(self, observations, observed, layout.own_generator)


class RaoBlackwellisedModel(FeynmanKac):
    r"""A `ConditionallyLinear` model with data: $M_t$ draws u and runs a Kalman step, $G_t = p(y_t \mid u_{0:t}, ...)$.

    Attributes:
        model: the model.
        observations: data [T, p], missing entries filled.
        observed: which entries are there, [T, p].
        own_generator: whether u can be drawn from particle keys.
    """

    batch: ClassVar[bool] = True

    model: ConditionallyLinear
    observations: Float[Array, "t p"]
    observed: Bool[Array, "t p"]
    own_generator: bool = eqx.field(static=True)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.observations.shape[0]

    def init(self, key: PRNGKey, *num_particles: int) -> RaoBlackwellised:
        """Draws u_0 for N particles and conditions z_0 on y_0."""
        (n,) = num_particles
        time = jnp.zeros((), jnp.int32)

        def one(key: PRNGKey) -> RaoBlackwellised:
            u = jnp.asarray(self.model.initial().sample(key))
            linear = self.model.dynamics(time, u)
            return self._condition(linear, time, u, linear.initial_mean, linear.initial_cov)

        return self._map(one, key, n)

    def mutate(self, key: PRNGKey, t: Array | int, x: RaoBlackwellised) -> RaoBlackwellised:
        """Draws u_t for each particle, predicts z_t and conditions it on y_t."""
        time = jnp.asarray(t, jnp.int32)

        def one(key: PRNGKey, before: RaoBlackwellised) -> RaoBlackwellised:
            u = jnp.asarray(self.model.transition(time, before.state).sample(key))
            linear = self.model.dynamics(time, u)
            matrix = linear.at("transition_matrix", time)
            with jax.default_matmul_precision("highest"):
                mean = matrix @ before.mean + linear.at("transition_offset", time)
                cov = matrix @ before.cov @ matrix.T + linear.at("transition_cov", time)
            return self._condition(linear, time, u, mean, cov)

        return self._map(one, key, x.log_predictive.shape[0], x)

    def log_potential(self, t: Array | int, x_prev: RaoBlackwellised | None, x: RaoBlackwellised) -> Float[Array, " n"]:
        """The log density of y_t given each particle's path."""
        del t, x_prev
        return x.log_predictive

    def _condition(self, linear: LinearGaussian, t: Array, u: Array, mean: Array, cov: Array) -> RaoBlackwellised:
        if self.num_steps == 0:
            return RaoBlackwellised(u, mean, cov, jnp.zeros((), mean.dtype))
        y, there = entry_at(self.observations, t), entry_at(self.observed, t)
        with jax.default_matmul_precision("highest"):
            return RaoBlackwellised(u, *_condition(linear, t, mean, cov, y, there))

    def _map(self, function: Callable, key: PRNGKey, num_particles: int, *items: Any) -> RaoBlackwellised:
        return map_particles(function, key, num_particles, *items, own_generator=self.own_generator)


def _condition(
    linear: LinearGaussian, t: Array, mean: Array, cov: Array, y: Array, there: Bool[Array, " p"]
) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, ""]]:
    """Mean and covariance given y, in Joseph's form, and the log density of y. A missing row observes nothing."""
    matrix = jnp.where(there[:, None], linear.at("observation_matrix", t), 0)
    residual = jnp.where(there, y - matrix @ mean - linear.at("observation_offset", t), 0)
    noise = jnp.where(there[:, None] & there[None, :], linear.at("observation_cov", t), 0)
    noise = noise + jnp.diag((~there).astype(noise.dtype))
    whole = matrix @ cov @ matrix.T + noise
    if y.shape == (1,):  # no factorisation for each particle
        gain = (cov @ matrix.T) / whole
        square, log_det = residual[0] ** 2 / whole[0, 0], jnp.log(whole[0, 0])
    else:
        root = jnp.linalg.cholesky(whole)
        gain = cho_solve((root, True), matrix @ cov).T
        square = jnp.sum(solve_triangular(root, residual, lower=True) ** 2)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    # A missing component has unit variance and residual 0: only the constant must leave it out.
    constant = float(np.log(2 * np.pi)) * jnp.sum(there).astype(mean.dtype)
    kept = jnp.eye(mean.shape[0], dtype=mean.dtype) - gain @ matrix
    updated = kept @ cov @ kept.T + gain @ noise @ gain.T
    return mean + gain @ residual, 0.5 * (updated + updated.T), -0.5 * (square + log_det + constant)


class _Layout(NamedTuple):
    state: jax.ShapeDtypeStruct
    observation: jax.ShapeDtypeStruct
    own_generator: bool


def _layout_of(model: ConditionallyLinear) -> _Layout:
    for name, arguments in (("initial", ()), ("transition", ("t", "u"))):
        check_arguments(name, getattr(model, name), arguments)
    check_arguments("dynamics", model.dynamics, ("t", "u"), returns="a `LinearGaussian`")
    time = jax.ShapeDtypeStruct((), jnp.int32)
    state, _, own_initial = abstract_draw("initial", model.initial)
    moved, _, own_transition = abstract_draw("transition", model.transition, time, state)
    if moved.shape != state.shape:
        raise ValueError(
            f"`transition(t, u)` draws shape {moved.shape}, but `initial()` draws shape {state.shape}: make them agree"
        )
    if moved.dtype != state.dtype:
        raise TypeError(
            f"`transition(t, u)` draws dtype {moved.dtype}, but `initial()` draws {state.dtype}: make the two agree"
        )

    def observe(t: Array, u: Array) -> Array:
        linear = model.dynamics(t, u)
        if not isinstance(linear, LinearGaussian):
            raise TypeError(f"`dynamics` returned {type(linear)}: it must return a `LinearGaussian`")
        return jnp.zeros(linear.num_observed, linear.initial_mean.dtype)

    return _Layout(state, jax.eval_shape(observe, time, state), own_initial and own_transition)


@eqx.filter_jit
def _simulate(model: ConditionallyLinear, key: PRNGKey, num_steps: int) -> tuple[Array, Array, Array]:
    def draw(key: PRNGKey, mean: Array, cov: Array) -> Array:
        # Eigenvectors, so that a singular covariance is no special case.
        values, vectors = jnp.linalg.eigh(cov)
        return mean + vectors @ (jnp.sqrt(jnp.maximum(values, 0)) * standard_normal(key, mean.shape, mean.dtype))

    def step(before: tuple[Array, Array] | None, at: tuple[Array, Array]) -> tuple[tuple, tuple]:
        t, key = at
        keys = jax.random.split(key, 3)
        law = model.initial() if before is None else model.transition(t, before[0])
        u = jnp.asarray(law.sample(keys[0]))
        linear = model.dynamics(t, u)
        mean, cov = linear.initial_mean, linear.initial_cov
        if before is not None:
            mean = linear.at("transition_matrix", t) @ before[1] + linear.at("transition_offset", t)
            cov = linear.at("transition_cov", t)
        z = draw(keys[1], mean, cov)
        predicted = linear.at("observation_matrix", t) @ z + linear.at("observation_offset", t)
        y = draw(keys[2], predicted, linear.at("observation_cov", t))
        return (u, z), (u, z, y)

    times, keys = jnp.arange(num_steps, dtype=jnp.int32), jax.random.split(key, num_steps)
    state, first = step(None, (times[0], keys[0]))
    _, rest = jax.lax.scan(step, state, (times[1:], keys[1:]))
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first, rest)
