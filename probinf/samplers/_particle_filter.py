r"""The particle filter: sequential importance sampling with resampling on a Feynman-Kac model.

    for t = 1 .. T-1:  resample if ESS < threshold,  extend to t

and nothing is resampled before the first potential. Gordon, Salmond, Smith 1993; Del Moral 2004. The evidence
estimate is unbiased for fixed and adaptive resampling alike; its logarithm is below the truth by about half
its variance.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from probinf.core import (
    Batched,
    FeynmanKac,
    Population,
    PRNGKey,
    ResampleInfo,
    compiled,
    ess_below,
    extend,
    is_concrete,
    is_fatal,
    is_traceable,
    iterate,
    observe,
    place,
    resample,
    sequence,
    spawn,
    weigh,
    whole_number,
    with_changes,
)
from probinf.samplers._evidence import combine_replicates, evidence_variance
from probinf.samplers._filter_result import FilterResult, History
from probinf.samplers._resampling import ALL_SCHEMES
from probinf.samplers._scheme import AbstractScheme


def particle_filter(
    key: PRNGKey,
    model: FeynmanKac,
    *,
    num_particles: int,
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: float | Array = 0.5,
    quantiles: tuple[float, ...] = (),
    record: Callable[[Population], PyTree] | None = None,
    history: bool = False,
    num_replicates: int | None = None,
    differentiable: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    throw: bool = True,
) -> FilterResult:
    """Runs a particle filter, compiled once per model structure, shapes and `num_particles`.

    A model with a `look_ahead`, such as `ssm.auxiliary(ys)`, is run as an auxiliary filter (Pitt, Shephard 1999).

    Memory does not depend on T, but for what is reported for each time step: scalars and means, and what
    `quantiles`, `record` and `history` ask for.

    Args:
        key: PRNG key.
        model: a `FeynmanKac`, such as `StateSpaceModel(...).bootstrap(ys)`.
        num_particles: N >= 1.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme of your own.
        ess_threshold: resample when ESS < threshold * N; in [0, 1]: 0 never, 1 always (unless weights are equal).
        quantiles: levels in (0, 1) of the filtering distribution, reported per time step. Sorts at each step.
        record: `population -> pytree`, stacked over time into `result.records`.
        history: whether to keep all particles, weights and ancestors, memory O(T N).
        num_replicates: R >= 2 independent filters in one program. `log_evidence` is then that of their mean, and
            its variance is estimated from their spread; everything else has a leading axis R.
        differentiable: whether the gradient of `log_evidence` goes through the resampling (see `resample`).
        mesh: devices to spread the particles over (first axis of the mesh; its size must divide N), here or in
            several processes of `jax.distributed` that all make this call with the same arguments. The particles of
            `population` and `history` come back spread, everything else whole on every device. Ancestors, weights
            and evidence do not depend on the mesh; `mean` does in its last bits. See `place` for what moves.
        throw: whether a fatal status raises; non-fatal bits give one warning. Skipped under your own `jit`, where
            only `status` tells.

    Returns:
        A `FilterResult`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    scheme = find_scheme(resampling)
    num_particles, num_replicates = _checked_sizes(model, num_particles, num_replicates)
    if is_concrete(ess_threshold) and not 0 <= float(ess_threshold) <= 1:
        raise ValueError(f"`ess_threshold` is {ess_threshold}; needed a number in [0, 1]")
    if not (record is None or callable(record)):
        raise TypeError(f"`record` is {record!r}; needed a function of a `Population`, or None")
    levels = jnp.asarray(quantiles, jnp.zeros(()).dtype)
    if levels.ndim != 1 or not all(0 < level < 1 for level in np.asarray(quantiles)):
        raise ValueError(f"`quantiles` is {quantiles}; needed levels strictly between 0 and 1, such as (0.05, 0.95)")
    summary = _Summary(
        levels, record, _Options(num_particles, history, differentiable, place(mesh), levels.shape[0] > 0)
    )
    run = _run if is_traceable(extend(model)) else _replicated
    result = run(key, model, scheme, ess_below(ess_threshold), summary, num_replicates)
    if throw and is_concrete(result.status):
        result.check()  # the result travels on the error
    return result


class _Options(eqx.Module):
    num_particles: int = eqx.field(static=True)
    history: bool = eqx.field(static=True)
    differentiable: bool = eqx.field(static=True)
    home: place
    sort: bool = eqx.field(static=True)


