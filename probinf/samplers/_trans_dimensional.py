r"""`trans_dimensional`: reversible jump between models of different dimension, an instance of `mhg`.

With probability $j_m(x)$ choose move m, draw $u \sim q_m(\cdot \mid x)$ and map $(x, m, u)$ to $(x', m', u')$, where m'
is the reverse move and u' its noise, $\dim x + \dim u = \dim x' + \dim u'$; accept with

$$\min\Big\{1, \frac{\pi(x')\,j_{m'}(x')\,q_{m'}(u' \mid x')}{\pi(x)\,j_m(x)\,q_m(u \mid x)}
\Big|\det\frac{\partial(x', u')}{\partial(x, u)}\Big|\Big\}$$

Green (1995). All models share arrays of one shape; the determinant is that of the active block.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core import Target, choose, is_concrete, standard_normal
from probinf.core._choices import categorical
from probinf.core._types import Position, PRNGKey
from probinf.samplers._mhg import MHG, MHGState, mhg, relocate, require_floating
from probinf.samplers._model_space import ModelSpace, spread, without_padding


class TransDimensional(NamedTuple):
    """The position of a trans-dimensional chain.

    The log density of a target on such positions must not depend on padded parameters: sum over components with
    `jnp.where(mask, log_density_of_each, 0)`. It is a density with respect to Lebesgue measure on the active
    parameters of each model, and mass counts for the model.

    Attributes:
        model: [] int32, index or number of components; or [capacity] bool, the active slots (see `ModelSpace`).
        parameters: pytree; a leaf [capacity, ...] is active where the model says, and zero elsewhere.
        shared: pytree of parameters that every model has.
    """

    model: Array
    parameters: PyTree[Any]
    shared: PyTree[Any] = ()


class Move(NamedTuple):
    """The auxiliary variable of a jump.

    Attributes:
        choice: [] int32, which of the moves.
        noise: pytree of arrays of fixed shape, zero where the move does not use them.
    """

    choice: Array
    noise: PyTree[Any]


@runtime_checkable
class Moves(Protocol):
    """A finite number of moves between models, with their noise.

    Law: `apply(*apply(position, move)[:2])` gives back `(position, move)` on what is active; and where `apply` maps a
    position to a model, the active coordinates of position and noise are as many as before.
    """

    def probabilities(self, position: TransDimensional) -> Float[Array, " moves"]:
        """Of each move; they sum to at most 1, and what is missing is the probability of staying."""
        ...

    def sample_noise(self, key: PRNGKey, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """The noise of a chosen move; entries that are not active do not matter."""
        ...

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Its log density over the active entries, normalised."""
        ...

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """Masks of the noise, a pytree prefix; each has the leading axes of its leaves."""
        ...

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Any]:
        """`(position', reverse move, log_det)`; None as `log_det` has it computed by automatic differentiation."""
        ...


