r"""`StateSpaceModel`: a hidden Markov process seen through noise, written as NumPyro distributions.

$x_0 \sim \mathrm{initial}$, $x_t \sim \mathrm{transition}(t, x_{t-1})$ for $t \ge 1$, and
$y_t \sim \mathrm{observation}(t, x_t)$ for $t \ge 0$: the first observation is of the initial state, with no
transition before it. Chopin and Papaspiliopoulos (2020), "An Introduction to Sequential Monte Carlo", chapters
2 and 5; the bootstrap filter is that of Gordon, Salmond and Smith (1993).
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import Distribution, Independent

from probinf.core import draws_with_particle_keys, map_particles, whole_number
from probinf.core._feynman_kac import FeynmanKac
from probinf.core._types import PRNGKey
from probinf.models._observations import prepare_observations
from probinf.models._types import Numbers


def as_pytree(function: Any) -> Any:
    """The function as a pytree: as a bare leaf it would keep the model from `jax.jit`; a `Partial` holds it aside."""
    is_leaf = jax.tree.structure(function) == jax.tree.structure(0)
    return jax.tree_util.Partial(function) if is_leaf and callable(function) else function


class StateSpaceModel(eqx.Module):
    r"""A state-space model from three functions that return NumPyro distributions.

    The functions see one state, not a population. Write their parameters as array leaves of an
    `equinox.Module` with `__call__` (or a `jax.tree_util.Partial`) and new values recompile nothing, and
    gradients flow; in a plain function they are constants. Batch dimensions of a distribution are read as
    independent components of one state or one observation.

    Attributes:
        initial: `initial()`, the law of $x_0$.
        transition: `transition(t, x)`, the law of $x_t$ given $x_{t-1}$ = `x`; `t` is an int32 scalar >= 1.
        observation: `observation(t, x)`, the law of $y_t$ given $x_t$ = `x`; `t` >= 0.

    Raises:
        TypeError: a function does not take these arguments, does not return a NumPyro distribution, or
            `transition` draws another dtype than `initial`.
        ValueError: `transition` draws another shape than `initial`.
    """

    initial: Callable[[], Distribution] = eqx.field(converter=as_pytree)
    transition: Callable[[Array, Array], Distribution] = eqx.field(converter=as_pytree)
    observation: Callable[[Array, Array], Distribution] = eqx.field(converter=as_pytree)

    def __check_init__(self) -> None:
        """Traces the three functions once, on abstract values."""
        layout_of(self)

    def simulate(self, key: PRNGKey, num_steps: int) -> tuple[Array, Array]:
        """Draws states and observations.

        Args:
            key: PRNG key, consumed.
            num_steps: number of time steps T >= 0.

        Returns:
            `(states, observations)`, each with leading axis T.

        Raises:
            ValueError: `num_steps` is negative.
            TypeError: `num_steps` is not an integer.
        """
        return _simulate(self, key, whole_number("num_steps", num_steps))

    def bootstrap(self, ys: Numbers) -> "BootstrapModel":
        r"""The Feynman-Kac model of the bootstrap filter: moves by `transition`, weights by `observation`.

        Its normalising constant is the likelihood of the observations that are there. NaN marks a missing
        observation and is skipped: a missing $y_t$ weights every particle by 1, and of a vector with
        independent components (a batch of scalars, `Independent`, `.to_event()`) each missing component is
        left out. A vector with dependent components must be there or missing as a whole.

        Args:
            ys: observations [T, ...]; cast to the dtype that `observation` draws. T may be 0.

        Returns:
            A `FeynmanKac` in batch form with `num_steps` = T, data and parameters as array leaves.

        Raises:
            ValueError: `ys` has the wrong shape; or, where its values are known (outside `jit`), holds inf, a
                fraction where `observation` is integer-valued, or a vector of dependent components that is
                missing in part. Under `jit` such a vector makes the weights NaN, which filters flag.
            TypeError: `ys` is not numeric.
        """
        layout = layout_of(self)
        observations, observed = prepare_observations(ys, layout.observation, layout.block_ndim, self._example)
        # The type checker counts the abstract `num_steps` as an argument.
        return BootstrapModel(self, observations, observed, layout.own_generator)

    def guided(
        self,
        ys: Numbers,
        proposal: Callable[[Array, Array, Array], Distribution] | None = None,
        initial_proposal: Callable[[Array], Distribution] | None = None,
    ) -> FeynmanKac:
        r"""The Feynman-Kac model of a guided filter: moves by a proposal $q$ that has seen $y_t$.

        Weights are $G_t = f(x_t \mid x_{t-1})\, g(y_t \mid x_t) / q(x_t \mid x_{t-1}, y_t)$, so that the normalising
        constant is that of `bootstrap`. Where any component of $y_t$ is missing, a proposal of yours gives way to
        the transition; the default uses the components that are there.

        Args:
            ys: observations, as in `bootstrap`.
            proposal: `proposal(t, x, y)`, the law $q$ of $x_t$ given $x_{t-1}$ = `x` and $y_t$ = `y`; it must reach
                wherever f and g do. None is the locally optimal proposal: the law of $x_t$ given $x_{t-1}$ and $y_t$
                with the mean of the observation made linear around the mean of the transition. It is exact where
                observations are linear in the state with constant noise, and an extended Kalman proposal elsewhere.
                It needs a `transition` and an `observation` that are Normal or MultivariateNormal.
            initial_proposal: `initial_proposal(y)`, the law that $x_0$ is drawn from given $y_0$ = `y`. None is
                `initial()`; with `proposal=None` too it is the optimal one, if `initial()` is Gaussian.

        Returns:
            A `FeynmanKac` in batch form, data and parameters as array leaves.

        Raises:
            ValueError: as for `bootstrap`; or a proposal draws another shape than `initial`.
            TypeError: `proposal` is None and a distribution is not Gaussian; or a proposal cannot be called so, does
                not return a NumPyro distribution, or draws another dtype than `initial`.
        """
        from probinf.models._guided import guide  # which builds on this module

        return guide(self.bootstrap(ys), proposal, initial_proposal)

    def auxiliary(
        self,
        ys: Numbers,
        look_ahead: Callable[[Array, Array, Array], Array] | None = None,
        proposal: Callable[[Array, Array, Array], Distribution] | None = None,
        initial_proposal: Callable[[Array], Distribution] | None = None,
    ) -> FeynmanKac:
        r"""The Feynman-Kac model of an auxiliary filter: `guided`, resampled with a look-ahead at $y_t$.

        The filter resamples particles at time t - 1 by $W \psi_t$ and divides by $\psi_t$ afterwards: the evidence
        stays unbiased for any $\psi_t > 0$. One with lighter tails than $p(y_t \mid x_{t-1})$ can make its variance
        large.

        Args:
            ys: observations, as in `bootstrap`.
            look_ahead: `look_ahead(t, x, y)`, log $\psi_t$ of one particle $x_{t-1}$ = `x` given $y_t$ = `y`; not
                asked where a component of $y_t$ is missing. None is the density of $y_t$ given $x_{t-1}$ in the
                linearised model that `guided` describes; the filter is then fully adapted where that is exact.
            proposal: as in `guided`; pass `lambda t, x, y: model.transition(t, x)` to move by the transition.
            initial_proposal: as in `guided`.

        Returns:
            A `FeynmanKac` in batch form with a `look_ahead`.

        Raises:
            ValueError: as for `guided`; or `look_ahead` does not return a scalar.
            TypeError: as for `guided`; or `look_ahead` is None and a distribution is not Gaussian.
        """
        from probinf.models._guided import look_forward  # which builds on this module

        return look_forward(self.bootstrap(ys), look_ahead, proposal, initial_proposal)

    def _example(self) -> Array:
        # Any point of the support of y_0 will do, so the key is immaterial.
        keys = jax.random.split(jax.random.key(0))
        x = jnp.asarray(self.initial().sample(keys[0]))
        return jnp.asarray(self.observation(jnp.asarray(0, jnp.int32), x).sample(keys[1]))


class BootstrapModel(FeynmanKac):
    r"""A `StateSpaceModel` with data: $M_t$ is the transition and $G_t(x) = p(y_t \mid x_t = x)$.

    Attributes:
        model: the state-space model.
        observations: data [T, ...], with missing entries replaced by values that occur.
        observed: which blocks of independent components are there, [T, ...]; None for integer data.
        own_generator: whether the model can draw from particle keys (see `particle_keys`), which is faster.
    """

    batch: ClassVar[bool] = True

    model: StateSpaceModel
    observations: Array
    observed: Bool[Array, "..."] | None
    own_generator: bool = eqx.field(static=True)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.observations.shape[0]

    def init(self, key: PRNGKey, *num_particles: int) -> Array:
        """Draws N states from `initial()`."""
        (n,) = num_particles
        return self._map(lambda k: _draw(self.model.initial(), k), key, n)

    def mutate(self, key: PRNGKey, t: Array | int, x: Array) -> Array:
        """Draws the next state of each particle."""
        time = jnp.asarray(t, jnp.int32)
        return self._map(lambda k, one: _draw(self.model.transition(time, one), k), key, x.shape[0], x)

    def log_potential(self, t: Array | int, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log density of y_t at each particle; 0 where y_t is missing."""
        del x_prev
        time = jnp.asarray(t, jnp.int32)
        y = entry_at(self.observations, time)
        observed = None if self.observed is None else entry_at(self.observed, time)
        log_g = jax.vmap(lambda one: log_density(self.model.observation(time, one), y, observed))(x)
        if observed is not None and observed.ndim < y.ndim:
            # NumPyro calls a value that is NaN impossible; a vector missing in part must not pass for that.
            log_g = jnp.where(jnp.any(jnp.isnan(y)), jnp.nan, log_g)
        return log_g

    def log_transition(self, t: Array | int, x_prev: Array, x: Array) -> Float[Array, " n"]:
        """The log density of each move from `x_prev` to `x`."""
        time = jnp.asarray(t, jnp.int32)
        return jax.vmap(lambda before, one: log_density(self.model.transition(time, before), one))(x_prev, x)

    def log_backward(self, t: Array | int, x_prev: Array, x: Array) -> Float[Array, " n"]:
        """The log density of each move: observations do not look at the state before."""
        return self.log_transition(t, x_prev, x)

    def _map(self, draw: Callable, key: PRNGKey, num_particles: int, *items: Array) -> Array:
        return map_particles(draw, key, num_particles, *items, own_generator=self.own_generator)


