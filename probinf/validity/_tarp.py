r"""TARP: expected coverage of posterior draws, by distances to random points.

For a reference point $\theta_r$ the share of posterior draws that are nearer to it than the true $\theta$ is uniform
for a sound posterior, in any dimension; and if it is so for references that depend on the data in every way, the
posterior is exact (Lemos, Coogan, Hezaveh, Perreault-Levasseur 2023).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core import PRNGKey
from probinf.validity._arguments import callables, sample_size, split_rate
from probinf.validity._ecdf_bands import SMALLEST_RATE, uniformity
from probinf.validity._replicate import all_traceable, check_draws, flatten, replicate
from probinf.validity._report import Report
from probinf.validity._simulation import Posterior, Simulate, rank_tree

Reference = Callable[[PRNGKey, Any], Any]


class Standard(eqx.Module):
    """Location and scale of every coordinate; coordinates that do not vary are left as they are."""

    location: Float[Array, " d"]
    scale: Float[Array, " d"]

    def __call__(self, values: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The standardised values."""
        return (values - jnp.broadcast_to(self.location, values.shape)) / jnp.broadcast_to(self.scale, values.shape)


def tarp(
    key: PRNGKey,
    simulate: Simulate,
    posterior: Posterior,
    *,
    num_simulations: int,
    num_draws: int,
    reference: Reference | None = None,
    num_references: int = 4,
    false_alarm_rate: float = 1e-6,
    num_pilot: int = 256,
    traceable: bool = True,
    batch_size: int = 1024,
) -> Report:
    """Checks the joint posterior of all parameters by the coverage of balls around random points.

    Law: all checks of a sound posterior pass with probability at least 1 - `false_alarm_rate`, whatever the references
    are. Distances are Euclidean in standardised coordinates. The default references are other draws of the prior, moved
    by a random linear map of the data (one map per reference): references that ignore the data, as in much use of this
    test, let a posterior that equals the prior pass.

    Args:
        key: of the whole check.
        simulate: `key -> (parameters, data)`, one draw of the joint law; both pytrees of arrays.
        posterior: `(key, data) -> draws`, like the parameters with a leading axis of `num_draws`; independent draws.
        num_simulations: how many data sets.
        num_draws: how many posterior draws each.
        reference: `(key, data) -> parameters`, a random point that may depend on the data but not on the draws.
        num_references: how many points, each with a check of its own.
        false_alarm_rate: of the report, split evenly over the references.
        num_pilot: how many simulations the standardisation is taken from.
        traceable: whether the functions run under `jit` and `vmap`; else they are called in a loop.
        batch_size: how many data sets are worked on at once.

    Returns:
        A report with one check a reference. A NaN draw makes it fail.

    Raises:
        ValueError: a number is out of range, draws do not have the tree and shape of the parameters, or there are
            too few simulations for any to fail.
        TypeError: an argument is not a function.

    Source: Lemos, Coogan, Hezaveh, Perreault-Levasseur (2023), ICML, algorithm 2.
    """
    callables(simulate=simulate, posterior=posterior)
    num_simulations, num_draws = sample_size("num_simulations", num_simulations), sample_size("num_draws", num_draws, 1)
    num_references, num_pilot = (
        sample_size("num_references", num_references, 1),
        sample_size("num_pilot", num_pilot, 10),
    )
    rate = split_rate("false_alarm_rate", false_alarm_rate, num_references, SMALLEST_RATE)
    mapped = all_traceable(traceable, simulate, posterior, reference)
    key_pilot, key_maps, key_run = jax.random.split(key, 3)
    options = {"traceable": mapped, "batch_size": sample_size("batch_size", batch_size, 1)}
    standards = standardisation(key_pilot, simulate, num_pilot, **options)
    shape = (num_references, standards[0].location.size, standards[1].location.size)
    # Each coordinate of the shift has about unit variance, as the parameters have.
    maps = jax.random.normal(key_maps, shape) / max(shape[2], 1) ** 0.5
    one = eqx.Partial(_one, simulate, posterior, reference, num_draws, standards, maps)
    ranks = replicate(key_run, one, num_simulations, **options)
    checks = tuple(
        uniformity(column, num_draws + 1, false_alarm_rate=rate, law="coverage", subject=f"reference {index}")
        for index, column in enumerate(ranks.T)
    )
    return Report(checks, f"TARP: {num_simulations} simulations, {num_draws} draws each")


def standardisation(key: PRNGKey, simulate: Simulate, num_pilot: int, **options: Any) -> tuple[Standard, Standard]:
    """Means and standard deviations of the flat parameters and of the flat data."""
    pair = replicate(key, eqx.Partial(_flat_pair, simulate), num_pilot, **options)
    return _standard(pair[0]), _standard(pair[1])


def flat_data(data: Any) -> Array:
    """The data as one vector, empty if there are none."""
    return flatten(data) if jax.tree.leaves(data) else jnp.zeros(0)


def _flat_pair(simulate: Simulate, key: PRNGKey) -> tuple[Array, Array]:
    parameters, data = simulate(key)
    return flatten(parameters), flat_data(data)


def _standard(values: Float[np.ndarray, "n d"]) -> Standard:
    scale = np.std(values, axis=0)
    return Standard(jnp.asarray(np.mean(values, axis=0)), jnp.asarray(np.where(scale == 0, np.ones_like(scale), scale)))


def _one(
    simulate: Simulate,
    posterior: Posterior,
    reference: Reference | None,
    num_draws: int,
    standards: tuple[Standard, Standard],
    maps: Float[Array, "r d p"],
    key: PRNGKey,
) -> Float[Array, " r"]:
    """The ranks of the true distance among those of the draws, for each reference."""
    key_simulate, key_posterior, key_reference, key_ties = jax.random.split(key, 4)
    truth, data = simulate(key_simulate)
    draws = posterior(key_posterior, data)
    check_draws(truth, draws, num_draws)
    of_parameters, of_data = standards
    at, draws = of_parameters(flatten(truth)), of_parameters(flatten(draws, 1))
    keys = jax.random.split(key_reference, maps.shape[0])
    if reference is None:
        flat = of_data(flat_data(data))
        points = [
            of_parameters(flatten(simulate(one)[0])) + (matrix @ flat.astype(matrix.dtype)).astype(at.dtype)
            for one, matrix in zip(keys, maps, strict=True)
        ]
    else:
        points = [of_parameters(flatten(reference(one, data))) for one in keys]
    points = jnp.stack(points)
    distances = jnp.sum((draws[:, None] - points[None]) ** 2, axis=-1)
    return rank_tree(key_ties, jnp.sum((at[None] - points) ** 2, axis=-1), distances)