class JumpProposal(eqx.Module):
    """The auxiliary law of `trans_dimensional`: a move, and its noise. The last of its choices is to stay."""

    moves: Moves

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Move:
        """A move by `choose`, then its noise, in canonical form."""
        del target
        key_choice, key_noise = jax.random.split(key)
        position = state.point.position
        law = self.law(position)
        # Probabilities that are none have it stay where it is, and NaN as the density of that.
        choice = jnp.where(jnp.isnan(law[0]), law.shape[0] - 1, choose(key_choice, categorical, law[None])[0])
        known = jnp.where(self.stays(position, choice), 0, choice)
        noise = self.moves.sample_noise(key_noise, position, known)
        return Move(choice, without_padding(self.active_noise(position, choice, noise), noise))

    def log_prob(self, target: Target, state: MHGState, v: Move) -> Float[Array, ""]:
        """Log probability of the move plus log density of its noise; NaN where there is no such move."""
        del target
        position, law = state.point.position, self.law(state.point.position)
        exists = (v.choice >= 0) & (v.choice < law.shape[0])
        stays = self.stays(position, v.choice)
        log_choice = jnp.where(exists, jnp.log(law[jnp.where(exists, v.choice, 0)]), jnp.nan)
        log_noise = self.moves.log_prob_noise(position, Move(jnp.where(stays, 0, v.choice), v.noise))
        dtype = state.point.log_prior.dtype
        return log_choice.astype(dtype) + jnp.where(stays, 0, log_noise.astype(dtype))

    def law(self, position: TransDimensional) -> Float[Array, " choices"]:
        """The probabilities of all moves and of staying; NaN where they are no probabilities."""
        moves = self.moves.probabilities(position)
        total = jnp.sum(moves)
        valid = jnp.all(moves >= 0) & (total <= 1 + jnp.sqrt(jnp.finfo(moves.dtype).eps))
        law = jnp.append(moves, jnp.maximum(1 - total, 0))
        return jnp.where(valid, law / jnp.sum(law), jnp.nan)

    def stays(self, position: TransDimensional, choice: Array) -> Bool[Array, ""]:
        """Whether the choice is to stay."""
        return choice == jax.eval_shape(self.moves.probabilities, position).shape[0]

    def active_noise(self, position: TransDimensional, choice: Array, noise: PyTree[Any]) -> PyTree[Any]:
        """A mask of the shape of each leaf of the noise."""
        stays = self.stays(position, choice)
        masks = spread(self.moves.active_noise(position, jnp.where(stays, 0, choice)), noise)
        return jax.tree.map(lambda mask: mask & ~stays, masks)


class Jump(eqx.Module):
    """The involution of `trans_dimensional`: applies a move, and writes zeros into the padding."""

    proposal: JumpProposal
    space: ModelSpace

    def __call__(self, target: Target, state: MHGState, v: Move) -> tuple[MHGState, Move, Any]:
        """The state after the move, the reverse move, and the log-determinant or None."""
        position = state.point.position
        stays = self.proposal.stays(position, v.choice)
        known = Move(jnp.where(stays, 0, v.choice), v.noise)
        new, back, log_det = self.proposal.moves.apply(position, known)
        new, back = jax.tree.map(lambda a, b: jnp.where(stays, a, b), (position, v), (new, back))
        new = self.canonical(new)
        back = Move(back.choice, without_padding(self.proposal.active_noise(new, back.choice, back.noise), back.noise))
        if log_det is not None:
            log_det = jnp.where(stays, 0, jnp.asarray(log_det).astype(state.point.log_prior.dtype))
        return relocate(target, state, new), back, log_det

    def active(self, state: MHGState, v: Move) -> tuple[TransDimensional, Move]:
        """The masks of position and move."""
        position = state.point.position
        parameters = spread(self.space.active(position.model), position.parameters)
        everywhere = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), (position.model, position.shared))
        noise = self.proposal.active_noise(position, v.choice, v.noise)
        return TransDimensional(everywhere[0], parameters, everywhere[1]), Move(jnp.asarray(True), noise)

    def contains(self, position: TransDimensional) -> Bool[Array, ""]:
        """Whether there is such a model."""
        return self.space.contains(position.model)

    def canonical(self, position: TransDimensional) -> TransDimensional:
        """Zeros in the padding."""
        parameters = without_padding(self.space.active(position.model), position.parameters)
        return TransDimensional(position.model, parameters, position.shared)


