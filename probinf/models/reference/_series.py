r"""Time series of posteriordb: autoregression of order K, GARCH(1, 1), and a hidden Markov model with two states."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probinf.models._hmm import hmm_forward_backward
from probinf.models.reference._ordered import OrderedNormal


def autoregression(*, K: int, y: Float[Array, " t"]) -> None:
    r"""$y_t \sim N(\alpha + \sum_{k \le K} \beta_k y_{t-k}, \sigma)$ for t > K, given the first K values.

    alpha, beta[K] ~ N(0, 10), sigma ~ Cauchy+(0, 2.5).

    Args:
        K: the order, at least 1 and below the length of `y`.
        y: the series.

    Raises:
        ValueError: `K` is out of range.
    """
    num_times = y.shape[0]
    if not 1 <= K < num_times:
        raise ValueError(f"`K` is {K}, but `y` has {num_times} values: needed 1 <= K < {num_times}")
    alpha = jnp.asarray(numpyro.sample("alpha", dist.Normal(0.0, 10.0)))
    beta = jnp.asarray(numpyro.sample("beta", dist.Normal(0.0, 10.0).expand((K,)).to_event(1)))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = jnp.stack([y[K - k : num_times - k] for k in range(1, K + 1)], axis=1)
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[K:])


def garch11(*, y: Float[Array, " t"], sigma1: Float[Array, ""]) -> None:
    r"""GARCH(1, 1) of Bollerslev (1986), with the first scale given.

    $y_t \sim N(\mu, s_t)$ with $s_1 = \mathrm{sigma1}$ and
    $s_t^2 = \alpha_0 + \alpha_1 (y_{t-1} - \mu)^2 + \beta_1 s_{t-1}^2$.
    Flat on mu, alpha0 > 0, 0 < alpha1 < 1, 0 < beta1 < 1 - alpha1.
    """
    mu = jnp.asarray(numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ())))
    alpha0 = jnp.asarray(numpyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ())))
    alpha1 = jnp.asarray(numpyro.sample("alpha1", dist.ImproperUniform(constraints.unit_interval, (), ())))
    # Not `Uniform(0, 1 - alpha1)`, whose density depends on alpha1.
    beta1 = jnp.asarray(numpyro.sample("beta1", dist.ImproperUniform(constraints.interval(0.0, 1 - alpha1), (), ())))

    def next_variance(variance: Array, previous: Array) -> tuple[Array, Array]:
        variance = alpha0 + alpha1 * (previous - mu) ** 2 + beta1 * variance
        return variance, variance

    first = (sigma1**2).astype(mu.dtype)
    _, later = jax.lax.scan(next_variance, first, y[:-1].astype(mu.dtype))
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(jnp.concatenate([first[None], later]))), obs=y)


def hmm_example(*, y: Float[Array, " t"]) -> None:
    r"""Two hidden states with unit noise: $y_t \sim N(\mu_k, 1)$, rows `theta1` and `theta2` of the transition matrix.

    Rows flat on the simplex, 0 < mu_1 < mu_2 with mu_1 ~ N(3, 1), mu_2 ~ N(10, 1). The first state is uniform, which
    differs from the reference, where the term is left out, by the constant log 2.
    """
    rows = [jnp.asarray(numpyro.sample(name, dist.Dirichlet(jnp.ones(2)))) for name in ("theta1", "theta2")]
    prior = OrderedNormal(jnp.array([3.0, 10.0]), jnp.ones(2), positive=True)
    mu = jnp.asarray(numpyro.sample("mu", prior))
    log_likelihoods = dist.Normal(mu[None, :], 1.0).log_prob(y[:, None])
    evidence = hmm_forward_backward(jnp.full(2, 0.5), jnp.stack(rows), jnp.asarray(log_likelihoods)).log_evidence
    numpyro.factor("y", evidence)
