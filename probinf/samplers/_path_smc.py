r"""SMC along a path of targets $\pi_0, \pi_1, \dots, \pi_T$ of the user's choice; data tempering (IBIS) is one of them.

    for t = 1 .. T:  reweight by pi_t / pi_(t-1);  if the ESS is low: resample, tune the kernel, move

Del Moral, Doucet, Jasra 2006; Chopin 2002 (IBIS: $\pi_t(x) \propto p(x) \prod_{s \le t} p(y_s \mid x)$).
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
    ess_below,
    is_concrete,
    is_fatal,
    iterate,
    resample,
    reweight,
    sequence,
    spawn,
    unwrap_key,
    whole_number,
    with_changes,
)
from probinf.samplers._factor import as_rows
from probinf.samplers._moves import adaptive_moves
from probinf.samplers._particle_filter import find_scheme, population_mean
from probinf.samplers._scheme import AbstractScheme
from probinf.samplers._stage import Stage, Tempering, spread_factor
from probinf.samplers._tempering import kernel_or_default


class AbstractPath(eqx.Module):
    """A path of targets; subclass it. Data and parameters are array leaves, so that new ones recompile nothing.

    Attributes:
        num_steps: T >= 0, a field or a property of the subclass.
    """

    if TYPE_CHECKING:

        @property
        def num_steps(self) -> int:
            """T."""
            ...

    else:
        num_steps: eqx.AbstractVar[int]  # a type checker would take it for an argument of `__init__`

    @abc.abstractmethod
    def initial(self, key: PRNGKey) -> PyTree:
        """A draw of the normalised law at t = 0: a position."""

    @abc.abstractmethod
    def target(self, t: Int[Array, ""]) -> Target:
        """The target at t = 0 .. T, unnormalised but for t = 0."""

    def log_increment(self, t: Int[Array, ""], position: PyTree) -> Float[Array, ""]:
        """Log of pi_t / pi_(t-1) at a position, for t = 1 .. T; override it where the ratio is cheaper."""
        return self.target(t).log_density(position) - self.target(t - 1).log_density(position)


class DataPath(AbstractPath):
    r"""Data tempering: $\pi_t(x) \propto p(x) \prod_{s \le t} p(y_s \mid x)$.

    Attributes:
        prior: a `Target` with `sample_prior` and a normalised `log_prior`; its likelihood is not used.
        log_likelihood: `(position, datum) -> scalar`.
        data: pytree of arrays with a common leading axis T.
    """

    prior: Target
    log_likelihood: Callable[[Any, Any], Array]
    data: PyTree

    @property
    def num_steps(self) -> int:
        """T, the number of data."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def initial(self, key: PRNGKey) -> PyTree:
        """A draw of the prior."""
        return self.prior.draw_prior(key)

    def target(self, t: Int[Array, ""]) -> Target:
        """The posterior of the first t data."""
        prior = self.prior
        likelihood = _First(self.log_likelihood, self.data, t)
        return Target(likelihood, prior.log_prior, constrain=prior.constrain, supports=prior.supports)

    def log_increment(self, t: Int[Array, ""], position: PyTree) -> Float[Array, ""]:
        """The log likelihood of datum t alone."""
        return self.log_likelihood(position, jax.tree.map(lambda leaf: leaf[t - 1], self.data))


class _First(eqx.Module):
    """The log likelihood of the first `count` data."""

    log_likelihood: Callable[[Any, Any], Array]
    data: PyTree
    count: Int[Array, ""]

    def __call__(self, position: PyTree) -> Float[Array, ""]:
        number = jax.tree.leaves(self.data)[0].shape[0]
        # Data to come are not looked at, not even by the gradient: one of them may be NaN.
        seen = jnp.minimum(jnp.arange(number), jnp.maximum(self.count - 1, 0))
        terms = jax.vmap(lambda i: self.log_likelihood(position, jax.tree.map(lambda leaf: leaf[i], self.data)))(seen)
        return jnp.sum(jnp.where(jnp.arange(number) < self.count, terms, 0))


class PathResult(eqx.Module):
    """The result of `path_smc`.

    Attributes:
        log_evidence: log of the estimate of the mass of the last target; NaN after a fatal fault.
        log_evidence_path: [T + 1], that of every target; for data tempering log p(y_{1:t}).
        ess: [T], effective sample size after each reweighting.
        moved: [T], whether the particles were resampled and moved.
        population: the particles (unconstrained positions) of the last target, and their weights.
        samples: they, in the space that users see.
        status: OR of `Status` bits.
    """

    log_evidence: Float[Array, ""]
    log_evidence_path: Float[Array, " t_plus_1"]
    ess: Float[Array, " t"]
    moved: Bool[Array, " t"]
    population: Population
    samples: PyTree[Any]
    status: UInt32[Array, ""]

    @property
    def mean(self) -> PyTree:
        """Means of `samples`; NaN if all weights are zero or the status is fatal."""
        return population_mean(self.population, self.samples)

    def check(self) -> "PathResult":
        """Itself, after raising `InferenceError` for fatal bits or one warning for others."""
        check_status(self.status, what="path_smc", result=self)
        return self


