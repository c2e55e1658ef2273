r"""`backward_sample`: paths from the smoothing law of a particle filter, by backward simulation.

    b_{T-1} ~ W_{T-1};   for t = T-2 .. 0:  b_t ~ W_t^i M_{t+1} G_{t+1}(x_t^i, x_{t+1}^{b_{t+1}})

Godsill, Doucet, West 2004; the O(1) ways to draw b_t are Douc, Garivier, Moulines, Olsson 2011 and Bunch, Godsill
2013, as mended by Dau, Chopin 2023. With all three methods $E[\hat Z \cdot \text{law of a path}]$ is exactly the
unnormalised smoothing measure, as it is for `trace_back`, whose paths however share their early states.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

from probinf.core import (
    InferenceError,
    InferenceWarning,
    PRNGKey,
    Status,
    check_status,
    choose,
    compiled,
    extend,
    flag,
    is_concrete,
    is_traceable,
    take,
    weigh,
    whole_number,
)
from probinf.core._effects import scan
from probinf.samplers._backward_kernels import (
    Alike,
    BackwardInfo,
    Exact,
    Metropolis,
    Rejection,
    find_kernel,
    is_lost,
    past_at,
)
from probinf.samplers._filter_result import FilterResult, History


class BackwardSampleInfo(NamedTuple):
    """What `backward_sample` reports beside the paths.

    Attributes:
        status: [num_paths], OR of `Status` bits: those of the filter and those met on the way back.
        acceptance_rate: [T - 1], at each time, of proposals of "rejection" and "mcmc"; 1 for "exact".
        num_exact: [T - 1], how many paths took the exact O(N) way.
        num_violations: [T - 1], proposals whose density exceeded `log_bound`; any makes the paths wrong.
    """

    status: UInt32[Array, " num_paths"]
    acceptance_rate: Float[Array, " t_less_1"]
    num_exact: Int[Array, " t_less_1"]
    num_violations: Int[Array, " t_less_1"]


def backward_sample(
    key: PRNGKey,
    out: FilterResult,
    num_paths: int = 100,
    method: str = "exact",
    *,
    log_bound: float | Array | Callable[[Array], Array] | None = None,
    num_trials: int | None = None,
    num_steps: int = 1,
    return_info: bool = False,
    throw: bool = True,
) -> Any:
    """Draws paths from the smoothing law, given the history of a particle filter.

    Paths are independent given the filter. A draw weighs the past by `model.log_backward`, which needs the model to
    define `log_transition`. Methods:

    * "exact" looks at all N particles for each path and time, in blocks that bound the memory.
    * "rejection" proposes by the filter's weights, and falls back on exact draws when trials have cost as much as
      those would: always right, and far cheaper than "exact" where `log_bound` is not far above the densities.
    * "mcmc" makes `num_steps` independent Metropolis moves, from the ancestor that the filter recorded. It needs no
      bound and costs O(num_steps) a path and time. Given the filter, its paths are dependent on the recorded
      ancestors; it is as valid, and one step is enough to end path degeneracy.

    Args:
        key: PRNG key.
        out: result of `particle_filter(..., history=True)`, of one filter (no `num_replicates`).
        num_paths: number of paths M >= 1.
        method: "exact", "rejection" or "mcmc".
        log_bound: for "rejection": an upper bound of `model.log_backward(t, x_prev, x)`, a number or a function of t.
        num_trials: for "rejection": most trials a time step before the exact draws; None leaves it to their cost.
        num_steps: for "mcmc": Metropolis moves a time step; 0 gives the genealogy.
        return_info: whether to return `(paths, BackwardSampleInfo)`.
        throw: whether a fatal status, or a filter without a smoothing law, raises; other bits, and a violated
            bound, give a warning. Skipped under your own `jit`, where only the info tells.

    Returns:
        Paths, leaves [T, num_paths, ...]; with `return_info` the pair of them and a `BackwardSampleInfo`. Where there
        is no law to draw from (a fatal fault, all weights zero) floating leaves are NaN.

    Raises:
        InferenceError: a fatal fault or all weights zero, with `throw=True`.
        ValueError: `out` has no history or holds several filters; a bad argument.
        TypeError: `out` is no `FilterResult`, or the model lacks `log_transition`.
    """
    history = history_of(out)
    num_paths = whole_number("num_paths", num_paths, 1)
    traceable = is_traceable(extend(history.model))
    kernel = find_kernel(method, ("exact", "rejection", "mcmc"), log_bound, num_trials, num_steps, traceable)
    run = _run if traceable else _simulate
    paths, info = run(key, history, out.status, kernel, num_paths)
    if throw and is_concrete(info):
        _check(paths, info)
    return (paths, info) if return_info else paths


def _simulate(
    key: PRNGKey,
    history: History,
    status: UInt32[Array, ""],
    kernel: Exact | Rejection | Metropolis,
    num_paths: int,
) -> tuple[PyTree, BackwardSampleInfo]:
    """The algorithm: the last states by weight, then one draw from the backward kernel for each earlier time."""
    num_steps = history.log_weights.shape[0]
    if num_steps == 0:
        slots = jnp.zeros(num_paths, jnp.int32)
        paths = jax.tree.map(lambda leaf: leaf[:, slots], history.particles)
        return paths, BackwardSampleInfo(jnp.broadcast_to(status, (num_paths,)), *_nothing(history))
    last_key, loop_key = jax.random.split(key)
    end = past_at(history, jnp.asarray(num_steps - 1, jnp.int32))
    weighed = weigh(end.log_weights)
    status = status | flag(Status.ALL_WEIGHTS_ZERO, weighed.total == 0)
    last = choose(last_key, Alike(num_paths), jnp.where(weighed.total > 0, weighed.relative, 1))

    def back(carry: tuple, t: Array) -> tuple[tuple, tuple]:
        slots, x, status = carry
        past = past_at(history, t - 1)
        drawn = kernel(jax.random.fold_in(loop_key, t), history.model, t, past, x, history.ancestors[t - 1][slots])
        x = take(past.particles, drawn.slots)
        return (drawn.slots, x, status | drawn.status), (x, drawn.info)

    carry = (last, take(end.particles, last), jnp.broadcast_to(status, (num_paths,)))
    paths, info = jax.tree.map(lambda leaf: leaf[None], carry[1]), _nothing(history)
    if num_steps > 1:
        times = jnp.arange(num_steps - 1, 0, -1, dtype=jnp.int32)
        carry, rows = scan(back, carry, times, num_steps - 1, traceable=history.model.traceable)
        earlier, info = jax.tree.map(lambda leaf: leaf[::-1], rows)
        paths = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row]), earlier, paths)
    lost = is_lost(carry[-1])
    return jax.tree.map(lambda leaf: _blank(leaf, lost), paths), BackwardSampleInfo(carry[-1], *info)


_run = compiled(_simulate)


def history_of(out: Any, argument: str = "out") -> History:
    """The history of one filter.

    Raises:
        TypeError: `out` is no `FilterResult`.
        ValueError: it has no history, or holds replicates.
    """
    if not isinstance(out, FilterResult):
        raise TypeError(f"`{argument}` is a {type(out).__name__}; needed what `particle_filter` returns")
    if out.history is None:
        raise ValueError(f"`{argument}` has no history: run `particle_filter(..., history=True)`")
    if out.replicate_log_evidence is not None:
        count = out.replicate_log_evidence.shape[0]
        raise ValueError(f"`{argument}` holds {count} filters; needed one: run it without `num_replicates`")
    return out.history


def _nothing(history: History) -> BackwardInfo:
    counts = jnp.zeros(0, jnp.int32)
    return BackwardInfo(jnp.zeros(0, history.log_weights.dtype), counts, counts)


def _blank(leaf: Array, lost: Array) -> Array:
    """NaN in the paths that are lost, where the dtype has one."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    return jnp.where(lost.reshape(1, -1, *(1,) * (leaf.ndim - 2)), jnp.nan, leaf)


