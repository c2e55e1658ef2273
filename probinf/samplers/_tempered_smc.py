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
    adapt,
    check_status,
    compiled,
    is_concrete,
    iterate,
    resample,
    reweight,
    sequence,
    spawn,
    with_changes,
)
from probinf.samplers._hmc import hmc
from probinf.samplers._moves import (
    Tempering,
    adaptive_moves,
    any_status,
    frozen_moves,
    positions_of,
    waste_free_moves,
)
from probinf.samplers._particle_filter import find_scheme, population_mean
from probinf.samplers._scheme import AbstractScheme
from probinf.samplers._stage import Stage, next_temperature, spread_factor


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
        counts = {"MAX_STEPS": "the temperature did not reach one; here the bound is `max_temperatures`"}
        check_status(self.status, what="tempered_smc", counts=counts, result=self)
        return self


class _Options(eqx.Module):
    num_particles: int = eqx.field(static=True)
    max_temperatures: int = eqx.field(static=True)
    max_moves: int = eqx.field(static=True)
    num_moves: int | None = eqx.field(static=True)
    waste_free: bool = eqx.field(static=True)


def tempered_smc(
    key: PRNGKey,
    target: Target,
    *,
    num_particles: int,
    target_ess: float = 0.5,
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
    if not isinstance(target, Target):
        raise TypeError(f"`target` is a {type(target).__name__}; needed a `Target`")
    if target.sample_prior is None:
        raise ValueError("`target` has no `sample_prior`, from which SMC starts: pass one to `Target`")
    if is_concrete(target.inverse_temperature) and float(target.inverse_temperature) != 1:
        raise ValueError(
            f"`target` is at inverse temperature {float(target.inverse_temperature)}; needed 1, where SMC ends: pass "
            "`target.at_temperature(1.0)`"
        )
    if is_concrete(target_ess) and not 0 < float(target_ess) < 1:
        raise ValueError(f"`target_ess` is {target_ess}; needed a number between 0 and 1, such as 0.5")
    options = _options(num_particles, num_steps, waste_free, max_temperatures, max_moves)
    position = jax.eval_shape(target.sample_prior, key)
    kernel = default_kernel(position) if kernel is None else kernel
    for name in ("init", "step", "tuned", "default_target_accept"):
        if not hasattr(kernel, name):
            raise TypeError(f"`kernel` is {kernel!r}, which has no `{name}`: pass `hmc()`, `random_walk()` or `mala()`")
    if schedule is not None and schedule.stages.step_sizes.shape != (max_temperatures, options.max_moves):
        raise ValueError(
            f"`schedule` holds step sizes of shape {schedule.stages.step_sizes.shape}; needed "
            f"{(max_temperatures, options.max_moves)}: pass the `max_temperatures`, `max_moves` and `num_steps` of "
            "the run that made it"
        )
    dtype = jnp.zeros(()).dtype
    scheme = find_scheme(resampling)
    result = _run(key, target, kernel, scheme, jnp.asarray(target_ess, dtype), schedule, options)
    if throw and is_concrete(result.status):
        result.check()
    return result


def default_kernel(position: PyTree) -> Any:
    """HMC whose trajectories are a quarter of the period of a Gaussian in as many dimensions.

    At an acceptance rate of .8 the leapfrog step is about 1.4 d^(-1/4) standard deviations of a Gaussian, so that
    1.1 d^(1/4) steps go a quarter of its period, where a draw is independent of its start.
    """
    dimension = max(sum(leaf.size for leaf in jax.tree.leaves(position)), 1)
    return hmc(1.4 * dimension**-0.25, num_steps=max(round(1.1 * dimension**0.25), 1), jitter=False)


def _options(
    num_particles: int, num_steps: int | str, waste_free: bool, max_temperatures: int, max_moves: int
) -> _Options:
    for name, value, least in (
        ("num_particles", num_particles, 2),
        ("max_temperatures", max_temperatures, 1),
        ("max_moves", max_moves, 2),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` is {value!r}; needed an integer of at least {least}")
    if num_steps == "adapt":
        if waste_free:
            raise ValueError("`waste_free=True` needs `num_steps` as an integer, the moves of each chain, such as 3")
        return _Options(num_particles, max_temperatures, max_moves, None, False)
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f'`num_steps` is {num_steps!r}; needed an integer of at least 1, or "adapt"')
    if waste_free and num_particles % (num_steps + 1):
        raise ValueError(
            f"`num_particles` is {num_particles}; waste-free chains of {num_steps} moves need a multiple of "
            f"{num_steps + 1}"
        )
    return _Options(num_particles, max_temperatures, num_steps, num_steps, waste_free)


class _Plan(eqx.Module):
    """The next stage: its temperature and matrix, chosen from the population or read from the schedule."""

    target_ess: Float[Array, ""]
    schedule: Schedule | None
    dense: bool = eqx.field(static=True)

    def __call__(self, step: Any, population: Population) -> Tempering:
        context = population.context
        if self.schedule is not None:
            return Tempering(jax.tree.map(lambda leaf: leaf[step], self.schedule.stages), context.step_size)
        log_likelihood = population.particles.point.log_likelihood
        before, weights = context.stage.inverse_temperature, population.weights
        after = next_temperature(weights, log_likelihood.astype(before.dtype), before, self.target_ess)
        # The spread at the temperature to come, before resampling makes copies.
        log_weights = population.log_weights + increment(before, after, log_likelihood)
        log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)  # what `reweight` will flag
        tempered = with_changes(population, log_weights=log_weights)
        factor = spread_factor(tempered.weights, positions_of(population.particles), dense=self.dense)
        return Tempering(Stage(after, factor, context.stage.step_sizes, context.stage.num_moves), context.step_size)


def increment(before: Float[Array, ""], after: Float[Array, ""], log_likelihood: Float[Array, "..."]) -> Array:
    """Log weights of a step between two temperatures; NaN likelihoods stay NaN, to be flagged."""
    return (after - before).astype(log_likelihood.dtype) * log_likelihood


class _Temper(eqx.Module):
    """Plans the stage and reweights to its temperature."""

    plan: _Plan

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, Any]:
        before = population.context.stage.inverse_temperature
        population, _ = adapt(self.plan)(key, population, step)
        after = population.context.stage.inverse_temperature
        raise_to = reweight(lambda _, state: increment(before, after, state.point.log_likelihood))
        return raise_to(key, population, step)


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
    options: _Options,
) -> SMCResult:
    """The algorithm: a population of the prior, and three transformers for each temperature."""
    start_key, loop_key = jax.random.split(key)
    prior, dense, frozen = target.at_temperature(0.0), bool(kernel.dense), schedule is not None
    population = spawn(_Start(kernel, prior), options.num_particles)(start_key)
    population = with_changes(
        population,
        context=_first_context(kernel, population, options, dense),
        status=population.status | any_status(population.particles),
    )
    moves = (
        waste_free_moves(kernel, target, options.max_moves + 1, frozen)
        if options.waste_free
        else frozen_moves(kernel, target)
        if frozen
        else adaptive_moves(kernel, target, options.max_moves, options.num_moves)
    )
    step = sequence(_Temper(_Plan(target_ess, schedule, dense)), resample(scheme), moves)
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


class _Start(eqx.Module):
    """A draw of the prior as a state of the kernel."""

    kernel: Any
    prior: Target

    def __call__(self, key: PRNGKey) -> PyTree:
        draw_key, init_key = jax.random.split(key)
        return self.kernel.init(init_key, self.prior, self.prior.draw_prior(draw_key))


def _first_context(kernel: Any, population: Population, options: _Options, dense: bool) -> Tempering:
    dimension, dtype = positions_of(population.particles).shape[1], population.log_weights.dtype
    factor = jnp.eye(dimension, dtype=dtype) if dense else jnp.ones(dimension, dtype)
    empty = jnp.zeros(options.max_moves, dtype)
    stage = Stage(jnp.zeros((), dtype), factor, empty, jnp.zeros((), jnp.int32))
    return Tempering(stage, jnp.asarray(kernel.step_size).astype(dtype))


_run = compiled(_sampler)
