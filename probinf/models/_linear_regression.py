r"""Bayesian linear regression in closed form, with its evidence: an exact answer for samplers to be checked against.

$y = X \beta + \varepsilon$, $\varepsilon \sim N(0, \sigma^2 I)$, $\beta \mid \sigma^2 \sim N(m_0, \sigma^2 V_0)$,
$\sigma^2 \sim \mathrm{InverseGamma}(a_0, b_0)$; or $\sigma$ known and $\beta \sim N(m_0, V_0)$. Bishop (2006),
section 3.3; O'Hagan and Forster (2004), "Bayesian Inference", chapter 11. Both are one least squares problem: the
prior is d more rows of data, and a QR factorisation of all rows never squares the condition number.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from probinf.core import is_concrete
from probinf.core._types import PRNGKey
from probinf.models._types import Numbers


class ConjugatePosterior(NamedTuple):
    r"""Normal-inverse-gamma: $\beta \mid \sigma^2 \sim N(m, \sigma^2 V)$, $\sigma^2 \sim \mathrm{InverseGamma}(a, b)$.

    Attributes:
        mean: m, [d], the posterior mean of the coefficients.
        scale_root: a root of V, [d, d]: V = scale_root @ scale_root.T.
        shape: a.
        rate: b.
        log_evidence: log density of the targets, coefficients and noise integrated out.
    """

    mean: Float[Array, " d"]
    scale_root: Float[Array, "d d"]
    shape: Float[Array, ""]
    rate: Float[Array, ""]
    log_evidence: Float[Array, ""]

    @property
    def cov(self) -> Float[Array, "d d"]:
        """Marginal covariance of the coefficients (Student t); NaN unless `shape` > 1."""
        return self.noise_variance_mean * (self.scale_root @ self.scale_root.T)

    @property
    def sd(self) -> Float[Array, " d"]:
        """Marginal standard deviations of the coefficients; NaN unless `shape` > 1."""
        return jnp.sqrt(self.noise_variance_mean * jnp.sum(self.scale_root**2, axis=1))

    @property
    def noise_variance_mean(self) -> Float[Array, ""]:
        """Posterior mean of the noise variance; NaN unless `shape` > 1, where there is none."""
        return jnp.where(self.shape > 1, self.rate / jnp.where(self.shape > 1, self.shape - 1, 1), jnp.nan)

    @property
    def noise_variance_sd(self) -> Float[Array, ""]:
        """Posterior standard deviation of the noise variance; NaN unless `shape` > 2."""
        spread = jnp.sqrt(jnp.where(self.shape > 2, self.shape - 2, 1))
        return jnp.where(self.shape > 2, self.noise_variance_mean / spread, jnp.nan)

    def sample(self, key: PRNGKey, num_samples: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """Exact draws of the coefficients and of the noise variance."""
        key_noise, key_mean = jax.random.split(key)
        dtype = self.mean.dtype
        noise_variance = self.rate / jax.random.gamma(key_noise, self.shape, (num_samples,), dtype)
        white = jax.random.normal(key_mean, (num_samples, self.mean.shape[0]), dtype)
        spread = jnp.sqrt(noise_variance)[:, None] * (white @ self.scale_root.T)
        return self.mean[None, :] + spread, noise_variance

    def predict(self, features: Float[Array, "k d"]) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """Location and scale of the Student t law, `2 * shape` degrees of freedom, of each new target."""
        spread = features @ self.scale_root
        return features @ self.mean, jnp.sqrt(self.rate / self.shape * (1 + jnp.sum(spread**2, axis=1)))


class GaussianPosterior(NamedTuple):
    """The coefficients given the data, for known noise: Gaussian.

    Attributes:
        mean: [d].
        scale_root: a root of the covariance, [d, d].
        log_evidence: log density of the targets, coefficients integrated out.
    """

    mean: Float[Array, " d"]
    scale_root: Float[Array, "d d"]
    log_evidence: Float[Array, ""]

    @property
    def cov(self) -> Float[Array, "d d"]:
        """Covariance of the coefficients."""
        return self.scale_root @ self.scale_root.T

    @property
    def sd(self) -> Float[Array, " d"]:
        """Standard deviations of the coefficients."""
        return jnp.sqrt(jnp.sum(self.scale_root**2, axis=1))

    def sample(self, key: PRNGKey, num_samples: int) -> Float[Array, "n d"]:
        """Exact draws of the coefficients."""
        white = jax.random.normal(key, (num_samples, self.mean.shape[0]), self.mean.dtype)
        return self.mean[None, :] + white @ self.scale_root.T


def conjugate_regression(
    features: Numbers,
    targets: Numbers,
    *,
    prior_mean: Numbers = 0.0,
    prior_cov: Numbers = 100.0,
    prior_shape: Numbers = 1.0,
    prior_rate: Numbers = 1.0,
) -> ConjugatePosterior:
    r"""The posterior and evidence for unknown noise. Works under `jit`, `vmap` and `grad`.

    Args:
        features: X, [n, d]; add a column of ones for an intercept. n may be 0.
        targets: y, [n].
        prior_mean: m_0, [d] or a scalar for all.
        prior_cov: V_0, in units of the noise variance: [d, d], or a scalar v for v times the identity.
        prior_shape: a_0 > 0.
        prior_rate: b_0 > 0.

    Returns:
        A `ConjugatePosterior`, in the dtype of `features`.

    Raises:
        ValueError: shapes do not fit together; or, where values are known (outside `jit`), data are not finite,
            `prior_cov` is not positive definite, or `prior_shape` or `prior_rate` is not positive.
    """
    x, y, mean, cov = _checked(features, targets, prior_mean, prior_cov)
    shape, rate = _positive("prior_shape", prior_shape, x.dtype), _positive("prior_rate", prior_rate, x.dtype)
    return _conjugate(x, y, mean, cov, shape, rate)


def known_noise_regression(
    features: Numbers,
    targets: Numbers,
    *,
    noise_sd: Numbers,
    prior_mean: Numbers = 0.0,
    prior_cov: Numbers = 100.0,
) -> GaussianPosterior:
    """The posterior and evidence for noise of known standard deviation `noise_sd` > 0.

    The other arguments and errors are those of `conjugate_regression`, but that `prior_cov` is in the units of the
    coefficients themselves.
    """
    x, y, mean, cov = _checked(features, targets, prior_mean, prior_cov)
    return _known_noise(x, y, mean, cov, _positive("noise_sd", noise_sd, x.dtype))


@eqx.filter_jit
def _conjugate(x: Array, y: Array, mean: Array, cov: Array, shape: Array, rate: Array) -> ConjugatePosterior:
    posterior_mean, root, misfit, log_volume = _least_squares(x, y, mean, cov)
    num_rows = y.shape[0]
    posterior_shape = shape + 0.5 * num_rows
    posterior_rate = rate + 0.5 * misfit
    log_evidence = log_volume - 0.5 * num_rows * math.log(2 * math.pi)
    log_evidence = log_evidence + gammaln(posterior_shape) - gammaln(shape)
    log_evidence = log_evidence + shape * jnp.log(rate) - posterior_shape * jnp.log(posterior_rate)
    return ConjugatePosterior(posterior_mean, root, posterior_shape, posterior_rate, log_evidence)


@eqx.filter_jit
def _known_noise(x: Array, y: Array, mean: Array, cov: Array, noise_sd: Array) -> GaussianPosterior:
    posterior_mean, root, misfit, log_volume = _least_squares(x / noise_sd, y / noise_sd, mean, cov)
    constant = y.shape[0] * (0.5 * math.log(2 * math.pi) + jnp.log(noise_sd))
    return GaussianPosterior(posterior_mean, root, log_volume - 0.5 * misfit - constant)


def _least_squares(x: Array, y: Array, mean: Array, cov: Array) -> tuple[Array, Array, Array, Array]:
    r"""Mean, root of $V = (V_0^{-1} + X^T X)^{-1}$, least squared misfit of prior and data, $\tfrac12\log|V|/|V_0|$."""
    factor = jnp.linalg.cholesky(cov)
    prior_rows = solve_triangular(factor, jnp.eye(mean.shape[0], dtype=x.dtype), lower=True)
    orthogonal, triangle = jnp.linalg.qr(jnp.concatenate([prior_rows, x]))
    root = solve_triangular(triangle, jnp.eye(mean.shape[0], dtype=x.dtype))
    # Solved for the step from the prior mean, so that the targets of the prior's rows are zero.
    step = root @ (orthogonal[mean.shape[0] :].T @ (y - x @ mean))
    misfit = jnp.sum((y - x @ (mean + step)) ** 2) + jnp.sum((prior_rows @ step) ** 2)
    log_volume = -jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangle)))) - jnp.sum(jnp.log(jnp.diagonal(factor)))
    return mean + step, root, misfit, log_volume


def _checked(features: Numbers, targets: Numbers, mean: Numbers, cov: Numbers) -> tuple[Array, ...]:
    x, y = jnp.asarray(features), jnp.asarray(targets)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
    x, y, mean, cov = (jnp.asarray(value, dtype) for value in (x, y, mean, cov))
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"`features` has shape {x.shape}: pass (n, d), a row for each target")
    if y.shape != x.shape[:1]:
        raise ValueError(f"`targets` has shape {y.shape}, but `features` has {x.shape[0]} rows: pass one target a row")
    d = x.shape[1]
    mean = jnp.broadcast_to(mean, (d,)) if mean.ndim == 0 else mean
    cov = cov * jnp.eye(d, dtype=dtype) if cov.ndim == 0 else cov
    for name, leaf, shape in (("prior_mean", mean, (d,)), ("prior_cov", cov, (d, d))):
        if leaf.shape != shape:
            raise ValueError(f"`{name}` has shape {leaf.shape}, but `features` has {d} columns: pass {shape}")
    for name, leaf in (("features", x), ("targets", y), ("prior_mean", mean), ("prior_cov", cov)):
        if is_concrete(leaf) and not np.isfinite(leaf).all():
            raise ValueError(f"`{name}` holds NaN or inf: drop or fill those rows first")
    if is_concrete(cov):
        matrix = np.asarray(cov, np.float64)
        slack = 100 * float(jnp.finfo(dtype).eps) * np.abs(matrix).max()
        if np.abs(matrix - matrix.T).max() > slack or np.linalg.eigvalsh(matrix)[0] <= 0:
            raise ValueError("`prior_cov` is not symmetric positive definite: a proper prior needs one that is")
    return x, y, mean, cov


def _positive(name: str, value: Numbers, dtype: jnp.dtype) -> Array:
    scalar = jnp.asarray(value, dtype)
    if scalar.ndim:
        raise ValueError(f"`{name}` has shape {scalar.shape}: pass a scalar")
    if is_concrete(scalar) and not (0 < float(scalar) < math.inf):
        raise ValueError(f"`{name}` is {float(scalar)}: it must be positive and finite")
    return scalar
