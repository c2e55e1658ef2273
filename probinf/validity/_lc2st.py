r"""The local classifier two-sample test: is a posterior right at one observation?

A classifier learns to tell $(\theta, y)$ of the joint law from $(\tilde\theta, y)$ with $\tilde\theta$ drawn from the
posterior; at $y_o$ the statistic is $T = \mathrm{mean}_l (d(\tilde\theta_l, y_o) - 1/2)^2$ over posterior draws. Its
null law comes from training again with $\theta$ and $\tilde\theta$ exchanged at random within pairs: under the null
that leaves the law of all training data as it is, so the p-value is exact (Linhart, Gramfort, Rodrigues 2023).
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core import PRNGKey
from probinf.validity._arguments import callables, rate_between, sample_size
from probinf.validity._replicate import all_traceable, check_draws, flatten, replicate
from probinf.validity._report import Check, Report
from probinf.validity._simulation import Posterior, Simulate
from probinf.validity._tarp import flat_data

Features = Callable[[Any, Any], Array]
NUM_TRAINING_STEPS = 8
RIDGE = 1e-3


def lc2st(
    key: PRNGKey,
    simulate: Simulate,
    posterior: Posterior,
    observation: Any,
    *,
    num_simulations: int,
    num_draws: int,
    num_nulls: int = 199,
    false_alarm_rate: float = 0.01,
    features: Features | None = None,
    traceable: bool = True,
    batch_size: int = 1024,
) -> Report:
    """Checks a posterior at one observation by what a classifier finds there.

    Law: a posterior that is exact at every observation fails with probability at most `false_alarm_rate`. One that is
    exact at this observation but not at others may fail too. The p-value is a rank among `num_nulls` + 1 values, so the
    smallest rate that can be asked for is 1 / (num_nulls + 1).

    The classifier is a logistic regression, trained by Newton's method: linear and quadratic in parameters and data by
    default, which sees wrong means, variances and correlations, also means that are linear in the data.

    Args:
        key: of the whole check.
        simulate: `key -> (parameters, data)`, one draw of the joint law; both pytrees of arrays.
        posterior: `(key, data) -> draws`, like the parameters with a leading axis of `num_draws`; independent draws.
        observation: data, as `simulate` makes them.
        num_simulations: how many training pairs.
        num_draws: how many draws the posterior returns: training uses the first, the observation all.
        num_nulls: how many classifiers are trained for the null law.
        false_alarm_rate: probability that a sound posterior fails, at most.
        features: `(parameters, data) -> [f]` in the place of the quadratic ones, in JAX; they are standardised.
        traceable: whether `simulate` and `posterior` run under `jit` and `vmap`; else they are called in a loop.
        batch_size: how many simulations run at once.

    Returns:
        A report with one check, whose `found` is one minus the p-value.

    Raises:
        ValueError: a number is out of range, the rate is too small for `num_nulls`, or draws do not have the tree and
            shape of the parameters.
        TypeError: an argument is not a function.

    Source: Linhart, Gramfort, Rodrigues (2023), NeurIPS, algorithms 1 and 2, with nulls by exchange within pairs.
    """
    features = quadratic if features is None else features
    callables(simulate=simulate, posterior=posterior, features=features)
    num_simulations, num_draws = sample_size("num_simulations", num_simulations), sample_size("num_draws", num_draws, 1)
    num_nulls = sample_size("num_nulls", num_nulls, 1)
    rate = rate_between("false_alarm_rate", false_alarm_rate)
    num_rejected = math.floor(rate * (num_nulls + 1) * (1 + 1e-12))
    if num_rejected < 1:
        needed = math.ceil(1 / rate) - 1
        raise ValueError(
            f"`false_alarm_rate` is {rate:g}, but with `num_nulls` {num_nulls} the smallest is "
            f"{1 / (num_nulls + 1):.2g}: take {needed} nulls"
        )
    key_pairs, key_draws, key_nulls = jax.random.split(key, 3)
    mapped = all_traceable(traceable, simulate, posterior)
    pair = eqx.Partial(_pair, simulate, posterior, features, num_draws)
    batch_size = sample_size("batch_size", batch_size, 1)
    pairs = jnp.asarray(replicate(key_pairs, pair, num_simulations, traceable=mapped, batch_size=batch_size))
    draws = posterior(key_draws, observation)
    check_draws(jax.tree.map(lambda leaf: leaf[0], draws), draws, num_draws)
    at = jax.vmap(lambda parameters: features(parameters, observation))(jax.tree.map(jnp.asarray, draws))
    exchange = jax.random.bernoulli(key_nulls, 0.5, (num_nulls, num_simulations))
    statistics = np.asarray(_statistics(pairs, at, exchange))
    return Report((_check(statistics, num_rejected),), f"local classifier test: {num_simulations} pairs")


def quadratic(parameters: Any, data: Any) -> Float[Array, " f"]:
    """All coordinates of parameters and data, and all products of two."""
    flat, other = flatten(parameters), flat_data(data)
    both = jnp.concatenate([flat, other.astype(flat.dtype)])
    rows, columns = np.triu_indices(both.size)
    return jnp.concatenate([both, both[rows] * both[columns]])


def _pair(simulate: Simulate, posterior: Posterior, features: Features, num_draws: int, key: PRNGKey) -> Array:
    """Features of the true parameters and of the first posterior draw, [2, f]."""
    key_simulate, key_posterior = jax.random.split(key)
    truth, data = simulate(key_simulate)
    draws = posterior(key_posterior, data)
    check_draws(truth, draws, num_draws)
    drawn = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], draws)
    return jnp.stack([features(truth, data), features(drawn, data)])


@jax.jit
def _statistics(pairs: Float[Array, "n 2 f"], at: Float[Array, "l f"], exchange: Array) -> Float[Array, " h"]:
    """The statistic of the classifier as it is, and of those trained on exchanged pairs."""
    location, scale = jnp.mean(pairs, axis=(0, 1)), jnp.std(pairs, axis=(0, 1))
    scale = jnp.where(scale == 0, 1, scale)

    def standard(values: Array) -> Array:
        shape = values.shape
        scaled = (values - jnp.broadcast_to(location, shape)) / jnp.broadcast_to(scale, shape)
        return jnp.concatenate([scaled, jnp.ones((*shape[:-1], 1), values.dtype)], axis=-1)

    pairs, at = standard(pairs), standard(at)
    none = jnp.zeros((1, exchange.shape[1]), bool)

    def one(swapped: Array) -> Float[Array, ""]:
        labels = jnp.stack([swapped, ~swapped], axis=1).astype(pairs.dtype)
        probability = jax.nn.sigmoid(at @ _train(pairs, labels))
        return jnp.mean((probability - 0.5) ** 2)

    return jax.lax.map(one, jnp.concatenate([none, exchange]), batch_size=50)


def _train(pairs: Float[Array, "n 2 f"], labels: Float[Array, "n 2"]) -> Float[Array, " f"]:
    """Logistic regression with a ridge, by Newton's method from zero: the same computation for any labels."""
    x, y = pairs.reshape(-1, pairs.shape[-1]), labels.reshape(-1)
    ridge = RIDGE * jnp.eye(x.shape[1], dtype=x.dtype)

    def step(weights: Float[Array, " f"], _: None) -> tuple[Float[Array, " f"], None]:
        p = jax.nn.sigmoid(x @ weights)
        gradient = x.T @ (p - y) / len(y) + ridge @ weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(y) + ridge
        return weights - jnp.linalg.solve(curvature, gradient), None

    return jax.lax.scan(step, jnp.zeros(x.shape[1], x.dtype), None, length=NUM_TRAINING_STEPS)[0]


def _check(statistics: Float[np.ndarray, " h"], num_rejected: int) -> Check:
    """One minus the p-value, which is a multiple of 1 / (number of statistics), against the largest that passes."""
    total = statistics.size
    as_large = int(np.sum(statistics >= statistics[0]))
    found = math.nan if np.isnan(statistics).any() else (total - as_large) / total
    bound = (total - num_rejected - 1) / total
    detects = f"a mean of (d - 1/2)^2 above {np.sort(statistics[1:])[-num_rejected]:.2g} (found {statistics[0]:.2g})"
    return Check("local coverage", "observation", found, bound, num_rejected / total, detects)
