"""The posteriors as log densities of unconstrained positions, written by hand in JAX; constants are left out.

Positions are dictionaries with the sites of `_models`, positive sites as their logarithms, `half_phi` as its logit.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from benchmarks.mcmc._problems import NUM_FUNNEL

Position = dict[str, jax.Array]
Data = Mapping[str, jax.Array]


def log_density(name: str, data: Data, position: Position) -> jax.Array:
    """The log posterior density of one unconstrained position, up to a constant."""
    return {
        "eight_schools": _eight_schools,
        "logistic": _logistic,
        "stochastic_volatility": _stochastic_volatility,
        "funnel": _funnel,
    }[name](data, position)


def constrain(name: str, position: Position) -> Position:
    """The position in the sites of the models."""
    maps = {"eight_schools": {"tau": jnp.exp}, "stochastic_volatility": {"sigma": jnp.exp, "half_phi": jax.nn.sigmoid}}
    return {site: maps.get(name, {}).get(site, lambda x: x)(values) for site, values in position.items()}


def start(name: str, data: Data, key: jax.Array) -> Position:
    """A starting point as Stan draws it: every coordinate uniform on (-2, 2)."""
    shapes = {
        "eight_schools": {"mu": (), "tau": (), "raw": data.get("y", jnp.zeros(())).shape},
        "logistic": {"beta": data.get("x", jnp.zeros(())).shape[-1:]},
        "stochastic_volatility": {"mu": (), "half_phi": (), "sigma": (), "h": data.get("y", jnp.zeros(())).shape},
        "funnel": {"v": (), "x": (NUM_FUNNEL,)},
    }[name]
    keys = jax.random.split(key, len(shapes))
    draw = [
        jax.random.uniform(k, shape, minval=-2.0, maxval=2.0) for k, shape in zip(keys, shapes.values(), strict=True)
    ]
    return dict(zip(shapes, draw, strict=True))


def _normal(x, mean, scale):
    return -0.5 * jnp.sum(jnp.square((x - mean) / scale))


def _eight_schools(data: Data, at: Position):
    tau = jnp.exp(at["tau"])
    prior = _normal(at["mu"], 0.0, 5.0) - jnp.log1p(jnp.square(tau / 5)) + at["tau"] + _normal(at["raw"], 0.0, 1.0)
    return prior + _normal(data["y"], at["mu"] + tau * at["raw"], data["scale"])


def _logistic(data: Data, at: Position):
    logits = data["x"] @ at["beta"]
    return _normal(at["beta"], 0.0, 1.0) + jnp.sum(data["y"] * logits - jax.nn.softplus(logits))


def _stochastic_volatility(data: Data, at: Position):
    mu, sigma, h = at["mu"], jnp.exp(at["sigma"]), at["h"]
    phi = 2 * jax.nn.sigmoid(at["half_phi"]) - 1
    # Beta(20, 1.5) of half_phi with the Jacobian of its logit.
    prior = 20.0 * jax.nn.log_sigmoid(at["half_phi"]) + 1.5 * jax.nn.log_sigmoid(-at["half_phi"])
    prior += _normal(mu, 0.0, 2.0) + _normal(sigma, 0.0, 1.0) + at["sigma"]
    path = _normal(h[1:], mu + phi * (h[:-1] - mu), sigma) - h.shape[0] * at["sigma"]
    path += 0.5 * jnp.log1p(-phi * phi) - 0.5 * (1 - phi * phi) * jnp.square((h[0] - mu) / sigma)
    return prior + path - 0.5 * jnp.sum(h + jnp.square(data["y"]) * jnp.exp(-h))


def _funnel(data: Data, at: Position):
    v, x = at["v"], at["x"]
    return _normal(v, 0.0, data["scale"]) - 0.5 * (NUM_FUNNEL * v + jnp.exp(-v) * jnp.sum(jnp.square(x)))
