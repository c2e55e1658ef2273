r"""`particle_gibbs`: a Markov chain of whole texts by conditional SMC, whose law tends to the target for any N >= 2.

    x* by a particle filter
    repeat:  a conditional pass led by x*  (`conditional_run`);  x* drawn from it by the final weights

Andrieu, Doucet, Holenstein 2010; with ancestor sampling Lindsten, Jordan, Schoen 2014. Every iteration's whole
population is kept: in stationarity its weighted mean of f has expectation $\pi(f)$, as the text that is drawn has, and
less variance. Other libraries keep a finished text beside the filter, weighed by its final score at every step; that
kernel does not leave the target invariant (the tests show it).
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from probinf.core import Population, PRNGKey, compiled, ess_below, resample, whole_number, with_changes
from probinf.llm._conditional import conditional_run
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._lm import LM
from probinf.llm._model import LanguageSteps, Setup
from probinf.llm._options import TextOptions, one_or_several, resampling_of, task_of
from probinf.llm._passes import for_problems, run_passes
from probinf.llm._pooled import pooled
from probinf.llm._potential_types import Prompt
from probinf.llm._reference import Reference, draw_reference
from probinf.llm._run import Run, run_steps
from probinf.llm._task import Task
from probinf.samplers import AbstractScheme

Scheme = Callable[..., Int[Array, " n"]]
When = Callable[[Population], Bool[Array, ""]]


class Start(NamedTuple):
    """What a chain starts from.

    Attributes:
        model: bound to the prompt.
        first: a particle filter, without caches.
        reference: a text drawn from it.
    """

    model: LanguageSteps
    first: Run
    reference: Reference


class Pass(NamedTuple):
    """What is kept of a pass: all of it but caches, and the slot of the text that leads the next one.

    The slot is 0 where that is the text that led this pass.
    """

    run: Run
    slot: Int[Array, ""]


@one_or_several
def particle_gibbs(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    num_iterations: int,
    num_burn_in: int = 0,
    ancestor_sampling: bool = True,
    resampling: str | AbstractScheme = "multinomial",
    ess_threshold: Any = 0.5,
    progress: bool = False,
    throw: bool = True,
    **options: Unpack[TextOptions],
) -> Generations | GenerationsBatch:
    r"""Draws texts from $p \prod_t G_t / Z$ by particle Gibbs; no bias is left but that of the chain's start.

    Passes are compiled; the prompts of a list run one after the other, problem i with `fold_in(key, i)`. Ctrl-C ends
    the run after the passes in progress, about half a second's worth, and what is kept of those that are done comes
    back, flagged `INTERRUPTED`; before there is any, `KeyboardInterrupt` is raised.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 2 texts of a pass, the one that leads it among them.
        num_iterations: passes that are kept, >= 1.
        num_burn_in: passes before, that are not.
        ancestor_sampling: whether the leading text's past is drawn anew where the population is resampled. Each time
            its future is re-scored behind all N rows, by the scorer too; without it, passes cost less and renew the
            beginnings of texts slowly.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme. All leave the target as it
            is; "multinomial" is the default here, for it is the one for which a rate of convergence is known for every
            N (Andrieu, Lee, Vihola 2018).
        ess_threshold: resamples where the ESS is below this fraction of N.
        progress: whether to show how many passes are done, on standard error.
        throw: whether a fatal status raises; others give one warning.
        **options: `step`, `max_steps`, `scorer` and the others that `particle_filter` has for texts. The potential must
            be traceable: no function on the host.

    Returns:
        `Generations` of N times `num_iterations` texts, each pass of total weight 1; or a `GenerationsBatch`.
        `tokens_used` counts re-scored tokens, the first filter and the burn-in. `records["slot"]` tells where the text
        drawn in each pass stood: 0 where it was led by it.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    task = task_of(lm, prompt, dict(options))
    require_traceable(task, "particle_gibbs")
    num_particles = whole_number("num_particles", num_particles, 2)
    burn_in = whole_number("num_burn_in", num_burn_in, 0)
    kept = whole_number("num_iterations", num_iterations, 1)
    drawing, began = resampling_of(resampling, ess_threshold), time.perf_counter()
    when = ess_below(drawing.threshold)
    settings = {
        "num_particles": num_particles,
        "num_iterations": kept,
        "num_burn_in": burn_in,
        "ancestor_sampling": ancestor_sampling,
        **drawing.settings,
    }

    def one(key: PRNGKey, index: int) -> Generations:
        start_key, loop_key = jax.random.split(key)
        start = _start(start_key, task.setup, task.prompt(index), drawing.scheme, when, num_particles=num_particles)
        sweep = Sweep(start.model, drawing.scheme, when, num_particles, ancestor_sampling)
        done = run_passes(loop_key, sweep, start.reference, burn_in, kept, name="particle_gibbs", progress=progress)
        runs, first = done.records.run, jax.device_get(start.first)
        tokens, scorer_tokens = costs(first, runs)
        return pooled(
            task,
            index,
            jax.tree.map(lambda leaf: leaf[burn_in:], runs),
            method="particle_gibbs",
            scheme=drawing.name,
            tokens_used=tokens,
            scorer_tokens_used=scorer_tokens,
            seconds=time.perf_counter() - began,
            status=int(np.bitwise_or.reduce(runs.population.status) | first.population.status) | done.status,
            settings=settings,
            records={"slot": done.records.slot[burn_in:]},
        )

    result = for_problems(key, task, one)
    return result.check() if throw else result


