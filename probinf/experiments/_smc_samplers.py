r"""Tempered SMC: the evidence, and the weights of modes that single chains cannot tell, against exact answers.

(a) Prior $N(0, 25 I)$ on $R^{10}$, likelihood $.3 N(x; -2, I/4) + .7 N(x; 2, I/4)$: $\log Z = -5 (\log(2 \pi 25.25) +
4 / 25.25)$, and the mode at 2 has .7 of the posterior. (b) Poisson counts with normal log rates: quadrature. (c) Counts
one after the other with a gamma prior: negative binomial predictives. (d) The variance of the log evidence is
proportional to 1/N.

Del Moral, Doucet, Jasra (2006); Dau, Chopin (2022), waste-free moves; Chopin (2002), data tempering.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array

from probinf import samplers
from probinf.core import Target
from probinf.experiments import _smc_samplers_page as page
from probinf.experiments._claims import Comparison, below, compare, normal_bound
from probinf.experiments._page import Part
from probinf.experiments._smc_samplers_claims import claims as claims
from probinf.experiments._smc_targets import MODE_WEIGHT, one_by_one, poisson_counts, two_modes
from probinf.experiments._workspace import Workspace

GROUP = 8  # runs that make one program
MAX_TEMPERATURES = 40
RATES = ((0.0, 7.0), (0.0, 40.0))  # of the Poisson targets
PATH_THRESHOLD = 0.7
TARGETS_OF_ESS = (0.3, 0.5, 0.7, 0.9)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        num_particles: of the runs on the target with two modes.
        num_replicates: independent runs of every kind, a multiple of `GROUP`.
        num_chains, num_warmup, num_samples: of the Markov chains.
        counts_particles: of the runs on Poisson counts, a multiple of 4.
        num_data: data of the data tempering.
        path_particles: its particles.
        sizes: numbers of particles whose variances are compared.
        variance_replicates: runs for each, a multiple of `GROUP`.
    """

    seed: int = 0
    num_particles: int = 2000
    num_replicates: int = 40
    num_chains: int = 512
    num_warmup: int = 200
    num_samples: int = 150
    counts_particles: int = 1024
    num_data: int = 30
    path_particles: int = 1000
    sizes: tuple[int, ...] = (256, 1024, 4096)
    variance_replicates: int = 160


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(
        num_particles=8000,
        num_replicates=400,
        num_samples=2000,
        counts_particles=4096,
        num_data=100,
        path_particles=4000,
        sizes=(256, 1024, 4096, 16384),
        variance_replicates=1600,
    ),
}


def _tempered(keys: jax.Array, target: Target, schedule: Any, options: Mapping[str, Any]) -> Any:
    # Not compiled here: `tempered_smc` is, once for all targets of a shape and all `target_ess`.
    def one(key: jax.Array) -> samplers.SMCResult:
        return samplers.tempered_smc(
            key,
            target,
            schedule=schedule,
            max_temperatures=MAX_TEMPERATURES,
            throw=False,
            **options,
        )

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _along(keys: jax.Array, path: samplers.DataPath, num_particles: int) -> Any:
    def one(key: jax.Array) -> tuple[Array, ...]:
        out = samplers.path_smc(key, path, num_particles=num_particles, ess_threshold=PATH_THRESHOLD, throw=False)
        return out.log_evidence_path, out.ess, out.moved

    return jax.vmap(one)(keys)


def replicate(
    key: jax.Array, target: Target, num_runs: int, *, schedule: Any = None, **options: Any
) -> samplers.SMCResult:
    """Independent runs of `tempered_smc`; leaves with a leading axis of `num_runs`, as NumPy arrays.

    Raises:
        ValueError: the number of runs is no multiple of `GROUP`.
    """
    return _grouped(key, num_runs, lambda keys: _tempered(keys, target, schedule, options))


