r"""Language models: a weak model steered by a strong one, as a particle filter on what it writes.

The chains task: twelve operations mod 10, one result a step. With $p$ the weak and $p_B$ the strong model and potential
$G_t = p_B(x_t | x_{<t}) / p(x_t | x_{<t})$ the target is $p_B$, so that the evidence of every problem is 1 exactly, and
the mean of the filter's estimates is a test of the whole engine. The filter is that of Puri et al. (2025), "A
probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods"; the vote
is that of Wang et al. (2023), "Self-consistency improves chain of thought reasoning in language models".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from probinf import llm
from probinf.experiments._claims import Claim, compare, normal_bound
from probinf.experiments._page import Part, Section, Table
from probinf.experiments._workspace import Workspace

NUM_PROBLEMS, NUM_PARTICLES, NUM_KEYS = 64, 32, 4
STEPS: Mapping[str, Any] = {"step": llm.delimiter(";", max_tokens=2), "max_steps": 12}


def run(config: Any, workspace: Workspace) -> Part:
    """The same problems by a vote and by filters, and the genealogy of one of them."""
    problem_key, vote_key, filter_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 4), 3)
    problems = llm.chains.problems(problem_key, NUM_PROBLEMS)
    lm, judge = llm.load("chains"), llm.load("chains-strong")
    prompts = list(problems.prompts)
    workspace.say(f"language models: {NUM_PROBLEMS} chains of 12 operations, {NUM_PARTICLES} texts each")
    votes: Any = llm.majority(vote_key, lm, prompts, num_particles=NUM_PARTICLES, **STEPS)
    filters: list[Any] = [
        llm.particle_filter(
            key, lm, prompts, scorer=judge, potential="judge", num_particles=NUM_PARTICLES, ess_threshold=0.5, **STEPS
        )
        for key in jax.random.split(filter_key, NUM_KEYS)
    ]
    metrics = {
        "num_problems": NUM_PROBLEMS,
        "num_particles": NUM_PARTICLES,
        "vote": measure([votes], problems.answers),
        "filter": measure(filters[:1], problems.answers),
        "accuracy": compare_accuracy(votes, filters[0], problems.answers),
        "evidence": evidence(filters),
    }
    shown = max(range(NUM_PROBLEMS), key=lambda i: int(np.sum(filters[0][i].resampled)))
    text = (
        "A small language model does arithmetic mod 10, one operation after the other, and mostly errs on the way. A "
        "stronger one of the same kind judges each step. What the weak one writes, weighed by the strong one and "
        "resampled, is a particle filter: its target is the law of the strong model, and it returns a posterior of "
        "answers, an evidence and a genealogy.",
        f"Shown is the problem that was resampled most often: {prompts[shown]} with the answer "
        f"{problems.answers[shown]}. The posterior of the answers is {_posterior(filters[0][shown])}.",
    )
    items = (_genealogy(workspace, filters[0][shown]), _table(metrics))
    return Part(metrics, Section("Language models: a weak one steered by a strong one", text, items))


def measure(batches: Sequence[Any], answers: Sequence[str]) -> dict[str, Any]:
    """Accuracy, tokens and time of one method.

    Args:
        batches: a `GenerationsBatch` a run.
        answers: what is right, problem by problem.
    """
    right = np.concatenate([answered_right(batch, answers) for batch in batches])
    count = len(right)
    return {
        "accuracy": float(right.mean()),
        "standard_error": float(math.sqrt(right.mean() * (1 - right.mean()) / count)),
        "tokens": sum(batch.tokens_used for batch in batches) / count,
        "scorer_tokens": sum(batch.scorer_tokens_used for batch in batches) / count,
        "seconds": sum(batch.seconds for batch in batches),
    }


def answered_right(batch: Any, answers: Sequence[str]) -> np.ndarray:
    """[problems], whether the most probable answer is the right one; no answer is wrong."""
    found = [member.select("weighted", extract=llm.chains.extract).answer for member in batch]
    return np.asarray([given == answer for given, answer in zip(found, answers, strict=True)])


def compare_accuracy(votes: Any, filtered: Any, answers: Sequence[str]) -> dict[str, Any]:
    r"""How many problems only one of the two solves, and McNemar's $z = (b - c) / \sqrt{b + c}$."""
    by_vote, by_filter = answered_right(votes, answers), answered_right(filtered, answers)
    gained, lost = int(np.sum(by_filter & ~by_vote)), int(np.sum(by_vote & ~by_filter))
    z = (gained - lost) / math.sqrt(gained + lost) if gained + lost else 0.0
    return {"gained": gained, "lost": lost, "z": z, "bound": normal_bound(1)}


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
    exact, gain = metrics["evidence"], metrics["accuracy"]
    vote, steered = metrics["vote"], metrics["filter"]
    return (
        Claim(
            "The evidence of a weak language model judged by a strong one is 1, on average over runs.",
            "1 exactly: the target p prod (p_B / p) is the law p_B",
            f"{_or_nan(exact['mean']):.3f} ± {_or_nan(exact['standard_error']):.3f}, {exact['count']} estimates of "
            f"{metrics['num_particles']} texts",
            f"independent problems and keys; |z| {_or_nan(exact['worst']):.2f} (bound {exact['bound']:.2f})",
            bool(exact["holds"]),
        ),
        Claim(
            "A particle filter solves problems that a vote over as many texts of the weak model does not.",
            "4 to 16 times fewer texts than search for equal accuracy (Puri et al. 2025)",
            f"{100 * steered['accuracy']:.0f} % against {100 * vote['accuracy']:.0f} % of {metrics['num_problems']} "
            f"problems, {metrics['num_particles']} texts each; {gain['gained']} gained, {gain['lost']} lost",
            f"exact answers; McNemar's z {_or_nan(gain['z']):.1f} (needed {gain['bound']:.2f})",
            _or_nan(gain["z"]) >= gain["bound"],
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


def _table(metrics: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            name,
            f"{100 * found['accuracy']:.1f}",
            f"{100 * found['standard_error']:.1f}",
            f"{found['tokens']:,.0f}",
            f"{found['scorer_tokens']:,.0f}",
            f"{found['seconds']:.1f}",
        )
        for name, found in (("vote", metrics["vote"]), ("particle filter", metrics["filter"]))
    )
    columns = ("", "accuracy, %", "s.e.", "tokens", "tokens of the judge", "seconds")
    caption = (
        f"{metrics['num_problems']} problems of 12 operations, {metrics['num_particles']} texts each; tokens of a "
        "problem, seconds of all with compilation."
    )
    return Table(caption, columns, rows)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
