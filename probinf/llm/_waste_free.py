r"""`waste_free`: a particle filter that resamples few rows and moves them, keeping every state on the way.

    for t = 2 .. T:  draw M of N rows by weight;  P - 1 times each: write its last step anew and
        accept it with probability min{1, G(new) / G(old)};  keep all M P = N states with equal weights
        then write step t of all N, and weigh by G_t

Dau, Chopin 2022, "Waste-free sequential Monte Carlo". The move proposes from the base law given all but the last step,
an independence sampler that leaves $p(x_{1:t-1}) \prod_{s<t} G_s$ invariant, so that the evidence estimate is unbiased
where every step is renewed. (Renewed only where the ESS is low it is not: what is picked by its ESS has another law.)

What it is worth on texts: an ordinary filter draws one last step for each row and then copies; here a row that would
have been copied tries P - 1 other last steps instead, for the tokens that they take, N - M steps at each resampling. So
it costs up to twice the tokens of a filter with as many rows, renews nothing but the last step (a move of more would
write it all anew, and be accepted less), and pays where the last step decides the weight and proposals are accepted.
Rows before their last step are kept as well: caches take twice the memory.
"""

import time
from typing import Any, Unpack

import jax
import numpy as np

from probinf.core import PRNGKey, compiled, ess_below, whole_number
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._gibbs import Scheme, When, light, require_traceable
from probinf.llm._lm import LM
from probinf.llm._model import Setup
from probinf.llm._options import TextOptions, one_or_several, resampling_of, task_of
from probinf.llm._passes import for_problems
from probinf.llm._pooled import pooled
from probinf.llm._potential_types import Prompt
from probinf.llm._renew import Cost, waste_free_run
from probinf.llm._run import Run
from probinf.samplers import AbstractScheme

DEPENDENT = (
    "states of one chain depend on each other, and so the single-run estimate does not hold: run the same prompt "
    "several times in one batch, and take `batch.evidence()`"
)


@one_or_several
def waste_free(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    chain_length: int = 4,
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: Any = None,
    throw: bool = True,
    **options: Unpack[TextOptions],
) -> Generations | GenerationsBatch:
    """A particle filter whose resampled rows rewrite their last step by Metropolis moves; waste-free SMC on texts.

    All in one compiled program; the prompts of a list run one after the other, problem i with `fold_in(key, i)`. So
    Ctrl-C is heard once a prompt is done, and loses it; of a list those before it come back, flagged `INTERRUPTED`.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 2, a multiple of `chain_length`.
        chain_length: P >= 2: N / P rows are resampled, and each becomes P by moves.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme.
        ess_threshold: None resamples and moves at every step, which keeps the evidence estimate unbiased (other methods
            are unbiased at any threshold, so that theirs is 0.5); a number does where the ESS is below this fraction
            of N, which costs less and is consistent as N grows.
        throw: whether a fatal status raises; others give one warning.
        **options: `step`, `max_steps`, `scorer` and the others that `particle_filter` has for texts. The potential must
            be traceable: no function on the host.

    Returns:
        `Generations`, or a `GenerationsBatch`. `tokens_used` counts the steps that were proposed; `records` holds
        "acceptance_rate", of all moves (NaN without any).

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    task = task_of(lm, prompt, dict(options))
    require_traceable(task, "waste_free")
    num_particles = whole_number("num_particles", num_particles, 2)
    length = whole_number("chain_length", chain_length, 2)
    if num_particles % length:
        more = -(-num_particles // length) * length
        raise ValueError(
            f"`num_particles` is {num_particles}, not a multiple of `chain_length` = {length}: take {more}"
        )
    drawing = resampling_of(resampling, 1.0 if ess_threshold is None else ess_threshold)
    when, began = None if ess_threshold is None else ess_below(drawing.threshold), time.perf_counter()
    settings = {
        "num_particles": num_particles,
        "chain_length": length,
        **drawing.settings,
        "ess_threshold": None if ess_threshold is None else float(ess_threshold),
    }

    def one(key: PRNGKey, index: int) -> Generations:
        run, cost = jax.device_get(
            _run(
                key,
                task.setup,
                task.prompt(index),
                drawing.scheme,
                when,
                num_particles=num_particles,
                chain_length=length,
            )
        )
        rate = cost.num_accepted / cost.num_proposed if cost.num_proposed else np.nan
        return pooled(
            task,
            index,
            jax.tree.map(lambda leaf: np.asarray(leaf)[None], run),
            method="waste_free",
            scheme=drawing.name,
            tokens_used=int(np.sum(run.records.step_tokens) + cost.num_tokens),
            scorer_tokens_used=int(np.sum(run.records.scorer_tokens) + cost.num_scorer_tokens),
            seconds=time.perf_counter() - began,
            status=int(run.population.status),
            settings=settings,
            records={"acceptance_rate": np.asarray(rate)},
            log_evidence=float(run.records.log_evidence[-1]),
            note=DEPENDENT,
        )

    result = for_problems(key, task, one)
    return result.check() if throw else result


@compiled
def _run(
    key: PRNGKey,
    setup: Setup,
    prompt: Prompt,
    scheme: Scheme,
    when: When | None,
    *,
    num_particles: int,
    chain_length: int,
) -> tuple[Run, Cost]:
    run, cost = waste_free_run(
        key, setup.model(prompt), num_particles=num_particles, chain_length=chain_length, scheme=scheme, when=when
    )
    return light(run), cost
