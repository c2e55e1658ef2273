r"""Model spaces: which entries of a padded array are parameters of a model.

The state space of a trans-dimensional chain is a union $\bigcup_k \{k\} \times \mathbb{R}^{n_k}$ (Green 1995). Here all
of it lies in arrays of one shape, and the model k says which of their slots are active; the rest is padding.
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Shaped

from probinf.core import whole_number


@runtime_checkable
class ModelSpace(Protocol):
    """The models and their active parameters.

    Law: the density of the target does not depend on parameters that are not active in `model`.
    """

    def active(self, model: Array) -> PyTree[Any]:
        """Masks, a pytree prefix of the parameters; each has the leading axes of the leaves it stands for."""
        ...

    def contains(self, model: Array) -> Bool[Array, ""]:
        """Whether there is such a model. An index outside is never clamped: a chain rejects and flags it."""
        ...


@runtime_checkable
class Slots(ModelSpace, Protocol):
    """A model space whose models are made of components of one kind, each in a slot; `active` is [capacity].

    Law: `remove(*insert(model, parameters, slot, component), slot)` gives back `(model, parameters)` where the slot
    is vacant, and so does inserting what was removed.
    """

    @property
    def minimum(self) -> int:
        """The least number of components."""
        ...

    def vacant(self, model: Array) -> Bool[Array, " capacity"]:
        """The slots at which a component can be inserted."""
        ...

    def insert(self, model: Array, parameters: PyTree[Any], slot: Array, component: PyTree[Any]) -> tuple[Array, Any]:
        """`(model, parameters)` with the component in that slot."""
        ...

    def remove(self, model: Array, parameters: PyTree[Any], slot: Array) -> tuple[Array, Any]:
        """`(model, parameters)` without the component of that slot."""
        ...

    def before_insertion(self, slot: Array, inserted: Array) -> Array:
        """Where the component of `slot` is while that of slot `inserted` is not there."""
        ...


class Components(eqx.Module):
    """Lists of components: `model` is their number, and the first `model` slots are active.

    A component is inserted before those of higher slots, which move up, and removal moves them down: the order of
    the others is kept, so that insertion at a random slot and removal of a random slot are inverse moves for any
    density of the list, exchangeable or not.

    Attributes:
        capacity: the number of slots.
        minimum: the least number of components.
    """

    capacity: int = eqx.field(static=True)
    minimum: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        """Raises `ValueError` unless 0 <= minimum <= capacity, and capacity is positive."""
        _require_room(self.capacity, self.minimum)

    def active(self, model: Array) -> Bool[Array, " capacity"]:
        """The first `model` slots."""
        if jnp.ndim(model) != 0 or not jnp.issubdtype(jnp.result_type(model), jnp.integer):
            raise TypeError(f"`model` must be a number of components, an integer scalar, but is {model!r}")
        return _indices(self.capacity, model) < model

    def contains(self, model: Array) -> Bool[Array, ""]:
        """Whether `minimum <= model <= capacity`."""
        return (model >= self.minimum) & (model <= self.capacity)

    def vacant(self, model: Array) -> Bool[Array, " capacity"]:
        """Before each of the components and after the last, where there is room for one more."""
        return (_indices(self.capacity, model) <= model) & (model < self.capacity)

    def insert(self, model: Array, parameters: PyTree[Any], slot: Array, component: PyTree[Any]) -> tuple[Array, Any]:
        """The component before those of slots from `slot` on."""
        above = _indices(self.capacity, slot) > slot

        def leaf(values: Shaped[Array, " capacity *event"], new: Shaped[Array, " *event"]) -> Array:
            return put(_shifted(values, above, 1), slot, new)

        return model + 1, jax.tree.map(leaf, parameters, component)

    def remove(self, model: Array, parameters: PyTree[Any], slot: Array) -> tuple[Array, Any]:
        """Those of higher slots one slot down."""
        # What the last slot gets does not count: it is not active afterwards.
        from_there = _indices(self.capacity, slot) >= slot
        return model - 1, jax.tree.map(lambda values: _shifted(values, from_there, -1), parameters)

    def before_insertion(self, slot: Array, inserted: Array) -> Array:
        """One lower, if the inserted one is below."""
        return jnp.where(slot > inserted, slot - 1, slot)


class Subsets(eqx.Module):
    """Subsets of fixed slots: `model` is `[capacity]` bool, true where a slot is active, as in variable selection.

    Attributes:
        capacity: the number of slots.
        minimum: the least number of active slots.
    """

    capacity: int = eqx.field(static=True)
    minimum: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        """Raises `ValueError` unless 0 <= minimum <= capacity, and capacity is positive."""
        _require_room(self.capacity, self.minimum)

    def active(self, model: Array) -> Bool[Array, " capacity"]:
        """The model itself."""
        if jnp.shape(model) != (self.capacity,) or jnp.result_type(model) != jnp.bool_:
            raise TypeError(f"`model` must be a bool array of shape ({self.capacity},), but is {model!r}")
        return model

    def contains(self, model: Array) -> Bool[Array, ""]:
        """Whether enough slots are active."""
        return jnp.sum(self.active(model)) >= self.minimum

    def vacant(self, model: Array) -> Bool[Array, " capacity"]:
        """The others."""
        return ~self.active(model)

    def insert(self, model: Array, parameters: PyTree[Any], slot: Array, component: PyTree[Any]) -> tuple[Array, Any]:
        """The component at its slot; nothing else moves."""
        return self._with(model, slot, True), jax.tree.map(lambda a, b: put(a, slot, b), parameters, component)

    def remove(self, model: Array, parameters: PyTree[Any], slot: Array) -> tuple[Array, Any]:
        """The slot is no longer active."""
        return self._with(model, slot, False), parameters

    def before_insertion(self, slot: Array, inserted: Array) -> Array:
        """The same slot."""
        return jnp.broadcast_to(slot, jnp.broadcast_shapes(jnp.shape(slot), jnp.shape(inserted)))

    def _with(self, model: Array, slot: Array, value: bool) -> Array:
        return jnp.where(_indices(self.capacity, slot) == slot, value, model)


def _as_masks(masks: PyTree[Any]) -> PyTree[Any]:
    """The masks as arrays, or an error that says what is wrong with them."""
    needed = "needed bool arrays [num_models, ...], such as `jnp.array([[True, False], [True, True]])`"
    leaves = jax.tree.leaves(masks)
    for leaf in leaves:
        if not eqx.is_array_like(leaf) or jnp.result_type(leaf) != jnp.bool_:
            raise TypeError(f"`masks` has the leaf {leaf!r}, which is not of type bool; {needed}")
        if jnp.ndim(leaf) == 0:
            raise ValueError(f"`masks` has the scalar leaf {leaf!r}; {needed} (lists count as pytrees)")
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if len({shape[0] for shape in shapes}) != 1 or shapes[0][0] == 0:
        raise ValueError(
            f"`masks` has leaves of shapes {shapes}; {needed}, of as many models in each leaf, at least one"
        )
    return jax.tree.map(jnp.asarray, masks)


class ModelTable(eqx.Module):
    """A fixed list of models: `model` is the index of one.

    Attributes:
        masks: pytree prefix of the parameters; a leaf `[num_models, ...]` bool masks by `leaf[model]`.

    Raises:
        TypeError: a leaf is not of type bool.
        ValueError: no leaf, a scalar leaf, or leaves of different numbers of models.
    """

    masks: PyTree[Any] = eqx.field(converter=_as_masks)

    @property
    def num_models(self) -> int:
        """How many models there are."""
        return jax.tree.leaves(self.masks)[0].shape[0]

    def active(self, model: Array) -> PyTree[Any]:
        """The row of the model; of an index outside the table, nothing."""
        known = self.contains(model)
        return jax.tree.map(lambda mask: mask[jnp.where(known, model, 0)] & known, self.masks)

    def contains(self, model: Array) -> Bool[Array, ""]:
        """Whether `0 <= model < num_models`."""
        return (model >= 0) & (model < self.num_models)


def component_at(parameters: PyTree[Any], slot: Array) -> PyTree[Any]:
    """The component of a slot."""
    return jax.tree.map(lambda values: values[slot], parameters)


def put(values: Shaped[Array, "capacity *event"], slot: Array, new: Any) -> Shaped[Array, "capacity *event"]:
    """The array with another entry in a slot; unchanged where there is no such slot."""
    here = (_indices(values.shape[0], slot) == slot).reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(here, jnp.asarray(new, values.dtype)[None], values)


def _shifted(
    values: Shaped[Array, "capacity *event"], where: Bool[Array, " capacity"], by: int
) -> Shaped[Array, "capacity *event"]:
    """What was `by` slots lower, at some slots."""
    return jnp.where(where.reshape((-1,) + (1,) * (values.ndim - 1)), jnp.roll(values, by, axis=0), values)


def spread(masks: PyTree[Any], tree: PyTree[Any]) -> PyTree[Any]:
    """A mask of the shape of each leaf of `tree`, from a pytree prefix of masks with its leading axes.

    Raises:
        ValueError: a mask does not have the leading axes of its leaf.
    """

    def leaf_mask(mask: Array, leaf: Any) -> Array:
        if jnp.shape(mask) != jnp.shape(leaf)[: jnp.ndim(mask)]:
            raise ValueError(
                f"the model space has a mask of shape {jnp.shape(mask)} for a leaf of shape {jnp.shape(leaf)}: the "
                "leading axes of the leaf must be those of the mask (the capacity)"
            )
        full = jnp.reshape(jnp.asarray(mask), jnp.shape(mask) + (1,) * (jnp.ndim(leaf) - jnp.ndim(mask)))
        return jnp.broadcast_to(full, jnp.shape(leaf))

    return jax.tree.map(lambda mask, part: jax.tree.map(lambda leaf: leaf_mask(mask, leaf), part), masks, tree)


def without_padding(masks: PyTree[Any], tree: PyTree[Any]) -> PyTree[Any]:
    """The tree with zeros where its masks (a pytree prefix) are false."""
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, jnp.zeros_like(leaf)), spread(masks, tree), tree)


def _require_room(capacity: Any, minimum: Any) -> None:
    whole_number("capacity", capacity, 1)
    if whole_number("minimum", minimum) > capacity:
        raise ValueError(f"`minimum` is {minimum}, but there are only {capacity} slots: raise `capacity`")


def _indices(num: int, like: Any) -> Array:
    """0 .. num - 1, of the integer type of `like`."""
    return jnp.arange(num, dtype=jnp.result_type(like))