class Layout(NamedTuple):
    """What abstract evaluation of a model's functions tells.

    Attributes:
        state, observation: shape and dtype of one draw.
        block_ndim: number of trailing axes of an observation whose components are dependent.
        own_generator: whether `initial` and `transition` can draw from particle keys.
    """

    state: jax.ShapeDtypeStruct
    observation: jax.ShapeDtypeStruct
    block_ndim: int
    own_generator: bool


def layout_of(model: StateSpaceModel) -> Layout:
    """Evaluates a model's functions abstractly, and checks that they fit together."""
    for name, arguments in (("initial", ()), ("transition", ("t", "x")), ("observation", ("t", "x"))):
        check_arguments(name, getattr(model, name), arguments)
    time = jax.ShapeDtypeStruct((), jnp.int32)
    state, _, own_initial = abstract_draw("initial", model.initial)
    moved, _, own_transition = abstract_draw("transition", model.transition, time, state)
    if moved.shape != state.shape:
        raise ValueError(
            f"`transition(t, x)` draws states of shape {moved.shape}, but `initial()` draws shape {state.shape}: "
            "make the two agree"
        )
    if moved.dtype != state.dtype:
        raise TypeError(
            f"`transition(t, x)` draws dtype {moved.dtype}, but `initial()` draws {state.dtype}: make the two agree"
        )
    observation, block_ndim, _ = abstract_draw("observation", model.observation, time, state)
    return Layout(state, observation, block_ndim, own_initial and own_transition)


