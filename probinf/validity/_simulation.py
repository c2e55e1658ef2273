r"""Simulation-based calibration: draws of a sound posterior rank the parameters that made the data uniformly.

$\theta \sim p(\theta)$, $y \sim p(y \mid \theta)$, $\theta_1, \dots, \theta_L \sim p(\theta \mid y)$ make the rank of
$f(\theta, y)$ among the $f(\theta_l, y)$ uniform on 0 .. L, for every f (Cook, Gelman, Rubin 2006; Talts et al. 2018).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from probinf.core import PRNGKey
from probinf.validity._arguments import callables, sample_size, split_rate
from probinf.validity._ecdf_bands import SMALLEST_RATE, uniformity
from probinf.validity._replicate import all_traceable, check_draws, replicate, scalar_names
from probinf.validity._report import Report

Simulate = Callable[[PRNGKey], tuple[Any, Any]]
Posterior = Callable[[PRNGKey, Any], Any]
Quantities = Callable[[Any, Any], PyTree]


class SimulationRanks(NamedTuple):
    """Ranks of true values among posterior draws.

    Attributes:
        names: of the quantities.
        ranks: [num_simulations, num_quantities] how many draws lie below the true value, ties broken at random; NaN
            where the value or a draw is NaN.
        num_draws: the largest rank.
    """

    names: tuple[str, ...]
    ranks: Float[np.ndarray, "s q"]
    num_draws: int


def simulation_based_calibration(
    key: PRNGKey,
    simulate: Simulate,
    posterior: Posterior,
    *,
    num_simulations: int,
    num_draws: int,
    quantities: Quantities | None = None,
    false_alarm_rate: float = 1e-6,
    traceable: bool = True,
    batch_size: int = 1024,
) -> Report:
    """Checks that posterior draws rank the parameters that made the data uniformly, for every scalar of them.

    Law: all checks of a sound posterior pass with probability at least 1 - `false_alarm_rate`. Draws must be
    independent given the data: thin those of a chain. A posterior that equals the prior passes unless `quantities`
    has one that depends on the data, such as log p(y | theta) (Modrák et al. 2023): give it whenever you can.

    Args:
        key: of the whole check.
        simulate: `key -> (parameters, data)`, one draw of the joint law; parameters are a pytree of arrays.
        posterior: `(key, data) -> draws`, like the parameters with a leading axis of `num_draws`.
        num_simulations: how many data sets.
        num_draws: how many posterior draws each.
        quantities: `(parameters, data) -> pytree` of further numbers to rank.
        false_alarm_rate: of the report, split evenly over the quantities.
        traceable: whether the functions run under `jit` and `vmap`; else they are called in a loop. A function whose
            attribute `traceable` is False says so itself.
        batch_size: how many data sets are worked on at once.

    Returns:
        A report with one check a scalar quantity. A NaN draw makes its check fail.

    Raises:
        ValueError: a number is out of range, draws do not have the tree and shape of the parameters, or there are
            too few simulations for any to fail.
        TypeError: an argument is not a function.

    Source: Talts, Betancourt, Simpson, Vehtari, Gelman (2018); bands: Säilynoja, Bürkner, Vehtari (2022).
    """
    found = simulation_ranks(
        key,
        simulate,
        posterior,
        num_simulations=num_simulations,
        num_draws=num_draws,
        quantities=quantities,
        traceable=traceable,
        batch_size=batch_size,
    )
    rate = split_rate("false_alarm_rate", false_alarm_rate, len(found.names), SMALLEST_RATE)
    checks = tuple(
        uniformity(ranks, num_draws + 1, false_alarm_rate=rate, law="calibration", subject=name)
        for name, ranks in zip(found.names, found.ranks.T, strict=True)
    )
    return Report(checks, f"simulation-based calibration: {num_simulations} simulations, {num_draws} draws each")


def simulation_ranks(
    key: PRNGKey,
    simulate: Simulate,
    posterior: Posterior,
    *,
    num_simulations: int,
    num_draws: int,
    quantities: Quantities | None = None,
    traceable: bool = True,
    batch_size: int = 1024,
) -> SimulationRanks:
    """The ranks that `simulation_based_calibration` checks, for figures; arguments as there.

    Raises:
        ValueError: a number is out of range, or draws do not have the tree and shape of the parameters.
        TypeError: an argument is not a function.
    """
    callables(simulate=simulate, posterior=posterior, quantities=quantities or no_quantities)
    num_simulations = sample_size("num_simulations", num_simulations)
    num_draws = sample_size("num_draws", num_draws, 1)
    batch_size = sample_size("batch_size", batch_size, 1)
    mapped = all_traceable(traceable, simulate, posterior, quantities or no_quantities)
    one = eqx.Partial(_one, simulate, posterior, quantities or no_quantities, num_draws, mapped)
    values = replicate(key, one, num_simulations, traceable=mapped, batch_size=batch_size)
    parameters, others = jax.tree.map(lambda leaf: leaf[0], values)
    names = scalar_names(parameters, "parameters") + scalar_names(others, "quantity")
    ranks = np.concatenate([leaf.reshape(num_simulations, -1) for leaf in jax.tree.leaves(values)], axis=1)
    return SimulationRanks(names, ranks.astype(float), num_draws)


def no_quantities(parameters: Any, data: Any) -> tuple[()]:
    """No further quantities."""
    del parameters, data
    return ()


def _one(
    simulate: Simulate, posterior: Posterior, quantities: Quantities, num_draws: int, mapped: bool, key: PRNGKey
) -> tuple[PyTree, PyTree]:
    """The ranks of one simulation, as a tree like (parameters, quantities)."""
    key_simulate, key_posterior, key_ties = jax.random.split(key, 3)
    truth, data = simulate(key_simulate)
    draws = posterior(key_posterior, data)
    check_draws(truth, draws, num_draws)
    if mapped:
        others = jax.vmap(lambda parameters: quantities(parameters, data))(draws)
    else:
        values = [quantities(jax.tree.map(lambda leaf, i=i: leaf[i], draws), data) for i in range(num_draws)]
        others = jax.tree.map(lambda *leaves: np.stack(leaves), *values)
    at_truth = quantities(truth, data)
    return rank_tree(key_ties, (truth, at_truth), (draws, tie_equals(at_truth, others, truth, draws)))


def tie_equals(at_truth: PyTree, at_draws: PyTree, truth: PyTree, draws: PyTree) -> PyTree[Array]:
    """`at_draws`, with the values of `at_truth` for draws that equal the truth exactly.

    The same function compiled for one point and for many may round differently; ties would then go all one way.
    """
    same = [
        jnp.all((jnp.asarray(many) == jnp.asarray(one)[None]).reshape(len(many), -1), axis=1)
        for one, many in zip(jax.tree.leaves(truth), jax.tree.leaves(draws), strict=True)
    ]
    equal = jnp.all(jnp.stack(same), axis=0)

    def tie(one: Any, many: Any) -> Array:
        one, many = jnp.asarray(one), jnp.asarray(many)
        return jnp.where(equal.reshape(-1, *[1] * one.ndim), one[None], many)

    return jax.tree.map(tie, at_truth, at_draws)


def rank_tree(key: PRNGKey, truth: PyTree, draws: PyTree) -> PyTree[Array]:
    """How many of the draws (leading axis) lie below the truth, ties broken at random; NaN if anything is NaN."""
    leaves, structure = jax.tree.flatten(truth)
    keys = jax.random.split(key, len(leaves))
    ranks = [_rank(*args) for args in zip(keys, leaves, jax.tree.leaves(draws), strict=True)]
    return jax.tree.unflatten(structure, ranks)


def _rank(key: PRNGKey, truth: Any, draws: Any) -> Float[Array, "..."]:
    truth, draws = jnp.asarray(truth), jnp.asarray(draws)
    less = jnp.sum(draws < truth[None], axis=0, dtype=int)
    equal = jnp.sum(draws == truth[None], axis=0, dtype=int)
    ranks = less + jax.random.randint(key, truth.shape, 0, equal + 1)
    # As floats, so that what could not be ranked stays visible.
    return jnp.where(jnp.isnan(truth) | jnp.isnan(draws).any(0), jnp.nan, ranks.astype(float))
