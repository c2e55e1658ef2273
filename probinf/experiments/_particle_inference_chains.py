r"""Accuracy against cost on the chains task: every method on the same problems, judged by the exact verifier.

Cost is counted in tokens that the proposer generated, those of dropped particles among them, and in tokens that the
scorer read. N independent solutions give best-of-k, votes and coverage for every k up to N, exactly averaged over the
ways to pick k of them; a filter is run for each N.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from probinf import llm
from probinf.core import PRNGKey
from probinf.experiments._particle_inference_curves import Curve
from probinf.llm import _chains as chains

ROWS = 4096  # texts that one program writes at a time; more would only need more memory
NUM_STEPS = chains.NUM_STEPS
STEP = llm.delimiter(";", max_tokens=2)


class Models(NamedTuple):
    """The shipped models: a weak proposer, a strong one that judges, and a trained reward model."""

    proposer: llm.LM
    judge: llm.LM
    reward: llm.LM


class Rating(NamedTuple):
    """Who rates steps, and how the rates of a solution's steps become one.

    Attributes:
        model: a field of `Models`.
        aggregate: of `Generations.select`.
        short, title: for people.
    """

    model: str
    aggregate: str
    short: str
    title: str


RATINGS: Mapping[str, Rating] = {
    # A judge rates each step by itself, a reward model the solution up to and with it.
    "judge": Rating("judge", "prod", "a judge", "the probability that a stronger model gives it"),
    "reward": Rating("reward", "last", "a trained reward model", "a model trained to tell right beginnings from wrong"),
}


class Task(NamedTuple):
    """Problems and their answers."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]


class Method(NamedTuple):
    """A method as the experiment calls it.

    Attributes:
        run: `(key, lm, prompts, num_particles=, ..., step=, max_steps=) -> GenerationsBatch`.
        options: `(N, rater, rating) -> options`, so that it writes about N solutions' worth of tokens.
        aggregate: how the scores of its steps become one; None for that of the rating.
        raters: whose rates it can use.
    """

    run: Callable[..., Any]
    options: Callable[[int, llm.LM, Rating], dict[str, Any]]
    aggregate: str | None = None
    raters: tuple[str, ...] = ("judge", "reward")


class Tally(NamedTuple):
    """What a method made of P problems with N particles (or k independent solutions).

    Attributes:
        whole: [P], 1 where every step of the chosen solution is right; a mean over choices lies between.
        last: [P], 1 where its last result is right.
        sampled: [P], the weight of solutions that are right in every step.
        tokens, scorer_tokens: [P].
        log_evidence: [P], NaN where the method estimates none.
    """

    whole: np.ndarray
    last: np.ndarray
    sampled: np.ndarray
    tokens: np.ndarray
    scorer_tokens: np.ndarray
    log_evidence: np.ndarray


def load_models() -> Models:
    """The checkpoints that come with the package."""
    return Models(llm.load("chains"), llm.load("chains-strong"), llm.load("chains-reward"))


def draw_task(key: PRNGKey, num_problems: int) -> Task:
    """Problems of the length that the models know."""
    return Task(*chains.problems(key, num_problems))


