r"""Persistent sampling: tempered SMC that keeps the particles of all temperatures and weights them together.

With generations $s < t$ of N particles at $\lambda_s$, each of evidence estimate $\hat Z_s$, all of them are draws of
the mixture of these laws, and so stand for the law at any $\lambda$ with the weights (deterministic mixture)

$$ w_\lambda(x) = L(x)^{\lambda} \Big/ \frac1t \sum_{s < t} L(x)^{\lambda_s} / \hat Z_s, \qquad
   \hat Z_\lambda = \text{mean of } w_\lambda . $$

    repeat until lambda = 1:
        choose the next lambda,  weight all by w_lambda,  resample N of them,  tune the kernel,  move,  add these

Karamanis, Seljak 2024. The evidence is consistent; it is not unbiased, since the mixture holds estimates.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from probinf.core import (
    Population,
    PRNGKey,
    Target,
    check_status,
    compiled,
    cond,
    fresh_population,
    is_concrete,
    is_fatal,
    iterate,
    sequence,
    take,
    unwrap_key,
    weigh,
    with_changes,
)
from probinf.core._spawn import absorb
from probinf.core._target import raised
from probinf.samplers._factor import as_rows
from probinf.samplers._moves import adaptive_moves
from probinf.samplers._particle_filter import find_scheme, population_mean
from probinf.samplers._scheme import AbstractScheme
from probinf.samplers._stage import Stage, Tempering, raised_while, spread_factor
from probinf.samplers._tempering import (
    UNFINISHED,
    Options,
    check_target,
    draw_start,
    find_options,
    first_context,
    kernel_or_default,
)


class PersistentResult(eqx.Module):
    """The result of `persistent_smc`. S is the bound of temperatures and one more, for the prior.

    Attributes:
        log_evidence: log of the estimate of the integral of prior times likelihood; NaN after a fatal fault.
        population: the particles (unconstrained positions) of all temperatures, [S * N], and their weights for the
            posterior; those that were not needed have weight zero.
        samples: they, in the space that users see.
        inverse_temperatures: [S], of each generation of N particles, from 0; NaN behind the last.
        ess: [S - 1] effective sample size of all particles after each reweighting; zero behind the last.
        acceptance_rate: [S - 1] of the moves.
        status: OR of `Status` bits.
    """

    log_evidence: Float[Array, ""]
    population: Population
    samples: PyTree[Any]
    inverse_temperatures: Float[Array, " s"]
    ess: Float[Array, " s_less_1"]
    acceptance_rate: Float[Array, " s_less_1"]
    status: UInt32[Array, ""]

    @property
    def mean(self) -> PyTree:
        """Posterior means of `samples`; NaN if all weights are zero or the status is fatal."""
        return population_mean(self.population, self.samples)

    def check(self) -> "PersistentResult":
        """Itself, after raising `InferenceError` for fatal bits or one warning for others."""
        check_status(self.status, what="persistent_smc", counts=UNFINISHED, result=self)
        return self


def persistent_smc(
    key: PRNGKey,
    target: Target,
    *,
    num_particles: int,
    target_ess: float | Array = 3.0,
    kernel: Any = None,
    num_steps: int | str = "adapt",
    resampling: str | AbstractScheme = "systematic",
    max_temperatures: int = 50,
    max_moves: int = 20,
    throw: bool = True,
) -> PersistentResult:
    """Samples the posterior and estimates its evidence with the particles of all temperatures.

    It keeps all particles, in room for `max_temperatures + 1` times N, and weighs them all at each temperature: choose
    it where evaluations of the target are what costs.

    Args:
        key: PRNG key.
        target: a `Target` with `sample_prior`; `log_prior` must be normalised for `log_evidence` to be the evidence.
        num_particles: N >= 2, particles that are moved at each temperature.
        target_ess: > 0, the effective sample size of all particles that must be left when the temperature rises, as a
            multiple of N. Above 1 there are first more draws of the prior. The precision for a number of evaluations
            grows with it, and so does their number.
        kernel: as for `tempered_smc`.
        num_steps: moves at each temperature, or "adapt": until the particles stop drifting from where they started.
        resampling: name of a scheme, or a scheme.
        max_temperatures: bound of the generations after the first; ending there sets `MAX_STEPS`.
        max_moves: bound of the moves at one temperature, with `num_steps="adapt"`.
        throw: whether a fatal status raises and others warn. Skipped under your own `jit`.

    Returns:
        A `PersistentResult`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    check_target(target)
    if is_concrete(target_ess) and not float(target_ess) > 0:
        raise ValueError(f"`target_ess` is {target_ess}; needed a positive number, such as 3")
    options = find_options(num_particles, num_steps, max_temperatures, max_moves)
    if is_concrete(target_ess) and float(target_ess) > options.max_temperatures:
        raise ValueError(
            f"`target_ess` is {target_ess}; needed at most `max_temperatures`, {options.max_temperatures}: there are "
            "never more particles than that many times N"
        )
    target_ess = jnp.asarray(target_ess, jnp.zeros(()).dtype)
    result = _run(key, target, kernel, find_scheme(resampling), target_ess, options)
    if throw and is_concrete(result.status):
        result.check()
    return result