def log_density(
    distribution: Distribution, value: Array, observed: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    """The log density of `value`, batch dimensions included, over the blocks that are `observed`."""
    terms = jnp.asarray(components(distribution).log_prob(value))
    if observed is not None:
        terms = jnp.where(observed, terms, 0)
    return terms if terms.ndim == 0 else jnp.sum(terms)


def components(distribution: Distribution) -> Distribution:
    """The distribution with its independent components as batch dimensions."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def check_arguments(
    name: str, function: Any, arguments: tuple[str, ...], returns: str = "a NumPyro distribution"
) -> None:
    """Raises `TypeError` unless `function` can be called with these positional arguments."""
    form = f"`{name}({', '.join(arguments)})`"
    if isinstance(function, Distribution) or not callable(function):
        raise TypeError(f"`{name}` is {function!r}: pass a function {form} that returns {returns}")
    try:
        inspect.signature(function).bind(*(None,) * len(arguments))
    except TypeError as error:
        raise TypeError(f"`{name}` cannot be called as {form}: {error}") from error
    except ValueError:  # no signature can be had (some builtins): the trace below decides
        return


def abstract_draw(name: str, function: Callable, *args: Any) -> tuple[jax.ShapeDtypeStruct, int, bool]:
    """Shape and dtype of a draw, the rank of its dependent blocks, and whether particle keys will do."""
    block_ndim = 0

    def draw(key: Array, *values: Array) -> Array:
        nonlocal block_ndim
        distribution = function(*values)
        if not isinstance(distribution, Distribution):
            raise TypeError(f"`{name}` returned {type(distribution)}: it must return a NumPyro distribution")
        block_ndim = components(distribution).event_dim
        return jnp.asarray(distribution.sample(key))

    shape = jax.eval_shape(lambda *values: draw(jax.random.key(0), *values), *args)
    return shape, block_ndim, draws_with_particle_keys(draw, *args)


def _draw(distribution: Distribution, key: PRNGKey) -> Array:
    return jnp.asarray(distribution.sample(key))


def entry_at(leaf: Array, t: Array) -> Array:
    """`leaf[t]`, t in range."""
    return jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False)


@eqx.filter_jit
def _simulate(model: StateSpaceModel, key: PRNGKey, num_steps: int) -> tuple[Array, Array]:
    if num_steps == 0:
        state, observation, *_ = layout_of(model)
        return jnp.zeros((0, *state.shape), state.dtype), jnp.zeros((0, *observation.shape), observation.dtype)
    key_states, key_observations = jax.random.split(key)
    keys = jax.random.split(key_states, num_steps)
    times: Int[Array, " t"] = jnp.arange(num_steps, dtype=jnp.int32)
    first = _draw(model.initial(), keys[0])

    def move(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        t, k = at
        x = _draw(model.transition(t, x), k)
        return x, x

    _, rest = jax.lax.scan(move, first, (times[1:], keys[1:]))
    states = jnp.concatenate([first[None], rest])
    draw = jax.vmap(lambda t, x, k: _draw(model.observation(t, x), k))
    return states, draw(times, states, jax.random.split(key_observations, num_steps))
