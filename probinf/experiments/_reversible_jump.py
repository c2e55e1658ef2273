r"""Reversible jump between models of different dimension, 64 chains at once, against exact answers.

(a) Which of ten predictors a regression has: all 1024 models enumerated. (b) How many times the rate of coal-mining
disasters changed: a recursion over segments. (c) How many components the velocities of galaxies have: the evidence of
each number by tempered SMC. (d) How fast: 64 chains in one program against a compiled step called for each chain.

Green (1995); Richardson, Green (1997).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probinf import samplers
from probinf.core import Target
from probinf.experiments import _reversible_jump_changes as changes_model
from probinf.experiments import _reversible_jump_mixture as mixture_model
from probinf.experiments import _reversible_jump_page as page
from probinf.experiments import _reversible_jump_selection as selection_model
from probinf.experiments._claims import below, compare, student_bound
from probinf.experiments._page import Part
from probinf.experiments._reversible_jump_claims import claims as claims
from probinf.experiments._reversible_jump_speed import speed
from probinf.experiments._workspace import Workspace
from probinf.samplers import TransDimensional

FIRST_YEAR = 1851
LEAST = 0.005  # probabilities nearer to 0 or 1 are shown, not judged: a mean of few visits is not normal
WARMUP = 0.2  # share of the steps that is left out


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        num_chains: chains that run at once.
        selection_steps, changes_steps, mixture_steps: of each chain, a fifth of which is left out.
        num_particles: of tempered SMC.
        num_replicates: its runs for each number of components.
        speed_steps: of each timed run of all chains at once, and of one chain.
        speed_rounds: timed runs of each kind, in turn.
    """

    seed: int = 0
    num_chains: int = 64
    selection_steps: int = 20_000
    changes_steps: int = 8000
    mixture_steps: int = 6000
    num_particles: int = 512
    num_replicates: int = 16
    speed_steps: int = 500
    speed_rounds: int = 4


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(
        selection_steps=200_000,
        changes_steps=200_000,
        mixture_steps=200_000,
        num_particles=4096,
        num_replicates=32,
        speed_steps=5000,
        speed_rounds=15,
    ),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The four parts in turn."""
    keys = jax.random.split(jax.random.key(config.seed), 4)
    parts = {"selection": selection, "changes": changes, "mixture": mixture, "speed": speed}
    return {
        name: workspace.part(name, part, key, config) for (name, part), key in zip(parts.items(), keys, strict=True)
    }


def run_chains(
    key: jax.Array, kernel: Any, target: Target, positions: TransDimensional, num_steps: int
) -> tuple[Any, np.ndarray]:
    """Draws of all chains after the first fifth, leaves [chains, draws, ...], and mean acceptance rates by kernel."""
    draws = samplers.sample(
        key,
        kernel,
        target,
        num_samples=num_steps,
        num_warmup=0,
        num_chains=jax.tree.leaves(positions)[0].shape[0],
        initial_position=positions,
    )
    kept = jax.tree.map(lambda leaf: np.asarray(leaf)[:, int(WARMUP * num_steps) :], draws.samples)
    rates = draws.info["acceptance_rates"] if "acceptance_rates" in draws.info else draws.info["acceptance_rate"]
    rates = np.asarray(rates, np.float64)
    return kept, np.atleast_1d(rates.mean(axis=(0, 1)))


def judge(means: np.ndarray, exact: np.ndarray, always: int = 0) -> dict[str, Any]:
    """Means of every chain, [chains, k], against exact values: probabilities that are not all but 0 or 1.

    Args:
        means: of independent chains.
        exact: [k].
        always: so many of the last ones are no probabilities.
    """
    judged = (exact >= LEAST) & (exact <= 1 - LEAST)
    judged[exact.size - always :] = True
    found = compare(means[:, judged], exact[judged])
    error = means.std(axis=0, ddof=1) / math.sqrt(len(means))
    return {
        "exact": exact,
        "mean": means.mean(axis=0),
        "standard_error": error,
        "judged": judged,
        "worst": found.worst,
        "bound": found.bound,
        "holds": found.holds,
    }


def frequencies(numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How often each chain of [chains, draws] has each value, [chains, values]."""
    return np.stack([(numbers == value).mean(axis=1) for value in values], axis=1)