def _check(paths: PyTree, info: BackwardSampleInfo) -> None:
    """Raises or warns about what went wrong."""
    members = np.asarray(info.status)
    if np.any(members & np.uint32(int(Status.ALL_WEIGHTS_ZERO))):
        raise InferenceError(
            "`backward_sample` failed: every weight of the filter was zero at the end, or every backward weight at "
            "some time, so that there is no smoothing law to draw from. Mend the model or raise `num_particles`; "
            "`throw=False` returns the flagged paths.",
            result=(paths, info),
        )
    # One number: a bit of the filter is in every path.
    check_status(np.bitwise_or.reduce(members), what="backward_sample", result=(paths, info))
    warn_of_violations(info.num_violations, "backward_sample")


def warn_of_violations(num_violations: Int[Array, "*t"], what: str) -> None:
    """One `InferenceWarning` if the bound of a rejection method was not one."""
    count = np.asarray(num_violations)
    if count.any():
        where = f"{int(count.sum())} proposals, first on the way to time {int(np.flatnonzero(count)[0]) + 1}"
        warnings.warn(
            f"`{what}`: `log_bound` was below `model.log_backward` ({where}), so the draws are not exact. Raise "
            "`log_bound`, or use another `method`.",
            InferenceWarning,
            stacklevel=4,
        )
