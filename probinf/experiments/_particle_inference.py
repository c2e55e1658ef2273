r"""Particle inference for language models: a filter over reasoning steps against best-of-N and other searches.

The particle filter on $p(x) \prod_t G_t(x_{1:t})$, steps proposed by a language model and weighted by a reward (Puri
et al. 2025, "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based Monte Carlo
Methods"), twice: on a chain of coins whose every number is known, and on arithmetic chains written by a transformer
that ships with the package, rated by a stronger model and by a trained reward model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from probinf.core import PRNGKey
from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _particle_inference_measure as measure
from probinf.experiments import _particle_inference_page as page
from probinf.experiments._claims import compare
from probinf.experiments._page import Part
from probinf.experiments._particle_inference_claims import FEW, MANY
from probinf.experiments._particle_inference_claims import claims as claims
from probinf.experiments._particle_inference_curves import interval, scaling_factor
from probinf.experiments._workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        toy_problems, toy_particles: of the chain of coins; the latter hold 4 and 8.
        num_problems: of the chains task.
        most: independent solutions of each problem, for best-of-N and votes up to that N.
        methods: the filters and searches that are run beside them; "odds" is one of them.
        particles, reward_particles: their N, rated by the judge and by the reward model; 8 is one of them.
        evidence_problems, evidence_particles: runs of the judge's filter, for each N.
    """

    seed: int = 0
    toy_problems: int = 4000
    toy_particles: tuple[int, ...] = (4, 8, 64)
    num_problems: int = 256
    most: int = 32
    methods: tuple[str, ...] = ("odds",)
    particles: tuple[int, ...] = (4, 8)
    reward_particles: tuple[int, ...] = (8,)  # each N is one more program to compile
    evidence_problems: int = 1024
    evidence_particles: tuple[int, ...] = (32,)


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(
        toy_particles=(2, 4, 8, 16, 32, 64),
        num_problems=512,
        most=256,
        methods=tuple(chains.METHODS),
        particles=(2, 4, 8, 16, 32, 64),
        reward_particles=(2, 4, 8, 16, 32, 64),
        evidence_problems=2048,
        evidence_particles=(16, 64),
    ),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The chain of coins, the chains with each rater, and the judge's evidence."""
    keys = jax.random.split(jax.random.key(checked(config).seed), 3)
    parts = {"toy": workspace.part("toy", toy, keys[0], config)}
    for name in chains.RATINGS:
        # The same key, so that both raters see the same problems.
        parts[name] = workspace.part(name, rated, jax.random.clone(keys[1]), name, config)
    return parts | {"evidence": workspace.part("evidence", evidence, keys[2], config)}


def toy(key: PRNGKey, config: Config, workspace: Workspace) -> Part:
    """The chain of coins: both kinds of noise, and solutions of random length."""
    keys = jax.random.split(key, 1 + len(measure.SETTINGS))
    metrics: dict[str, Any] = {}
    for name, own in zip(measure.SETTINGS, keys[1:], strict=True):
        workspace.say(f"chain of coins, {name} noise: {config.toy_problems:,} problems")
        runs = measure.simulate_all(own, name, config.toy_particles, config.toy_problems)
        metrics[name] = measure.measure_toy(name, config.toy_particles, runs)
    most = config.toy_particles[-1]
    finishing = measure.simulate_finishing(keys[0], most, config.toy_problems)
    metrics["finishing"] = measure.measure_finishing(most, finishing)
    return Part(metrics, page.toy_section(workspace, metrics))


def rated(key: PRNGKey, name: str, config: Config, workspace: Workspace) -> Part:
    """Every method on the chains task, rated by one model."""
    rating, models = chains.RATINGS[name], chains.load_models()
    task_key, run_key = jax.random.split(key)
    task = chains.draw_task(task_key, config.num_problems)
    particles = config.particles if name == "judge" else config.reward_particles
    workspace.say(
        f"chains rated by {rating.short}: {config.most} independent solutions of {config.num_problems} problems"
    )
    solutions = chains.independent(
        jax.random.clone(run_key),
        models.proposer,
        getattr(models, rating.model),
        task,
        config.most,
        rating.aggregate,
    )
    curves = chains.independent_curves(solutions, _doublings(config.most))
    for method in methods_for(config, name):
        workspace.say(f"chains rated by {rating.short}: {method}, N = {', '.join(map(str, particles))}")
        curves[method] = {
            # Common random numbers: all methods draw from one key.
            count: chains.run_method(jax.random.clone(run_key), method, models, task, rating, count)
            for count in particles
        }
    metrics = summarise(rating, curves, solutions.evidence, config)
    return Part(metrics, page.chains_section(workspace, name, metrics))