def selection(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """Inclusion probabilities and probabilities of the best models against the enumeration."""
    data = selection_model.diabetes()
    p = len(data.names)
    start = TransDimensional(jnp.zeros((config.num_chains, p), bool), ())
    workspace.say(f"variables: {config.num_chains} chains of {config.selection_steps:,} steps")
    kernel, target = selection_model.selection_kernel(p), selection_model.selection_target(data)
    models, rates = run_chains(key, kernel, target, start, config.selection_steps)
    metrics = measure_selection(models, *selection_model.enumerate_sets(data))
    metrics |= {"names": data.names, "acceptance": rates, "num_steps": config.selection_steps}
    return Part(metrics, page.selection_section(workspace, metrics))


def measure_selection(models: np.ndarray, sets: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Draws of sets, [chains, draws, p], against exact probabilities of all sets, [2^p, p]."""
    codes = 1 << np.arange(sets.shape[1])
    best = np.argsort(-probabilities)[:10]
    visited = frequencies(models @ codes, sets[best] @ codes)
    means = np.concatenate([models.mean(axis=1), visited], axis=1)
    exact = np.concatenate([probabilities @ sets, probabilities[best]])
    return judge(means, exact) | {
        "num_chains": len(models),
        "num_models": len(sets),
        "num_visited": int(np.unique(models @ codes).size),
        "best": [np.flatnonzero(inside) for inside in sets[best]],
    }


def changes(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """The number of change points, and the rates of some years, against the recursion."""
    counts = changes_model.coal()
    years = tuple(year - FIRST_YEAR for year in changes_model.YEARS_SHOWN)
    start = changes_model.one_segment(counts, config.num_chains)
    workspace.say(f"change points: {config.num_chains} chains of {config.changes_steps:,} steps")
    target = changes_model.changes_target(counts, years)
    draws, rates = run_chains(key, changes_model.changes_kernel(counts), target, start, config.changes_steps)
    exact = changes_model.exact_changes(counts)
    metrics = measure_changes(draws, exact, years) | {"years": changes_model.YEARS_SHOWN, "acceptance": rates}
    metrics |= {"num_steps": config.changes_steps, "rate_path": exact.rate, "counts": counts, "first_year": FIRST_YEAR}
    return Part(metrics, page.changes_section(workspace, metrics))


def measure_changes(
    draws: Mapping[str, np.ndarray], exact: changes_model.ExactChanges, years: tuple[int, ...]
) -> dict[str, Any]:
    """Draws of numbers and rates against their exact probabilities and means."""
    numbers = frequencies(draws["changes"], np.arange(exact.number.size))
    means = np.concatenate([numbers, draws["rate"].mean(axis=1)], axis=1, dtype=np.float64)
    found = judge(means, np.concatenate([exact.number, exact.rate[list(years)]]), always=len(years))
    return found | {"num_chains": len(means)}


def mixture(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """The number of components by reversible jump, and by the evidence of each."""
    data = mixture_model.galaxies()
    start_key, chain_key, smc_key = jax.random.split(key, 3)
    workspace.say(f"mixture: {config.num_chains} chains of {config.mixture_steps:,} steps")
    start = mixture_model.starts(start_key, config.num_chains)
    target = mixture_model.mixture_target(data)
    numbers, rates = run_chains(chain_key, mixture_model.mixture_kernel(), target, start, config.mixture_steps)
    log_evidences = []
    for number in range(1, mixture_model.MAX_COMPONENTS + 1):
        workspace.say(f"mixture: tempered SMC with {number} components")
        keys = jax.random.split(jax.random.fold_in(smc_key, number), config.num_replicates)
        log_evidences.append(
            np.asarray(_evidence(keys, mixture_model.fixed_target(data, number), config.num_particles))
        )
    metrics = measure_mixture(numbers, np.array(log_evidences, np.float64))
    metrics |= {"acceptance": rates, "num_steps": config.mixture_steps, "num_particles": config.num_particles}
    return Part(metrics, page.mixture_section(workspace, metrics))


@eqx.filter_jit
def _evidence(keys: jax.Array, target: Target, num_particles: int) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        out = samplers.tempered_smc(key, target, num_particles=num_particles, max_temperatures=60, throw=False)
        return out.log_evidence

    return jax.vmap(one)(keys)


def measure_mixture(numbers: np.ndarray, log_evidences: np.ndarray) -> dict[str, Any]:
    """Draws of numbers, [chains, draws], against log evidences of each number, [k, replicates].

    The evidence of a number is the mean over its replicates, with relative error e_k; the delta method gives the error
    of its probability, and the difference of the two estimates is judged by both errors.
    """
    num_models, replicates = log_evidences.shape
    evidence = np.exp(log_evidences - log_evidences.max())
    mean = evidence.mean(axis=1)
    relative = evidence.std(axis=1, ddof=1) / math.sqrt(replicates) / mean
    other = mean / mean.sum()
    # d log p_k = d log Z_k - sum_j p_j d log Z_j.
    weights = np.eye(num_models) - other[None, :]
    other_error = other * np.sqrt(weights**2 @ relative**2)
    chains = frequencies(numbers, np.arange(1, num_models + 1))
    ours, error = chains.mean(axis=0), chains.std(axis=0, ddof=1) / math.sqrt(len(chains))
    judged = ~((other < LEAST) | (other > 1 - LEAST))  # NaN is judged, and fails
    z = (ours - other)[judged] / np.hypot(error, other_error)[judged]
    worst, bound = float(np.max(np.abs(z))), student_bound(int(judged.sum()), min(replicates, len(chains)))
    return {
        "exact": other,
        "exact_error": other_error,
        "mean": ours,
        "standard_error": error,
        "judged": judged,
        "worst": worst,
        "bound": bound,
        "holds": below(worst, bound),
        "num_chains": len(chains),
        "num_replicates": replicates,
        "log_evidence": np.log(mean) + log_evidences.max(),
    }