def in_groups(
    key: PRNGKey, task: Task, num_particles: int, run: Callable[[PRNGKey, list[str]], llm.GenerationsBatch]
) -> list[llm.Generations]:
    """Runs a method on all problems, as many at a time as fit into `ROWS`.

    Args:
        key: PRNG key.
        task: the problems.
        num_particles: rows that a problem needs.
        run: `(key, prompts) -> GenerationsBatch`.
    """
    size = max(1, min(len(task.prompts), ROWS // num_particles))
    found: list[llm.Generations] = []
    for index, start in enumerate(range(0, len(task.prompts), size)):
        prompts = list(task.prompts[start : start + size])
        # The last group is filled up, so that it needs no program of its own.
        padded = prompts + prompts[:1] * (size - len(prompts))
        found += list(run(jax.random.fold_in(key, index), padded))[: len(prompts)]
    return found


@functools.lru_cache(maxsize=1 << 16)
def is_right(prompt: str, text: str) -> bool:
    """Whether a solution is right in every step."""
    return chains.correct(prompt, text)


def tally(task: Task, found: Sequence[llm.Generations], rule: str, **options: Any) -> Tally:
    """Chooses an answer of each problem by `Generations.select`, and judges it."""
    rows = []
    for prompt, answer, one in zip(task.prompts, task.answers, found, strict=True):
        chosen = one.select(rule, extract=chains.extract, **options)
        right = np.array([is_right(prompt, text) for text in one.texts])
        rows.append(
            (
                is_right(prompt, chosen.text),
                chosen.answer == answer,
                float(one.weights @ right),
                one.tokens_used,
                one.scorer_tokens_used,
                one.log_evidence,
            )
        )
    return Tally(*np.asarray(rows, np.float64).T)


def _weighted(potential: str, **options: Any) -> Callable[[int, llm.LM, Rating], dict[str, Any]]:
    return lambda count, rater, rating: {"num_particles": count, "scorer": rater, "potential": potential, **options}


def _searched(count: int, rater: llm.LM, rating: Rating) -> dict[str, Any]:
    return {"num_particles": count, "scorer": rater, "width": min(4, count), "aggregate": rating.aggregate}


def _twisted(count: int, rater: llm.LM, rating: Rating) -> dict[str, Any]:
    del rating
    return {"num_particles": count, "twist": rater}


def _iterated(passes: int, **options: Any) -> Callable[[int, llm.LM, Rating], dict[str, Any]]:
    """A first filter and further passes share the tokens of N solutions."""

    def found(count: int, rater: llm.LM, rating: Rating) -> dict[str, Any]:
        del rating
        return {"num_particles": max(2, count // passes), "scorer": rater, "potential": "odds", **options}

    return found


METHODS: Mapping[str, Method] = {
    # Resampled at every step, as published: with an ESS of 5 of 8 three rows would still go on in vain.
    "odds": Method(llm.particle_filter, _weighted("odds", ess_threshold=1.0)),
    "prob": Method(llm.particle_filter, _weighted("prob", ess_threshold=1.0)),
    "ratio": Method(llm.particle_filter, _weighted("ratio", ess_threshold=1.0)),
    "rarely": Method(llm.particle_filter, _weighted("odds")),
    "judge": Method(llm.particle_filter, _weighted("judge"), "last", ("judge",)),
    "beam": Method(llm.beam, _searched),
    "dvts": Method(llm.dvts, _searched),
    "tempered": Method(llm.tempered_filter, _weighted("odds")),
    "entropic": Method(llm.entropic_filter, _weighted("odds")),
    "particle-gibbs": Method(llm.particle_gibbs, _iterated(2, num_iterations=1)),
    "parallel-tempering": Method(
        llm.parallel_tempering, _iterated(6, num_iterations=2, inverse_temperatures=(1.0, 0.5))
    ),
    # Its target is p r_T; the rate of what is written so far is the guess of the last one.
    "twisted": Method(llm.twisted_smc, _twisted, "last", ("reward",)),
    "waste-free": Method(
        llm.waste_free,
        lambda count, rater, rating: {**_weighted("odds")(count, rater, rating), "chain_length": min(4, count)},
    ),
}


def run_method(key: PRNGKey, name: str, models: Models, task: Task, rating: Rating, count: int) -> Tally:
    """Runs a method on all problems and judges the solution that it chooses: the one that the rater likes best."""
    method = METHODS[name]
    options = method.options(count, getattr(models, rating.model), rating)

    def run(key: PRNGKey, prompts: list[str]) -> Any:
        return method.run(key, models.proposer, prompts, step=STEP, max_steps=NUM_STEPS, **options)

    return tally(task, in_groups(key, task, count, run), "argmax", aggregate=method.aggregate or rating.aggregate)


class Independent(NamedTuple):
    """N independent solutions of each problem, rated.

    Attributes:
        whole, last: [P, N], what the verifier says.
        scores: [P, N], aggregated.
        answers: [P][N], the last results.
        tokens, scorer_tokens: [P], of all N.
        evidence: of filters with these solutions as proposals, by plain means: [P] for "prob", the product of all
            rates, and for "ratio", the last rate.
    """

    whole: np.ndarray
    last: np.ndarray
    scores: np.ndarray
    answers: Sequence[Sequence[str | None]]
    tokens: np.ndarray
    scorer_tokens: np.ndarray
    evidence: Mapping[str, np.ndarray]


def rate(task: Task, found: Sequence[llm.Generations], aggregate: str) -> Independent:
    """What the verifier and the scorer say of every one of N independent solutions."""
    answers = [[chains.extract(text) for text in one.texts] for one in found]
    right = [[is_right(prompt, text) for text in one.texts] for prompt, one in zip(task.prompts, found, strict=True)]
    last = [[own == answer for own in row] for answer, row in zip(task.answers, answers, strict=True)]
    scores = np.stack([llm.aggregate_scores(one.scores, aggregate) for one in found])
    plain = {
        kind: np.array([llm.aggregate_scores(one.scores, how).mean() for one in found])
        for kind, how in (("prob", "prod"), ("ratio", "last"))
    }
    return Independent(
        np.asarray(right, np.float64),
        np.asarray(last, np.float64),
        np.where(np.isnan(scores), -np.inf, scores),
        answers,
        np.array([one.tokens_used for one in found], np.float64),
        np.array([one.scorer_tokens_used for one in found], np.float64),
        plain,
    )


def independent(
    key: PRNGKey, lm: llm.LM, scorer: llm.LM | None, task: Task, count: int, aggregate: str = "prod"
) -> Independent:
    """N independent solutions of each problem, rated if there is a scorer."""
    method = llm.majority if scorer is None else llm.best_of_n

    def run(key: PRNGKey, prompts: list[str]) -> Any:
        return method(key, lm, prompts, num_particles=count, scorer=scorer, step=STEP, max_steps=NUM_STEPS)

    return rate(task, in_groups(key, task, count, run), aggregate)


def independent_curves(found: Independent, sizes: Sequence[int]) -> dict[str, dict[int, Tally]]:
    """Coverage, votes and best-of-k of N solutions, for several k."""
    return {
        "coverage": {size: covered(found, size) for size in sizes},
        "majority": {size: voted(found, size, weighted=False) for size in sizes},
        "weighted": {size: voted(found, size, weighted=True) for size in sizes},
        "best-of-n": {size: best_of(found, size) for size in sizes},
    }


def best_of(found: Independent, count: int) -> Tally:
    """Best-of-k of N solutions: the mean over all ways to pick k of them."""
    return _of_part(
        found,
        count,
        np.array([llm.best_of_k(row, scores, count) for row, scores in zip(found.whole, found.scores, strict=True)]),
        np.array([llm.best_of_k(row, scores, count) for row, scores in zip(found.last, found.scores, strict=True)]),
    )


def covered(found: Independent, count: int) -> Tally:
    """Whether one of k solutions is right (pass@k): what a perfect choice would reach."""
    size = found.whole.shape[1]
    whole, last = (llm.pass_at_k(size, row.sum(axis=1).astype(int), count) for row in (found.whole, found.last))
    return _of_part(found, count, whole, last)


def voted(found: Independent, count: int, *, weighted: bool) -> Tally:
    """The most frequent answer of k solutions, or that of the largest sum of scores; the mean over disjoint groups.

    The solution that stands for an answer is its member of the highest score (unweighted: the first one).
    """
    size = found.whole.shape[1]
    groups = [range(start, start + count) for start in range(0, size - count + 1, count)]
    whole, last = (np.zeros((found.whole.shape[0], len(groups))) for _ in range(2))
    for problem, answers in enumerate(found.answers):
        scores = np.maximum(found.scores[problem], 0) if weighted else np.ones(size)
        for index, group in enumerate(groups):
            totals: dict[str, float] = {}
            for i in group:
                answer = answers[i]
                if answer is not None:
                    totals[answer] = totals.get(answer, 0.0) + scores[i]
            if totals:
                winner = max(totals, key=lambda answer: totals[answer])
                member = max((i for i in group if answers[i] == winner), key=lambda i: scores[i])
                whole[problem, index], last[problem, index] = found.whole[problem, member], found.last[problem, member]
    return _of_part(found, count, whole.mean(axis=1), last.mean(axis=1))


def _of_part(found: Independent, count: int, whole: np.ndarray, last: np.ndarray) -> Tally:
    """A tally of k of N solutions, at k / N of the cost of all; the rater reads the problem once all the same."""
    share = count / found.whole.shape[1]
    read = np.where(found.scorer_tokens > 0, chains.PROMPT_LENGTH, 0)
    nothing = np.full(whole.shape, np.nan)
    scorer_tokens = read + share * (found.scorer_tokens - read)
    return Tally(whole, last, found.whole.mean(axis=1), share * found.tokens, scorer_tokens, nothing)


def curve(row: Mapping[int, Tally], reading: str) -> Curve:
    """Tallies of rising N as a curve of one of their readings, `"whole"` or `"last"`."""
    solved = np.stack([getattr(one, reading) for one in row.values()], axis=1)
    return Curve(np.array([one.tokens.mean() for one in row.values()]), solved)
