r"""The verbs: transformers of populations, `(key, population, step=None) -> (population, info)`.

Each keeps the law stated in its docstring, where $E⟦\cdot⟧$ is the expected measure of a population (Scibior et
al. 2018). Compositions of them are the algorithms.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from probinf.core._effects import map_items, repeat
from probinf.core._exchange import exchange
from probinf.core._feynman_kac import Batched, FeynmanKac, check_model, take
from probinf.core._population import Population, freeze, with_changes
from probinf.core._spawn import WeightInfo, absorb, pin
from probinf.core._status import any_bits
from probinf.core._types import PRNGKey


class MoveInfo(NamedTuple):
    """What MCMC moves report: the mean acceptance rate over steps and particles of positive weight."""

    acceptance_rate: Float[Array, ""]


class extend(eqx.Module):
    r"""Moves by $M_t$ and weights by $G_t(x_{t-1}, x_t)$; the step is t.

    Law: $E⟦\cdot⟧ : \mu \mapsto \int \mu(dx') M_t(x', dx) G_t(x', x)$.

    Args:
        model: a `FeynmanKac`.
        reference: path [T, ...] whose entry t is put in slot 0 (conditional SMC), or None.

    Raises:
        TypeError: `model` is not a `FeynmanKac`.
    """

    model: FeynmanKac = eqx.field(converter=check_model)
    reference: PyTree = None

    @property
    def traceable(self) -> bool:
        """Whether it may run under `jit`."""
        return self.model.traceable

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, WeightInfo]:
        """Extends the population to time `step`."""
        model = Batched(self.model)
        before = population.particles
        kept = None if self.reference is None else jax.tree.map(lambda leaf: leaf[step], self.reference)
        # Frozen before they are weighted: else XLA draws the noise once for the particles and once for the weights.
        particles = self.model.freeze(population.status, before, pin(model.mutate(key, step, before), kept))
        extended, info = absorb(population, model.log_potential(step, before, particles))
        return with_changes(extended, particles=particles), info


class propagate(eqx.Module):
    r"""Moves every particle by `kernel(key, step, x) -> x`. Law: $E⟦\cdot⟧ : \mu \mapsto \mu K$."""

    kernel: Callable[[PRNGKey, Any, PyTree], PyTree]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, None]:
        """Moves the particles."""
        keys = jax.random.split(key, population.num_particles)
        particles = map_items(lambda k, x: self.kernel(k, step, x), keys, population.particles)
        return with_changes(population, particles=freeze(population.status, population.particles, particles)), None


class reweight(eqx.Module):
    r"""Multiplies the weights by `exp(log_g(step, x))`. Law: exactly $\mu \mapsto g \cdot \mu$."""

    log_g: Callable[[Any, PyTree], Float[Array, ""]]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, WeightInfo]:
        """Weights the particles; `key` is not used."""
        del key
        return absorb(population, jax.vmap(lambda x: self.log_g(step, x))(population.particles))


class move(eqx.Module):
    r"""Moves every particle by MCMC steps. Law: $\mu \mapsto \mu$ when $\mu \propto$ target, for invariant kernels.

    The status bits of the chains of all particles of positive weight go into the population's.

    Args:
        kernel: a `Kernel`, or a function of (step, population) that returns one.
        target: a `Target`, or such a function.
        num_steps: MCMC steps a particle, or such a function; may be traced.
    """

    kernel: Any
    target: Any
    num_steps: Any = 1

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, MoveInfo]:
        """Moves the particles."""
        kernel = _resolve(self.kernel, step, population, of="step")
        target = _resolve(self.target, step, population, of="log_density")
        num_steps = _resolve(self.num_steps, step, population, of="__index__")
        init_key, step_key = jax.random.split(key)
        count = population.num_particles
        alive = population.log_weights > -jnp.inf
        init_keys = jax.random.split(init_key, count)
        states = map_items(lambda k, x: kernel.init(k, target, x), init_keys, population.particles)

        def one(i: int | Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            states, accepted = carry
            keys = jax.random.split(jax.random.fold_in(step_key, i), count)
            states, info = map_items(lambda k, state: kernel.step(k, target, state), keys, states)
            rate = jnp.sum(jnp.where(alive, info.acceptance_rate, 0)).astype(accepted.dtype)
            mean = rate / jnp.maximum(jnp.sum(alive), 1).astype(accepted.dtype)
            return states, accepted + mean

        states, accepted = repeat(num_steps, one, (states, jnp.zeros_like(population.log_scale)))
        rate = accepted / jnp.maximum(num_steps, 1)
        moved = freeze(population.status, population.particles, states.position)
        # A particle of weight zero may lie where the target is not finite: that is no fault.
        status = population.status | any_bits(states.status, alive)
        return with_changes(population, particles=moved, status=status), MoveInfo(rate)


def _resolve(value: Any, step: Any, population: Population, *, of: str) -> Any:
    """A value as it is, or a function of (step, population) called; `of` is an attribute that tells a value."""
    return value if hasattr(value, of) or not callable(value) else value(step, population)


class adapt(eqx.Module):
    """Sets `context` to `f(step, population)` and changes nothing else. Law: the identity."""

    f: Callable[[Any, Population], PyTree]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, None]:
        """Adapts the context; `key` is not used."""
        del key
        return with_changes(population, context=self.f(step, population)), None


def _with_auto_axes(mesh: Any) -> Mesh | None:
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        mend = 'a `jax.sharding.Mesh`, such as `jax.make_mesh((jax.device_count(),), ("particles",))`, or None'
        raise TypeError(f"`mesh` is {mesh!r}; needed {mend}")
    return Mesh(mesh.devices, mesh.axis_names)


class place(eqx.Module):
    r"""Spreads the particles over the first axis of a mesh, and keeps weights whole on every device.

    Law: the identity. With weights whole, resampling is the same computation, bit for bit, for any number of devices
    and processes (measured on 1, 2, 4 and 8 simulated devices, in one process and in two).

    What moves between D devices: at each step the N log weights, to every device; at a resampling with
    `gather=place(mesh).gather`, the particles of as many neighbours on either side as ancestors reach into, mostly
    one: 2 N / D particles to a device, and at most about N. Weights and ancestors, O(N) numbers and arithmetic, are
    not divided among the devices; particles, moves and potentials are.

    Args:
        mesh: a `jax.sharding.Mesh`, whose first axis must have a size that divides N; or None to do nothing. It may
            reach over several processes (`jax.distributed`), if all of them run the same program.

    Raises:
        TypeError: `mesh` is neither.
        ValueError: its size does not divide N (when called).
    """

    mesh: Mesh | None = eqx.field(static=True, converter=_with_auto_axes)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, None]:
        """Constrains the sharding; `key` and `step` are not used."""
        del key, step
        return self.put(population), None

    def near(self) -> contextlib.AbstractContextManager:
        """A context in which code is traced that is to know of the mesh (`map_particles` then makes no blocks)."""
        return (
            contextlib.nullcontext() if self.mesh is None else jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
        )

    def put(self, population: Population) -> Population:
        """The population with particles spread and the rest whole."""
        if self.mesh is None:
            return population
        axis, count = self.mesh.axis_names[0], population.num_particles
        if count % self.mesh.shape[axis]:
            size = self.mesh.shape[axis]
            more = -(-count // size) * size
            raise ValueError(
                f"`num_particles` is {count}, which the {size} devices of `mesh` along {axis!r} cannot share evenly: "
                f"take {more}, or a smaller mesh"
            )
        bare = self.whole(with_changes(population, particles=None))
        return with_changes(bare, particles=self.spread(population.particles))

    def whole(self, tree: PyTree) -> PyTree:
        """The arrays of `tree`, whole on every device."""
        return self._constrain(tree, PartitionSpec())

    def spread(self, tree: PyTree, axis: int = 0) -> PyTree:
        """The arrays of `tree`, divided among the devices along one of their axes."""
        if self.mesh is None:
            return tree
        return self._constrain(tree, PartitionSpec(*(None,) * axis, self.mesh.axis_names[0]))

    def gather(self, particles: PyTree, ancestors: Int[Array, " n"]) -> PyTree:
        """The particles at `ancestors`, for `resample(gather=)`: copied from device to device where needed."""
        if self.mesh is None or self.mesh.shape[self.mesh.axis_names[0]] == 1:
            return take(particles, ancestors)
        return exchange(self.mesh, particles, ancestors)

    def _constrain(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        arrays, others = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.lax.with_sharding_constraint(arrays, sharding), others)


class observe(eqx.Module):
    """Reports `f(population)` as its info and changes nothing. Law: the identity."""

    f: Callable[[Population], PyTree]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, PyTree]:
        """Observes the population; `key` and `step` are not used."""
        del key, step
        return population, self.f(population)
