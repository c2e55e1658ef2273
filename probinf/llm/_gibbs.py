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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from probinf.core import Population, PRNGKey, compiled, ess_below, resample, unwrap_key, whole_number, with_changes
from probinf.core._effects import scan
from probinf.llm._conditional import conditional_run
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._lm import LM
from probinf.llm._model import Setup
from probinf.llm._options import TextOptions, fraction, one_or_several, task_of
from probinf.llm._pooled import pooled
from probinf.llm._potential_types import Prompt
from probinf.llm._reference import Reference, draw_reference
from probinf.llm._run import Run, run_steps
from probinf.llm._task import Task
from probinf.samplers._particle_filter import find_scheme
from probinf.samplers._scheme import AbstractScheme

Scheme = Callable[..., Int[Array, " n"]]
When = Callable[[Population], Bool[Array, ""]]


class Chain(NamedTuple):
    """What a chain of I iterations returns.

    Attributes:
        first: the particle filter that it starts from, without caches.
        runs: the passes, stacked.
        slots: [I], where each text that leads the next pass stood; 0 is the one that led the last.
    """

    first: Run
    runs: Run
    slots: Int[Array, " i"]


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
    throw: bool = True,
    **options: Unpack[TextOptions],
) -> Generations | GenerationsBatch:
    r"""Draws texts from $p \prod_t G_t / Z$ by particle Gibbs; no bias is left but that of the chain's start.

    All in one compiled program; the prompts of a list run one after the other, problem i with `fold_in(key, i)`.

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
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme.
        ess_threshold: resamples where the ESS is below this fraction of N.
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
    scheme, began = find_scheme(resampling), time.perf_counter()
    settings = {"num_particles": num_particles, "num_burn_in": burn_in, "ancestor_sampling": ancestor_sampling}

    def one(key: PRNGKey, index: int) -> Generations:
        chain = _chain(
            key,
            task.setup,
            task.prompt(index),
            scheme,
            ess_below(fraction("ess_threshold", ess_threshold)),
            num_particles=num_particles,
            num_iterations=burn_in + kept,
            ancestor_sampling=ancestor_sampling,
        )
        chain: Chain = jax.device_get(chain)
        tokens, scorer_tokens = costs(chain.first, chain.runs)
        return pooled(
            task,
            index,
            jax.tree.map(lambda leaf: leaf[burn_in:], chain.runs),
            method="particle_gibbs",
            scheme=type(scheme).__name__.lower(),
            tokens_used=tokens,
            scorer_tokens_used=scorer_tokens,
            seconds=time.perf_counter() - began,
            status=int(np.bitwise_or.reduce(chain.runs.population.status) | chain.first.population.status),
            settings=settings,
            records={"slot": chain.slots[burn_in:]},
        )

    result = for_problems(key, task, one)
    return result.check() if throw else result


@compiled
def _chain(
    key: PRNGKey,
    setup: Setup,
    prompt: Prompt,
    scheme: Scheme,
    when: When,
    *,
    num_particles: int,
    num_iterations: int,
    ancestor_sampling: bool,
) -> Chain:
    start_key, draw_key, loop_key = jax.random.split(key, 3)
    model = setup.model(prompt)
    first = run_steps(start_key, model, resample(scheme, when=when), num_particles=num_particles)
    reference, _ = draw_reference(draw_key, first.population.particles, first.population.log_weights)
    # The loop takes the bits of the keys, which would count as used again at each turn.
    bits, restore = unwrap_key(jax.random.split(loop_key, num_iterations))

    def iteration(reference: Reference, bits: Array) -> tuple[Reference, tuple[Run, Array]]:
        run_key, draw_key = jax.random.split(restore(bits))
        run = conditional_run(
            run_key,
            model,
            reference,
            num_particles=num_particles,
            scheme=scheme,
            when=when,
            ancestor_sampling=ancestor_sampling,
        )
        drawn, slot = draw_reference(draw_key, run.population.particles, run.population.log_weights)
        return drawn, (light(run), slot)

    _, (runs, slots) = scan(iteration, reference, bits, num_iterations)
    return Chain(light(first), runs, slots)


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
            f"`{method}` runs in one compiled program, and this potential calls a function on the host: score by an "
            "`LM` or by `llm.potential(f)`, or take `particle_filter`"
        )


def for_problems(
    key: PRNGKey, task: Task, one: Callable[[PRNGKey, int], Generations]
) -> Generations | GenerationsBatch:
    """Runs every problem of a task, with keys as in `run_task`.

    Args:
        key: PRNG key.
        task: with one prompt or several.
        one: `(key, index) -> Generations`.
    """
    if not task.several:
        return one(key, 0)
    # Folded all at once: each is another key, and so is used once.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(task.ids)))
    return GenerationsBatch(tuple(one(keys[index], index) for index in range(len(task.ids))))
