r"""Tempered SMC: particles carried from the prior to the posterior through $p(x) L(x)^{\lambda}$.

    repeat until lambda = 1:
        choose the next lambda,  reweight by L^(lambda' - lambda),  resample,  tune the kernel,  move

Del Moral, Doucet, Jasra 2006; the temperatures by bisection of the ESS (Jasra et al. 2011; Zhou, Johansen, Aston 2016);
waste-free moves (Dau, Chopin 2022). With everything chosen from the particles the evidence is consistent; re-run with
the frozen `schedule` it is exactly unbiased.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from probinf.core import (
    Population,
    PRNGKey,
    Target,
    WeightInfo,
    check_status,
    compiled,
    fast_key,
    is_concrete,
    iterate,
    plain_key,
    resample,
    reweight,
    sequence,
    with_changes,
)
from probinf.samplers._factor import as_rows
from probinf.samplers._moves import adaptive_moves, frozen_moves, waste_free_moves
from probinf.samplers._particle_filter import find_scheme, population_mean
from probinf.samplers._scheme import AbstractScheme
from probinf.samplers._stage import Stage, Tempering, next_temperature, spread_factor
from probinf.samplers._tempering import (
    UNFINISHED,
    Options,
    check_target,
    draw_start,
    find_options,
    first_context,
    kernel_or_default,
)


class Schedule(NamedTuple):
    """What a run of `tempered_smc` chose: pass it as `schedule=` for an exactly unbiased run.

    Attributes:
        stages: a `Stage` with leaves [max_temperatures, ...].
        num_temperatures: [] int32, how many of them count.
    """

    stages: Stage
    num_temperatures: Int[Array, ""]


class SMCResult(eqx.Module):
    """The result of an SMC sampler.

    Attributes:
        log_evidence: log of the estimate of the integral of prior times likelihood; NaN after a fatal fault, -inf if
            all weights became zero.
        population: the particles (unconstrained positions) and their weights.
        samples: the particles in the space that users see, leaves [N, ...].
        schedule: the temperatures and tuned kernels, for a re-run.
        ess: [max_temperatures] effective sample size after each reweighting; zero behind the last.
        acceptance_rate: [max_temperatures] of the moves.
        status: OR of `Status` bits.
    """

    log_evidence: Float[Array, ""]
    population: Population
    samples: PyTree[Any]
    schedule: Schedule
    ess: Float[Array, " s"]
    acceptance_rate: Float[Array, " s"]
    status: UInt32[Array, ""]

    @property
    def temperatures(self) -> np.ndarray:
        """The inverse temperatures that were used, from 0 to 1; on the host only."""
        used = np.asarray(self.schedule.stages.inverse_temperature)[: int(self.schedule.num_temperatures)]
        return np.concatenate([np.zeros(1, used.dtype), used])

    @property
    def mean(self) -> PyTree:
        """Posterior means of `samples`; NaN if all weights are zero or the status is fatal."""
        return population_mean(self.population, self.samples)

    def check(self) -> "SMCResult":
        """Itself, after raising `InferenceError` for fatal bits or one warning for others."""
        check_status(self.status, what="tempered_smc", counts=UNFINISHED, result=self)
        return self


def tempered_smc(
    key: PRNGKey,
    target: Target,
    *,
    num_particles: int,
    target_ess: float | Array = 0.5,
    kernel: Any = None,
    num_steps: int | str = "adapt",
    waste_free: bool = False,
    resampling: str | AbstractScheme = "systematic",
    schedule: Schedule | None = None,
    max_temperatures: int = 100,
    max_moves: int = 20,
    throw: bool = True,
) -> SMCResult:
    """Samples the posterior and estimates its evidence by SMC from the prior.

    Temperatures, the kernel's matrix, step sizes and the number of moves are tuned from the population. The
    likelihood is evaluated once a draw of the prior and once a leapfrog step.

    Args:
        key: PRNG key.
        target: a `Target` with `sample_prior`; `log_prior` must be normalised for `log_evidence` to be the evidence.
        num_particles: N >= 2.
        target_ess: in (0, 1), the conditional ESS of each reweighting as a fraction of N.
        kernel: a kernel that can be tuned (`hmc`, `random_walk`, `mala`), its step size in units of the spread of the
            population; None is HMC with trajectories of a quarter period.
        num_steps: moves at each temperature, or "adapt": until the particles stop drifting from where they started.
        waste_free: whether chains of `num_steps` moves (an integer) start from every (num_steps + 1)-th particle only
            and all their states are kept: cheaper by that factor, with a slightly larger variance.
        resampling: name of a scheme, or a scheme.
        schedule: `result.schedule` of an earlier run with the same options: repeats its temperatures, matrices,
            step sizes and numbers of moves, which makes the estimate of the evidence unbiased. Use a new key.
        max_temperatures: bound of the loop; ending there sets `MAX_STEPS`.
        max_moves: bound of the moves at one temperature, with `num_steps="adapt"`.
        throw: whether a fatal status raises and others warn. Skipped under your own `jit`.

    Returns:
        An `SMCResult`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    check_target(target)
    if is_concrete(target_ess) and not 0 < float(target_ess) < 1:
        raise ValueError(f"`target_ess` is {target_ess}; needed a number between 0 and 1, such as 0.5")
    options = find_options(num_particles, num_steps, max_temperatures, max_moves, waste_free=waste_free)
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(f"`schedule` is a {type(schedule).__name__}; needed `result.schedule` of an earlier run")
    dtype = jnp.zeros(()).dtype
    scheme = find_scheme(resampling)
    result = _run(key, target, kernel, scheme, jnp.asarray(target_ess, dtype), schedule, options)
    if throw and is_concrete(result.status):
        result.check()
    return result


