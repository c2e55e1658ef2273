r"""Targets of Markov chains whose moments are known.

- A Gaussian on $R^{10}$ whose covariance is circulant, $\Sigma = Q \Lambda Q^\top$ with the real Fourier basis Q: its
  variances are all 1, so a diagonal metric changes nothing, and its condition number is whatever is asked for.
- Eight schools (Rubin 1981): given $\tau$ effects and $\mu$ are normal, so that with $V_j = s_j^2 + \tau^2$,
  $P = \frac1{25} + \sum_j \frac1{V_j}$, $m = \frac1P \sum_j \frac{y_j}{V_j}$

  $$p(\tau \mid y) \propto \Big(1 + \frac{\tau^2}{25}\Big)^{-1} P^{-1/2} \prod_j V_j^{-1/2}
    \exp\Big(\frac{P m^2}2 - \sum_j \frac{y_j^2}{2 V_j}\Big)$$

  and all means are integrals over $\tau$ alone (Gelman et al. 2013, section 5.4).
- The funnel (Neal 2003): $v \sim N(0, 3^2)$, nine $x_i \sim N(0, e^v)$.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
from jaxtyping import Array, Float

from probinf.core import Target

DIMENSION = 10  # even
EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
PRIOR_SCALE = 5.0  # of mu and tau
FUNNEL_SCALE = 3.0


class Axes(NamedTuple):
    """A Gaussian of mean zero by its principal axes.

    Attributes:
        vectors: [d, d], orthonormal columns.
        variances: [d] along them, the largest first.
    """

    vectors: np.ndarray
    variances: np.ndarray

    def standardised(self, x: np.ndarray) -> np.ndarray:
        """Positions [..., d] in coordinates whose exact law is N(0, I), float64."""
        return np.asarray(x, np.float64) @ self.vectors / np.sqrt(self.variances)

    def draw(self, key: jax.Array, num: int) -> Float[Array, "num d"]:
        """Exact draws."""
        z = np.asarray(jax.random.normal(key, (num, self.variances.size)), np.float64)
        return jnp.asarray(z * np.sqrt(self.variances) @ self.vectors.T, jnp.zeros(()).dtype)


class Gaussian(eqx.Module):
    """N(0, P^-1); the precision is a leaf, so that another one compiles nothing."""

    precision: Float[Array, "d d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return -0.5 * x @ self.precision @ x


def circulant(condition: float, dimension: int = DIMENSION) -> Axes:
    """Variances from `condition` down to 1, at equal ratios by frequency, divided by their mean.

    Raises:
        ValueError: the dimension is odd.
    """
    if dimension % 2:
        raise ValueError(f"`dimension` is {dimension}; needed an even one")
    half, place = dimension // 2, np.arange(dimension)
    columns, frequencies = [], []
    for k in range(half + 1):
        waves = [np.cos(2 * np.pi * k * place / dimension)]
        if 0 < k < half:
            waves.append(np.sin(2 * np.pi * k * place / dimension))
        columns += [wave / np.linalg.norm(wave) for wave in waves]
        frequencies += [k] * len(waves)
    variances = condition ** -(np.array(frequencies) / half)
    return Axes(np.stack(columns, axis=1), variances / variances.mean())


def gaussian(axes: Axes) -> Target:
    """The density of a Gaussian, in JAX's default precision."""
    precision = axes.vectors / axes.variances @ axes.vectors.T
    return Target(Gaussian(jnp.asarray(precision, jnp.zeros(()).dtype)))


def schools_model(effects: jax.Array, errors: jax.Array) -> None:
    """Eight schools, non-centred, as a NumPyro model."""
    mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SCALE))
    tau = numpyro.sample("tau", dist.HalfCauchy(PRIOR_SCALE))
    with numpyro.plate("schools", effects.shape[0]):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * raw, errors), obs=effects)


def schools_data(seed: int = 0) -> tuple[Array, Array]:
    """Effects and their errors; other effects of the same shape for every seed but 0."""
    shift = np.random.default_rng(seed).standard_normal(len(EFFECTS)) if seed else 0.0
    dtype = jnp.zeros(()).dtype
    return jnp.asarray(np.asarray(EFFECTS) + shift, dtype), jnp.asarray(ERRORS, dtype)


def schools_quantities(samples: dict[str, np.ndarray]) -> np.ndarray:
    """mu, tau and the eight effects, [chains, draws, 10], float64."""
    at = {site: np.asarray(values, np.float64) for site, values in samples.items()}
    mu, tau = at["mu"][..., None], at["tau"][..., None]
    return np.concatenate([mu, tau, mu + tau * at["raw"]], axis=-1)


def schools_means(num_points: int = 20_001) -> np.ndarray:
    """Exact posterior means of `schools_quantities`, by quadrature over log tau, float64."""
    effects, errors = np.asarray(EFFECTS), np.asarray(ERRORS)
    log_tau = np.linspace(-20.0, 8.0, num_points)
    tau = np.exp(log_tau)[:, None]
    total = errors**2 + tau**2
    precision = PRIOR_SCALE**-2 + np.sum(1 / total, axis=1)
    centre = np.sum(effects / total, axis=1) / precision
    misfit = np.sum(effects**2 / total + np.log(total), axis=1) - precision * centre**2
    log_density = log_tau - np.log1p((tau[:, 0] / PRIOR_SCALE) ** 2) - 0.5 * (misfit + np.log(precision))
    weights = scipy.special.softmax(log_density)
    means = (tau**2 * effects + errors**2 * centre[:, None]) / total
    return weights @ np.concatenate([centre[:, None], tau, means], axis=1)


class Funnel(eqx.Module):
    """Centred, which is what makes trajectories of very different lengths."""

    scale: Float[Array, ""]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        v, rest = x[0], x[1:]
        return -0.5 * ((v / self.scale) ** 2 + rest.size * v + jnp.exp(-v) * jnp.sum(rest * rest))


def funnel() -> Target:
    """The funnel in ten dimensions."""
    return Target(Funnel(jnp.asarray(FUNNEL_SCALE)))
