r"""Language models: a weak model steered by a strong one, as a particle filter on what it writes.

The chains task: twelve operations mod 10, one result a step. With $p$ the weak and $p_B$ the strong model and potential
$G_t = p_B(x_t | x_{<t}) / p(x_t | x_{<t})$ the target is $p_B$, so that the evidence of every problem is 1 exactly, and
the mean of the filter's estimates is a test of the whole engine. The filter is that of Puri et al. (2025), "A
probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods". Beside it
stands what the same judge makes of as many whole texts: the best of them, their votes weighed by it, and the plain vote
of Wang et al. (2023), "Self-consistency improves chain of thought reasoning in language models".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from probinf import llm
from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments._claims import Claim, below, compare
from probinf.experiments._page import Part, Section, Table
from probinf.experiments._particle_inference_curves import CONFIDENCE_Z
from probinf.experiments._workspace import Workspace

NUM_PROBLEMS, NUM_PARTICLES, NUM_KEYS = 64, 16, 8
NUM_TEXTS = 64  # whole texts of each problem, from which 16 are taken in every way, or in four groups
PRECISION = 0.1  # the largest standard error with which an evidence of 1 is worth claiming
STEPS: Mapping[str, Any] = {"step": chains.STEP, "max_steps": chains.NUM_STEPS}
TITLES = {
    "filter": "particle filter",
    "best-of-n": "best text",
    "weighted": "weighted vote",
    "majority": "vote",
}


def run(config: Any, workspace: Workspace) -> Part:
    """The same problems by filters, and by whole texts that the same judge rates; the genealogy of one of them."""
    problem_key, text_key, filter_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 4), 3)
    task = chains.draw_task(problem_key, NUM_PROBLEMS)
    lm, judge = llm.load("chains"), llm.load("chains-strong")
    prompts = list(task.prompts)
    workspace.say(f"language models: {NUM_PROBLEMS} chains of 12 operations, {NUM_PARTICLES} texts each")
    texts: Any = llm.best_of_n(text_key, lm, prompts, scorer=judge, num_particles=NUM_TEXTS, **STEPS)
    filters: list[Any] = [
        llm.particle_filter(
            key, lm, prompts, scorer=judge, potential="judge", num_particles=NUM_PARTICLES, ess_threshold=0.5, **STEPS
        )
        for key in jax.random.split(filter_key, NUM_KEYS)
    ]
    metrics = measure(task, filters, texts, NUM_PARTICLES)
    shown = max(range(NUM_PROBLEMS), key=lambda i: int(np.sum(filters[0][i].resampled)))
    text = (
        "A small language model does arithmetic mod 10, one operation after the other, and mostly errs on the way. A "
        "stronger one of the same kind judges each step. What the weak one writes, weighed by the strong one and "
        "resampled, is a particle filter: its target is the law of the strong model, and it returns a posterior of "
        "answers, an evidence and a genealogy. As many whole texts, rated by the same judge, hold fewer right ones: "
        "most of their tokens go on behind an error.",
        f"Shown is the problem that was resampled most often: {prompts[shown]} with the answer "
        f"{task.answers[shown]}. The posterior of the answers is {_posterior(filters[0][shown])}.",
    )
    items = (_genealogy(workspace, filters[0][shown]), _table(metrics, filters, texts))
    return Part(metrics, Section("Language models: a weak one steered by a strong one", text, items))


def measure(task: chains.Task, filters: Sequence[Any], texts: Any, num_particles: int) -> dict[str, Any]:
    """Accuracy and cost of all methods at N texts a problem, and the filters' evidence.

    Args:
        task: problems and answers.
        filters: a `GenerationsBatch` a key.
        texts: a `GenerationsBatch` of whole texts, rated by the judge.
        num_particles: N.
    """
    rated = chains.rate(task, [texts], "prod")
    baselines = {
        "best-of-n": chains.best_of(rated, num_particles),
        "weighted": chains.voted(rated, num_particles, weighted=True),
        "majority": chains.voted(rated, num_particles, weighted=False),
    }
    steered = np.mean([answered_right(batch, task.answers) for batch in filters], axis=0)
    tokens, read = (float(np.mean([[getattr(one, name) for one in batch] for batch in filters])) for name in COSTS)
    methods = {"filter": _row(steered, tokens, read)}
    methods |= {name: _row(one.last, one.tokens.mean(), one.scorer_tokens.mean()) for name, one in baselines.items()}
    return {
        "num_problems": len(task.prompts),
        "num_particles": num_particles,
        "num_keys": len(filters),
        "methods": methods,
        "gains": {name: _gain(steered - one.last) for name, one in baselines.items()},
        "evidence": evidence(filters),
    }


COSTS = ("tokens_used", "scorer_tokens_used")


def _row(solved: np.ndarray, tokens: float, scorer_tokens: float) -> dict[str, float]:
    error = float(solved.std(ddof=1) / np.sqrt(solved.size))
    return {
        "accuracy": float(solved.mean()),
        "standard_error": error,
        "tokens": float(tokens),
        "scorer_tokens": float(scorer_tokens),
    }


def _gain(differences: np.ndarray) -> dict[str, float]:
    """The mean over problems, with its 95 % interval."""
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(differences.size))
    return {"mean": mean, "low": mean - CONFIDENCE_Z * error, "high": mean + CONFIDENCE_Z * error}


def answered_right(batch: Any, answers: Sequence[str]) -> np.ndarray:
    """[problems], whether the most probable answer is the right one; no answer is wrong."""
    found = [member.select("weighted", extract=llm.chains.extract).answer for member in batch]
    return np.asarray([given == answer for given, answer in zip(found, answers, strict=True)])


def evidence(batches: Sequence[Any]) -> dict[str, Any]:
    """The mean over runs and problems of the evidence estimates, each of which has expectation 1."""
    estimates = np.exp([[member.log_evidence for member in batch] for batch in batches]).ravel()
    found = compare(estimates[:, None], np.ones(1))
    return {
        "mean": float(found.mean[0]),
        "standard_error": float(found.standard_error[0]),
        "count": int(estimates.size),
        "worst": found.worst,
        "bound": found.bound,
        "holds": found.holds,
    }


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """An exact law of the engine, and what it is good for."""
    exact, methods, gains = metrics["evidence"], metrics["methods"], metrics["gains"]
    size = metrics["num_particles"]
    return (
        Claim(
            "The evidence of a weak language model judged by a strong one is 1, on average over runs.",
            "1 exactly: the target p prod (p_B / p) is the law p_B",
            f"{_or_nan(exact['mean']):.3f} ± {_or_nan(exact['standard_error']):.3f}, {exact['count']} estimates of "
            f"{size} texts",
            f"independent problems and keys; |z| {_or_nan(exact['worst']):.2f} (bound {exact['bound']:.2f}), standard "
            f"error bounded by {PRECISION:g}",
            bool(exact["holds"]) and below(exact["standard_error"], PRECISION),
        ),
        Claim(
            "A particle filter answers more problems than the same judge can with as many whole texts: the best of "
            "them, or a vote.",
            "4 to 16 times fewer texts than search for equal accuracy (Puri et al. 2025)",
            ", ".join(f"{100 * _or_nan(row['accuracy']):.0f} % ({TITLES[name]})" for name, row in methods.items()),
            f"{metrics['num_problems']} problems, {size} texts each, filters of {metrics['num_keys']} keys; gains with "
            "95 % intervals "
            + ", ".join(
                f"{_or_nan(gain['mean']):+.3f} ({_or_nan(gain['low']):+.3f} to {_or_nan(gain['high']):+.3f})"
                for gain in gains.values()
            )
            + "; holds if all are above 0",
            all(_or_nan(gain["low"]) > 0 for gain in gains.values()),
        ),
    )


def _posterior(found: Any) -> str:
    parts = [
        f"{'none' if answer is None else answer}: {probability:.2f}"
        for answer, probability in found.posterior(llm.chains.extract).items()
    ]
    return ", ".join(parts[:5])


def _genealogy(workspace: Workspace, found: Any) -> Any:
    caption = (
        "One problem. A line leads from each text to what it descends from; its width is the final weight of all "
        "descendants. Labels are answers."
    )
    alt = "A tree from left to right: a few early lines branch into all final texts, most early lines end."
    return workspace.figure("tour-llm", found.plot(llm.chains.extract), caption=caption, alt=alt)


def _table(metrics: Mapping[str, Any], filters: Sequence[Any], texts: Any) -> Table:
    rows = tuple(
        (
            TITLES[name],
            f"{100 * found['accuracy']:.1f}",
            f"{100 * found['standard_error']:.1f}",
            f"{found['tokens']:,.0f}",
            f"{found['scorer_tokens']:,.0f}",
        )
        for name, found in metrics["methods"].items()
    )
    columns = ("", "right, %", "s.e.", "tokens", "tokens of the judge")
    caption = (
        f"{metrics['num_problems']} problems of 12 operations, {metrics['num_particles']} texts each; tokens of a "
        f"problem. Filters of {metrics['num_keys']} keys took {sum(batch.seconds for batch in filters):.1f} s, whole "
        f"texts, {NUM_TEXTS} a problem, {texts.seconds:.1f} s, with compilation."
    )
    return Table(caption, columns, rows)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
