r"""Texts written apart from one another, and chosen among at the end: best-of-N, majority and weighted majority.

Best-of-N takes $\arg\max_i s_i$ of N draws of p; the votes take $\arg\max_a \#\{i: a_i = a\}$ (Wang et al. 2023,
"Self-consistency") and $\arg\max_a \sum_{i: a_i = a} s_i$ (Snell et al. 2024, "Scaling LLM test-time compute
optimally"). Scores weigh nothing while texts are written: the target is p, and texts are equally probable.
"""

import dataclasses
from typing import Any, Unpack

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from probinf.core import Population, PRNGKey, ResampleInfo
from probinf.llm._changed import run_changed
from probinf.llm._collect import NO_ERROR
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._judge import Judge
from probinf.llm._lm import LM
from probinf.llm._options import RunOptions, one_or_several, part, task_of
from probinf.llm._potentials import find_potential, no_potential
from probinf.llm._selectors import AGGREGATES, aggregate_scores
from probinf.llm._task import run_task


class apart(eqx.Module):
    """The rule of methods that move nothing. Law: the identity."""

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """The population as it is."""
        del key, step
        slots = jnp.arange(population.num_particles, dtype=jnp.int32)
        return population, ResampleInfo(population.ess, jnp.zeros((), bool), slots)


@one_or_several
def best_of_n(
    key: PRNGKey, lm: LM, prompt: Any, *, num_particles: int, **options: Unpack[RunOptions]
) -> Generations | GenerationsBatch:
    """Writes N texts apart from one another and scores them; `result.select("argmax")` is the best.

    Weights are equal (with a mask: the corrections for it), so that `posterior` is that of p. What best-of-k of these
    draws would have given is `llm.best_of_k`.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1.
        **options: as for `particle_filter`. A `scorer`, or a `potential`, is needed; it only scores.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    return _apart(key, lm, prompt, num_particles, "best_of_n", only_scored("best_of_n", lm, options))


@one_or_several
def majority(
    key: PRNGKey, lm: LM, prompt: Any, *, num_particles: int, **options: Unpack[RunOptions]
) -> Generations | GenerationsBatch:
    """Writes N texts apart from one another, to let their answers vote: `result.select("majority", extract=...)`.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1.
        **options: as for `particle_filter`. A `scorer` or `potential` only scores, and is not needed.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts; `posterior(extract)` holds the shares of votes.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    if options.get("scorer") is not None or options.get("potential") not in (None, "none"):
        options = only_scored("majority", lm, options)
    return _apart(key, lm, prompt, num_particles, "majority", options)


@one_or_several
def weighted_majority(
    key: PRNGKey, lm: LM, prompt: Any, *, num_particles: int, aggregate: str = "last", **options: Unpack[RunOptions]
) -> Generations | GenerationsBatch:
    """Writes N texts apart from one another, whose answers vote by their scores.

    The weights of the result are the scores: its `posterior(extract)` holds the shares, and `select("weighted",
    extract=...)` the winner. They estimate no evidence.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1.
        aggregate: how the scores of a text's steps become one vote: "last", "min", "prod" or "mean".
        **options: as for `particle_filter`. A `scorer`, or a `potential`, is needed; it only scores, with numbers that
            are not negative, such as rewards.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError: a bad argument, or a negative score.
        TypeError: an argument is of a wrong type.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"`aggregate` must be one of {list(AGGREGATES)}, got {aggregate!r}")
    if options.get("potential") == "judge" or isinstance(options.get("potential"), Judge):
        raise ValueError(
            "`potential` is a judge, whose scores are log probabilities, and votes must not be negative: leave it out, "
            "so that the `scorer` gives rewards, or take `best_of_n`"
        )
    text, run = part(only_scored("weighted_majority", lm, options))

    def vote(one: Generations) -> Generations:
        votes = aggregate_scores(one.scores, aggregate)
        if np.any(votes < 0):
            raise ValueError(
                f"scores go down to {np.nanmin(votes):.4g}, and votes must not be negative: pass a `scorer` that gives "
                "rewards in [0, 1], or take `best_of_n`"
            )
        with np.errstate(divide="ignore"):
            log_votes = np.log(np.nan_to_num(votes, nan=0.0))
        log_votes = np.where(np.isneginf(one.log_weights), -np.inf, log_votes)
        return dataclasses.replace(one, log_weights=log_votes.astype(one.log_weights.dtype))

    return run_changed(
        key,
        task_of(lm, prompt, text),
        apart(),
        vote,
        num_particles=num_particles,
        method="weighted_majority",
        settings={"aggregate": aggregate},
        has_evidence=False,
        **run,
    )


def _apart(
    key: PRNGKey, lm: LM, prompt: Any, num_particles: int, method: str, options: RunOptions
) -> Generations | GenerationsBatch:
    text, run = part(options)
    return run_task(key, task_of(lm, prompt, text), apart(), num_particles=num_particles, method=method, **run)


def only_scored(method: str, lm: LM, options: RunOptions) -> RunOptions:
    """The options with a potential that scores and weighs nothing.

    Args:
        method: for the message.
        lm: the model that writes.
        options: of the method.

    Raises:
        ValueError: there is nothing that scores.
    """
    potential, scorer = options.get("potential"), options.get("scorer")
    if potential in (None, "none"):
        if scorer is None:
            raise ValueError(
                f"`{method}` goes by scores: pass `scorer`, such as an `LM` or a function of (prompt, text)"
            )
        return {**options, "potential": "none"}
    scores = no_potential(find_potential(potential, scorer, lm))
    return {**options, "potential": scores, "scorer": None}


def without_law(one: Generations) -> Generations:
    """The result with equal weights, save those that are zero, and without an evidence: for rules that keep no law."""
    flat = np.where(np.isneginf(one.log_weights), -np.inf, 0).astype(one.log_weights.dtype)
    note = NO_ERROR["none"]
    return dataclasses.replace(
        one, log_weights=flat, log_evidence=float("nan"), log_evidence_se=float("nan"), standard_error_note=note
    )
