r"""`spawn`: the start of a population. Law: $E⟦spawn(\pi, n)⟧ = \pi$."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from probinf.core._arguments import whole_number
from probinf.core._effects import cond, map_items
from probinf.core._feynman_kac import Batched, FeynmanKac
from probinf.core._particle_keys import draws_with_particle_keys, particle_keys
from probinf.core._population import Population, weight_dtype, with_changes
from probinf.core._status import Status, flag
from probinf.core._sums import largest
from probinf.core._types import PRNGKey


class WeightInfo(NamedTuple):
    """What an update of the weights reports: how many log weights were NaN (and counted as zero)."""

    num_nan: Int[Array, ""]


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
    num_particles = whole_number("num_particles", num_particles, 1 if reference is None else 2)
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
            if draws_with_particle_keys(self.sampler):
                keys = particle_keys(key, self.num_particles)
            else:
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
    return with_changes(population, log_weights=log_weights, status=status), WeightInfo(num_nan)