def _check_schedule(schedule: Schedule, options: Options, dimension: int, *, dense: bool) -> None:
    square = (dimension, dimension) if dense else (dimension,)
    for name, shape in (("step_sizes", (options.max_moves,)), ("factor", square)):
        found, needed = getattr(schedule.stages, name).shape, (options.max_temperatures, *shape)
        if found != needed:
            raise ValueError(
                f"`schedule` holds `{name}` of shape {found}; needed {needed}: pass the `target`, `kernel`, "
                "`max_temperatures`, `max_moves` and `num_steps` of the run that made it"
            )


class _Temper(eqx.Module):
    """Raises the temperature and tunes the matrix, from the population or as the schedule says, and reweights."""

    target_ess: Float[Array, ""]
    schedule: Schedule | None
    dense: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, WeightInfo]:
        stage, step_size = population.context
        before = stage.inverse_temperature
        if self.schedule is not None:
            stage = jax.tree.map(lambda leaf: leaf[step], self.schedule.stages)
        else:
            log_likelihood = population.particles.point.log_likelihood.astype(before.dtype)
            after = next_temperature(population.weights, log_likelihood, before, self.target_ess)
            stage = Stage(after, stage.factor, stage.step_sizes, stage.num_moves)
        rise = increment(before, stage.inverse_temperature)
        population, info = reweight(lambda _, state: rise * state.point.log_likelihood)(key, population, step)
        if self.schedule is None:
            # The spread at the new temperature, before resampling makes copies.
            rows = as_rows(population.particles.position)
            factor = spread_factor(population.weights, rows, dense=self.dense)
            stage = Stage(stage.inverse_temperature, factor, stage.step_sizes, stage.num_moves)
        return with_changes(population, context=Tempering(stage, step_size)), info


def increment(before: Float[Array, ""], after: Float[Array, ""]) -> Float[Array, ""]:
    """The power of the likelihood by which the weights change between two temperatures."""
    return after - before


def _done(population: Population) -> Bool[Array, ""]:
    return (population.context.stage.inverse_temperature >= 1) | ~jnp.any(population.log_weights > -jnp.inf)


def _record(population: Population, info: tuple) -> tuple:
    _, resampling, moves = info
    return population.context.stage, resampling.ess, moves.acceptance_rate


def _sampler(
    key: PRNGKey,
    target: Target,
    kernel: Any,
    scheme: AbstractScheme,
    target_ess: Float[Array, ""],
    schedule: Schedule | None,
    options: Options,
) -> SMCResult:
    """The algorithm: a population of the prior, and three transformers for each temperature."""
    kernel = kernel_or_default("tempered_smc", kernel, target.draw_prior, key)
    start_key, loop_key = map(plain_key, jax.random.split(fast_key(key)))
    dense, frozen = bool(kernel.dense), schedule is not None
    population = draw_start(start_key, kernel, target, options.num_particles)
    dimension = as_rows(population.particles.position).shape[1]
    if schedule is not None:
        _check_schedule(schedule, options, dimension, dense=dense)
    context = first_context(kernel, dimension, population.log_weights.dtype, options.max_moves)
    population = with_changes(population, context=context)
    moves = (
        waste_free_moves(kernel, target, options.max_moves + 1, frozen)
        if options.waste_free
        else frozen_moves(kernel, target)
        if frozen
        else adaptive_moves(kernel, target, options.max_moves, options.num_moves)
    )
    step = sequence(_Temper(target_ess, schedule, dense), resample(scheme), moves)
    loop = iterate(step, until=_done, max_steps=options.max_temperatures, record=_record)
    population, ((stages, ess, acceptance), num_temperatures) = loop(loop_key, population)
    positions = with_changes(population, particles=population.particles.position, context=None)
    return SMCResult(
        log_evidence=population.log_evidence,
        population=positions,
        samples=jax.vmap(target.constrain)(positions.particles),
        schedule=Schedule(stages, num_temperatures),
        ess=ess,
        acceptance_rate=acceptance,
        status=population.status,
    )


_run = compiled(_sampler)
