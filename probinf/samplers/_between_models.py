r"""`between_models`: jumps in a table of models, each with maps of the user's there and back.

A jump maps $(\theta, u)$ in its source one to one to $(\theta', u')$ in its destination, with $u \sim q$ and
$u' \sim q'$; of nested models the larger needs no noise. Green (1995), section 3.3.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core import is_concrete, whole_number
from probinf.core._types import PRNGKey
from probinf.samplers._birth_death import is_law
from probinf.samplers._mhg import MHG
from probinf.samplers._model_space import ModelTable
from probinf.samplers._trans_dimensional import Move, TransDimensional, floating_type, trans_dimensional


class ModelJump(eqx.Module):
    """A jump between two models, with the maps there and back.

    Law: `backward(*forward(parameters, noise)) == (parameters, noise)`, on active entries. Parameters are padded
    arrays; what a map leaves in the padding of its result does not matter.

    Attributes:
        source, destination: indices of models.
        forward: (parameters, noise) -> (parameters, noise), from source to destination.
        backward: its inverse.
        forward_noise: law of the noise of `forward`, with `sample(key)` and `log_prob(noise)`; None, for noise `()`.
        backward_noise: that of `backward`.
        log_det: (parameters, noise) -> log |det| of the derivative of `forward`; None for automatic differentiation.
    """

    source: int = eqx.field(static=True)
    destination: int = eqx.field(static=True)
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    forward_noise: Any = None
    backward_noise: Any = None
    log_det: Callable[..., Any] | None = None

    def __check_init__(self) -> None:
        """Raises `TypeError` or `ValueError`, with the name of the argument, for what cannot be a jump."""
        whole_number("source", self.source)
        whole_number("destination", self.destination)
        for name, value in (("forward", self.forward), ("backward", self.backward)):
            if not callable(value):
                raise TypeError(
                    f"`{name}` must be a function `(parameters, noise) -> (parameters, noise)`, but is {value!r}"
                )
        for name, law in (("forward_noise", self.forward_noise), ("backward_noise", self.backward_noise)):
            if law is not None and not is_law(law):
                raise TypeError(
                    f"`{name}` must be a law of noise, with `sample` and `log_prob`, or None, but is {law!r}"
                )
        if not (self.log_det is None or callable(self.log_det)):
            raise TypeError(
                f"`log_det` must be a function `(parameters, noise)`, or None, but is {self.log_det!r}: for a constant "
                "write `lambda parameters, noise: constant`"
            )


class BetweenModels(eqx.Module):
    """The moves of `between_models`: choice 2j is jump j forward, 2j + 1 backward.

    Attributes:
        jumps: the jumps.
        weights: [jumps], in proportion to which one is chosen among those possible from a model.
    """

    jumps: tuple[ModelJump, ...]
    weights: Array

    def probabilities(self, position: TransDimensional) -> Float[Array, " moves"]:
        """In proportion to the weights, of the jumps from this model; NaN if a weight is not positive and finite."""
        ends = jnp.asarray(
            [end for jump in self.jumps for end in (jump.source, jump.destination)], position.model.dtype
        )
        weights = jnp.repeat(self.weights.astype(floating_type(position)), 2)
        valid = jnp.all((weights > 0) & jnp.isfinite(weights))
        weights = jnp.where(ends == position.model, weights, 0)
        total = jnp.sum(weights)
        return jnp.where(valid, weights / jnp.where(total == 0, 1, total), jnp.nan)

    def sample_noise(self, key: PRNGKey, position: TransDimensional, choice: Int[Array, ""]) -> Float[Array, " noise"]:
        """The noise of the jump, as one vector padded with zeros."""
        dtype, size, laws = floating_type(position), self._size(), self._laws()
        # All are drawn and one is kept: a key under `lax.switch` counts as used by every branch.
        keys = jax.random.split(key, len(laws))
        drawn = [() if law is None else law.sample(keys[i]) for i, law in enumerate(laws)]
        return jnp.stack([_pad(noise, size, dtype) for noise in drawn])[choice]

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Its log density."""
        zero = jnp.zeros((), floating_type(position))

        def branch(law: Any) -> Callable[..., Array]:
            if law is None:
                return lambda noise: zero
            return lambda noise: jnp.sum(law.log_prob(_unpad(law, noise))).astype(zero.dtype)

        return jax.lax.switch(move.choice, [branch(law) for law in self._laws()], move.noise)

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> Bool[Array, " noise"]:
        """As many entries as the noise of the jump has."""
        return jnp.arange(self._size()) < jnp.asarray([_size_of(law) for law in self._laws()])[choice]

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Any]:
        """The map of the jump, and its reverse."""
        branches = [branch for jump in self.jumps for branch in self._branches(jump)]
        model, parameters, noise, log_det = jax.lax.switch(move.choice, branches, position, move.noise)
        back = jnp.where(move.choice % 2 == 0, move.choice + 1, move.choice - 1)
        given = self.jumps[0].log_det is not None
        return TransDimensional(model, parameters, position.shared), Move(back, noise), log_det if given else None

    def _branches(self, jump: ModelJump) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def go(
            position: TransDimensional, noise: Array, there: Callable[..., Any], law: Any, law_back: Any, end: int
        ) -> tuple[Any, ...]:
            parameters, left = there(position.parameters, _unpad(law, noise))
            if ravel_pytree(left)[0].size != _size_of(law_back):
                raise ValueError(
                    f"a map to model {end} returned {ravel_pytree(left)[0].size} numbers of noise, but the law of the "
                    f"way back has {_size_of(law_back)}: return `(parameters, noise)`, with `()` where there is no law"
                )
            model = jnp.full_like(position.model, end)
            return model, parameters, _pad(left, noise.size, noise.dtype), _unpad(law, noise), left

        def log_det(parameters: Any, noise: Any) -> Array:
            zero = jnp.zeros((), floating_type(parameters))
            return zero if jump.log_det is None else jnp.asarray(jump.log_det(parameters, noise)).astype(zero.dtype)

        def forward(position: TransDimensional, noise: Array) -> tuple[Any, ...]:
            laws = (jump.forward_noise, jump.backward_noise)
            model, parameters, back, used, _ = go(position, noise, jump.forward, *laws, jump.destination)
            return model, parameters, back, log_det(position.parameters, used)

        def backward(position: TransDimensional, noise: Array) -> tuple[Any, ...]:
            laws = (jump.backward_noise, jump.forward_noise)
            model, parameters, back, _, left = go(position, noise, jump.backward, *laws, jump.source)
            return model, parameters, back, -log_det(parameters, left)

        return forward, backward

    def _laws(self) -> list[Any]:
        return [law for jump in self.jumps for law in (jump.forward_noise, jump.backward_noise)]

    def _size(self) -> int:
        return max(_size_of(law) for law in self._laws())


