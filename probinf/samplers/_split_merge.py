r"""`split_merge`: one component becomes two, $(a, b) = g(\theta_i, u)$, and two become one.

A split of one of k components into two ordered slots is accepted with

$$\min\Big\{1, \frac{\pi(x')\,m_{ab}(x')}{\pi(x)\,s_i(x)\,q(u)}
\Big|\det\frac{\partial(a, b)}{\partial(\theta_i, u)}\Big|\Big\},$$

s and m the probabilities of the split and of the merge that undoes it. Richardson, Green (1997); Green (1995).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from probinf.core._types import PRNGKey
from probinf.samplers._birth_death import (
    is_law,
    law_of,
    require_probability,
    require_slots,
    require_weights,
    slot_moves,
)
from probinf.samplers._mhg import MHG
from probinf.samplers._model_space import Slots, component_at, put
from probinf.samplers._trans_dimensional import Move, TransDimensional, floating_type, trans_dimensional


class _Place(eqx.Module):
    """What a choice means: a split into `slot` and a new slot `other`, or the merge of those two into `slot`.

    The slots are numbered as they are when both components are there.
    """

    splits: Array
    slot: Array
    other: Array


class SplitMerge(eqx.Module):
    """The moves of `split_merge`: of capacity c, choice i c + j splits into slots i and j, and c^2 + i c + j merges.

    Attributes:
        split: (component, u) -> (a, b).
        merge: (a, b) -> (component, u).
        noise: law of u, or (position, slot) -> such a law.
        space: the slots.
        split_probability: [] of a split where splits and merges are possible.
        merge_weights: position -> [capacity, capacity], or None for equal ones.
    """

    split: Callable[..., Any]
    merge: Callable[..., Any]
    noise: Any
    space: Slots
    split_probability: Array
    merge_weights: Callable[[TransDimensional], Array] | None = None

    def probabilities(self, position: TransDimensional) -> Float[Array, " moves"]:
        """Splits of all components into all slots alike, merges in proportion to the weights of ordered pairs."""
        dtype = floating_type(position)
        merging = self._merging(position, dtype)
        # Slot i holds one half and slot j the other: afterwards, i without j must be an occupied slot of now.
        splitting = self._splitting(position).astype(dtype)
        up, down = slot_moves(self.split_probability.astype(dtype), jnp.ravel(splitting), jnp.ravel(merging))
        return jnp.concatenate([up, down])

    def sample_noise(self, key: PRNGKey, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """The noise of a split."""
        return self._law(position, choice).sample(key)

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Log density of the noise of a split; 0 for a merge."""
        log_prob = jnp.sum(self._law(position, move.choice).log_prob(move.noise))
        return jnp.where(self._place(position, move.choice).splits, log_prob, jnp.zeros_like(log_prob))

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """All of it for a split."""
        return self._place(position, choice).splits

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Any]:
        """The component is split, or the pair merged, with the determinant by automatic differentiation."""
        place = self._place(position, move.choice)
        model, parameters = position.model, position.parameters
        now = self._before_insertion(place)
        first, second = component_at(parameters, place.slot), component_at(parameters, place.other)
        merged, noise = self.merge(first, second)
        _require_alike((component_at(parameters, now), move.noise), (merged, noise))
        # Both ways pass through one component and the noise that splits it, where the derivative is taken once.
        whole = jax.tree.map(
            lambda x, y: jnp.where(place.splits, x, y), (component_at(parameters, now), move.noise), (merged, noise)
        )
        (a, b), log_det = _with_log_det(self.split, *whole)
        halved = jax.tree.map(lambda values, new: put(values, now, new), parameters, a)
        larger = self.space.insert(model, halved, place.other, b)
        joined = jax.tree.map(lambda values, new: put(values, place.slot, new), parameters, merged)
        smaller = self.space.remove(model, joined, place.other)
        model, parameters = jax.tree.map(lambda x, y: jnp.where(place.splits, x, y), larger, smaller)
        noise = jax.tree.map(lambda u: jnp.where(place.splits, jnp.zeros_like(u), u), noise)
        squared = self._capacity(position) ** 2
        back = Move(jnp.where(place.splits, move.choice + squared, move.choice - squared), noise)
        there = TransDimensional(model, parameters, position.shared)
        # Noise that no split draws is rejected for that, and its derivative may not exist.
        possible = self.log_prob_noise(there, back) > -jnp.inf
        return there, back, jnp.where(possible, jnp.where(place.splits, log_det, -log_det), 0)

    def _splitting(self, position: TransDimensional) -> Array:
        """[i, j]: whether a component can be split into slots i and j."""
        vacant = self.space.vacant(position.model)
        slots = jnp.arange(vacant.shape[0], dtype=jnp.int32)
        # Slot i of those that are occupied when j is: the component was there before, if it is not j itself.
        occupied = jax.vmap(lambda j: self.space.active(self.space.insert(position.model, (), j, ())[0]))(slots).T
        return occupied & vacant[None, :] & (slots[:, None] != slots[None, :])

    def _merging(self, position: TransDimensional, dtype: Any) -> Array:
        occupied = self.space.active(position.model)
        enough = jnp.sum(occupied) > max(self.space.minimum, 1)
        pairs = occupied[:, None] & occupied[None, :] & ~jnp.eye(occupied.shape[0], dtype=bool) & enough
        weights = jnp.ones(pairs.shape, dtype) if self.merge_weights is None else self.merge_weights(position)
        return jnp.where(pairs, weights.astype(dtype), 0)

    def _before_insertion(self, place: _Place) -> Array:
        """The slot that `slot` had before the one of `other` was inserted."""
        return self.space.before_insertion(place.slot, place.other)

    def _place(self, position: TransDimensional, choice: Array) -> _Place:
        capacity = self._capacity(position)
        pair = choice % capacity**2
        return _Place(choice < capacity**2, pair // capacity, pair % capacity)

    def _law(self, position: TransDimensional, choice: Array) -> Any:
        # The law of a split may depend on the component, which a merge puts where the split found it.
        return law_of(self.noise, position, self._before_insertion(self._place(position, choice)))

    def _capacity(self, position: TransDimensional) -> int:
        return self.space.active(position.model).shape[0]


def split_merge(
    split: Callable[..., Any],
    merge: Callable[..., Any],
    noise: Any,
    space: Slots,
    *,
    split_probability: Any = 0.5,
    merge_weights: Callable[[TransDimensional], Array] | None = None,
    check: bool = False,
) -> MHG:
    """Splits and merges of components, by reversible jump.

    Leaves any target on the lists of `Components`, exchangeable or not, or on `Subsets`, invariant. A component
    chosen uniformly splits into two; the second goes to a vacant slot chosen uniformly. An ordered pair merges. The
    determinant of `split` is found by automatic differentiation of the components concerned.

    Args:
        split: (component, u) -> (a, b), one to one and differentiable.
        merge: its inverse, (a, b) -> (component, u).
        noise: law of u, with `sample(key)` and `log_prob(u)` (normalised), such as a NumPyro distribution; or a
            function `(position, slot)` of the component to be split that returns one.
        space: `Components(capacity)` or `Subsets(capacity)`.
        split_probability: scalar in (0, 1), of a split where both are possible.
        merge_weights: position -> [capacity, capacity], in proportion to which an ordered pair merges; None for a
            uniform choice. A split into a pair of weight zero is rejected.
        check: as for `mhg`; verifies that `merge` undoes `split`.

    Returns:
        A `Kernel` on positions `TransDimensional`.

    Raises:
        TypeError: `space` has no slots, or `split`, `merge`, `noise` or `merge_weights` is not what it should be.
        ValueError: `split_probability` is no scalar, or concrete and not in (0, 1); at the first step, component and u
            together do not have as many numbers as two components.
    """
    if not callable(split):
        raise TypeError(f"`split` must be a function `(component, u) -> (a, b)`, but is {split!r}")
    if not callable(merge):
        raise TypeError(f"`merge` must be a function `(a, b) -> (component, u)`, but is {merge!r}")
    if not (is_law(noise) or callable(noise)):
        raise TypeError(
            "`noise` must have `sample` and `log_prob`, or be a function `(position, slot)` that returns such a law, "
            f"but is {noise!r}"
        )
    require_weights("merge_weights", merge_weights, "[capacity, capacity]")
    probability = require_probability("split_probability", split_probability)
    moves = SplitMerge(split, merge, noise, require_slots(space), probability, merge_weights)
    return trans_dimensional(moves, space, check=check)


def _require_alike(needed: tuple[Any, Any], found: tuple[Any, Any]) -> None:
    """Raises `ValueError` where what `merge` returned is not of the shape of what `split` takes."""

    def layout(tree: PyTree[Any]) -> PyTree[Any]:
        return jax.tree.map(lambda x: (jnp.shape(x), bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))), tree)

    for name, one, other in zip(("a component", "noise"), map(layout, needed), map(layout, found), strict=True):
        if one != other:
            raise ValueError(
                f"`merge` returned {name} of (shape, whether continuous) {other}, but `split` takes {one}: component "
                "and u together must have as many numbers as two components"
            )


def _with_log_det(function: Callable[..., Any], first: PyTree[Any], second: PyTree[Any]) -> tuple[Any, Array]:
    """`function(first, second)` and the log absolute determinant of its derivative over continuous leaves."""
    result = function(first, second)
    moving, fixed = eqx.partition((first, second), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(moving)

    def mapped(coordinates: Float[Array, " n"]) -> Float[Array, " m"]:
        return ravel_pytree(eqx.filter(function(*eqx.combine(unravel(coordinates), fixed)), eqx.is_inexact_array))[0]

    if flat.size == 0:
        return result, jnp.zeros(())
    jacobian = jax.jacfwd(mapped)(flat)
    if jacobian.shape[0] != jacobian.shape[1]:
        raise ValueError(
            f"`split` maps {jacobian.shape[1]} continuous numbers to {jacobian.shape[0]}: component and u "
            "together must have as many as two components"
        )
    return result, jnp.linalg.slogdet(jacobian)[1]
