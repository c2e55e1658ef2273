r"""The variance of a log evidence estimate: from one run by genealogy, or from replicates.

One run (Chan, Lai 2013; Lee, Whiteley 2018): with S_k the final weight that descends from particle k of time 0
and n resamplings, $V = 1 - (N/(N-1))^{n+1} (1 - \sum_k S_k^2)$ estimates the relative variance of the evidence
estimate, and so the variance of its log. It is unbiased (after multiplication by the squared estimate) for
multinomial resampling at fixed times, consistent at ESS-triggered ones (Du, Guyader 2021), and meaningless for
other schemes.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core import Population
from probinf.samplers._filter_result import FEWEST_EVES, FilterResult
from probinf.samplers._resampling import Multinomial
from probinf.samplers._scheme import AbstractScheme


def evidence_variance(population: Population, scheme: AbstractScheme) -> Float[Array, ""]:
    """The single-run estimate of the variance of the log evidence.

    It can be negative, being unbiased. NaN for schemes other than multinomial, for N = 1, for fewer than 10
    distinct ancestors at time 0, and for a population that is flagged.
    """
    count = population.num_particles
    dtype = population.log_weights.dtype
    if not isinstance(scheme, Multinomial) or count < 2:
        return jnp.full((), jnp.nan, dtype)
    shares = jnp.zeros(count, dtype).at[population.eve].add(population.weights)
    factor = (population.num_resampled + 1).astype(dtype) * jnp.log1p(jnp.asarray(1 / (count - 1), dtype))
    # 1 - exp(factor) (1 - s), written without the cancellation at small variances.
    squares = jnp.sum(shares * shares)
    variance = squares * jnp.exp(factor) - jnp.expm1(factor)
    usable = (jnp.sum(shares > 0) >= FEWEST_EVES) & (population.status == 0)
    return jnp.where(usable, variance, jnp.nan)


def combine_replicates(result: FilterResult) -> FilterResult:
    """The mean of R independent evidence estimates, and its variance from their spread (delta method)."""
    logs = result.log_evidence
    count = logs.shape[0]
    shift = jnp.max(jnp.where(jnp.isfinite(logs), logs, -jnp.inf))
    relative = jnp.exp(logs - jnp.where(jnp.isfinite(shift), shift, 0))
    mean = jnp.mean(relative)
    variance = jnp.sum((relative - mean) ** 2) / (count * (count - 1)) / jnp.where(mean > 0, mean, 1) ** 2
    combined = jnp.where(mean > 0, shift + jnp.log(jnp.where(mean > 0, mean, 1)), -jnp.inf)
    return eqx.tree_at(
        lambda r: (r.log_evidence, r.log_evidence_variance, r.replicate_log_evidence),
        result,
        (jnp.where(jnp.isnan(mean), jnp.nan, combined), jnp.where(mean > 0, variance, jnp.nan), logs),
        is_leaf=lambda leaf: leaf is None,
    )