def between_models(jumps: Sequence[ModelJump], masks: PyTree[Any], *, weights: Any = None, check: bool = False) -> MHG:
    """Reversible jump in a table of models, by maps of the user's.

    Leaves any target on `TransDimensional` positions whose `model` is an index invariant. From a model one of its
    jumps is chosen, in proportion to the weights; a model without jumps stays.

    Args:
        jumps: such as `ModelJump(0, 1, forward, backward, forward_noise=law)`.
        masks: [num_models, capacity] bool, which parameters each model has; or a pytree prefix of the parameters of
            such masks, whose axes after the first are the leading axes of the parameters.
        weights: [jumps], positive; None for equal ones. Traced ones that are not are flagged `DIVERGENT` at every step,
            and the chain stays.
        check: as for `mhg`.

    Returns:
        A `Kernel` on positions `TransDimensional`.

    Raises:
        ValueError: no jumps, a model outside the table, masks or weights of a wrong shape, weights that are not
            positive, or a log-determinant given for some jumps only.
        TypeError: `jumps` holds something else, masks are not of type bool, or weights are no real numbers.
    """
    if not isinstance(jumps, Iterable):
        raise TypeError(f"`jumps` must be a sequence of `ModelJump`, but is {jumps!r}: put it into a list")
    jumps, space = tuple(jumps), ModelTable(masks)
    if not jumps:
        raise ValueError("`jumps` is empty: needed at least one `ModelJump`")
    for i, jump in enumerate(jumps):
        if not isinstance(jump, ModelJump):
            raise TypeError(f"`jumps[{i}]` must be a `ModelJump(source, destination, ...)`, but is {jump!r}")
        if not (0 <= jump.source < space.num_models and 0 <= jump.destination < space.num_models):
            raise ValueError(
                f"`jumps[{i}]` goes from model {jump.source} to {jump.destination}, but `masks` has {space.num_models} "
                "models: count from 0, or add a row to `masks`"
            )
    if len({jump.log_det is None for jump in jumps}) == 2:
        raise ValueError("`log_det` is given for some jumps and not for others: give it for all, or for none")
    weights = jnp.ones(len(jumps)) if weights is None else weights
    needed = f"`weights` must be {len(jumps)} positive numbers, one a jump, but is {weights!r}"
    if not all(eqx.is_array_like(leaf) and not np.iscomplexobj(leaf) for leaf in jax.tree.leaves(weights)):
        raise TypeError(needed)
    weights = jnp.asarray(weights)
    if weights.shape != (len(jumps),):
        raise ValueError(needed)
    if is_concrete(weights) and not np.all((weights > 0) & (weights < np.inf)):
        raise ValueError(f"{needed}: leave out a jump that is never to be made")
    return trans_dimensional(BetweenModels(jumps, weights), space, check=check)


def _shape_of(law: Any) -> Any:
    return () if law is None else jax.eval_shape(law.sample, jax.random.key(0))


def _size_of(law: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(_shape_of(law)))


def _pad(noise: PyTree[Any], size: int, dtype: Any) -> Float[Array, " size"]:
    flat = ravel_pytree(noise)[0].astype(dtype)
    return jnp.concatenate([flat, jnp.zeros(size - flat.size, dtype)])


def _unpad(law: Any, noise: Float[Array, " size"]) -> PyTree[Any]:
    """The first entries, as an outcome of the law."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _shape_of(law)))
    return unravel(noise[: flat.size].astype(flat.dtype))