def path_smc(
    key: PRNGKey,
    path: AbstractPath,
    *,
    num_particles: int,
    ess_threshold: float | Array = 0.5,
    kernel: Any = None,
    resampling: str | AbstractScheme = "systematic",
    max_moves: int = 20,
    throw: bool = True,
) -> PathResult:
    """SMC along a path of targets, such as `DataPath` (IBIS); particles move only where they were resampled.

    The kernel's matrix, step size and number of moves are tuned from the population each time, so that the evidence is
    consistent, and not exactly unbiased.

    Args:
        key: PRNG key.
        path: an `AbstractPath`.
        num_particles: N >= 2.
        ess_threshold: resample and move when ESS < threshold * N; in [0, 1].
        kernel: a kernel that can be tuned, its step size in units of the spread of the population; None is HMC
            with trajectories of a quarter period.
        resampling: name of a scheme, or a scheme.
        max_moves: bound of the moves at one target.
        throw: whether a fatal status raises and others warn. Skipped under your own `jit`.

    Returns:
        A `PathResult`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    if not isinstance(path, AbstractPath):
        raise TypeError(f"`path` is a {type(path).__name__}; needed an `AbstractPath`, such as `DataPath(...)`")
    num_particles = whole_number("num_particles", num_particles, 2)
    max_moves = whole_number("max_moves", max_moves, 2)
    result = _run(key, path, kernel, find_scheme(resampling), ess_below(ess_threshold), num_particles, max_moves)
    if throw and is_concrete(result.status):
        result.check()
    return result


class _Renew(eqx.Module):
    """Resamples and moves the particles by a kernel that leaves pi_t invariant, if the ESS is low.

    Law: the identity. Its info is the log evidence, the ESS, and whether it was done.
    """

    path: AbstractPath
    kernel: Any
    scheme: AbstractScheme
    when: ess_below
    max_moves: int = eqx.field(static=True)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, tuple]:
        ess = population.ess
        due = self.when(population) & (ess > 0) & ~is_fatal(population.status)
        bits, restore = unwrap_key(key)

        def renew(bits: Array, population: Population) -> Population:
            return self._renew(restore(bits), population, step)

        renewed = cond(due, renew, lambda _, population: population, bits, population)
        return renewed, (population.log_evidence, ess, due)

    def _renew(self, key: PRNGKey, population: Population, step: Any) -> Population:
        resample_key, init_key, move_key = jax.random.split(key, 3)
        target, step_size = self.path.target(step), population.context
        positions = as_rows(population.particles)
        factor = spread_factor(population.weights, positions, dense=bool(self.kernel.dense))
        resampled, _ = resample(self.scheme)(resample_key, population)
        keys = jax.random.split(init_key, population.num_particles)
        states = jax.vmap(lambda k, x: self.kernel.init(k, target, x))(keys, resampled.particles)
        empty = jnp.zeros(self.max_moves, step_size.dtype)
        stage = Stage(target.inverse_temperature.astype(step_size.dtype), factor, empty, jnp.zeros((), jnp.int32))
        started = with_changes(resampled, particles=states, context=Tempering(stage, step_size))
        moved, _ = adaptive_moves(self.kernel, target, self.max_moves)(move_key, started)
        return with_changes(moved, particles=moved.particles.position, context=moved.context.step_size)


def _path_sampler(
    key: PRNGKey,
    path: AbstractPath,
    kernel: Any,
    scheme: AbstractScheme,
    when: ess_below,
    num_particles: int,
    max_moves: int,
) -> PathResult:
    """The algorithm: a population of the first target, and two transformers for each later one."""
    kernel = kernel_or_default("path_smc", kernel, path.initial, key)
    start_key, loop_key = jax.random.split(key)
    population = spawn(path.initial, num_particles)(start_key)
    dtype = population.log_weights.dtype
    population = with_changes(population, context=jnp.asarray(kernel.step_size).astype(dtype))
    evidence, ess, moved = jnp.zeros(0, dtype), jnp.zeros(0, dtype), jnp.zeros(0, bool)
    if path.num_steps > 0:
        step = sequence(reweight(path.log_increment), _Renew(path, kernel, scheme, when, max_moves))
        loop = iterate(step, over=jnp.arange(1, path.num_steps + 1), record=lambda population, info: info[1])
        population, (evidence, ess, moved) = loop(loop_key, population)
    final = with_changes(population, context=None)
    return PathResult(
        log_evidence=population.log_evidence,
        log_evidence_path=jnp.concatenate([jnp.zeros(1, dtype), evidence]),
        ess=ess,
        moved=moved,
        population=final,
        samples=jax.vmap(path.target(jnp.asarray(path.num_steps)).constrain)(final.particles),
        status=population.status,
    )


_run = compiled(_path_sampler)
