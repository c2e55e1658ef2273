"""The posteriors as NumPyro models: what NumPyro runs, and what ours takes through `Target.from_numpyro`."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from benchmarks.mcmc._problems import NUM_FUNNEL

Data = Mapping[str, jax.Array]


def eight_schools(data: Data) -> None:
    """Non-centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", data["y"].shape[0]):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * raw, data["scale"]), obs=data["y"])


def logistic(data: Data) -> None:
    """The covariates times the coefficients are the logits."""
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(data["x"].shape[1]), 1.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=data["x"] @ beta).to_event(1), obs=data["y"])


def stochastic_volatility(data: Data) -> None:
    """Centred; the density of the path is one vectorised factor, which costs a fraction of a loop over time."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    phi = 2 * numpyro.sample("half_phi", dist.Beta(20.0, 1.5)) - 1
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    # The normal says what h is shaped like and where it may start; its density does not count.
    with numpyro.handlers.mask(mask=False):
        h = jnp.asarray(numpyro.sample("h", dist.Normal(jnp.zeros(data["y"].shape[0]), 1.0).to_event(1)))
    numpyro.factor("first", dist.Normal(mu, sigma / jnp.sqrt(1 - phi * phi)).log_prob(h[0]))
    numpyro.factor("path", dist.Normal(mu + phi * (h[:-1] - mu), sigma).log_prob(h[1:]).sum())
    numpyro.sample("y", dist.Normal(0.0, jnp.exp(0.5 * h)).to_event(1), obs=data["y"])


def funnel(data: Data) -> None:
    """Centred, which is what makes it hard."""
    v = numpyro.sample("v", dist.Normal(0.0, data["scale"]))
    with numpyro.plate("coordinates", NUM_FUNNEL):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)))


MODELS = {
    "eight_schools": eight_schools,
    "logistic": logistic,
    "stochastic_volatility": stochastic_volatility,
    "funnel": funnel,
}
