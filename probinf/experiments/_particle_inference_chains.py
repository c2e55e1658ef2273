r"""Accuracy against cost on the chains task: every method on the same problems, judged by the exact verifier.

Cost is counted in tokens that the proposer generated, those of dropped particles among them, and in tokens that the
rater read, where a method asks it. N independent solutions give best-of-k, votes and coverage for every k up to N,
exactly averaged over the ways to pick k of them; a filter is run for each N.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from probinf import llm
from probinf.core import PRNGKey
from probinf.experiments._particle_inference_curves import Curve
from probinf.experiments._particle_inference_methods import METHODS
from probinf.experiments._particle_inference_raters import Models, Rating, rater
from probinf.llm import _chains as chains

GROUP = 128  # problems that one program solves at a time
BATCH = 32  # independent solutions of each of them that it writes at a time; more would only need more memory
NUM_STEPS = chains.NUM_STEPS
STEP = llm.delimiter(";", max_tokens=2)
AGGREGATES = ("prod", "min", "mean", "last")  # ways to rank solutions by the rates of their steps
Found = TypeVar("Found")
_MORE = 2**31  # folded into the key of independent solutions beyond the first `BATCH`


class Task(NamedTuple):
    """Problems and their answers."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]


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


def draw_task(key: PRNGKey, num_problems: int) -> Task:
    """Problems of the length that the models know."""
    return Task(*chains.problems(key, num_problems))


def in_groups(key: PRNGKey, task: Task, run: Callable[[PRNGKey, list[str]], Iterable[Found]]) -> list[Found]:
    """Runs a method on all problems, `GROUP` at a time.

    Problem p has the random numbers of place p mod `GROUP` under `fold_in(key, p // GROUP)`: they depend on the key and
    on p, and neither on how many problems there are nor on N.

    Args:
        key: PRNG key.
        task: the problems.
        run: `(key, prompts) -> GenerationsBatch`.

    Returns:
        What it found of each problem.
    """
    size = min(len(task.prompts), GROUP)
    found: list[Found] = []
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


def run_method(key: PRNGKey, name: str, models: Models, task: Task, rating: Rating, count: int) -> Tally:
    """Runs a method on all problems and judges the solution that it chooses: the one that the rater likes best."""
    method = METHODS[name]
    asked = getattr(models, rating.model) if method.asks_model else rater(models, rating)
    options = method.options(count, asked, rating)

    def run(key: PRNGKey, prompts: list[str]) -> Any:
        return method.run(key, models.proposer, prompts, step=STEP, max_steps=NUM_STEPS, **options)

    return tally(task, in_groups(key, task, run), "argmax", aggregate=method.aggregate or rating.aggregate)


class Independent(NamedTuple):
    """N independent solutions of each problem, rated.

    Attributes:
        whole, last: [P, N], what the verifier says.
        scores: name of an aggregate -> [P, N], the rates of a solution's steps made one.
        aggregate: the one that solutions are chosen by.
        answers: [P][N], the last results.
        tokens, scorer_tokens: [P], of all N.
        evidence: of filters with these solutions as proposals, by plain means: [P] for "prob", the product of all
            rates, and for "ratio", the last rate.
    """

    whole: np.ndarray
    last: np.ndarray
    scores: Mapping[str, np.ndarray]
    aggregate: str
    answers: Sequence[Sequence[str | None]]
    tokens: np.ndarray
    scorer_tokens: np.ndarray
    evidence: Mapping[str, np.ndarray]


def rate(task: Task, batches: Sequence[Sequence[llm.Generations]], aggregate: str) -> Independent:
    """What the verifier and the scorer say of every one of N independent solutions, which came in batches."""
    found = list(zip(*batches, strict=True))  # of each problem, its batches
    texts = [[text for one in row for text in one.texts] for row in found]
    answers = [[chains.extract(text) for text in row] for row in texts]
    right = [[is_right(prompt, text) for text in row] for prompt, row in zip(task.prompts, texts, strict=True)]
    last = [[own == answer for own in row] for answer, row in zip(task.answers, answers, strict=True)]
    scores = {
        how: np.stack([np.concatenate([llm.aggregate_scores(one.scores, how) for one in row]) for row in found])
        for how in AGGREGATES
    }
    read = np.array([[one.scorer_tokens_used for one in row] for row in found], np.float64)
    # The rater reads the problem once, however many batches there are.
    again = np.where(read > 0, chains.PROMPT_LENGTH, 0)[:, 1:].sum(axis=1)
    return Independent(
        np.asarray(right, np.float64),
        np.asarray(last, np.float64),
        {how: np.where(np.isnan(values), -np.inf, values) for how, values in scores.items()},
        aggregate,
        answers,
        np.array([sum(one.tokens_used for one in row) for row in found], np.float64),
        read.sum(axis=1) - again,
        {kind: scores[how].mean(axis=1) for kind, how in (("prob", "prod"), ("ratio", "last"))},
    )


