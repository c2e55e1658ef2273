r"""`resample`: copies particles in proportion to their weights and banks the evidence. Law: the meaning is kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from probinf.core._effects import cond, cond_on_host, is_concrete
from probinf.core._fast_key import fast_key
from probinf.core._feynman_kac import take
from probinf.core._population import Population, bank, weigh, with_changes
from probinf.core._status import Status, flag, is_fatal
from probinf.core._sums import largest
from probinf.core._types import PRNGKey


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
    Shephard 1999); a $\psi$ that is NaN, zero or infinite counts as the smallest of the others, which keeps the law,
    and NaN is flagged. If every weight is zero, or after a fatal fault, it copies nothing.

    With `differentiable=True` the gradient of the evidence is right although ancestors are discrete: a copy of
    particle i keeps the weight $W_i / \bar W_i$, one in value, where $\bar W_i$ is $W_i$ held constant (Scibior,
    Wood 2021). The gradient of $\hat Z$ is then unbiased.

    Args:
        scheme: a resampling scheme, `scheme(key, weights, pinned) -> ancestors`.
        when: `population -> bool`, such as `ess_below(0.5)`; None resamples at every step. It sees the weights that
            would be drawn by, look-ahead included.
        look_ahead: `(step, particles) -> log psi [N]`, such as `model.look_ahead`, or None.
        gather: `(particles, ancestors) -> particles`.
        pinned: whether slot 0 keeps ancestor 0 (conditional SMC).
        differentiable: whether gradients go through the weights of the ancestors.
    """

    scheme: Callable[..., Int[Array, " n"]]
    when: Callable[[Population], Bool[Array, ""]] | None = None
    look_ahead: Callable[[Any, PyTree], Float[Array, " n"]] | None = None
    gather: Callable[[PyTree, Int[Array, " n"]], PyTree] = take
    pinned: bool = eqx.field(default=False, static=True)
    differentiable: bool = eqx.field(default=False, static=True)

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
            # Only ratios of psi matter: any constant would be out of scale, and could outweigh all others.
            # Not a minimum of floats: LLVM took minutes over that of 8 or 16 particles in a program of two steps.
            least = -largest(jax.lax.stop_gradient(jnp.where(jnp.isfinite(guess), -guess, -jnp.inf)))
            least = jnp.where(jnp.isfinite(least), least, 0)
            log_psi = jnp.where(jnp.isfinite(guess), guess, least).astype(log_weights.dtype)
            bad = jnp.any(jnp.isnan(guess) & (log_weights > -jnp.inf))
            status = status | flag(Status.NAN_LOG_WEIGHT, bad)
        drawn_by = log_weights + log_psi if self.look_ahead is not None else log_weights
        weighed = weigh(drawn_by)
        due = (weighed.total > 0) & ~is_fatal(population.status)
        if self.when is not None:
            due = due & self.when(with_changes(population, log_weights=drawn_by))

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
        left = -log_psi[ancestors]
        if self.differentiable:
            share = jnp.where(drawn_by > -jnp.inf, drawn_by, 0)[ancestors] - weighed.log_mean
            left = left + jnp.where(due, share - jax.lax.stop_gradient(share), 0)
        log_scale, log_scale_low = bank(population.log_scale, population.log_scale_low, banked)
        resampled = with_changes(
            population,
            particles=particles,
            eve=eve,
            log_weights=jnp.where(due, left, log_weights - shift),
            log_scale=log_scale,
            log_scale_low=log_scale_low,
            num_resampled=population.num_resampled + due.astype(jnp.int32),
            status=status,
        )
        return resampled, ResampleInfo(population.ess, due, ancestors)


def unwrap_key(key: Key[Array, "..."] | UInt32[Array, "..."]) -> tuple[Array, Callable[[Array], PRNGKey]]:
    """The bits of a key (or of an array of keys), and the function that makes keys of such bits.

    A typed key cannot enter `lax.cond` under `vmap`: both branches then select it against itself, which the
    key-reuse checker counts as a second use.

    Args:
        key: typed or raw keys.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key, lambda bits: bits
    implementation = jax.random.key_impl(key)
    return jax.random.key_data(key), lambda bits: jax.random.wrap_key_data(bits, impl=implementation)
