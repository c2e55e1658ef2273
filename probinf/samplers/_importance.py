r"""Importance sampling: $x_i \sim q$, $w_i = p(x_i) L(x_i) / q(x_i)$, with Pareto-smoothed weights.

The mean of the weights is an unbiased estimate of the evidence; the smoothed weights (Vehtari et al. 2024) have a
slight bias and a much smaller variance where q is too narrow.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt32

from probinf.core import (
    InferenceWarning,
    Population,
    PRNGKey,
    Target,
    check_status,
    compiled,
    is_concrete,
    reweight,
    spawn,
    weigh,
    whole_number,
    with_changes,
)
from probinf.samplers._pareto import smooth_weights
from probinf.samplers._particle_filter import population_mean


@runtime_checkable
class Proposal(Protocol):
    """A law on positions that can be drawn from and evaluated, such as a NumPyro distribution."""

    def sample(self, key: PRNGKey) -> Any:
        """One draw."""
        ...

    def log_prob(self, value: Any) -> Array:
        """Its log density, a scalar."""
        ...


class ImportanceResult(eqx.Module):
    """The result of `importance`.

    Attributes:
        log_evidence: log of the unsmoothed mean weight, whose mean over runs is the evidence.
        population: positions with their smoothed weights; `log_evidence` of it is the smoothed estimate.
        samples: the positions in the space that users see.
        ess: effective sample size of the weights as drawn.
        pareto_k: shape of the tail of the weights; above `pareto_k_bound` they cannot be trusted; NaN with fewer
            than 21 samples.
        status: OR of `Status` bits.
    """

    log_evidence: Float[Array, ""]
    population: Population
    samples: PyTree[Any]
    ess: Float[Array, ""]
    pareto_k: Float[Array, ""]
    status: UInt32[Array, ""]

    @property
    def pareto_k_bound(self) -> Float[Array, ""]:
        """min(1 - 1 / log10(S), 0.7), of Vehtari et al. (2024)."""
        return jnp.minimum(1 - 1 / jnp.log10(self.population.num_particles), 0.7)

    @property
    def mean(self) -> PyTree:
        """Means of `samples` by the smoothed weights; NaN if all are zero or the status is fatal."""
        return population_mean(self.population, self.samples)

    def check(self) -> "ImportanceResult":
        """Itself, after raising `InferenceError` for fatal bits or one warning for others."""
        check_status(self.status, what="importance", result=self)
        bound = float(self.pareto_k_bound)
        if float(self.pareto_k) > bound:
            warnings.warn(
                f"`importance`: the tail of the weights has shape k = {float(self.pareto_k):.2f}, above {bound:.2f}: "
                "the estimates cannot be trusted. Use a wider `proposal`, or `tempered_smc`",
                InferenceWarning,
                stacklevel=3,
            )
        return self


def importance(
    key: PRNGKey, target: Target, proposal: Proposal, num_samples: int, *, throw: bool = True
) -> ImportanceResult:
    """Importance sampling of a target with draws from a proposal, and Pareto-smoothed weights.

    Args:
        key: PRNG key.
        target: a `Target`.
        proposal: `sample(key)` and `log_prob(position)` on unconstrained positions, such as a NumPyro distribution.
        num_samples: S >= 1.
        throw: whether a fatal status raises and others warn. Skipped under your own `jit`.

    Returns:
        An `ImportanceResult`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    if not isinstance(target, Target):
        raise TypeError(f"`target` is a {type(target).__name__}; needed a `Target`")
    if not isinstance(proposal, Proposal):
        raise TypeError(f"`proposal` is {proposal!r}; needed `sample(key)` and `log_prob(x)`: a NumPyro distribution")
    result = _run(key, target, proposal, whole_number("num_samples", num_samples, 1))
    if throw and is_concrete(result.status):
        result.check()
    return result


def _importance(key: PRNGKey, target: Target, proposal: Proposal, num_samples: int) -> ImportanceResult:
    """The algorithm: draws of the proposal, reweighted to the target."""
    spawn_key, weigh_key = jax.random.split(key)
    drawn = spawn(_Draw(proposal), num_samples)(spawn_key)
    weighted, _ = reweight(_LogRatio(target, proposal))(weigh_key, drawn)
    smoothed, shape = smooth_weights(weighted.log_weights)
    return ImportanceResult(
        log_evidence=weighted.log_evidence,
        population=with_changes(weighted, log_weights=smoothed),
        samples=jax.vmap(target.constrain)(weighted.particles),
        ess=weigh(weighted.log_weights).ess,
        pareto_k=shape,
        status=weighted.status,
    )


class _Draw(eqx.Module):
    proposal: Proposal

    def __call__(self, key: PRNGKey) -> PyTree:
        return jax.tree.map(jnp.asarray, self.proposal.sample(key))


class _LogRatio(eqx.Module):
    target: Target
    proposal: Proposal

    def __call__(self, step: Any, position: PyTree) -> Float[Array, ""]:
        del step
        return self.target.log_density(position) - self.proposal.log_prob(position)


_run: Callable[..., ImportanceResult] = compiled(_importance)