def checked(config: Config) -> Config:
    """The configuration, if its parts can be compared with each other.

    Raises:
        ValueError: an N that the claims need is missing, or a method is unknown.
    """
    for method in config.methods:
        if method not in chains.METHODS:
            raise ValueError(f"`methods` holds {method!r}; needed some of {sorted(chains.METHODS)}")
    if "odds" not in config.methods:
        raise ValueError(f"`methods` is {config.methods}; needed 'odds' among them")
    needed = {
        "toy_particles": set(measure.FEW.values()),
        "particles": {FEW},
        "reward_particles": {FEW},
    }
    for name, sizes in needed.items():
        if not sizes <= set(getattr(config, name)):
            raise ValueError(f"`{name}` is {getattr(config, name)}; needed {sorted(sizes)} among them")
    if config.most < MANY:
        raise ValueError(f"`most` is {config.most}; needed at least {MANY}")
    return config


def methods_for(config: Config, rater: str) -> tuple[str, ...]:
    """The methods of a configuration that can use a rater."""
    return tuple(method for method in config.methods if rater in chains.METHODS[method].raters)


def _doublings(most: int) -> tuple[int, ...]:
    return tuple(1 << power for power in range(most.bit_length()) if 1 << power <= most)


Curves = Mapping[str, Mapping[int, chains.Tally]]  # method -> N -> tally


def summarise(rating: chains.Rating, curves: Curves, plain: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Curves with intervals, factors, the headline comparison, and evidences against `plain` ones, where there are."""
    baseline, filters = curves["best-of-n"], curves["odds"]
    few, many = filters[FEW].whole, baseline[MANY].whole
    return {
        "short": rating.short,
        "rated_by": rating.title,
        "num_problems": few.size,
        "num_steps": chains.NUM_STEPS,
        "most": max(baseline),
        "pass_at_1": float(baseline[1].whole.mean()),
        "curves": {method: _curve(row) for method, row in curves.items()},
        "factors": {
            method: {
                reading: scaling_factor(
                    chains.curve(baseline, reading), chains.curve(curves[method], reading), seed=config.seed
                )._asdict()
                for reading in ("whole", "last")
            }
            for method in chains.METHODS
            if method in curves
        },
        "versus": {
            "few": FEW,
            "many": MANY,
            "filter": float(few.mean()),
            "baseline": float(many.mean()),
            "difference": measure.difference(few, many),
        },
        "targets": _targets(curves, plain),
    }


def _curve(row: Mapping[int, chains.Tally]) -> dict[str, Any]:
    found: dict[str, Any] = {"particles": list(row)}
    for name in ("tokens", "scorer_tokens"):
        found[name] = [float(getattr(one, name).mean()) for one in row.values()]
    for name in ("whole", "last", "sampled"):
        values = [getattr(one, name) for one in row.values()]
        ends = [interval(one) for one in values]
        found[name] = {
            "mean": [float(one.mean()) for one in values],
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
        }
    return found


def _targets(curves: Curves, plain: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The targets of the three weights at the largest N: draws, and evidences; empty if not all of them were run."""
    kinds = ("odds", "prob", "ratio")
    if not all(kind in curves for kind in kinds):
        return {}
    size = max(curves["odds"])
    rows = {kind: curves[kind][size] for kind in kinds}
    # Both are unbiased for the same number, so that their differences, one a problem, have mean zero.
    apart = np.stack([np.exp(rows[kind].log_evidence) - plain[kind] for kind in plain], axis=1)
    return {
        "num_particles": size,
        "sampled": {kind: float(row.sampled.mean()) for kind, row in rows.items()},
        "plain": {kind: float(values.mean()) for kind, values in plain.items()},
        "filtered": {kind: float(np.exp(rows[kind].log_evidence).mean()) for kind in plain},
        "evidence": measure.brief(compare(apart, np.zeros(len(plain)))),
    }


def evidence(key: PRNGKey, config: Config, workspace: Workspace) -> Part:
    """The evidence of the filter that steers the weak model to the strong one, whose mean is 1."""
    models = chains.load_models()
    task_key, run_key = jax.random.split(key)
    task = chains.draw_task(task_key, config.evidence_problems)
    rows = []
    for count in config.evidence_particles:
        workspace.say(f"evidence: {config.evidence_problems:,} runs of {count} particles")
        found = chains.run_method(
            jax.random.fold_in(run_key, count), "judge", models, task, chains.RATINGS["judge"], count
        )
        rows.append(measure_evidence(found.log_evidence, found.sampled, count))
    metrics = {"rows": rows}
    return Part(metrics, page.evidence_section(metrics))


def measure_evidence(log_evidence: np.ndarray, sampled: np.ndarray, num_particles: int) -> dict[str, Any]:
    """Runs of one N against an evidence of 1."""
    return {
        "num_particles": num_particles,
        "num_runs": log_evidence.size,
        "evidence": measure.brief(compare(np.exp(log_evidence)[:, None], np.ones(1))),
        "mean_log": float(log_evidence.mean()),
        "accuracy": float(sampled.mean()),
    }
