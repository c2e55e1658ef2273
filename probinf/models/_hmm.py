r"""Discrete hidden Markov models: forward-backward and Viterbi, exact and in log space.

$p(x_0) = \mathrm{initial}$, $p(x_t = j \mid x_{t-1} = i) = A_{ij}$ for $t \ge 1$, and a log likelihood
$\log p(y_t \mid x_t = k)$ for every state from t = 0. Rabiner (1989), "A Tutorial on Hidden Markov Models";
Viterbi (1967).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf.core import is_concrete
from probinf.models._types import Numbers


class HMMPosterior(NamedTuple):
    """What `hmm_forward_backward` returns.

    Attributes:
        log_evidence: log probability of all observations; -inf if they are impossible.
        log_increments: [T], its terms: log probability of y_t given the observations before it.
        predicted: [T, K], probabilities of x_t given the observations before time t.
        filtered: [T, K], given the observations up to time t.
        smoothed: [T, K], given all observations. From the first impossible observation on, filtered and predicted
            probabilities are zero; smoothed ones are zero throughout.
    """

    log_evidence: Float[Array, ""]
    log_increments: Float[Array, " t"]
    predicted: Float[Array, "t k"]
    filtered: Float[Array, "t k"]
    smoothed: Float[Array, "t k"]


class ViterbiPath(NamedTuple):
    """What `hmm_viterbi` returns.

    Attributes:
        path: [T], the most probable sequence of states.
        log_probability: joint log probability of that path and the observations.
    """

    path: Int[Array, " t"]
    log_probability: Float[Array, ""]


def hmm_forward_backward(
    initial_probs: Numbers,
    transition_probs: Numbers,
    log_likelihoods: Numbers,
) -> HMMPosterior:
    """Filters and smooths exactly. Works under `jit`, `vmap` and `grad`; probabilities of zero are no special case.

    Args:
        initial_probs: probabilities of x_0, [K].
        transition_probs: row i holds the probabilities of the next state after i; [K, K], or [T, K, K] whose entry t
            leads to x_t (entry 0 is not used).
        log_likelihoods: [T, K], log probability of y_t in each state: -inf where impossible, a row of zeros for a
            missing observation. T may be 0.

    Returns:
        An `HMMPosterior`, in the dtype of `log_likelihoods`.

    Raises:
        ValueError: shapes do not fit together; or, where values are known (outside `jit`), probabilities are negative
            or do not sum to 1, or `log_likelihoods` holds NaN or +inf.
    """
    return _forward_backward(*_checked(initial_probs, transition_probs, log_likelihoods))


def hmm_viterbi(
    initial_probs: Numbers,
    transition_probs: Numbers,
    log_likelihoods: Numbers,
) -> ViterbiPath:
    """Finds the most probable path; the lowest state wins a tie. Arguments and errors as `hmm_forward_backward`."""
    return _viterbi(*_checked(initial_probs, transition_probs, log_likelihoods))


@eqx.filter_jit
def _forward_backward(initial: Array, transition: Array, log_likelihoods: Array) -> HMMPosterior:
    log_transition = _steps(_log(transition), log_likelihoods)

    def forward(log_predicted: Array, at: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array, Array]]:
        log_likelihood, log_ahead = at
        log_joint = log_predicted + log_likelihood
        log_increment = _log_sum_exp(log_joint)
        log_filtered = log_joint - jnp.where(log_increment == -jnp.inf, 0, log_increment)
        return _log_sum_exp(log_filtered[:, None] + log_ahead), (log_increment, log_predicted, log_filtered)

    _, (log_increments, log_predicted, log_filtered) = jax.lax.scan(
        forward, _log(initial), (log_likelihoods, log_transition)
    )
    log_evidence = jnp.sum(log_increments)

    def backward(log_later: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        # log_later: log probability of the observations after t given x_t, each over its own log increment.
        log_likelihood, log_increment, log_back = at
        log_here = log_later + log_likelihood - jnp.where(log_increment == -jnp.inf, 0, log_increment)
        return _log_sum_exp((log_back + log_here[None, :]).T), log_later

    nothing = jnp.zeros_like(initial)
    # Entry t leads to x_t: going back from t to t - 1 uses it, and the one of t = 0 is never used.
    inputs = (log_likelihoods, log_increments, jnp.roll(log_transition, 1, axis=0))
    _, log_later = jax.lax.scan(backward, nothing, inputs, reverse=True)
    smoothed = jnp.where(log_evidence == -jnp.inf, 0, jnp.exp(log_filtered + log_later))
    return HMMPosterior(log_evidence, log_increments, jnp.exp(log_predicted), jnp.exp(log_filtered), smoothed)


@eqx.filter_jit
def _viterbi(initial: Array, transition: Array, log_likelihoods: Array) -> ViterbiPath:
    if log_likelihoods.shape[0] == 0:
        return ViterbiPath(jnp.zeros(0, jnp.int32), jnp.zeros((), log_likelihoods.dtype))
    log_transition = _steps(_log(transition), log_likelihoods)

    def forward(best: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        log_likelihood, log_into = at
        scores = best[:, None] + log_into
        return jnp.max(scores, axis=0) + log_likelihood, jnp.argmax(scores, axis=0).astype(jnp.int32)

    first = _log(initial) + log_likelihoods[0]
    # `log_transition` is shifted: its entry t - 1 leads to x_t.
    best, origins = jax.lax.scan(forward, first, (log_likelihoods[1:], log_transition[:-1]))
    last = jnp.argmax(best).astype(jnp.int32)
    _, path = jax.lax.scan(lambda state, origin: (origin[state], origin[state]), last, origins, reverse=True)
    return ViterbiPath(jnp.append(path, last), jnp.max(best))


def _steps(log_transition: Array, log_likelihoods: Array) -> Array:
    """[T, K, K] whose entry t leads from x_t to x_{t+1}; the last one is not used."""
    num_steps, num_states = log_likelihoods.shape
    if log_transition.ndim == 2:
        return jnp.broadcast_to(log_transition, (num_steps, num_states, num_states))
    return jnp.roll(log_transition, -1, axis=0)


def _log(probs: Array) -> Array:
    """The logarithm, -inf at zero with gradient zero there."""
    return jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), -jnp.inf)


def _log_sum_exp(values: Array) -> Array:
    """log-sum-exp over the first axis; -inf (with finite gradients, jax#6811) where all are, NaN where one is."""
    largest = jax.lax.stop_gradient(jnp.max(values, axis=0))
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    total = jnp.sum(jnp.exp(values - (shift[None] if values.ndim > 1 else shift)), axis=0)
    return jnp.where(total == 0, -jnp.inf, shift + jnp.log(jnp.where(total == 0, 1, total)))


def _checked(initial: Numbers, transition: Numbers, log_likelihoods: Numbers) -> tuple[Array, Array, Array]:
    named = {"initial_probs": initial, "transition_probs": transition, "log_likelihoods": log_likelihoods}
    arrays = {name: jnp.asarray(value) for name, value in named.items()}
    rows = arrays["log_likelihoods"]
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"`log_likelihoods` has shape {rows.shape}: pass (T, K), a row for each time step")
    num_steps, k = rows.shape
    if arrays["initial_probs"].shape != (k,):
        raise ValueError(f"`initial_probs` has shape {arrays['initial_probs'].shape}: `log_likelihoods` needs ({k},)")
    if arrays["transition_probs"].shape not in ((k, k), (num_steps, k, k)):
        raise ValueError(
            f"`transition_probs` has shape {arrays['transition_probs'].shape}: `log_likelihoods` needs ({k}, {k}) "
            f"or ({num_steps}, {k}, {k})"
        )
    dtype = rows.dtype if jnp.issubdtype(rows.dtype, jnp.floating) else jnp.result_type(float)
    for name, leaf in arrays.items():
        if is_concrete(leaf):
            _check_values(name, np.asarray(leaf, np.float64), 100 * k * float(jnp.finfo(dtype).eps))
    first, moves, rows = (leaf.astype(dtype) for leaf in arrays.values())
    return first, moves, rows


def _check_values(name: str, values: np.ndarray, slack: float) -> None:
    if name == "log_likelihoods":
        if np.isnan(values).any() or (values == np.inf).any():
            raise ValueError("`log_likelihoods` holds NaN or +inf: pass zeros for a missing observation")
    elif not ((values >= 0).all() and (np.abs(values.sum(axis=-1) - 1) <= slack).all()):
        raise ValueError(f"`{name}` is not a probability vector on its last axis: entries must be >= 0 and sum to 1")
