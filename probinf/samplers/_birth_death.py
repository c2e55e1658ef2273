r"""`birth_death`: components come and go, the jump $\theta' = (\theta, u)$ with $u \sim q$ and its reverse.

With b(x) the probability of a birth and d(x) of a death, a birth at one of n slots is accepted with

$$\min\Big\{1, \frac{\pi(x')\,d(x')\,w_i(x')}{\pi(x)\,b(x)\,n^{-1}\,q(u)}\Big\},$$

$w_i$ the law of the component that dies. The map only renames coordinates, so its determinant is 1. Geyer, Moller
(1994); Green (1995).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from probinf.core import is_concrete
from probinf.core._types import PRNGKey
from probinf.samplers._factor import as_float
from probinf.samplers._mhg import MHG
from probinf.samplers._model_space import Slots, component_at
from probinf.samplers._trans_dimensional import Move, TransDimensional, floating_type, trans_dimensional


class BirthDeath(eqx.Module):
    """The moves of `birth_death`: choice c is a birth at slot c, choice capacity + c the death of slot c.

    Attributes:
        proposal: law of a new component, or (position, slot) -> such a law, or None.
        space: the slots.
        birth_probability: [] of a birth where births and deaths are possible.
        death_weights: position -> [capacity], or None for equal ones.
    """

    proposal: Any
    space: Slots
    birth_probability: Array
    death_weights: Callable[[TransDimensional], Array] | None = None

    def probabilities(self, position: TransDimensional) -> Float[Array, " moves"]:
        """Births at all vacant slots alike, deaths in proportion to the weights of occupied ones."""
        dtype = floating_type(position)
        vacant, dying = self.space.vacant(position.model).astype(dtype), self._dying(position, dtype)
        birth, death = slot_moves(self.birth_probability.astype(dtype), vacant, dying)
        return jnp.concatenate([birth, death])

    def sample_noise(self, key: PRNGKey, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """A new component."""
        law = law_of(self.proposal, position, choice % self._capacity(position))
        return () if law is None else law.sample(key)

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Log density of the new component; 0 for a death."""
        law = law_of(self.proposal, position, move.choice % self._capacity(position))
        zero = jnp.zeros((), floating_type(position))
        if law is None:
            return zero
        born = move.choice < self._capacity(position)
        return jnp.where(born, jnp.sum(law.log_prob(move.noise)), zero)

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> PyTree[Any]:
        """All of it for a birth."""
        return () if self.proposal is None else choice < self._capacity(position)

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Any]:
        """The component is inserted, or removed and handed back as noise."""
        capacity = self._capacity(position)
        born, slot = move.choice < capacity, move.choice % capacity
        model, parameters = position.model, position.parameters
        component = component_at(parameters, slot)
        larger = self.space.insert(model, parameters, slot, move.noise)
        smaller = self.space.remove(model, parameters, slot)
        model, parameters = jax.tree.map(lambda a, b: jnp.where(born, a, b), larger, smaller)
        noise = jax.tree.map(lambda a: jnp.where(born, jnp.zeros_like(a), a), component)
        back = Move(jnp.where(born, move.choice + capacity, move.choice - capacity), noise)
        return TransDimensional(model, parameters, position.shared), back, jnp.zeros(())

    def _dying(self, position: TransDimensional, dtype: Any) -> Array:
        occupied = self.space.active(position.model)
        enough = jnp.sum(occupied) > self.space.minimum
        weights = jnp.ones(occupied.shape, dtype) if self.death_weights is None else self.death_weights(position)
        return jnp.where(occupied & enough, weights.astype(dtype), 0)

    def _capacity(self, position: TransDimensional) -> int:
        return self.space.active(position.model).shape[0]