@compiled
def _start(key: PRNGKey, setup: Setup, prompt: Prompt, scheme: Scheme, when: When, *, num_particles: int) -> Start:
    run_key, draw_key = jax.random.split(key)
    model = setup.model(prompt)
    first = run_steps(run_key, model, resample(scheme, when=when), num_particles=num_particles)
    reference, _ = draw_reference(draw_key, first.population.particles, first.population.log_weights)
    return Start(model, light(first), reference)


class Sweep(eqx.Module):
    """One pass: `(key, index, reference) -> (reference, Pass)`, a step of the run driver.

    Attributes:
        model: bound to the prompt.
        scheme: a resampling scheme.
        when: `population -> bool`, whether to resample.
        num_particles: N.
        ancestor_sampling: whether the reference's past is renewed.
    """

    model: LanguageSteps
    scheme: Scheme
    when: When
    num_particles: int = eqx.field(static=True)
    ancestor_sampling: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], reference: Reference) -> tuple[Reference, Pass]:
        """Runs the pass that `reference` leads, and draws the text that leads the next one."""
        del index
        run_key, draw_key = jax.random.split(key)
        run = conditional_run(
            run_key,
            self.model,
            reference,
            num_particles=self.num_particles,
            scheme=self.scheme,
            when=self.when,
            ancestor_sampling=self.ancestor_sampling,
        )
        drawn, slot = draw_reference(draw_key, run.population.particles, run.population.log_weights)
        return drawn, Pass(light(run), slot)


def light(run: Run) -> Run:
    """The run without caches."""
    return run._replace(population=with_changes(run.population, particles=run.population.particles.with_heavy()))


def costs(first: Run, runs: Run) -> tuple[int, int]:
    """Tokens generated and re-scored, and tokens fed to scorers, in a filter and in conditional passes."""
    led = runs.population.context
    tokens = np.sum(first.records.step_tokens) + np.sum(runs.records.step_tokens) + np.sum(led.num_tokens)
    scorer = np.sum(first.records.scorer_tokens) + np.sum(runs.records.scorer_tokens) + np.sum(led.num_scorer_tokens)
    return int(tokens), int(scorer)


def require_traceable(task: Task, method: str) -> None:
    """Sees that a potential can run in a compiled program.

    Args:
        task: with the potential.
        method: for the message.

    Raises:
        ValueError: it cannot.
    """
    if not task.setup.potential.traceable:
        raise ValueError(
            f"`{method}` runs in compiled programs, and this potential calls a function on the host: score by an `LM` "
            "or by `llm.potential(f)`, or take `particle_filter`"
        )