class Kept(NamedTuple):
    """A particle: a state of the kernel, and log of the sum over generations of L^lambda_s / Z_s there."""

    state: Any
    log_mixture: Array


class Pool(NamedTuple):
    """The context: temperature and log evidence of each generation [S], how many there are, and the present stage."""

    inverse_temperatures: Array
    log_evidence: Array
    num_made: Int[Array, ""]
    tempering: Tempering


def _log_likelihood(population: Population) -> Float[Array, " n"]:
    return population.particles.state.point.log_likelihood.astype(population.log_weights.dtype)


def _log_ratio(population: Population, inverse_temperature: Array) -> Float[Array, " n"]:
    return raised(inverse_temperature, _log_likelihood(population)) - population.particles.log_mixture


def _weighted(population: Population, inverse_temperature: Array) -> Population:
    """The generations so far, weighted to stand for the law at a temperature; the mean weight is its evidence."""
    pool, bound = population.context, population.context.log_evidence.shape[0]
    there = jnp.arange(population.num_particles) < pool.num_made * (population.num_particles // bound)
    # S instead of t, for the mean is over S N particles.
    share = jnp.log(jnp.asarray(bound, population.log_weights.dtype))
    fresh = with_changes(population, log_weights=jnp.where(there, share, -jnp.inf))
    return absorb(fresh, _log_ratio(population, inverse_temperature))[0]


class _Temper(eqx.Module):
    """Chooses the next temperature from all particles, and weights them for it. Its info is their ESS."""

    target_ess: Float[Array, ""]
    dense: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, Array]:
        del key, step
        pool, stage = population.context, population.context.tempering.stage
        before, alive = stage.inverse_temperature, population.log_weights > -jnp.inf
        size = population.num_particles // pool.log_evidence.shape[0]

        def enough(step: Array) -> Array:
            log_weights = _log_ratio(population, before + step)
            # NaN is flagged when the weights are set.
            ess = weigh(jnp.where(alive & ~jnp.isnan(log_weights), log_weights, -jnp.inf)).ess
            return ess >= self.target_ess.astype(ess.dtype) * size

        # Where the particles are too few even for the present temperature, it is repeated.
        after = jnp.where(enough(jnp.zeros_like(before)), raised_while(enough, before), before)
        after = jnp.where(jnp.any(alive & (_log_likelihood(population) > -jnp.inf)), after, 1)
        weighted = _weighted(population, after)
        rows = as_rows(population.particles.state.position)
        factor = spread_factor(weighted.weights, rows, dense=self.dense)
        tempering = Tempering(Stage(after, factor, stage.step_sizes, stage.num_moves), pool.tempering.step_size)
        context = Pool(pool.inverse_temperatures, pool.log_evidence, pool.num_made, tempering)
        return with_changes(weighted, context=context), weighted.ess