def independent(key: PRNGKey, models: Models, task: Task, rating: Rating, count: int) -> Independent:
    """N independent solutions of each problem, rated."""
    scorer, size = rater(models, rating), min(count, BATCH)
    if count % size:
        raise ValueError(f"`count` is {count}: needed at most {BATCH}, or a multiple of it")

    def run(key: PRNGKey, prompts: list[str]) -> Any:
        return llm.best_of_n(
            key, models.proposer, prompts, num_particles=size, scorer=scorer, step=STEP, max_steps=NUM_STEPS
        )

    # The first batch has the key itself: its solutions begin as those of other methods with that key.
    more = jax.random.split(jax.random.fold_in(key, _MORE), count // size)[1:]
    return rate(task, [in_groups(own, task, run) for own in (key, *more)], rating.aggregate)


def independent_curves(found: Independent, sizes: Sequence[int]) -> dict[str, dict[int, Tally]]:
    """Coverage, votes and best-of-k of N solutions, for several k."""
    return {
        "coverage": {size: covered(found, size) for size in sizes},
        "majority": {size: voted(found, size, weighted=False) for size in sizes},
        "weighted": {size: voted(found, size, weighted=True) for size in sizes},
        "best-of-n": {size: best_of(found, size) for size in sizes},
    }


def best_of(found: Independent, count: int, aggregate: str | None = None) -> Tally:
    """Best-of-k of N solutions: the mean over all ways to pick k of them; `aggregate` is another way to rank them."""
    scores = found.scores[aggregate or found.aggregate]
    whole, last = (
        np.array([llm.best_of_k(row, own, count) for row, own in zip(right, scores, strict=True)])
        for right in (found.whole, found.last)
    )
    return _of_part(found, count, whole, last)


def covered(found: Independent, count: int) -> Tally:
    """Whether one of k solutions is right (pass@k): what a perfect choice would reach, which asks no rater."""
    size = found.whole.shape[1]
    whole, last = (llm.pass_at_k(size, row.sum(axis=1).astype(int), count) for row in (found.whole, found.last))
    return _of_part(found, count, whole, last, rated=False)


def voted(found: Independent, count: int, *, weighted: bool) -> Tally:
    """The most frequent answer of k solutions, or that of the largest sum of scores; the mean over disjoint groups.

    The solution that stands for an answer is its member of the highest score (unweighted: the first one).
    """
    size = found.whole.shape[1]
    groups = [range(start, start + count) for start in range(0, size - count + 1, count)]
    whole, last = (np.zeros((found.whole.shape[0], len(groups))) for _ in range(2))
    rates = np.maximum(found.scores[found.aggregate], 0)
    for problem, answers in enumerate(found.answers):
        scores = rates[problem] if weighted else np.ones(size)
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
    return _of_part(found, count, whole.mean(axis=1), last.mean(axis=1), rated=weighted)


def _of_part(found: Independent, count: int, whole: np.ndarray, last: np.ndarray, *, rated: bool = True) -> Tally:
    """A tally of k of N solutions, at k / N of the cost of all; the rater reads the problem once all the same."""
    share = count / found.whole.shape[1]
    read = np.where(found.scorer_tokens > 0, chains.PROMPT_LENGTH, 0)
    scorer_tokens = read + share * (found.scorer_tokens - read) if rated else np.zeros_like(found.scorer_tokens)
    nothing = np.full(whole.shape, np.nan)
    return Tally(whole, last, found.whole.mean(axis=1), share * found.tokens, scorer_tokens, nothing)


def curve(row: Mapping[int, Tally], *, all_tokens: bool = False) -> Curve:
    """Tallies of rising N as a curve of what is right in every step, against tokens generated, or those and read."""
    solved = np.stack([one.whole for one in row.values()], axis=1)
    costs = [one.tokens + one.scorer_tokens if all_tokens else one.tokens for one in row.values()]
    return Curve(np.array([cost.mean() for cost in costs]), solved)