def _grouped(key: jax.Array, num_runs: int, run_group: Any) -> Any:
    if num_runs % GROUP:
        raise ValueError(f"the number of runs is {num_runs}; needed a multiple of {GROUP}")
    # A few runs a call, so that Ctrl-C is heard in between.
    keys = jax.random.split(key, (num_runs // GROUP, GROUP))
    found = [jax.tree.map(np.asarray, run_group(group)) for group in keys]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def ratios(log_evidence: Any, exact: Any) -> np.ndarray:
    """Estimates over exact values, float64; capped where a wrong one would overflow."""
    return np.exp(np.minimum(np.asarray(log_evidence, np.float64) - exact, 100.0))


def mode_weights(out: samplers.SMCResult) -> np.ndarray:
    """The weight of the mode at 2 in each run."""
    weights = scipy.special.softmax(np.asarray(out.population.log_weights, np.float64), axis=-1)
    return np.sum(weights * (np.mean(out.samples, axis=-1) > 0), axis=-1)


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The five parts in turn."""
    keys = jax.random.split(jax.random.key(config.seed), 5)
    parts = {"modes": modes, "chains": chains, "counts": counts, "data": data, "variance": variance}
    return {
        name: workspace.part(name, part, key, config) for (name, part), key in zip(parts.items(), keys, strict=True)
    }


def modes(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """Evidence and mode weight, adaptively and with the schedule of another run."""
    target, exact = two_modes()
    first, second, third = jax.random.split(key, 3)
    options = {"num_particles": config.num_particles}
    workspace.say(f"two modes: {config.num_replicates} runs of {config.num_particles:,} particles")
    adaptive = replicate(first, target, config.num_replicates, **options)
    pilot = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), replicate(second, target, GROUP, **options).schedule)
    workspace.say("two modes: as many with a frozen schedule")
    frozen = replicate(third, target, config.num_replicates, schedule=pilot, **options)
    metrics = measure_modes(adaptive, frozen, exact) | {"num_particles": config.num_particles}
    return Part(metrics, page.modes_section(workspace, metrics, adaptive))


def measure_modes(adaptive: samplers.SMCResult, frozen: samplers.SMCResult, exact: float) -> dict[str, Any]:
    """Both kinds of runs against the exact evidence and the exact weight of the mode."""
    found, frozen_ratio = ratios(adaptive.log_evidence, exact), ratios(frozen.log_evidence, exact)
    weight = mode_weights(adaptive)
    truth = np.array([1.0, MODE_WEIGHT])
    # Of a frozen schedule the products of evidence and weight are unbiased, of any number of particles.
    pairs = np.stack([frozen_ratio, frozen_ratio * mode_weights(frozen)], axis=1)
    return {
        "exact": exact,
        "num_replicates": found.size,
        "evidence": brief(compare(found[:, None], truth[:1])),
        "weight": brief(compare(weight[:, None], truth[1:])),
        "frozen": brief(compare(pairs, truth)),
        "log_sd": float(np.std(np.asarray(adaptive.log_evidence, np.float64), ddof=1)),
        "weight_sd": float(weight.std(ddof=1)),
        "num_temperatures": adaptive.schedule.num_temperatures,
    }


def brief(found: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    return {
        "mean": found.mean,
        "standard_error": found.standard_error,
        "worst": found.worst,
        "bound": found.bound,
        "holds": found.holds,
    }


def chains(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """Hamiltonian Monte Carlo from draws of the prior: which modes do chains visit?"""
    target, _ = two_modes()
    start_key, chain_key = jax.random.split(key)
    workspace.say(f"two modes: {config.num_chains} chains of {config.num_warmup} + {config.num_samples} HMC steps")
    draws = samplers.sample(
        chain_key,
        samplers.hmc(num_steps=4),
        target,
        num_samples=config.num_samples,
        num_warmup=config.num_warmup,
        num_chains=config.num_chains,
        initial_position=jax.vmap(target.draw_prior)(jax.random.split(start_key, config.num_chains)),
        throw=False,
    )
    positions = np.asarray(draws.samples, np.float64)
    r_hat = float(np.max(draws.summary()["r_hat"]))
    metrics = measure_chains(positions) | {"r_hat": r_hat}
    return Part(metrics, page.chains_section(workspace, metrics, positions))


def measure_chains(positions: np.ndarray) -> dict[str, Any]:
    """What [chains, draws, d] say of the modes."""
    upper = positions.mean(axis=-1) > 0
    share = compare(upper.mean(axis=1, keepdims=True), np.array([MODE_WEIGHT]))
    return {
        "num_chains": upper.shape[0],
        "num_samples": upper.shape[1],
        "switching": int(np.sum(np.any(upper != upper[:, :1], axis=1))),
        "share": brief(share),
    }


def counts(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """Two skewed targets, plainly and waste-free, against quadrature."""
    kinds = {"plain": {}, "waste-free": {"num_steps": 3, "waste_free": True}}
    rows = []
    for number, numbers in enumerate(RATES):
        target, exact, means = poisson_counts(numbers)
        for kind, (name, options) in enumerate(kinds.items()):
            workspace.say(f"Poisson counts {numbers}: {name} moves")
            out = replicate(
                jax.random.fold_in(key, 2 * number + kind),
                target,
                config.num_replicates,
                num_particles=config.counts_particles,
                **options,
            )
            found = np.asarray(jax.vmap(lambda result: result.mean)(out), np.float64)
            pairs = np.concatenate([ratios(out.log_evidence, exact)[:, None], found], axis=1)
            comparison = brief(compare(pairs, np.append(1.0, means)))
            rows.append({"counts": numbers, "moves": name, "exact": [exact, *means], **comparison})
    metrics = {"rows": rows, "num_replicates": config.num_replicates, "num_particles": config.counts_particles}
    return Part(metrics, page.counts_section(metrics))


def data(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """Data tempering against the exact evidence of every prefix of the data."""
    path, exact = one_by_one(config.num_data)
    workspace.say(f"data tempering: {config.num_replicates} runs over {config.num_data} counts")
    found, ess, moved = _grouped(key, config.num_replicates, lambda keys: _along(keys, path, config.path_particles))
    metrics = {
        "exact": exact,
        "num_particles": config.path_particles,
        "num_replicates": config.num_replicates,
        "path": brief(compare(ratios(found, exact)[:, 1:], np.ones(exact.size - 1))),
        "ess": ess.mean(axis=0) / config.path_particles,
        "moved": moved.mean(axis=0),
    }
    return Part(metrics, page.data_section(workspace, metrics))


def variance(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """The variance of the log evidence against the number of particles, and against the ESS aimed at."""
    target, exact, _ = poisson_counts(RATES[1])
    by_size, by_ess = [], []
    for number, size in enumerate(config.sizes):
        workspace.say(f"variance: {config.variance_replicates} runs of {size:,} particles")
        out = replicate(jax.random.fold_in(key, number), target, config.variance_replicates, num_particles=size)
        by_size.append(spread(np.asarray(out.log_evidence, np.float64) - exact))
    for number, target_ess in enumerate(TARGETS_OF_ESS):
        out = replicate(
            jax.random.fold_in(key, 100 + number),
            target,
            config.variance_replicates,
            target_ess=target_ess,
            num_particles=config.sizes[0],
        )
        by_ess.append(spread(np.asarray(out.log_evidence, np.float64) - exact))
    metrics = {"sizes": config.sizes, "by_size": by_size, "ess": TARGETS_OF_ESS, "by_ess": by_ess}
    metrics |= {"num_replicates": config.variance_replicates} | slope(config.sizes, by_size)
    return Part(metrics, page.variance_section(workspace, metrics))


def spread(log_errors: np.ndarray) -> dict[str, float]:
    """Mean and variance of the log evidence's error, and the standard error of the logarithm of the variance.

    The last is the jackknife's, which asks for no normality.
    """
    count = log_errors.size
    squares = (log_errors - log_errors.mean()) ** 2
    total = squares.sum()
    # The sum of squares about the mean without one of the runs.
    others = np.log((total - count / (count - 1) * squares) / (count - 2))
    error = math.sqrt((count - 1) / count * np.sum((others - others.mean()) ** 2))
    return {"mean": float(log_errors.mean()), "variance": float(total / (count - 1)), "log_error": error}


def slope(sizes: tuple[int, ...], rows: list[dict[str, float]]) -> dict[str, Any]:
    """Weighted least squares of the log variance on log N: the slope, its error, and whether it is -1."""
    x = np.log(np.asarray(sizes, float))
    y = np.log([row["variance"] for row in rows])
    weight = 1 / np.array([row["log_error"] for row in rows]) ** 2
    centred = x - np.sum(weight * x) / weight.sum()
    found = float(np.sum(weight * centred * y) / np.sum(weight * centred**2))
    error = float(1 / math.sqrt(np.sum(weight * centred**2)))
    bound = normal_bound(1)
    return {"slope": found, "error": error, "bound": bound, "agrees": below(abs(found + 1), bound * error)}
