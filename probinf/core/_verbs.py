r"""The verbs: transformers of populations, `(key, population, step=None) -> (population, info)`.

Each keeps the law stated in its docstring, where $E⟦\cdot⟧$ is the expected measure of a population (Scibior et
al. 2018). Compositions of them are the algorithms.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core._effects import cond, cond_on_host, is_concrete, map_items, repeat
from probinf.core._fast_key import fast_key
from probinf.core._feynman_kac import Batched, FeynmanKac, check_model, take
from probinf.core._population import Population, bank, weigh, weight_dtype
from probinf.core._status import Status, flag, is_fatal
from probinf.core._sums import largest
from probinf.core._types import PRNGKey


class WeightInfo(NamedTuple):
    """What an update of the weights reports: how many log weights were NaN (and counted as zero)."""

    num_nan: Int[Array, ""]


class ResampleInfo(NamedTuple):
    """What resampling reports.

    Attributes:
        ess: effective sample size before resampling.
        resampled: whether it resampled.
        ancestors: [N], the index that each slot was copied from.
    """

    ess: Float[Array, ""]
    resampled: Bool[Array, ""]
    ancestors: Int[Array, " n"]


class MoveInfo(NamedTuple):
    """What MCMC moves report: the mean acceptance rate over steps and particles of positive weight."""

    acceptance_rate: Float[Array, ""]


def spawn(
    sampler: Callable[[PRNGKey], PyTree] | FeynmanKac,
    num_particles: int,
    reference: PyTree = None,
    context: PyTree = None,
) -> "Spawn":
    r"""Starts a population: `spawn(sampler, n)(key) -> Population`. Law: $E⟦spawn(\pi, n)⟧ = \pi$.

    Args:
        sampler: `key -> particle`; or a `FeynmanKac`, whose x_0 is drawn and weighted by G_0.
        num_particles: N >= 1 (N >= 2 with a reference).
        reference: a particle to be put in slot 0 (conditional SMC), or None.
        context: the population's first context; `adapt` in a loop must keep its structure.

    Raises:
        ValueError: `num_particles` is too small, or the model drew another number of particles.
        TypeError: `num_particles` is not an integer, or `sampler` not callable.
    """
    if isinstance(num_particles, bool) or not hasattr(num_particles, "__index__"):
        raise TypeError(f"`num_particles` must be an integer, got {num_particles!r}")
    num_particles = operator.index(num_particles)
    least = 1 if reference is None else 2
    if num_particles < least:
        raise ValueError(f"`num_particles` is {num_particles}; needed at least {least}")
    if not (isinstance(sampler, FeynmanKac) or callable(sampler)):
        raise TypeError(f"`sampler` must be a function of a key or a `FeynmanKac`, got {sampler!r}")
    return Spawn(sampler, num_particles, reference, context)


class Spawn(eqx.Module):
    """See `spawn`."""

    sampler: Any
    num_particles: int = eqx.field(static=True)
    reference: PyTree
    context: PyTree

    def __call__(self, key: PRNGKey) -> Population:
        """The population."""
        return self.start(key)[0]

    def start(self, key: PRNGKey) -> tuple[Population, WeightInfo]:
        """The population, and the info of its first weighting."""
        if not isinstance(self.sampler, FeynmanKac):
            keys = jax.random.split(key, self.num_particles)
            particles = map_items(self.sampler, keys)
            population = fresh_population(pin(particles, self.reference), self.context)
            return population, WeightInfo(jnp.zeros((), jnp.int32))
        model = Batched(self.sampler)
        particles = pin(model.init(key, self.num_particles), self.reference)
        population = fresh_population(particles, self.context)
        if population.num_particles != self.num_particles:
            raise ValueError(
                f"`{type(self.sampler).__name__}.init` drew {population.num_particles} particles; asked for "
                f"{self.num_particles}: in batch form it must use its argument `num_particles`"
            )
        if self.sampler.num_steps == 0:
            return population, WeightInfo(jnp.zeros((), jnp.int32))
        return absorb(population, model.log_potential(jnp.zeros((), jnp.int32), None, particles))


def fresh_population(particles: PyTree, context: PyTree = None) -> Population:
    """Equally weighted particles of total mass 1.

    Raises:
        ValueError: the leaves of `particles` do not share a leading axis of length N >= 1.
    """
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(particles)}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        raise ValueError(f"`particles` must share a leading axis of length N >= 1; the leaves have {lengths}")
    (count,) = lengths
    floating = [leaf.dtype for leaf in jax.tree.leaves(particles) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = weight_dtype(*floating)
    return Population(
        particles=particles,
        log_weights=jnp.zeros(count, dtype),
        log_scale=jnp.zeros((), dtype),
        log_scale_low=jnp.zeros((), dtype),
        eve=jnp.arange(count, dtype=jnp.int32),
        num_resampled=jnp.zeros((), jnp.int32),
        status=jnp.zeros((), jnp.uint32),
        context=context,
    )


def pin(particles: PyTree, reference: PyTree | None) -> PyTree:
    """The particles with `reference` in slot 0 (unchanged if None)."""
    if reference is None:
        return particles
    return jax.tree.map(lambda leaf, kept: leaf.at[0].set(kept), particles, reference)


def absorb(population: Population, log_potential: Float[Array, " n"]) -> tuple[Population, WeightInfo]:
    """Multiplies the weights by `exp(log_potential)`; NaN counts as zero and is flagged, +inf is fatal.

    A particle of weight zero stays at zero whatever its potential, so its NaN is no fault.

    Raises:
        ValueError: `log_potential` is not of shape [N].
    """
    if log_potential.shape != population.log_weights.shape:
        raise ValueError(
            f"log potentials have shape {log_potential.shape}; needed {population.log_weights.shape}, one a particle"
        )
    raised = population.log_weights + log_potential.astype(population.log_weights.dtype)
    raised = jnp.where(population.log_weights > -jnp.inf, raised, -jnp.inf)
    log_weights = jnp.where(jnp.isnan(raised), -jnp.inf, raised)
    # The maximum passes NaN on, so that a healthy population pays for one reduction.
    top = largest(jax.lax.stop_gradient(raised))

    def count(values: Array) -> tuple[Array, Array]:
        bad = jnp.isnan(values)
        return jnp.sum(bad, dtype=jnp.int32), jnp.max(jnp.where(bad, -jnp.inf, values))

    def healthy(values: Array) -> tuple[Array, Array]:
        del values
        return jnp.zeros((), jnp.int32), top

    num_nan, top = cond(jnp.isnan(top), count, healthy, jax.lax.stop_gradient(raised))
    status = (
        population.status
        | flag(Status.NAN_LOG_WEIGHT, num_nan > 0)
        | flag(Status.POSINF_LOG_WEIGHT, top == jnp.inf)
        | flag(Status.ALL_WEIGHTS_ZERO, top == -jnp.inf)
    )
    return _with(population, log_weights=log_weights, status=status), WeightInfo(num_nan)


def _with(population: Population, **changes: Any) -> Population:
    fields = ("particles", "log_weights", "log_scale", "log_scale_low", "eve", "num_resampled", "status", "context")
    return Population(**{name: changes.get(name, getattr(population, name)) for name in fields})


def _freeze(status: Array, old: PyTree, new: PyTree) -> PyTree:
    """The old value where the status is fatal, so that later numbers cannot look healthy."""
    fatal = is_fatal(status)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (old, new)]
    if shapes[0] != shapes[1]:
        raise TypeError(f"particles were {shapes[0]} and moved to {shapes[1]}: shapes and dtypes must stay the same")
    return jax.tree.map(lambda before, after: jnp.where(fatal, before, after), old, new)


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
        particles = _freeze(population.status, before, pin(model.mutate(key, step, before), kept))
        extended, info = absorb(population, model.log_potential(step, before, particles))
        return _with(extended, particles=particles), info


class propagate(eqx.Module):
    r"""Moves every particle by `kernel(key, step, x) -> x`. Law: $E⟦\cdot⟧ : \mu \mapsto \mu K$."""

    kernel: Callable[[PRNGKey, Any, PyTree], PyTree]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, None]:
        """Moves the particles."""
        keys = jax.random.split(key, population.num_particles)
        particles = map_items(lambda k, x: self.kernel(k, step, x), keys, population.particles)
        return _with(population, particles=_freeze(population.status, population.particles, particles)), None


class reweight(eqx.Module):
    r"""Multiplies the weights by `exp(log_g(step, x))`. Law: exactly $\mu \mapsto g \cdot \mu$."""

    log_g: Callable[[Any, PyTree], Float[Array, ""]]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, WeightInfo]:
        """Weights the particles; `key` is not used."""
        del key
        return absorb(population, jax.vmap(lambda x: self.log_g(step, x))(population.particles))


class ess_below(eqx.Module):
    """The predicate ESS < fraction * N, for `resample(when=)`.

    Raises:
        ValueError: `fraction` is not in [0, 1] (checked when it is concrete).
    """

    fraction: Array = eqx.field(converter=lambda value: _as_fraction(value, "fraction"))

    def __call__(self, population: Population) -> Bool[Array, ""]:
        """Whether to resample."""
        return population.ess < self.fraction.astype(population.log_weights.dtype) * population.num_particles


def _as_fraction(value: Any, name: str) -> Array:
    if is_concrete(value) and not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` is {value}; needed a number in [0, 1]")
    return jnp.asarray(value, jnp.zeros(()).dtype)


class resample(eqx.Module):
    r"""Copies particles in proportion to their weights and banks the evidence. Law: $E⟦\cdot⟧ : \mu \mapsto \mu$.

    With a look-ahead $\psi > 0$ it draws by $W\psi$, banks $mean(w\psi)$ and leaves weights $1/\psi$ (Pitt,
    Shephard 1999); a $\psi$ that is NaN, zero or infinite counts as 1, which keeps the law, and NaN is flagged. If
    every weight is zero, or after a fatal fault, it copies nothing.

    Args:
        scheme: a resampling scheme, `scheme(key, weights, pinned) -> ancestors`.
        when: `population -> bool`, such as `ess_below(0.5)`; None resamples at every step.
        look_ahead: `(step, particles) -> log psi [N]`, such as `model.look_ahead`, or None.
        gather: `(particles, ancestors) -> particles`.
        pinned: whether slot 0 keeps ancestor 0 (conditional SMC).
    """

    scheme: Callable[..., Int[Array, " n"]]
    when: Callable[[Population], Bool[Array, ""]] | None = None
    look_ahead: Callable[[Any, PyTree], Float[Array, " n"]] | None = None
    gather: Callable[[PyTree, Int[Array, " n"]], PyTree] = take
    pinned: bool = eqx.field(default=False, static=True)

    def __check_init__(self) -> None:
        """Raises `TypeError` for what cannot be called."""
        for name in ("scheme", "when", "look_ahead", "gather"):
            value = getattr(self, name)
            if not (callable(value) or (value is None and name in ("when", "look_ahead"))):
                mend = {"scheme": "`samplers.systematic`", "when": "`ess_below(0.5)`"}.get(name, "a function")
                raise TypeError(f"`{name}` is {value!r}; needed something to call, such as {mend}")

    @property
    def traceable(self) -> bool:
        """Whether it may run under `jit`: not if `gather` belongs to a model that may not."""
        return getattr(getattr(self.gather, "__self__", None), "traceable", True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """Resamples the population if `when` says so."""
        log_weights, status = population.log_weights, population.status
        log_psi = jnp.zeros_like(log_weights)
        if self.look_ahead is not None:
            guess = self.look_ahead(step, population.particles)
            if guess.shape != log_weights.shape:
                raise ValueError(f"`look_ahead` gave shape {guess.shape}; needed {log_weights.shape}, one a particle")
            log_psi = jnp.where(jnp.isfinite(guess), guess, 0).astype(log_weights.dtype)
            bad = jnp.any(jnp.isnan(guess) & (log_weights > -jnp.inf))
            status = status | flag(Status.NAN_LOG_WEIGHT, bad)
        weighed = weigh(log_weights + log_psi if self.look_ahead is not None else log_weights)
        due = (weighed.total > 0) & ~is_fatal(population.status)
        if self.when is not None:
            due = due & self.when(population)

        key_data, restore = unwrap_key(fast_key(key))

        def copy(particles: PyTree, eve: Array, relative: Array) -> tuple[PyTree, Array, Array]:
            ancestors = self.scheme(restore(key_data), relative, pinned=self.pinned)
            return self.gather(particles, ancestors), eve[ancestors], ancestors

        def keep(particles: PyTree, eve: Array, relative: Array) -> tuple[PyTree, Array, Array]:
            return particles, eve, jnp.arange(relative.shape[0], dtype=jnp.int32)

        operands = (population.particles, population.eve, weighed.relative)
        branch = cond if self.traceable else cond_on_host
        particles, eve, ancestors = branch(due, copy, keep, *operands)
        # Not resampling banks the largest weight, so that log weights stay small and float32 sums stay right.
        shift = weigh(log_weights).shift
        banked = jnp.where(due, weighed.log_mean, shift)
        log_scale, log_scale_low = bank(population.log_scale, population.log_scale_low, banked)
        resampled = _with(
            population,
            particles=particles,
            eve=eve,
            log_weights=jnp.where(due, -log_psi[ancestors], log_weights - shift),
            log_scale=log_scale,
            log_scale_low=log_scale_low,
            num_resampled=population.num_resampled + due.astype(jnp.int32),
            status=status,
        )
        return resampled, ResampleInfo(population.ess, due, ancestors)


def unwrap_key(key: PRNGKey) -> tuple[Array, Callable[[Array], PRNGKey]]:
    """The bits of a key and the function that makes a key of them.

    A typed key cannot enter `lax.cond` under `vmap`: both branches then select it against itself, which the
    key-reuse checker counts as a second use.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key, lambda bits: bits
    implementation = jax.random.key_impl(key)
    return jax.random.key_data(key), lambda bits: jax.random.wrap_key_data(bits, impl=implementation)


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
        moved = _freeze(population.status, population.particles, states.position)
        # A particle of weight zero may lie where the target is not finite: that is no fault.
        bits = jnp.where(alive, states.status, 0)
        status = population.status | jax.lax.reduce(bits, jnp.uint32(0), jax.lax.bitwise_or, (0,))
        return _with(population, particles=moved, status=status), MoveInfo(rate)


