r"""The four posteriors: data and the quantities that are compared; numpy only, so that every peer can import it.

- *eight_schools*, non-centred (Rubin 1981): $\mu \sim N(0, 5^2)$, $\tau \sim$ half-Cauchy(5), raw effects standard
  normal, $y_j \sim N(\mu + \tau\,\mathrm{raw}_j, s_j^2)$.
- *logistic*: 1000 observations of 25 standard normal covariates, coefficients $\sim N(0, 1)$.
- *stochastic_volatility*, centred (Kim, Shephard, Chib 1998): $y_t \sim N(0, e^{h_t})$, $h$ a stationary AR(1) of mean
  $\mu \sim N(0, 2^2)$, persistence $\phi$ with $(\phi + 1) / 2 \sim$ Beta(20, 1.5) and innovations of scale
  $\sigma \sim$ half-normal(1); T = 1000, data with $\mu = -1$, $\phi = 0.95$, $\sigma = 0.3$.
- *funnel* (Neal 2003), centred: $v \sim N(0, 3^2)$, nine $x_i \sim N(0, e^v)$; its "data" is the scale of v.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Data = Mapping[str, np.ndarray]
NAMES = ("eight_schools", "logistic", "stochastic_volatility", "funnel")
NUM_STEPS = 1000  # of the stochastic volatility
EVERY = 10  # of its log-volatilities one in so many is compared
NUM_FUNNEL = 9  # coordinates beside v
EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


class Problem(NamedTuple):
    """A posterior and how much is drawn from it.

    Attributes:
        name: one of `NAMES`.
        num_draws: kept draws a chain, and as many steps of warm-up.
        data: arrays by name, float64.
        other: a second data set of the same shapes.
    """

    name: str
    num_draws: int
    data: Data
    other: Data

    def data_of(self, seed: int) -> Data:
        """`other` for a negative seed, else `data`."""
        return self.other if seed < 0 else self.data


def make_problem(name: str, num_draws: int = 1000, *, solve: bool = True) -> Problem:
    """The problem of that name; `solve` is what the worker says to problems with an exact answer.

    Raises:
        ValueError: `name` is not one of `NAMES`.
    """
    del solve
    if name not in NAMES:
        raise ValueError(f"`name` is {name!r}, needed one of {NAMES}")
    return Problem(name, num_draws, _data(name, 1), _data(name, 2))


def quantities(name: str, samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """What is compared between libraries, [chains, draws, k], from constrained samples [chains, draws, ...]."""
    at = {site: np.asarray(values) for site, values in samples.items()}
    if name == "eight_schools":
        mu, tau = at["mu"][..., None], at["tau"][..., None]
        return np.concatenate([mu, tau, mu + tau * at["raw"]], axis=-1)
    if name == "logistic":
        return at["beta"]
    if name == "funnel":
        return np.concatenate([at["v"][..., None], at["x"]], axis=-1)
    scalars = np.stack([at["mu"], 2 * at["half_phi"] - 1, at["sigma"]], axis=-1)
    return np.concatenate([scalars, at["h"][..., ::EVERY]], axis=-1)


def labels(name: str) -> list[str]:
    """Names of the columns of `quantities`."""
    if name == "eight_schools":
        return ["mu", "tau", *(f"theta[{j}]" for j in range(len(EFFECTS)))]
    if name == "logistic":
        return [f"beta[{j}]" for j in range(25)]
    if name == "funnel":
        return ["v", *(f"x[{j}]" for j in range(NUM_FUNNEL))]
    return ["mu", "phi", "sigma", *(f"h[{t}]" for t in range(0, NUM_STEPS, EVERY))]


def _data(name: str, seed: int) -> Data:
    rng = np.random.default_rng(seed)
    if name == "eight_schools":
        shift = 0.0 if seed == 1 else rng.standard_normal(len(EFFECTS))
        return {"y": np.asarray(EFFECTS) + shift, "scale": np.asarray(ERRORS)}
    if name == "logistic":
        x, beta = rng.standard_normal((1000, 25)), 0.5 * rng.standard_normal(25)
        return {"x": x, "y": (rng.random(1000) < 1 / (1 + np.exp(-x @ beta))).astype(np.float64)}
    if name == "funnel":
        return {"scale": np.asarray(3.0 if seed == 1 else 2.5)}
    noise = rng.standard_normal((2, NUM_STEPS))
    h = np.empty(NUM_STEPS)
    h[0] = 0.3 / np.sqrt(1 - 0.95**2) * noise[0, 0]
    for t in range(1, NUM_STEPS):
        h[t] = 0.95 * h[t - 1] + 0.3 * noise[0, t]
    return {"y": np.exp(0.5 * (h - 1)) * noise[1]}
