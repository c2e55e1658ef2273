r"""Particle filters that draw by flattened weights, with the target left as it is.

`tempered_filter` carries the population along the laws $p \prod_{s \le t} G_s^{\lambda_t}$, and `entropic_filter`
draws ancestors in proportion to $w^{1/\tau}$ early in a run (the entropic particle filter, ePF, arXiv 2510.05825). As
published the particles drawn are then equally weighted, so that what is sampled is another law, which no formula gives.
Here copies keep what they were not drawn by, the weights $w / w^{1/\tau}$, and the mean of $w^{1/\tau}$ is banked:
final weights are those of $p \prod_t G_t$, and the evidence estimate is unbiased for every schedule, adaptive ones too,
since the power is a function of the population that is drawn from.
"""

from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core import PRNGKey, whole_number
from probinf.llm._flattening import at_temperatures, entropic, no_potentials, reach_ess, record_power, resample_flat
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._lm import LM
from probinf.llm._options import Resampling, RunOptions, fraction, one_or_several, part, resampling_of, task_of
from probinf.llm._task import Task, run_task
from probinf.samplers import AbstractScheme

SCHEDULES = ("ess", "entropy", "base")


@one_or_several
def tempered_filter(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    inverse_temperature: float | tuple[float, float] | str = (0.25, 1.0),
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: Any = 0.5,
    **options: Unpack[RunOptions],
) -> Generations | GenerationsBatch:
    r"""A particle filter whose population follows $p \prod_{s \le t} G_s^{\lambda_t}$ on the way to $p \prod_t G_t$.

    Small $\lambda_t$ early keep texts alive whose first scores are bad. The final weights hold what was not drawn by,
    so that texts, `posterior` and `log_evidence` are those of the potentials at power 1; with $\lambda < 1$ at the end
    the last weights are the more unequal.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1.
        inverse_temperature: $\lambda$, >= 0; a pair for one that goes from the first step to `max_steps` in equal
            parts; or "adaptive" for the largest in [0, 1] at which the ESS drawn with is `ess_threshold` N, of a grid.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme.
        ess_threshold: resamples where the ESS of the weights drawn by is below this fraction of N; with "adaptive",
            where that of the weights themselves is.
        **options: as for `particle_filter`.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts. `records["inverse_temperature"]` is the power
        drawn with on the way to each step that texts were written in, 1 where nothing was resampled.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    text, run = part(options)
    task = task_of(lm, prompt, text)
    drawing = resampling_of(resampling, ess_threshold)
    if isinstance(inverse_temperature, str) and inverse_temperature == "adaptive":
        rule: Any = reach_ess(drawing.threshold)
        settings = {"inverse_temperature": "adaptive"}
    else:
        rule = at_temperatures(_schedule(inverse_temperature, task.setup.max_steps), drawing.threshold)
        settings = {"inverse_temperature": np.asarray(inverse_temperature).tolist()}
    return _flat(key, task, rule, num_particles, drawing, "tempered_filter", settings, run)


@one_or_several
def entropic_filter(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    schedule: str = "ess",
    until: Any = 0.5,
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: Any = 0.5,
    **options: Unpack[RunOptions],
) -> Generations | GenerationsBatch:
    r"""A particle filter that draws ancestors by $w^{1/\tau}$, $\tau \ge 1$, in the first part of a run.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1.
        schedule: after t of `max_steps` T steps, with ESS E and the entropy H of the weights divided by log N, $\tau$
            is "ess": max(1, (N/E)(1 - t/T)); "entropy": 1 / (H + (1 - H) t/T); "base": 2 - t/T.
        until: fraction of T from which on $\tau$ is 1, in [0, 1]; 0 is a plain particle filter.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme.
        ess_threshold: resamples where the ESS is below this fraction of N.
        **options: as for `particle_filter`.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts. `records["inverse_temperature"]` is $1/\tau$ on
        the way to each step that texts were written in, 1 where nothing was resampled.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` is {schedule!r}; needed one of {list(SCHEDULES)}")
    text, run = part(options)
    task = task_of(lm, prompt, text)
    drawing = resampling_of(resampling, ess_threshold)
    rule = entropic(drawing.threshold, fraction("until", until), task.setup.max_steps, schedule)
    settings = {"schedule": schedule, "until": float(until)}
    return _flat(key, task, rule, num_particles, drawing, "entropic_filter", settings, run)


def _flat(
    key: PRNGKey,
    task: Task,
    rule: Any,
    num_particles: int,
    drawing: Resampling,
    method: str,
    settings: dict[str, Any],
    run: dict[str, Any],
) -> Generations | GenerationsBatch:
    num_particles = whole_number("num_particles", num_particles, 1)
    return run_task(
        key,
        task,
        resample_flat(rule, drawing.scheme),
        num_particles=num_particles,
        method=method,
        scheme=drawing.name,
        settings=drawing.settings | settings,
        context=no_potentials(num_particles),
        record=record_power,
        **run,
    )


def _schedule(inverse_temperature: Any, num_steps: int) -> Float[Array, " t"]:
    try:
        ends = np.broadcast_to(np.asarray(inverse_temperature, float), 2)
    except ValueError as error:
        raise ValueError(
            f"`inverse_temperature` is {inverse_temperature!r}; needed a number, a pair (first, last) or 'adaptive'"
        ) from error
    if not np.all((ends >= 0) & (ends < np.inf)):
        raise ValueError(f"`inverse_temperature` is {inverse_temperature!r}; needed finite numbers, at least 0")
    return jnp.linspace(ends[0], ends[1], num_steps)
