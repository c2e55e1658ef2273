r"""Particle inference for language models: a filter over reasoning steps against best-of-N and other searches.

The particle filter on $p(x) \prod_t G_t(x_{1:t})$, steps proposed by a language model and weighted by a reward (Puri
et al. 2025, "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based Monte Carlo
Methods"), twice: on a chain of coins whose every number is known, and on arithmetic chains written by a transformer
that ships with the package, rated by a stronger model, by the same with noise, and by a trained reward model.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from probinf.core import PRNGKey
from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _particle_inference_measure as measure
from probinf.experiments import _particle_inference_page as page
from probinf.experiments import _particle_inference_raters as raters
from probinf.experiments._page import Part
from probinf.experiments._particle_inference_claims import FEW, MANY
from probinf.experiments._particle_inference_claims import claims as claims
from probinf.experiments._particle_inference_kept import kept_solutions, kept_tally
from probinf.experiments._particle_inference_methods import METHODS
from probinf.experiments._particle_inference_summary import measure_evidence, summarise
from probinf.experiments._workspace import Workspace

NEEDED = ("odds", "rarely")  # methods of every run


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        toy_problems, toy_particles: of the chain of coins; the latter hold 4 and 8.
        num_problems: of the chains task.
        most: independent solutions of each problem, for best-of-N and votes up to that N.
        raters: who rates, of `RATINGS`.
        methods, particles: filters and searches that are run with every rater, and their N; 8 is one of them.
        more_methods, more_particles: rater -> further methods, and their N.
        evidence_problems, evidence_particles: runs of the judge's filter, for each N.
    """

    seed: int = 0
    toy_problems: int = 4000
    toy_particles: tuple[int, ...] = (4, 8, 64)
    num_problems: int = 512  # at which the headline's difference, .06, is nearly four standard errors
    most: int = 32
    raters: tuple[str, ...] = ("judge", "noisier-judge", "reward")
    methods: tuple[str, ...] = NEEDED
    particles: tuple[int, ...] = (4, 8)
    more_methods: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    more_particles: tuple[int, ...] = ()
    evidence_problems: int = 512
    evidence_particles: tuple[int, ...] = (32,)


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    # Each method has a program of its own for each N, and compiling them is most of the time: about 10 CPU s apiece.
    "full": Config(
        toy_particles=(2, 4, 8, 16, 32, 64),
        num_problems=384,
        most=128,
        raters=("judge", "noisy-judge", "noisier-judge", "reward"),
        methods=(*NEEDED, "beam"),
        particles=(2, 4, 8, 16, 32),
        more_methods={
            "judge": ("prob", "ratio", "judge"),
            "noisier-judge": (
                "prob",
                "ratio",
                "dvts",
                "tempered",
                "entropic",
                "particle-gibbs",
                "parallel-tempering",
                "waste-free",
            ),
            "reward": ("prob", "ratio", "twisted"),
        },
        more_particles=(4, 8, 32),
        evidence_problems=1024,
        evidence_particles=(16, 32),
    ),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The chain of coins, the chains with each rater, and the judge's evidence."""
    keys = jax.random.split(jax.random.key(checked(config).seed), 3)
    parts = {"toy": workspace.part("toy", toy, keys[0], config)}
    for name in config.raters:
        # The same key, so that all raters see the same problems.
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
    """Every method on the chains task, with one rater."""
    rating, models = raters.RATINGS[name], raters.load_models()
    task_key, run_key = jax.random.split(key)
    task = chains.draw_task(task_key, config.num_problems)
    workspace.say(
        f"chains rated by {rating.short}: {config.most} independent solutions of {config.num_problems} problems"
    )
    folder = workspace.checkpoint(name)
    # Common random numbers: all methods draw from one key.
    solutions = kept_solutions(
        folder, "solutions", lambda: chains.independent(jax.random.clone(run_key), models, task, rating, config.most)
    )
    curves: dict[str, dict[int, chains.Tally]] = chains.independent_curves(solutions, _doublings(config.most))
    for method, particles in methods_for(config, name).items():
        curves[method] = {}
        for count in particles:
            workspace.say(f"chains rated by {rating.short}: {method}, N = {count}")
            curves[method][count] = kept_tally(
                folder,
                f"{method}-{count}",
                functools.partial(chains.run_method, jax.random.clone(run_key), method, models, task, rating, count),
            )
    metrics = summarise(rating, curves, solutions, config.seed)
    return Part(metrics, page.chains_section(workspace, name, metrics))


def checked(config: Config) -> Config:
    """The configuration, if its parts can be compared with each other.

    Raises:
        ValueError: an N or a method that the claims need is missing, or a name is unknown.
    """
    for name in (*config.raters, *config.more_methods):
        if name not in raters.RATINGS:
            raise ValueError(f"`raters` or `more_methods` holds {name!r}; needed some of {list(raters.RATINGS)}")
    for method in (*config.methods, *(method for more in config.more_methods.values() for method in more)):
        if method not in METHODS:
            raise ValueError(f"`methods` or `more_methods` holds {method!r}; needed some of {sorted(METHODS)}")
    if not set(NEEDED) <= set(config.methods):
        raise ValueError(f"`methods` is {config.methods}; needed {list(NEEDED)} among them")
    for name, sizes in {"toy_particles": set(measure.FEW.values()), "particles": {FEW}}.items():
        if not sizes <= set(getattr(config, name)):
            raise ValueError(f"`{name}` is {getattr(config, name)}; needed {sorted(sizes)} among them")
    if config.most < MANY or config.most % chains.BATCH:
        raise ValueError(f"`most` is {config.most}; needed {MANY} or a larger multiple of {chains.BATCH}")
    return config


def methods_for(config: Config, rater: str) -> dict[str, tuple[int, ...]]:
    """The methods that are run with a rater, those that can use it, and their N."""
    wanted = dict.fromkeys(config.methods, config.particles)
    wanted |= dict.fromkeys(config.more_methods.get(rater, ()), config.more_particles)
    return {method: particles for method, particles in wanted.items() if rater in METHODS[method].raters}


def _doublings(most: int) -> tuple[int, ...]:
    return tuple(1 << power for power in range(most.bit_length()) if 1 << power <= most)


def evidence(key: PRNGKey, config: Config, workspace: Workspace) -> Part:
    """The evidence of the filter that steers the weak model to the strong one, whose mean is 1."""
    models = raters.load_models()
    task_key, run_key = jax.random.split(key)
    task = chains.draw_task(task_key, config.evidence_problems)
    rows = []
    for count in config.evidence_particles:
        workspace.say(f"evidence: {config.evidence_problems:,} runs of {count} particles")
        found = chains.run_method(
            jax.random.fold_in(run_key, count), "judge", models, task, raters.RATINGS["judge"], count
        )
        rows.append(measure_evidence(found.log_evidence, found.sampled, count))
    metrics = {"rows": rows}
    return Part(metrics, page.evidence_section(metrics))
