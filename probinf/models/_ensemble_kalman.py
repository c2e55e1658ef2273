r"""`ensemble_kalman_filter`: the stochastic ensemble Kalman filter, a baseline for particle filters.

An ensemble of N states is moved by the model, each member simulates an observation $\hat y_i$, and is then shifted by
$x_i \leftarrow x_i + K (y - \hat y_i)$ with the gain $K = C_{xy} C_{yy}^{-1}$ of the ensemble's covariances. Evensen
(1994); Burgers, van Leeuwen and Evensen (1998), "Analysis scheme in the ensemble Kalman filter".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int, UInt32

from probinf.core import (
    PRNGKey,
    Status,
    check_status,
    compiled,
    flag,
    is_concrete,
    is_fatal,
    map_particles,
    whole_number,
)
from probinf.models._optimal_proposal import Moment, moment_of
from probinf.models._state_space import BootstrapModel, StateSpaceModel, abstract_draw, layout_of
from probinf.models._types import Numbers


class EnsembleKalmanFiltered(NamedTuple):
    """What `ensemble_kalman_filter` returns. After a fault everything is NaN but the ensemble, which is kept.

    Attributes:
        mean: [T, ...], mean of the ensemble after the observation at each time.
        variance: [T, ...], variance of each component of the ensemble.
        log_evidence: log density of the observations, each taken as Gaussian given those before.
        log_increments: [T], its terms.
        ensemble: [N, ...], the last one.
        status: OR of `Status` bits.
        first_bad_step: the first time at which the ensemble or its gain was not finite, -1 if none.
    """

    mean: Float[Array, "t *d"]
    variance: Float[Array, "t *d"]
    log_evidence: Float[Array, ""]
    log_increments: Float[Array, " t"]
    ensemble: Float[Array, "n *d"]
    status: UInt32[Array, ""]
    first_bad_step: Int[Array, ""]


def ensemble_kalman_filter(
    key: PRNGKey,
    model: StateSpaceModel,
    ys: Numbers,
    *,
    num_particles: int,
    inflation: float | Array = 1.0,
    throw: bool = True,
) -> EnsembleKalmanFiltered:
    """Filters with an ensemble whose members are shifted, not weighted.

    It is consistent (N to infinity) for linear Gaussian models only. For others the means, variances and evidence
    tend to those of a Gaussian approximation, however large the ensemble: no status bit tells. What an observation
    says through anything but the mean of the ensemble's joint law (a scale, a sign, a bound) is lost. It needs no
    density and does not degenerate in high dimension, which is why it serves as a baseline.

    Args:
        key: PRNG key, consumed.
        model: the model; the state must be floating. A state with a bounded support may be shifted out of it.
        ys: observations [T, ...], as in `StateSpaceModel.bootstrap`; missing components shift nothing.
        num_particles: N, the size of the ensemble, at least the number of observed components plus 2.
        inflation: factor > 0 on the ensemble's deviations from its mean before each observation; above 1 it makes up
            for the spread that a small ensemble loses.
        throw: whether a fatal status raises. Skipped under your own `jit`, where only `status` tells.

    Returns:
        Means, variances and the Gaussian approximation of the log evidence.

    Raises:
        InferenceError: the ensemble or its gain became NaN or infinite, with `throw=True`.
        ValueError: `ys` or `num_particles` does not fit, or `inflation` is not positive.
        TypeError: `model` is no `StateSpaceModel`, its state is discrete, or `num_particles` not an integer.
    """
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a `StateSpaceModel`")
    layout = layout_of(model)
    if not jnp.issubdtype(layout.state.dtype, jnp.floating):
        raise TypeError(f"the state is of dtype {layout.state.dtype}: an ensemble can only shift floating states")
    least = int(np.prod(layout.observation.shape)) + 2
    num_particles = whole_number("num_particles", num_particles, least, ", or the gain is not defined")
    if is_concrete(inflation) and not float(inflation) > 0:
        raise ValueError(f"`inflation` is {inflation}; needed a number > 0, and 1 for none")
    time = jax.ShapeDtypeStruct((), jnp.int32)
    own_generator = abstract_draw("observation", model.observation, time, layout.state)[2]
    factor = jnp.asarray(inflation, layout.state.dtype)
    result = _run(key, model.bootstrap(ys), factor, num_particles, own_generator)
    if throw and is_concrete(result.status):
        where = f"first at time step {int(result.first_bad_step)}"
        check_status(result.status, what="ensemble_kalman_filter", counts={"NAN_LOG_WEIGHT": where})
    return result


def _filter(
    key: PRNGKey, fk: BootstrapModel, inflation: Array, num_particles: int, own_generator: bool
) -> EnsembleKalmanFiltered:
    start_key, loop_key = jax.random.split(key)

    def observe(key: PRNGKey, t: Array, ensemble: Array, status: Array) -> tuple[tuple, tuple]:
        at = moment_of(fk, t)
        centre = jnp.mean(ensemble, axis=0, keepdims=True)
        ensemble = centre + inflation * (ensemble - centre)
        members = ensemble.reshape(num_particles, -1)
        simulated = _simulate(fk, key, at, ensemble, own_generator).reshape(num_particles, -1).astype(members.dtype)
        shifted, log_increment = _shift(members, simulated, at)
        bad = ~(jnp.isfinite(log_increment) & jnp.all(jnp.isfinite(shifted)))
        status = status | flag(Status.NAN_LOG_WEIGHT | Status.ALL_WEIGHTS_ZERO, bad)
        healthy = ~is_fatal(status)
        members = jnp.where(healthy, shifted, members)
        shape = ensemble.shape[1:]
        moments = (jnp.mean(members, axis=0).reshape(shape), jnp.var(members, axis=0, ddof=1).reshape(shape))
        row = jax.tree.map(lambda leaf: jnp.where(healthy, leaf, jnp.nan), (*moments, log_increment))
        return (members.reshape(ensemble.shape), status), (*row, healthy)

    def step(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple, tuple]:
        t, key = at
        move_key, observe_key = jax.random.split(key)
        return observe(observe_key, t, fk.mutate(move_key, t, carry[0]), carry[1])

    ensemble, status = fk.init(start_key, num_particles), jnp.zeros((), jnp.uint32)
    keys = jax.random.split(loop_key, max(fk.num_steps, 1))
    if fk.num_steps == 0:
        none = jnp.zeros((0, *ensemble.shape[1:]), ensemble.dtype)
        zero = jnp.zeros((), ensemble.dtype)
        return EnsembleKalmanFiltered(none, none, zero, zero[None][:0], ensemble, status, jnp.full((), -1, jnp.int32))
    carry, first = observe(keys[0], jnp.zeros((), jnp.int32), ensemble, status)
    (ensemble, status), rest = jax.lax.scan(step, carry, (jnp.arange(1, fk.num_steps, dtype=jnp.int32), keys[1:]))
    mean, variance, increments, healthy = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    first_bad = jnp.where(jnp.all(healthy), -1, jnp.argmin(healthy)).astype(jnp.int32)
    return EnsembleKalmanFiltered(mean, variance, jnp.sum(increments), increments, ensemble, status, first_bad)


_run = compiled(_filter)


def _simulate(fk: BootstrapModel, key: PRNGKey, at: Moment, ensemble: Array, own_generator: bool) -> Array:
    def one(key: PRNGKey, x: Array) -> Array:
        return jnp.asarray(fk.model.observation(at.t, x).sample(key))

    return map_particles(one, key, ensemble.shape[0], ensemble, own_generator=own_generator)


def _shift(
    members: Float[Array, "n d"], simulated: Float[Array, "n p"], at: Moment
) -> tuple[Float[Array, "n d"], Float[Array, ""]]:
    """The members given y, and the log density of y under the normal law of the simulated observations."""
    y = at.y.reshape(-1).astype(members.dtype)
    there = jnp.ones(y.shape, bool) if at.there is None else at.there.reshape(-1)
    predicted = jnp.mean(simulated, axis=0)
    deviations = jnp.where(there[None], simulated - predicted[None], 0)
    with jax.default_matmul_precision("highest"):
        cross = deviations.T @ (members - jnp.mean(members, axis=0, keepdims=True)) / (members.shape[0] - 1)
        # A missing component gets unit variance and residual 0: it shifts nothing.
        cov = deviations.T @ deviations / (members.shape[0] - 1) + jnp.diag((~there).astype(members.dtype))
        root = jnp.linalg.cholesky(cov)
        shifted = members + jnp.where(there[None], y[None] - simulated, 0) @ cho_solve((root, True), cross)
    white = solve_triangular(root, jnp.where(there, y - predicted, 0), lower=True)
    constant = float(np.log(2 * np.pi)) * jnp.sum(there).astype(members.dtype)
    return shifted, -0.5 * (jnp.sum(white * white) + constant) - jnp.sum(jnp.log(jnp.diagonal(root)))
