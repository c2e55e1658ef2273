r"""Deterministic search guided by scores: beam search over steps, and diverse verifier tree search (DVTS).

    for t = 1 .. T:  write one step of all N rows;  keep the N/M best by score, M copies of each

Beam search ranks all N rows together (Snell et al. 2024, "Scaling LLM test-time compute optimally"). DVTS searches N/M
trees apart, in each of which the best of M goes on, so that one tree that scores well cannot drive out the others
(Beeching, Tunstall, Rush 2024, "Scaling test-time compute with open models"). Neither keeps the law of the texts: they
estimate no evidence, and weights are equal.
"""

from typing import Any, Unpack

from probinf.core import PRNGKey, whole_number
from probinf.llm._changed import run_changed
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._independent import only_scored, without_law
from probinf.llm._keep_best import keep_best
from probinf.llm._lm import LM
from probinf.llm._options import RunOptions, one_or_several, part, task_of


@one_or_several
def beam(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    width: int = 4,
    aggregate: str = "last",
    distinct: bool = False,
    **options: Unpack[RunOptions],
) -> Generations | GenerationsBatch:
    """Beam search over steps: after each the N / width best rows go on, each in `width` copies.

    A text that has ended keeps its place by its score, and counts once. `result.select("argmax")` is the best text.

    Args:
        key: PRNG key; the steps themselves are drawn.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1, a multiple of `width`.
        width: M >= 1, how many continuations of a row are tried.
        aggregate: how the scores of a text's steps become one: "last", "min", "prod" or "mean".
        distinct: whether rows that have written the same count once, as texts that have ended do.
        **options: as for `particle_filter`. A `scorer`, or a `potential`, is needed; it only scores.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts; of equal weights, without an evidence.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    num_particles, width = _sizes(num_particles, width)
    rule = keep_best(1, width, aggregate, distinct)
    return _search(key, lm, prompt, num_particles, rule, "beam", options)


@one_or_several
def dvts(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    width: int = 4,
    aggregate: str = "last",
    **options: Unpack[RunOptions],
) -> Generations | GenerationsBatch:
    """Diverse verifier tree search: N / width trees, in each of which the best row goes on, in `width` copies.

    Args:
        key: PRNG key; the steps themselves are drawn.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1, a multiple of `width`.
        width: M >= 1, rows of a tree, which stand next to each other.
        aggregate: how the scores of a text's steps become one: "last", "min", "prod" or "mean".
        **options: as for `particle_filter`. A `scorer`, or a `potential`, is needed; it only scores.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts; of equal weights, without an evidence.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    num_particles, width = _sizes(num_particles, width)
    rule = keep_best(num_particles // width, width, aggregate)
    return _search(key, lm, prompt, num_particles, rule, "dvts", options)


def _sizes(num_particles: int, width: int) -> tuple[int, int]:
    num_particles = whole_number("num_particles", num_particles, 1)
    width = whole_number("width", width, 1)
    if num_particles % width:
        more = -(-num_particles // width) * width
        raise ValueError(f"`num_particles` is {num_particles}, not a multiple of `width` = {width}: take {more}")
    return num_particles, width


def _search(
    key: PRNGKey, lm: LM, prompt: Any, num_particles: int, rule: keep_best, method: str, options: RunOptions
) -> Generations | GenerationsBatch:
    text, run = part(only_scored(method, lm, options))
    settings = {"width": rule.width, "aggregate": rule.aggregate}
    if method == "beam":
        settings["distinct"] = rule.distinct
    return run_changed(
        key,
        task_of(lm, prompt, text),
        rule,
        without_law,
        num_particles=num_particles,
        method=method,
        settings=settings,
        has_evidence=False,
        **run,
    )
