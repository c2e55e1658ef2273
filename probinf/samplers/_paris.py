r"""`paris`: additive functionals of the smoothing law, online. Olsson, Westerborn 2017 (the PaRIS algorithm).

$$ \tau_t^i = \frac1K \sum_{k=1}^K \left\{ \tau_{t-1}^{J_k} + h_t(x_{t-1}^{J_k}, x_t^i) \right\},\qquad
   J_k \sim W_{t-1}^j\, M_t G_t(x_{t-1}^j, x_t^i), $$

and $\sum_i W_t^i \tau_t^i$ estimates $E[\sum_{s \le t} h_s(x_{s-1}, x_s) \mid y_{0:t}]$. Times the evidence estimate it
is unbiased for every K >= 1; with K >= 2 its variance grows linearly in t, with K = 1 faster (paths degenerate).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt32

from probinf.core import (
    Batched,
    FeynmanKac,
    Population,
    PRNGKey,
    adapt,
    any_bits,
    check_status,
    compiled,
    ess_below,
    extend,
    is_concrete,
    is_traceable,
    iterate,
    map_items,
    resample,
    sequence,
    spawn,
    take,
    weigh,
    weight_dtype,
    whole_number,
    with_changes,
)
from probinf.core._feynman_kac import check_model
from probinf.core._population import freeze
from probinf.samplers._backward_kernels import BackwardInfo, Exact, Metropolis, Past, Rejection, find_kernel, is_lost
from probinf.samplers._backward_sample import warn_of_violations
from probinf.samplers._particle_filter import find_scheme, weighted_mean
from probinf.samplers._scheme import AbstractScheme


class ParisResult(NamedTuple):
    """What `paris` returns.

    Attributes:
        estimate: pytree, leaves [T, ...]: entry t estimates E[sum_{s <= t} h_s | y_{0:t}]; NaN after a fatal fault or
            where all weights are zero.
        log_evidence: log of the unbiased estimate of p(y_{0:T-1}).
        log_evidence_path: [T], log p(y_{0:t}).
        ess: [T], effective sample size after weighting.
        status: OR of `Status` bits.
        population: the particles at T - 1; its `context` holds the statistic of each.
        backward: counts of the backward draws, [T - 1].
    """

    estimate: PyTree[Any]
    log_evidence: Float[Array, ""]
    log_evidence_path: Float[Array, " t"]
    ess: Float[Array, " t"]
    status: UInt32[Array, ""]
    population: Population
    backward: BackwardInfo


class Carried(NamedTuple):
    """The context of the population: the particles before the last resampling, and the statistic of those now."""

    past: Past
    values: PyTree


def paris(
    key: PRNGKey,
    model: FeynmanKac,
    additive: Callable[[Array, PyTree | None, PyTree], PyTree],
    *,
    num_particles: int,
    num_backward: int = 2,
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: float | Array = 0.5,
    method: str = "exact",
    log_bound: float | Array | Callable[[Array], Array] | None = None,
    num_trials: int | None = None,
    throw: bool = True,
) -> ParisResult:
    """Estimates the smoothed expectation of a sum over time, online, with memory that does not depend on T.

    Args:
        key: PRNG key.
        model: a `FeynmanKac` that defines `log_transition`.
        additive: `(t, x_prev, x) -> pytree`, the term h_t for ONE pair of states; `x_prev` is None at t = 0. Make it
            an `equinox.Module` with array leaves and new values recompile nothing.
        num_particles: N >= 1.
        num_backward: backward draws K >= 1 a particle and step; 2 is enough for stability.
        resampling: as for `particle_filter`.
        ess_threshold: as for `particle_filter`.
        method: "exact", O(N^2) a step, or "rejection", near O(N) where `log_bound` is not far above the densities
            (see `backward_sample`); both draw from the same law.
        log_bound: for "rejection": an upper bound of `model.log_backward(t, x_prev, x)`, a number or a function of t.
        num_trials: for "rejection": most trials a step before the exact draws; None leaves it to their cost.
        throw: whether a fatal status raises; other bits, and a violated bound, give a warning. Skipped under your own
            `jit`, where only `status` and `backward` tell.

    Returns:
        A `ParisResult`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError: a bad argument.
        TypeError: a bad argument, or the model lacks `log_transition`.
    """
    traceable = is_traceable(extend(model))  # raises for what is no model
    kernel = find_kernel(method, ("exact", "rejection"), log_bound, num_trials, 0, traceable)
    num_particles = whole_number("num_particles", num_particles, 1)
    num_backward = whole_number("num_backward", num_backward, 1)
    if not callable(additive):
        raise TypeError(f"`additive` is {additive!r}; needed a function of (t, x_prev, x)")
    update = UpdateStatistic(model, additive, kernel, num_backward)
    run = _run if traceable else _paris
    result = run(key, model, update, find_scheme(resampling), ess_below(ess_threshold), num_particles)
    if throw and is_concrete(result.status):
        _check(result)
    return result


def _paris(
    key: PRNGKey,
    model: FeynmanKac,
    update: "UpdateStatistic",
    scheme: AbstractScheme,
    when: ess_below,
    num_particles: int,
) -> ParisResult:
    """The algorithm: the particle filter, with two verbs that carry the statistic along."""
    start_key, first_key, loop_key = jax.random.split(key, 3)
    population = spawn(model, num_particles)(start_key)
    population, _ = adapt(update.begin)(first_key, population, jnp.zeros((), jnp.int32))
    step = sequence(
        adapt(_keep_past),
        resample(
            scheme, when=when, look_ahead=Batched(model).look_ahead if model.looks_ahead else None, gather=model.gather
        ),
        extend(model),
        update,
    )
    first = _report(population)
    nothing = jnp.zeros(0, jnp.int32)
    backward = BackwardInfo(first["ess"][None][:0], nothing, nothing)
    reports = jax.tree.map(lambda leaf: leaf[None], first)
    if model.num_steps > 1:
        loop = iterate(step, over=jnp.arange(1, model.num_steps), record=lambda p, info: (_report(p), info[-1]))
        population, (rows, backward) = loop(loop_key, population)
        reports = jax.tree.map(lambda row, rows: jnp.concatenate([row, rows]), reports, rows)
    elif model.num_steps == 0:
        reports = jax.tree.map(lambda leaf: leaf[:0], reports)
    return ParisResult(
        log_evidence=population.log_evidence,
        status=population.status,
        population=population,
        backward=backward,
        **reports,
    )


_run = compiled(_paris)


class UpdateStatistic(eqx.Module):
    """The PaRIS update, a verb: changes only `context`. Law: the identity."""

    model: FeynmanKac = eqx.field(converter=check_model)
    additive: Callable[[Array, PyTree | None, PyTree], PyTree]
    kernel: Exact | Rejection | Metropolis
    num_backward: int = eqx.field(static=True)

    @property
    def traceable(self) -> bool:
        """Whether it may run under `jit`."""
        return self.model.traceable

    def begin(self, step: Array, population: Population) -> Carried:
        """The context at t = 0: tau is h_0."""
        first = map_items(lambda x: self.additive(step, None, x), population.particles, traceable=self.traceable)
        past = Past(population.log_weights, population.particles)
        return Carried(past, _as_statistic(first, population))

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, BackwardInfo]:
        """Averages the statistic and the new term over backward draws."""
        past, values = population.context
        now = jax.tree.map(lambda leaf: jnp.repeat(leaf, self.num_backward, axis=0), population.particles)
        nowhere = jnp.zeros(jax.tree.leaves(now)[0].shape[0], jnp.int32)  # these kernels do not look where they start
        drawn = self.kernel(key, self.model, step, past, now, nowhere)
        before = take(past.particles, drawn.slots)
        terms = map_items(lambda x_prev, x: self.additive(step, x_prev, x), before, now, traceable=self.traceable)
        terms = _as_statistic(terms, population)

        def average(old: Array, term: Array) -> Array:
            return jnp.mean((take(old, drawn.slots) + term).reshape(-1, self.num_backward, *old.shape[1:]), axis=1)

        # What a particle of weight zero meets is no fault.
        alive = jnp.repeat(population.log_weights > -jnp.inf, self.num_backward)
        status = population.status | any_bits(drawn.status, alive)
        new = jax.tree.map(average, values, terms)
        context = Carried(past, freeze(population.status, values, new))
        return with_changes(population, context=context, status=status), drawn.info


def _keep_past(step: Any, population: Population) -> Carried:
    """Sets the weighted particles aside before they are resampled."""
    del step
    past = Past(population.log_weights, population.particles)
    return Carried(freeze(population.status, population.context.past, past), population.context.values)


def _report(population: Population) -> dict[str, Any]:
    weighed = weigh(population.log_weights)
    total = jnp.where(is_lost(population.status), 0, weighed.total)  # no mean
    return {
        "estimate": jax.tree.map(lambda x: weighted_mean(weighed.relative, total, x), population.context.values),
        "log_evidence_path": population.log_evidence,
        "ess": weighed.ess,
    }


def _as_statistic(terms: PyTree, population: Population) -> PyTree:
    """Terms as floating arrays of at least 32 bits, because sums over time of fewer are not right."""

    def convert(leaf: Array) -> Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(weight_dtype(leaf.dtype) if floating else population.log_weights.dtype)

    return jax.tree.map(convert, terms)


def _check(result: ParisResult) -> None:
    check_status(result.status, what="paris", result=result)
    warn_of_violations(result.backward.num_violations, "paris")