def find_scheme(resampling: str | AbstractScheme) -> AbstractScheme:
    """The scheme of that name, or the scheme itself.

    Raises:
        ValueError: the name is unknown, or it is no scheme.
    """
    if isinstance(resampling, AbstractScheme):
        return resampling
    if not isinstance(resampling, str) or resampling not in ALL_SCHEMES:
        raise ValueError(f"`resampling` is {resampling!r}; needed one of {sorted(ALL_SCHEMES)} or a scheme")
    return ALL_SCHEMES[resampling]


def _checked_sizes(model: FeynmanKac, num_particles: int, num_replicates: int | None) -> tuple[int, int | None]:
    if not isinstance(model, FeynmanKac):
        raise TypeError(
            f"`model` is a {type(model).__name__}; needed a `FeynmanKac`, such as `StateSpaceModel(...).bootstrap(ys)`"
        )
    if num_replicates is not None:
        num_replicates = whole_number("num_replicates", num_replicates, 2)
        if not model.traceable:
            raise ValueError("`num_replicates` needs a model that can be traced; run this one several times instead")
    return whole_number("num_particles", num_particles, 1), num_replicates


class _Summary(eqx.Module):
    """What is reported for each time step."""

    levels: Float[Array, " q"]
    record: Callable[[Population], PyTree] | None
    options: _Options

    def __call__(self, population: Population) -> dict[str, PyTree]:
        # Kept whole: else the sums of the weights are spread as those of the particles, in another order of addition.
        weighed = self.options.home.whole(weigh(population.log_weights))
        report = {
            "log_evidence": population.log_evidence,
            "ess": weighed.ess,
            "status": population.status,
            "mean": jax.tree.map(lambda x: weighted_mean(weighed.relative, weighed.total, x), population.particles),
            "quantiles": None,
            "records": None if self.record is None else self.record(population),
            "history": None,
        }
        if self.options.sort:
            report["quantiles"] = jax.tree.map(
                lambda x: weighted_quantiles(weighed.relative, x, self.levels), population.particles
            )
        if self.options.history:
            report["history"] = (population.particles, population.log_weights)
        return report


def weighted_mean(relative: Float[Array, " n"], total: Float[Array, ""], values: Array) -> Array | None:
    """The mean over the leading axis; NaN if all weights are zero, None for what has no mean (keys).

    Values of weight zero are not looked at.
    """
    if not (jnp.issubdtype(values.dtype, jnp.number) or values.dtype == jnp.bool_):
        return None
    shape = (-1,) + (1,) * (values.ndim - 1)
    weights = relative.reshape(shape)
    dtype = jnp.promote_types(values.dtype, relative.dtype) if jnp.iscomplexobj(values) else relative.dtype
    weights = weights.astype(dtype)
    kept = jnp.where(relative.reshape(shape) > 0, values.astype(dtype), 0)
    return jnp.where(total > 0, jnp.sum(weights * kept, axis=0) / total, jnp.nan)


def population_mean(population: Population, samples: PyTree) -> PyTree:
    """The weighted mean of what belongs to the particles; NaN if all weights are zero or the status is fatal."""
    weighed = weigh(population.log_weights)
    total = jnp.where(is_fatal(population.status), 0, weighed.total)
    return jax.tree.map(lambda leaf: weighted_mean(weighed.relative, total, leaf), samples)


def weighted_quantiles(relative: Float[Array, " n"], values: Array, levels: Float[Array, " q"]) -> Array | None:
    """The smallest value below or at which lies the fraction `level` of the weight; [q, ...] for values [N, ...].

    NaN if all weights are zero, None for what has no order (complex numbers, keys).
    """
    ordered = jnp.issubdtype(values.dtype, jnp.floating) or jnp.issubdtype(values.dtype, jnp.integer)
    if not (ordered or values.dtype == jnp.bool_):
        return None

    def column(x: Float[Array, " n"]) -> Float[Array, " q"]:
        ordered, weights = jax.lax.sort((x, relative), num_keys=1)
        sums = jnp.cumsum(weights)
        index = jnp.searchsorted(sums, levels.astype(sums.dtype) * sums[-1], side="left")
        found = ordered[jnp.minimum(index, x.shape[0] - 1)]
        return jnp.where(sums[-1] > 0, found, jnp.nan)

    columns = values.astype(relative.dtype).reshape(values.shape[0], -1)
    return jax.vmap(column, in_axes=1, out_axes=1)(columns).reshape(levels.shape[0], *values.shape[1:])


def _scheme_on(home: place, scheme: AbstractScheme) -> Callable:
    """The scheme on whole weights, so that its sums do not depend on the mesh."""
    if home.mesh is None:
        return scheme
    return lambda key, weights, pinned: home.whole(scheme(key, home.whole(weights), pinned=pinned))