def _resolve(value: Any, step: Any, population: Population, *, of: str) -> Any:
    """A value as it is, or a function of (step, population) called; `of` is an attribute that tells a value."""
    return value if hasattr(value, of) or not callable(value) else value(step, population)


class adapt(eqx.Module):
    """Sets `context` to `f(step, population)` and changes nothing else. Law: the identity."""

    f: Callable[[Any, Population], PyTree]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, None]:
        """Adapts the context; `key` is not used."""
        del key
        return _with(population, context=self.f(step, population)), None


def _with_auto_axes(mesh: Mesh | None) -> Mesh | None:
    return None if mesh is None else Mesh(mesh.devices, mesh.axis_names)


class place(eqx.Module):
    """Spreads the particles over the first axis of a mesh, and keeps weights whole on every device.

    Law: the identity. With weights whole, resampling is the same computation for any number of devices.

    Args:
        mesh: a `jax.sharding.Mesh`, or None to do nothing.
    """

    mesh: Mesh | None = eqx.field(static=True, converter=_with_auto_axes)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, None]:
        """Constrains the sharding; `key` and `step` are not used."""
        del key, step
        if self.mesh is None:
            return population, None
        spread = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
        whole = NamedSharding(self.mesh, PartitionSpec())
        return _with(
            population,
            particles=jax.lax.with_sharding_constraint(population.particles, spread),
            log_weights=jax.lax.with_sharding_constraint(population.log_weights, whole),
            eve=jax.lax.with_sharding_constraint(population.eve, whole),
        ), None


class observe(eqx.Module):
    """Reports `f(population)` as its info and changes nothing. Law: the identity."""

    f: Callable[[Population], PyTree]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, PyTree]:
        """Observes the population; `key` and `step` are not used."""
        del key, step
        return population, self.f(population)