def birth_death(
    proposal: Any,
    space: Slots,
    *,
    birth_probability: Any = 0.5,
    death_weights: Callable[[TransDimensional], Array] | None = None,
    check: bool = False,
) -> MHG:
    """Birth and death of components, by reversible jump.

    Leaves any target on the lists of `Components`, exchangeable or not, or on `Subsets`, invariant. A new component
    goes to a vacant slot chosen uniformly. Where only one of birth and death is possible, it is what is proposed.

    Args:
        proposal: law of a new component, with `sample(key)` and `log_prob(component)` (normalised), such as a
            NumPyro distribution; or a function `(position, slot)` of the state without the component that returns
            one. None where a slot holds nothing (`parameters=()`), as in variable selection with the coefficients
            integrated out.
        space: `Components(capacity)` or `Subsets(capacity)`.
        birth_probability: scalar in (0, 1), of a birth where both are possible.
        death_weights: position -> [capacity], in proportion to which a component dies; None for a uniform choice. A
            component of weight zero never dies, so its birth is rejected too.
        check: as for `mhg`.

    Returns:
        A `Kernel` on positions `TransDimensional`.

    Raises:
        TypeError: `space` has no slots, `proposal` is no law, or `death_weights` no function.
        ValueError: `birth_probability` is no scalar, or concrete and not in (0, 1).
    """
    if not (proposal is None or is_law(proposal) or callable(proposal)):
        raise TypeError(
            "`proposal` must have `sample` and `log_prob`, or be a function `(position, slot)` that returns such a "
            f"law, or None, but is {proposal!r}"
        )
    require_weights("death_weights", death_weights, "[capacity]")
    probability = require_probability("birth_probability", birth_probability)
    return trans_dimensional(BirthDeath(proposal, require_slots(space), probability, death_weights), space, check=check)


def slot_moves(
    up: Array, increasing: Float[Array, " m"], decreasing: Float[Array, " n"]
) -> tuple[Float[Array, " m"], Float[Array, " n"]]:
    """Probabilities of moves up and down in proportion to weights, `up` of the former where both are possible."""
    increasing, decreasing = (jnp.where(weights < 0, jnp.nan, weights) for weights in (increasing, decreasing))
    totals = jnp.stack([jnp.sum(increasing), jnp.sum(decreasing)])
    possible = jnp.where(totals > 0, jnp.stack([up, 1 - up]), jnp.zeros_like(totals))
    # NaN weights and negative ones give NaN probabilities, which are flagged.
    none = jnp.all(totals == 0)
    rates = possible / jnp.where(none, 1, jnp.sum(possible)) / jnp.where(totals == 0, 1, totals)
    return increasing * rates[0], decreasing * rates[1]


def law_of(proposal: Any, position: TransDimensional, slot: Array) -> Any:
    """The law of noise at a slot: the proposal, or what it returns as a function of (position, slot)."""
    if proposal is None or is_law(proposal):
        return proposal
    return proposal(position, slot)


def is_law(proposal: Any) -> bool:
    """Whether it has the methods of a law. Asked before `callable`, which NumPyro distributions are as well."""
    return callable(getattr(proposal, "sample", None)) and callable(getattr(proposal, "log_prob", None))


def require_slots(space: Any) -> Slots:
    """The space itself.

    Raises:
        TypeError: it has no slots.
    """
    if not isinstance(space, Slots):
        raise TypeError(f"`space` must be such as `Components(10)` or `Subsets(10)`, but is {space!r}")
    return space


def require_weights(name: str, weights: Any, shape: str) -> None:
    """Raises `TypeError`, with its name, for weights that are neither a function nor None."""
    if not (weights is None or callable(weights)):
        raise TypeError(
            f"`{name}` must be a function of the position that returns {shape} weights, or None, but is {weights!r}: "
            "for constant weights write `lambda position: weights`"
        )


def require_probability(name: str, value: Any) -> Array:
    """The scalar as an array.

    Args:
        name: what the caller calls it, for the error.
        value: a scalar; a traced one is not looked at.

    Raises:
        ValueError: it is no real scalar, or concrete and not strictly between 0 and 1.
    """
    scalar = eqx.is_array_like(value) and np.ndim(value) == 0 and not np.iscomplexobj(value)
    if not scalar or (is_concrete(value) and not 0 < value < 1):
        raise ValueError(
            f"`{name}` must be a scalar between 0 and 1, but is {value!r}: 0.5 tries moves up and down alike"
        )
    return as_float(value)