def trans_dimensional(moves: Moves, space: ModelSpace, *, check: bool = False) -> MHG:
    """Reversible jump: the Metropolis-Hastings-Green kernel of moves between models.

    Leaves the target invariant for moves that keep the law of `Moves`. A move whose reverse has probability zero is
    rejected. A move that changes the number of active coordinates, or leads to a model outside the space, is
    rejected and flagged `BAD_INVOLUTION`, which freezes the chain; probabilities below zero or of a sum over 1,
    and NaN densities, are rejected and flagged `DIVERGENT`. A starting point of no model is `NONFINITE_INIT`.

    Args:
        moves: an `equinox.Module` with the methods of `Moves`, tunables as array leaves.
        space: which parameters each model has, such as `Components(capacity)`.
        check: as for `mhg`: verifies round trip and determinants at each proposal.

    Returns:
        A `Kernel` on positions `TransDimensional`. The discrete choices go through `choose`.

    Raises:
        TypeError: `moves` or `space` lacks what it needs.
    """
    if not isinstance(moves, Moves):
        raise TypeError(f"`moves` needs the methods of the protocol `Moves`, but is a {type(moves).__name__}")
    if not isinstance(space, ModelSpace):
        raise TypeError(f"`space` must be a model space, such as `Components(10)`, but is a {type(space).__name__}")
    proposal = JumpProposal(moves)
    return mhg(proposal, Jump(proposal, space), check=check)


class ActiveSteps(eqx.Module):
    """The one move of `active_random_walk`: a normal step of the active parameters and the shared ones."""

    scale: PyTree[Any]
    space: ModelSpace

    def probabilities(self, position: TransDimensional) -> Float[Array, " 1"]:
        """One."""
        return jnp.ones(1, floating_type(position))

    def sample_noise(self, key: PRNGKey, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """Standard normal numbers like the parameters and the shared ones."""
        del choice
        require_floating("an active random walk", (position.parameters, position.shared))
        flat, unravel = ravel_pytree((position.parameters, position.shared))
        return unravel(standard_normal(key, flat.shape, flat.dtype))

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Log density without the normalising constant, which a move does not change."""
        return -0.5 * jnp.sum(ravel_pytree(move.noise)[0] ** 2)

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """Those of the position."""
        return self.space.active(position.model), jnp.asarray(True) if jax.tree.leaves(position.shared) else ()

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Any]:
        """The shifted position, the opposite step, and log-determinant 0."""
        here = (position.parameters, position.shared)

        def shifted(scale: Any, part: Any, noise: Any) -> Any:
            return jax.tree.map(lambda x, z: x + jnp.asarray(scale).astype(x.dtype) * z, part, noise)

        there = jax.tree.map(shifted, self.scale, here, move.noise)
        # A traced scale that is not positive would stand still and look healthy: NaN makes it a flagged rejection.
        positive = jnp.all(jnp.stack([jnp.all(scale > 0) for scale in jax.tree.leaves(self.scale)]))
        back = jax.tree.map(lambda z: jnp.where(positive, -z, jnp.nan), move.noise)
        return TransDimensional(position.model, *there), Move(move.choice, back), jnp.zeros(())


def active_random_walk(space: ModelSpace, scale: Any = 0.5, *, check: bool = False) -> MHG:
    """Random-walk Metropolis within a model: steps scale * z of the active parameters, z standard normal.

    Leaves any target on `TransDimensional` positions invariant; the model stays. To be alternated with jumps, by
    `cycle` or `mixture`.

    Args:
        space: which parameters each model has.
        scale: positive scalar; or a pytree prefix of `(parameters, shared)` of them, each broadcasting to its leaves.
        check: as for `mhg`.

    Raises:
        ValueError: a concrete scale is not positive.
        TypeError: (at the first step) a leaf of the parameters is not a floating-point array.
    """
    scale = jax.tree.map(jnp.asarray, scale)
    if is_concrete(scale) and not all(np.all(leaf > 0) for leaf in jax.tree.leaves(scale)):
        raise ValueError(f"`scale` must be positive, but is {scale}: try a value such as 0.1")
    return trans_dimensional(ActiveSteps(scale, space), space, check=check)


def floating_type(position: Position) -> Any:
    """The floating-point type of the position; the default one where nothing of it is continuous."""
    floating = [leaf.dtype for leaf in jax.tree.leaves(position) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floating) if floating else jnp.result_type(float)