class _Grow(eqx.Module):
    """Adds a generation of the present temperature: draws of the prior at zero, else resampled particles that moved.

    Law: the identity in expectation, but for the estimates in the mixture. Its info is the acceptance rate.
    """

    kernel: Any
    target: Target
    scheme: AbstractScheme
    options: Options

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, Array]:
        del step
        due = jnp.any(population.log_weights > -jnp.inf) & ~is_fatal(population.status)
        bits, restore = unwrap_key(key)

        def grow(bits: Array, population: Population) -> tuple[Population, Array]:
            return self._grow(restore(bits), population)

        def stay(bits: Array, population: Population) -> tuple[Population, Array]:
            del bits
            return population, jnp.zeros_like(population.log_scale)

        return cond(due, grow, stay, bits, population)

    def _grow(self, key: PRNGKey, population: Population) -> tuple[Population, Array]:
        kept, pool, size = population.particles, population.context, self.options.num_particles
        at = pool.tempering.stage.inverse_temperature
        bits, restore = unwrap_key(key)
        generation, rate = cond(
            at == 0,
            lambda bits, population: self._drawn(restore(bits), population),
            lambda bits, population: self._moved(restore(bits), population),
            bits,
            population,
        )
        temperatures = pool.inverse_temperatures.at[pool.num_made].set(at)
        evidence = pool.log_evidence.at[pool.num_made].set(population.log_evidence)
        old = jnp.logaddexp(kept.log_mixture, raised(at, _log_likelihood(population)) - population.log_evidence)
        log_likelihood = generation.particles.point.log_likelihood.astype(old.dtype)
        terms = raised(temperatures[:, None], log_likelihood[None]) - evidence[:, None]
        made = (jnp.arange(temperatures.shape[0]) <= pool.num_made)[:, None]
        new = jax.nn.logsumexp(jnp.where(made, terms, -jnp.inf), axis=0)

        def insert(rows: Array, fresh: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, fresh, pool.num_made * size, 0)

        grown = with_changes(
            population,
            particles=jax.tree.map(insert, Kept(kept.state, old), Kept(generation.particles, new)),
            eve=insert(population.eve, generation.eve),
            num_resampled=population.num_resampled + (at > 0).astype(jnp.int32),
            context=Pool(temperatures, evidence, pool.num_made + 1, generation.context),
            status=population.status | generation.status,
        )
        return _weighted(grown, at), rate

    def _drawn(self, key: PRNGKey, population: Population) -> tuple[Population, Array]:
        drawn = draw_start(key, self.kernel, self.target, self.options.num_particles)
        return with_changes(drawn, context=population.context.tempering), jnp.ones_like(population.log_scale)

    def _moved(self, key: PRNGKey, population: Population) -> tuple[Population, Array]:
        scheme_key, offset_key, move_key = jax.random.split(key, 3)
        pool, size = population.context, self.options.num_particles
        bound = pool.log_evidence.shape[0]
        # Every S-th of S N systematic draws, from a random one on, is a systematic sample of N.
        ancestors = self.scheme(scheme_key, weigh(population.log_weights).relative)
        slots = ancestors[jax.random.randint(offset_key, (), 0, bound) + bound * jnp.arange(size)]
        started = fresh_population(take(population.particles.state, slots), pool.tempering)
        moves = adaptive_moves(self.kernel, self.target, self.options.max_moves, self.options.num_moves)
        moved, info = moves(move_key, with_changes(started, eve=population.eve[slots]))
        return moved, info.acceptance_rate.astype(population.log_scale.dtype)


def _done(population: Population) -> Bool[Array, ""]:
    at_one = population.context.tempering.stage.inverse_temperature >= 1
    return at_one | ~jnp.any(population.log_weights > -jnp.inf)


def _sampler(
    key: PRNGKey, target: Target, kernel: Any, scheme: AbstractScheme, target_ess: Float[Array, ""], options: Options
) -> PersistentResult:
    """The algorithm: a generation of the prior, and two transformers for each later one."""
    kernel = kernel_or_default("persistent_smc", kernel, target.draw_prior, key)
    start_key, loop_key = jax.random.split(key)
    bound = options.max_temperatures + 1
    start = draw_start(start_key, kernel, target, options.num_particles)
    dtype = start.log_weights.dtype
    # Room for the generations to come is filled with the first, at weight zero.
    states, eve = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (bound,) + (1,) * (leaf.ndim - 1)), (start.particles, start.eve)
    )
    tempering = first_context(kernel, as_rows(start.particles.position).shape[1], dtype, options.max_moves)
    pool = Pool(jnp.zeros(bound, dtype), jnp.zeros(bound, dtype), jnp.ones((), jnp.int32), tempering)
    population = fresh_population(Kept(states, jnp.zeros(bound * options.num_particles, dtype)), pool)
    population = with_changes(population, eve=eve, status=start.status)
    step = sequence(_Temper(target_ess, bool(kernel.dense)), _Grow(kernel, target, scheme, options))
    loop = iterate(step, until=_done, max_steps=options.max_temperatures, record=lambda population, info: info)
    population, ((ess, acceptance), _) = loop(loop_key, _weighted(population, jnp.zeros((), dtype)))
    pool = population.context
    positions = with_changes(population, particles=population.particles.state.position, context=None)
    return PersistentResult(
        log_evidence=population.log_evidence,
        population=positions,
        samples=jax.vmap(target.constrain)(positions.particles),
        inverse_temperatures=jnp.where(jnp.arange(bound) < pool.num_made, pool.inverse_temperatures, jnp.nan),
        ess=ess,
        acceptance_rate=acceptance,
        status=population.status,
    )


_run = compiled(_sampler)