def _look_ahead_on(home: place, model: FeynmanKac) -> Callable | None:
    """The model's look-ahead, gathered whole as weights are; None if it has none."""
    if home.mesh is None or not model.looks_ahead:
        return Batched(model).look_ahead if model.looks_ahead else None
    return lambda step, particles: home.whole(Batched(model).look_ahead(step, particles))


def _gather_on(home: place, model: FeynmanKac) -> Callable:
    """The model's own gather; without one, that of the mesh."""
    own = type(model).gather is not FeynmanKac.gather
    return model.gather if own or home.mesh is None or not model.traceable else home.gather


def _filter(
    key: PRNGKey, model: FeynmanKac, scheme: AbstractScheme, when: ess_below, summary: _Summary
) -> FilterResult:
    """The algorithm: a population, and four verbs for each later time."""
    start_key, loop_key = jax.random.split(key)
    home = summary.options.home
    population, start = spawn(model, summary.options.num_particles).start(start_key)
    step = sequence(
        home,
        observe(summary),
        resample(
            _scheme_on(home, scheme),
            when=when,
            look_ahead=_look_ahead_on(home, model),
            gather=_gather_on(home, model),
            differentiable=summary.options.differentiable,
        ),
        extend(model),
    )

    def record(population: Population, info: tuple) -> tuple:
        _, report, resampling, weighting = info
        return report, resampling.resampled, resampling.ancestors if summary.options.history else None, weighting

    if model.num_steps > 1:
        loop = iterate(step, over=jnp.arange(1, model.num_steps), record=record)
        population, rows = loop(loop_key, population)
    else:  # no later time whose data a step could look at
        unmoved = ResampleInfo(population.ess, jnp.zeros((), bool), population.eve)
        info = (None, summary(population), unmoved, start)
        rows = jax.tree.map(lambda leaf: leaf[None][:0], record(population, info))
    reports, resampled, ancestors, weighting = rows
    population = home.put(population)
    # A step observes the population that it starts from (sharing one exponential pass with its resampling).
    reports = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), reports, summary(population))
    resampled = jnp.concatenate([jnp.zeros(1, bool), resampled])
    if model.num_steps == 0:
        reports, resampled = jax.tree.map(lambda leaf: leaf[:0], (reports, resampled))
    history = None
    if reports["history"] is not None:
        particles, log_weights = reports["history"]
        history = History(particles, log_weights, ancestors, model)
    # Bits are never cleared, so the first bad step comes after all the good ones.
    num_good = jnp.sum(reports["status"] == 0, dtype=jnp.int32)
    return FilterResult(
        log_evidence=population.log_evidence,
        log_evidence_variance=evidence_variance(population, scheme),
        log_evidence_path=reports["log_evidence"],
        ess=reports["ess"],
        mean=reports["mean"],
        quantiles=reports["quantiles"],
        resampled=resampled,
        status=population.status,
        num_nan=start.num_nan + jnp.sum(weighting.num_nan, dtype=jnp.int32),
        first_bad_step=jnp.where(population.status != 0, num_good, -1),
        population=population,
        records=reports["records"],
        history=history,
        scheme=type(scheme).__name__.lower(),
    )


def _replicated(
    key: PRNGKey,
    model: FeynmanKac,
    scheme: AbstractScheme,
    when: ess_below,
    summary: _Summary,
    num_replicates: int | None,
) -> FilterResult:
    home = summary.options.home
    with home.near():
        if num_replicates is None:
            return _settled(home, _filter(key, model, scheme, when, summary), 0)
        keys = jax.random.split(key, num_replicates)
        result = combine_replicates(jax.vmap(lambda k: _filter(k, model, scheme, when, summary))(keys))
        return _settled(home, result, 1)


def _settled(home: place, result: FilterResult, axis: int) -> FilterResult:
    """Particles spread along `axis`, everything else whole, so that every process can read it."""
    if home.mesh is None:
        return result
    particles, history = result.population.particles, result.history
    bare = dataclasses.replace(result, population=with_changes(result.population, particles=None), history=None)
    bare = home.whole(bare)
    if history is not None:
        spread = home.spread(history.particles, axis + 1)
        history = home.whole(history._replace(particles=None))._replace(particles=spread)
    population = with_changes(bare.population, particles=home.spread(particles, axis))
    return dataclasses.replace(bare, population=population, history=history)


_run = compiled(_replicated)
