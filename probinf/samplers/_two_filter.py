r"""`two_filter_smoother`: a forward filter and a backward information filter, combined. Briers, Doucet, Maskell 2010.

With artificial priors $\gamma_t$, the backward filter targets $\gamma_t(x_t)\, p(y_{t:T-1} \mid x_t)$. So

$$ p(x_t \mid y_{0:T-1}) \propto p(x_t \mid y_{0:t}) \int f_{t+1}(x_t, x')\,
   \frac{\gamma_{t+1}(x')\, p(y_{t+1:T-1} \mid x')}{\gamma_{t+1}(x')} dx', $$

which for forward particles $(x^i, W^i)$ of time t and backward particles $(\tilde x^j, \tilde W^j)$ of time t + 1 gives
forward particle i the weight $W^i \sum_j \tilde W^j f_{t+1}(x^i, \tilde x^j) / \gamma_{t+1}(\tilde x^j)$: O(N^2) a time
step. At T - 1 it is W^i. Times the evidences of the two filters, the weights sum to an unbiased estimate of
$p(y_{0:T-1})$ at every t.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt32

from probinf.core import (
    FeynmanKac,
    InferenceError,
    Status,
    any_bits,
    check_status,
    compiled,
    extend,
    flag,
    is_concrete,
    is_fatal,
    is_traceable,
    map_items,
    weigh,
)
from probinf.core._effects import scan
from probinf.core._feynman_kac import Batched
from probinf.samplers._backward_kernels import in_blocks, pair_up, past_at, weigh_rows
from probinf.samplers._backward_sample import history_of
from probinf.samplers._filter_result import FilterResult, History
from probinf.samplers._particle_filter import weighted_mean


class TwoFilterResult(NamedTuple):
    """What `two_filter_smoother` returns.

    Attributes:
        mean: pytree, leaves [T, ...]: smoothed means of the forward particles.
        log_weights: [T, N], smoothed log weights of `forward.history.particles`; do not sum to 1.
        log_evidence: [T], estimates of log p(y_{0:T-1}), unbiased before the logarithm; the last is that of the
            forward filter. They disagree where gamma or the backward filter is wrong.
        ess: [T], effective sample size of the smoothed weights.
        status: OR of `Status` bits, those of the two filters included.
    """

    mean: PyTree[Any]
    log_weights: Float[Array, "t n"]
    log_evidence: Float[Array, " t"]
    ess: Float[Array, " t"]
    status: UInt32[Array, ""]


def two_filter_smoother(
    forward: FilterResult,
    backward: FilterResult,
    log_gamma: Callable[[Array, PyTree], Array],
    *,
    log_transition: Callable[[Array, PyTree, PyTree], Array] | None = None,
    throw: bool = True,
) -> TwoFilterResult:
    r"""Combines the histories of a forward and a backward filter into the smoothing laws of every time.

    The backward filter is a `particle_filter` on a `FeynmanKac` of your own whose step s is time t = T - 1 - s and
    whose data are reversed. With f and g the transition and observation densities of the model, it needs

    * at s = 0: $M_0(dx) G_0(x) = \gamma_{T-1}(x)\, g_{T-1}(y_{T-1} \mid x)\, dx$;
    * at s >= 1, from x' = x_{t+1} to x = x_t: $M_s(x', dx) G_s(x', x) = \gamma_t(x) f_{t+1}(x, x')
      g_t(y_t \mid x) / \gamma_{t+1}(x')\, dx$, with any M_s that can reach where this is positive.

    gamma_t may be any positive functions that `log_gamma` gives; those near the prior law of x_t work best, and if
    they are that law then M_s may be the reversed transition and G_s = g_t.

    Args:
        forward: result of `particle_filter(..., history=True)` on the model.
        backward: that of the backward filter, of the same number of steps; the two keys must differ.
        log_gamma: `(t, x) -> []`, the log of gamma_t at ONE state; never -inf at a particle of `backward`. Make it an
            `equinox.Module` with array leaves and new values recompile nothing.
        log_transition: `(t, x_prev, x)`, the log density f_t, in the form (particle or batch) of the forward model;
            None takes `forward`'s own `log_transition`, which is right unless the filter was guided.
        throw: whether a fatal status or a filter with all weights zero raises; other bits give a warning.

    Returns:
        A `TwoFilterResult`; means are NaN where there is no smoothing law.

    Raises:
        InferenceError: a fatal fault or all weights zero, with `throw=True`.
        ValueError: a filter has no history, holds several filters, or the numbers of steps differ.
        TypeError: an argument is of the wrong kind, or the model lacks `log_transition`.
    """
    ahead, behind = history_of(forward, "forward"), history_of(backward, "backward")
    if forward.ess.shape != backward.ess.shape:
        raise ValueError(
            f"`forward` has {forward.ess.shape[0]} time steps and `backward` {backward.ess.shape[0]}: the backward "
            "filter must run on the same data in reverse"
        )
    for name, value in (("log_gamma", log_gamma), ("log_transition", log_transition)):
        if not (callable(value) or (value is None and name == "log_transition")):
            raise TypeError(f"`{name}` is {value!r}; needed a function of (t, x)")
    traceable = is_traceable(extend(ahead.model)) and is_traceable(extend(behind.model))
    run = _run if traceable else _smooth
    evidence = (forward.log_evidence_path, backward.log_evidence_path)
    result = run(ahead, behind, evidence, forward.status | backward.status, log_gamma, log_transition)
    if throw and is_concrete(result.status):
        _check(result)
    return result


def _smooth(
    forward: History,
    backward: History,
    log_evidence_paths: tuple[Float[Array, " t"], Float[Array, " t"]],
    status: UInt32[Array, ""],
    log_gamma: Callable,
    log_transition: Callable | None,
) -> TwoFilterResult:
    """The algorithm: for each time, one pass over all pairs of a forward and a later backward particle."""
    num_steps, num_ahead = backward.log_weights.shape
    traceable = forward.model.traceable and backward.model.traceable
    log_f = _log_density(forward.model, log_transition)

    def at(status: Array, t: Array) -> tuple[Array, Array]:
        here, ahead = past_at(forward, t), past_at(backward, num_steps - 2 - t)
        gamma = map_items(lambda x: log_gamma(t + 1, x), ahead.particles, traceable=traceable)
        log_ahead = (_log_normalised(ahead.log_weights) - gamma.astype(ahead.log_weights.dtype))[None]
        alive_ahead = (ahead.log_weights > -jnp.inf)[None]

        def log_future(block: Array, states: PyTree) -> tuple[Array, Array]:
            del block
            rows = pair_up(lambda x, later: log_f(t + 1, x, later), states, ahead.particles, traceable=traceable)
            return weigh_rows(jnp.where(alive_ahead, log_ahead + rows.astype(log_ahead.dtype), -jnp.inf))[1:]

        log_beta, bits = in_blocks(log_future, here.particles, num_ahead, traceable=traceable)
        alive = here.log_weights > -jnp.inf
        log_weights = _log_normalised(here.log_weights) + log_beta.astype(here.log_weights.dtype)
        log_weights = jnp.where(alive, log_weights, -jnp.inf)
        # A forward particle without a future has weight zero, which is no fault.
        status = status | any_bits(bits & ~jnp.uint32(int(Status.ALL_WEIGHTS_ZERO)), alive)
        return status | flag(Status.ALL_WEIGHTS_ZERO, weigh(log_weights).total == 0), log_weights

    # At T - 1 there is no future: the filter is the smoother.
    log_weights = jax.vmap(_log_normalised)(forward.log_weights)
    ahead, behind = log_evidence_paths
    if num_steps > 1:
        times = jnp.arange(num_steps - 1, dtype=jnp.int32)
        status, rows = scan(at, status, times, num_steps - 1, traceable=traceable)
        log_weights = jnp.concatenate([rows, log_weights[-1:]])
        ahead = ahead.at[:-1].add(behind[-2::-1].astype(ahead.dtype))
    weighed = jax.vmap(weigh)(log_weights)
    lost = is_fatal(status)
    total = jnp.where(lost, 0, weighed.total)  # no mean
    means = jax.tree.map(lambda x: jax.vmap(weighted_mean)(weighed.relative, total, x), forward.particles)
    log_evidence = ahead + weighed.log_mean + jnp.log(jnp.asarray(log_weights.shape[1], ahead.dtype))
    log_evidence = jnp.where(lost, jnp.nan, log_evidence)
    return TwoFilterResult(means, log_weights, log_evidence, weighed.ess, status)


_run = compiled(_smooth)


def _log_density(model: FeynmanKac, log_transition: Callable | None) -> Callable[[Array, PyTree, PyTree], Array]:
    """The transition density of N pairs."""
    if log_transition is None:
        return Batched(model).log_transition
    if model.batch:
        return log_transition
    return lambda t, x_prev, x: map_items(
        lambda before, one: log_transition(t, before, one), x_prev, x, traceable=model.traceable
    )


def _log_normalised(log_weights: Float[Array, " n"]) -> Float[Array, " n"]:
    weighed = weigh(log_weights)
    log_sum = weighed.log_mean + jnp.log(jnp.asarray(log_weights.shape[0], log_weights.dtype))
    return log_weights - jnp.where(weighed.total > 0, log_sum, 0)


def _check(result: TwoFilterResult) -> None:
    if int(result.status) & int(Status.ALL_WEIGHTS_ZERO):
        raise InferenceError(
            "`two_filter_smoother` failed: a filter had weight zero on every particle, or no backward particle can be "
            "reached from any forward one at some time. Raise `num_particles`, or choose wider `log_gamma`; "
            "`throw=False` returns the flagged result.",
            result=result,
        )
    check_status(result.status, what="two_filter_smoother", result=result)
