r"""Guided and auxiliary filters of a state-space model, as Feynman-Kac models.

A guided filter moves by a proposal $q$ that has seen $y_t$ and weights by
$G_t(x_{t-1}, x_t) = f(x_t \mid x_{t-1})\, g(y_t \mid x_t) / q(x_t \mid x_{t-1}, y_t)$: since $q\, G_t = f g$, all that
is estimated is what the bootstrap filter estimates (Doucet, Godsill, Andrieu 2000). An auxiliary filter resamples by
$W \psi_t(x_{t-1})$ in place of $W$ and takes $\psi_t$ out of the weights afterwards (Pitt, Shephard 1999, in the form
of Johansen, Doucet 2008). Chopin and Papaspiliopoulos (2020), chapter 10.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from probinf.core import FeynmanKac, PRNGKey, cond, map_particles
from probinf.core._resample import unwrap_key
from probinf.models._optimal_proposal import Moment, OptimalProposal, is_gaussian, is_linear, moment_of
from probinf.models._state_space import (
    BootstrapModel,
    abstract_draw,
    as_pytree,
    check_arguments,
    layout_of,
    log_density,
)


@runtime_checkable
class StepProposal(Protocol):
    """How a population is drawn at a time, from states `x_prev` [N, ...] or, where that is None, from nothing.

    Law: `draw` has the density `log_density`, and `log_weight` is log f(x | x_prev) g(y | x) less it.
    """

    def draw(self, fk: BootstrapModel, key: PRNGKey, at: Moment, x_prev: Array | None, num_particles: int) -> Array:
        """Draws states [N, ...]."""
        ...

    def log_density(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log density of `draw` at `x`."""
        ...

    def log_weight(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log weight of `x`."""
        ...


class PriorProposal(eqx.Module):
    """Draws as the model does."""

    def draw(self, fk: BootstrapModel, key: PRNGKey, at: Moment, x_prev: Array | None, num_particles: int) -> Array:
        """Draws from the transition, or at time 0 from the initial law."""
        return fk.init(key, num_particles) if x_prev is None else fk.mutate(key, at.t, x_prev)

    def log_density(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log density of the model at `x`."""
        if x_prev is None:
            return jax.vmap(lambda one: log_density(fk.model.initial(), one))(x)
        return fk.log_transition(at.t, x_prev, x)

    def log_weight(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log density of the observation."""
        return fk.log_potential(at.t, x_prev, x)


class ChosenProposal(eqx.Module):
    """Draws from `law(t, x_prev, y)`, at time 0 `law(y)`; as the model does where a component of y is missing.

    Attributes:
        law: the user's function.
        own_generator: whether the law can draw from particle keys.
    """

    law: Callable[..., Distribution]
    own_generator: bool = eqx.field(static=True)

    def draw(self, fk: BootstrapModel, key: PRNGKey, at: Moment, x_prev: Array | None, num_particles: int) -> Array:
        """Draws from the law."""
        words, restore = unwrap_key(key)
        items = () if x_prev is None else (x_prev,)

        def one(key: PRNGKey, *x_prev: Array) -> Array:
            return jnp.asarray(self._law(at, *x_prev).sample(key))

        def chosen(words: Array) -> Array:
            return map_particles(one, restore(words), num_particles, *items, own_generator=self.own_generator)

        def prior(words: Array) -> Array:
            return PriorProposal().draw(fk, restore(words), at, x_prev, num_particles)

        return _if_all_there(at, chosen, prior, words)

    def log_density(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """The log density of the law at `x`."""
        items = () if x_prev is None else (x_prev,)

        def chosen() -> Array:
            return jax.vmap(lambda x, *x_prev: log_density(self._law(at, *x_prev), x))(x, *items)

        return _if_all_there(at, chosen, lambda: PriorProposal().log_density(fk, at, x_prev, x))

    def log_weight(self, fk: BootstrapModel, at: Moment, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """Log of f g / q."""
        log_g = fk.log_potential(at.t, x_prev, x)

        def ratio() -> Array:
            log_q = self.log_density(fk, Moment(at.t, at.y, None), x_prev, x)
            return PriorProposal().log_density(fk, at, x_prev, x) - log_q

        # A branch, not a selection: where y is missing the ratio may be NaN, and so would be its gradient.
        return log_g + _if_all_there(at, ratio, lambda: jnp.zeros_like(log_g)).astype(log_g.dtype)

    def _law(self, at: Moment, *x_prev: Array) -> Distribution:
        return self.law(at.t, *x_prev, at.y) if x_prev else self.law(at.y)


def _if_all_there(at: Moment, then: Callable[..., Array], otherwise: Callable[..., Array], *operands: Array) -> Array:
    return then(*operands) if at.there is None else cond(jnp.all(at.there), then, otherwise, *operands)


class AbstractGuided(FeynmanKac):
    r"""A `StateSpaceModel` with data: $M_t$ is a proposal $q$ and $G_t = f g / q$.

    Attributes:
        prior: the model of the bootstrap filter.
        start: how x_0 is drawn.
        moves: how x_t is drawn.
    """

    batch: ClassVar[bool] = True

    prior: BootstrapModel
    start: StepProposal
    moves: StepProposal

    @property
    def num_steps(self) -> int:
        """T."""
        return self.prior.num_steps

    def init(self, key: PRNGKey, *num_particles: int) -> Array:
        """Draws N states given y_0."""
        if self.num_steps == 0:
            return self.prior.init(key, *num_particles)
        return self.start.draw(self.prior, key, moment_of(self.prior, 0), None, *num_particles)

    def mutate(self, key: PRNGKey, t: Array | int, x: Array) -> Array:
        """Draws the next state of each particle given y_t."""
        return self.moves.draw(self.prior, key, moment_of(self.prior, t), x, x.shape[0])

    def log_potential(self, t: Array | int, x_prev: Array | None, x: Array) -> Float[Array, " n"]:
        """Log of f g / q; where y_t is missing the proposal is f, and this is 0."""
        proposal = self.start if x_prev is None else self.moves
        return proposal.log_weight(self.prior, moment_of(self.prior, t), x_prev, x)

    def log_transition(self, t: Array | int, x_prev: Array, x: Array) -> Float[Array, " n"]:
        """The log density of the proposal."""
        return self.moves.log_density(self.prior, moment_of(self.prior, t), x_prev, x)

    def log_backward(self, t: Array | int, x_prev: Array, x: Array) -> Float[Array, " n"]:
        """The log density of the transition: q G = f g, and g does not look at `x_prev`."""
        return self.prior.log_transition(t, x_prev, x)


class GuidedModel(AbstractGuided):
    """The model of a guided filter."""


class AuxiliaryModel(AbstractGuided):
    r"""The model of a guided filter with a look-ahead $\psi_t(x_{t-1})$.

    Attributes:
        guess: `guess(t, x, y)`, the log of psi for one particle; or the linearised model, for its density of y_t.
    """

    guess: Callable[[Array, Array, Array], Array] | OptimalProposal

    def look_ahead(self, t: Array | int, x: Array) -> Float[Array, " n"]:
        """Log psi of particles at t - 1; 0 where y_t is missing."""
        at, guess = moment_of(self.prior, t), self.guess
        if isinstance(guess, OptimalProposal):
            return guess.log_predictive(self.prior, at, x)
        log_psi = jax.vmap(lambda one: jnp.asarray(guess(at.t, one, at.y)))(x)
        return log_psi if at.there is None else jnp.where(jnp.all(at.there), log_psi, 0)


def guide(fk: BootstrapModel, proposal: Any, initial_proposal: Any) -> GuidedModel:
    """See `StateSpaceModel.guided`."""
    layout = layout_of(fk.model)
    time = jax.ShapeDtypeStruct((), jnp.int32)
    if proposal is None:
        moves = _optimal(fk, "proposal=")
    else:
        moves = _chosen("proposal", proposal, ("t", "x", "y"), layout, time, layout.state, layout.observation)
    if initial_proposal is not None:
        start = _chosen("initial_proposal", initial_proposal, ("y",), layout, layout.observation)
    elif proposal is None and is_gaussian(fk.model.initial()):
        start = moves
    else:
        start = PriorProposal()
    return GuidedModel(fk, start, moves)


def look_forward(fk: BootstrapModel, look_ahead: Any, proposal: Any, initial_proposal: Any) -> AuxiliaryModel:
    """See `StateSpaceModel.auxiliary`."""
    guided = guide(fk, proposal, initial_proposal)
    parts = (guided.prior, guided.start, guided.moves)
    if look_ahead is None:
        return AuxiliaryModel(*parts, _optimal(fk, "look_ahead="))
    check_arguments("look_ahead", look_ahead, ("t", "x", "y"), returns="a scalar, log psi")
    layout = layout_of(fk.model)
    log_psi = jax.eval_shape(look_ahead, jax.ShapeDtypeStruct((), jnp.int32), layout.state, layout.observation)
    if getattr(log_psi, "shape", None) != ():
        raise ValueError(f"`look_ahead(t, x, y)` returned {log_psi}: it must return one number, log psi of a particle")
    return AuxiliaryModel(*parts, as_pytree(look_ahead))


def _optimal(fk: BootstrapModel, mend: str) -> OptimalProposal:
    """Raises `TypeError` unless transition and observation are Gaussian."""
    layout = layout_of(fk.model)

    def look(t: Array, x: Array) -> None:
        for name in ("transition", "observation"):
            found = getattr(fk.model, name)(t, x)
            if not is_gaussian(found):
                raise TypeError(
                    f"`{name}` returns {type(found).__name__}, but the linearised Gaussian model needs Normal or "
                    f"MultivariateNormal: pass `{mend}` of your own"
                )

    jax.eval_shape(look, jax.ShapeDtypeStruct((), jnp.int32), layout.state)
    return OptimalProposal(is_linear(fk.model, layout.state, layout.observation))


def _chosen(name: str, law: Any, arguments: tuple[str, ...], layout: Any, *structs: Any) -> ChosenProposal:
    check_arguments(name, law, arguments)
    draw, _, own_generator = abstract_draw(name, law, *structs)
    form = f"`{name}({', '.join(arguments)})`"
    if draw.shape != layout.state.shape:
        raise ValueError(
            f"{form} draws states of shape {draw.shape}, but `initial()` draws shape {layout.state.shape}: make the "
            "two agree"
        )
    if draw.dtype != layout.state.dtype:
        raise TypeError(f"{form} draws dtype {draw.dtype}, but `initial()` draws {layout.state.dtype}: make them agree")
    return ChosenProposal(as_pytree(law), own_generator)
