r"""Models of posteriordb with latent values: eight schools, a Gaussian process with Poisson counts, a mixture."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probinf.models.reference._ordered import OrderedNormal

_JITTER = 1e-10


def eight_schools_noncentered(*, y: Float[Array, " j"], sigma: Float[Array, " j"]) -> None:
    r"""Effects of coaching in schools, Rubin (1981): $y_j \sim N(\theta_j, \sigma_j)$, $\theta = \mu + \tau z$.

    z (`theta_trans`) ~ N(0, 1), mu ~ N(0, 5), tau ~ Cauchy+(0, 5).
    """
    theta_trans = jnp.asarray(numpyro.sample("theta_trans", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1)))
    mu = jnp.asarray(numpyro.sample("mu", dist.Normal(0.0, 5.0)))
    tau = jnp.asarray(numpyro.sample("tau", dist.HalfCauchy(5.0)))
    theta = numpyro.deterministic("theta", mu + tau * theta_trans)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gp_pois_regr(*, x: Float[Array, " n"], k: Float[Array, " n"]) -> None:
    r"""Counts whose log rate is a Gaussian process: $k \sim \mathrm{Poisson}(e^f)$, f = L f_tilde.

    $L L^\top = \alpha^2 \exp(-(x - x')^2 / (2 \rho^2)) + 10^{-10} I$; rho ~ Gamma(25, rate 4), alpha ~ N+(0, 2),
    f_tilde ~ N(0, 1).

    Raises:
        ValueError: `x` is in single precision, where the jitter vanishes and the Cholesky factor is NaN.
    """
    if jnp.finfo(x.dtype).eps > _JITTER:
        raise ValueError(
            f"`x` is {x.dtype}, in which the jitter of {_JITTER} vanishes: this model needs float64, so call "
            '`jax.config.update("jax_enable_x64", True)` first'
        )
    rho = jnp.asarray(numpyro.sample("rho", dist.Gamma(25.0, 4.0)))
    alpha = jnp.asarray(numpyro.sample("alpha", dist.HalfNormal(2.0)))
    f_tilde = jnp.asarray(numpyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1)))
    squares = ((x[:, None] - x[None, :]) / rho) ** 2
    covariance = alpha**2 * jnp.exp(-0.5 * squares) + _JITTER * jnp.eye(x.shape[0], dtype=x.dtype)
    f = jnp.asarray(numpyro.deterministic("f", jnp.linalg.cholesky(covariance) @ f_tilde))
    numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=k)


def low_dim_gauss_mix(*, y: Float[Array, " n"]) -> None:
    r"""Two normals: $y \sim \theta N(\mu_1, \sigma_1) + (1 - \theta) N(\mu_2, \sigma_2)$ with $\mu_1 < \mu_2$.

    sigma[2] ~ N+(0, 2), mu[2] ~ N(0, 2), theta ~ Beta(5, 5).
    """
    mu = jnp.asarray(numpyro.sample("mu", OrderedNormal(jnp.zeros(2), jnp.full(2, 2.0))))
    sigma = jnp.asarray(numpyro.sample("sigma", dist.HalfNormal(2.0).expand((2,)).to_event(1)))
    theta = jnp.asarray(numpyro.sample("theta", dist.Beta(5.0, 5.0)))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)
