r"""`FeynmanKac`: the path measure $M_0(dx_0) G_0(x_0) \prod_t M_t(x_{t-1}, dx_t) G_t(x_{t-1}, x_t)$.

Del Moral (2004), "Feynman-Kac Formulae"; Chopin and Papaspiliopoulos (2020), chapter 5.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from probinf.core._effects import map_items
from probinf.core._population import freeze
from probinf.core._types import Ancestors, PRNGKey, StatusBits


class FeynmanKac(eqx.Module):
    r"""A sequence of kernels $M_t$ and potentials $G_t$; subclass it and define the first three methods.

    Data and parameters are array leaves of the subclass, so that new data of the same shape recompiles
    nothing. In the *particle* form every method sees one particle. In the *batch* form (`batch = True` on the
    class) it sees the whole population, leading axis N, with one key: `init(key, num_particles)`,
    `mutate(key, t, x)`, `log_potential(t, x_prev, x) -> [N]`. The batch form is the fast one.

    Attributes:
        batch: whether the class is in batch form.
        traceable: whether the methods may run under `jit`; if not, the verbs run in a host loop.
        num_steps: number of time steps T >= 0, so that t = 0 .. T-1: a field or a property of the subclass.
    """

    batch: ClassVar[bool] = False
    traceable: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def num_steps(self) -> int:
            """T."""
            ...

    else:
        num_steps: eqx.AbstractVar[int]  # a type checker would take it for an argument of `__init__`

    def init(self, key: PRNGKey, *args: Any, **kwargs: Any) -> PyTree:
        """Draws x_0 from M_0: `init(key)`, in batch form `init(key, num_particles)`."""
        self._absent("init")

    def mutate(self, key: PRNGKey, t: int | Array, x: PyTree) -> PyTree:
        """Draws x_t from M_t(x, .), for t >= 1."""
        self._absent("mutate")

    def log_potential(self, t: int | Array, x_prev: PyTree | None, x: PyTree) -> Array:
        """Log G_t; `x_prev` is None at t = 0."""
        self._absent("log_potential")

    def log_transition(self, t: int | Array, x_prev: PyTree, x: PyTree) -> Array:
        """Optional: the log density of M_t(x_prev, dx), for smoothing and ancestor sampling."""
        self._absent("log_transition")

    def look_ahead(self, t: int | Array, x: PyTree) -> Array:
        """Optional: log psi_t of particles at t - 1, a guess of their G_t, for auxiliary filters."""
        self._absent("look_ahead")

    def log_backward(self, t: int | Array, x_prev: PyTree, x: PyTree) -> Array:
        """Log of M_t(x_prev, x) G_t(x_prev, x), up to terms free of `x_prev`: what smoothers weigh the past by.

        Override it where the potential does not look at `x_prev`.
        """
        return self.log_transition(t, x_prev, x) + self.log_potential(t, x_prev, x)

    @property
    def looks_ahead(self) -> bool:
        """Whether the class defines `look_ahead`."""
        return type(self).look_ahead is not FeynmanKac.look_ahead

    def gather(self, particles: PyTree, ancestors: Ancestors) -> PyTree:
        """Optional: particles[ancestors]; override it where a copy can be avoided."""
        return take(particles, ancestors)

    def freeze(self, status: StatusBits, old: PyTree, new: PyTree) -> PyTree:
        """The old particles after a fatal fault, else the new; override it where large leaves need no selection."""
        return freeze(status, old, new)

    def _absent(self, method: str) -> NoReturn:
        raise TypeError(f"`{type(self).__name__}` does not define `{method}`, which this algorithm needs: define it")


def take(particles: PyTree, ancestors: Ancestors) -> PyTree:
    """The particles at `ancestors`; indices must lie in range (resampling schemes see to it)."""
    return jax.tree.map(lambda leaf: leaf.at[ancestors].get(mode="promise_in_bounds"), particles)


class Batched(eqx.Module):
    """Any `FeynmanKac` seen in batch form: the particle form is mapped over keys, the batch form passes through."""

    model: FeynmanKac

    def init(self, key: PRNGKey, num_particles: int) -> PyTree:
        """Draws N particles from M_0."""
        if self.model.batch:
            return self.model.init(key, num_particles)
        return self._map(self.model.init, jax.random.split(key, num_particles))

    def mutate(self, key: PRNGKey, t: int | Array, x: PyTree) -> PyTree:
        """Moves N particles by M_t."""
        if self.model.batch:
            return self.model.mutate(key, t, x)
        keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])
        return self._map(lambda k, one: self.model.mutate(k, t, one), keys, x)

    def log_potential(self, t: int | Array, x_prev: PyTree | None, x: PyTree) -> Array:
        """Log G_t of N particles."""
        if self.model.batch:
            return self.model.log_potential(t, x_prev, x)
        if x_prev is None:
            return self._map(lambda one: self.model.log_potential(t, None, one), x)
        return self._map(lambda before, one: self.model.log_potential(t, before, one), x_prev, x)

    def log_transition(self, t: int | Array, x_prev: PyTree, x: PyTree) -> Array:
        """The log density of N moves."""
        if self.model.batch:
            return self.model.log_transition(t, x_prev, x)
        return self._map(lambda before, one: self.model.log_transition(t, before, one), x_prev, x)

    def look_ahead(self, t: int | Array, x: PyTree) -> Array:
        """Log psi_t of N particles at t - 1."""
        if self.model.batch:
            return self.model.look_ahead(t, x)
        return self._map(lambda one: self.model.look_ahead(t, one), x)

    def log_backward(self, t: int | Array, x_prev: PyTree, x: PyTree) -> Array:
        """What smoothers weigh the past of N moves by."""
        if self.model.batch:
            return self.model.log_backward(t, x_prev, x)
        return self._map(lambda before, one: self.model.log_backward(t, before, one), x_prev, x)

    def _map(self, function: Callable, *items: PyTree) -> PyTree:
        return map_items(function, *items, traceable=self.model.traceable)


def check_model(model: Any) -> FeynmanKac:
    """`model` itself if it is a `FeynmanKac`.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(model, FeynmanKac):
        raise TypeError(f"needed a `FeynmanKac` (for example `StateSpaceModel(...).bootstrap(ys)`), got {type(model)}")
    return model
