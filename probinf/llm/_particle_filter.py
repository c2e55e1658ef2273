r"""The particle filter on texts: N texts written step by step, weighed after each step, copied in proportion to weight.

    for t = 1 .. T:  resample if ESS < threshold * N,  write a step,  weigh it

Target $p(x_{1:T}|c) \prod_t G_t$, whose mass the evidence estimates without bias. Puri et al. (2025), "A probabilistic
inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods", resample at every step
by multinomial draws; here that is `resampling="multinomial", ess_threshold=1.0`. A text that has ended keeps its weight
as it is: it is not weighed again by its last score.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from probinf.core import PRNGKey, ess_below, resample
from probinf.llm._collect import StepReport
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._kept import kept
from probinf.llm._lm import LM
from probinf.llm._masks import TokenMask
from probinf.llm._options import Resampling, one_or_several, resampling_of, task_of
from probinf.llm._potential_types import Potential
from probinf.llm._step import StepMode
from probinf.llm._task import run_task
from probinf.samplers import AbstractScheme


@one_or_several
def particle_filter(
    key: PRNGKey,
    lm: LM,
    prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    scorer: Any = None,
    potential: Potential | str | None = None,
    num_particles: int,
    step: StepMode,
    max_steps: int,
    max_tokens: int | None = None,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: TokenMask | None = None,
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: Any = 0.5,
    base: str = "proposal",
    stop: str | int | Sequence[str | int] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    on_step: Callable[[StepReport], Any] | None = None,
    throw: bool = True,
) -> Generations | GenerationsBatch:
    """Steers a language model by a particle filter; one compiled program for each shape and choice of parts.

    Other keys, prompts of about the same length, temperatures, thresholds and weights recompile nothing. Row i's
    numbers depend on the key and on i alone: until the first resampling the first rows are the same for every N.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids; or a list of several, which then run in one program, problem i with
            `jax.random.fold_in(key, i)`.
        scorer: what judges steps: an `LM`, a function of (prompt, text), or a `Scorer`; None where `potential` is a
            `Potential`.
        potential: a `Potential`; "odds", "prob", "ratio", "final" or "judge" of the scorer; "self_certainty" or "none".
            None is "odds" with a scorer, else "none". They have different targets: see `process_reward`.
        num_particles: N >= 1.
        step: where steps end: `delimiter(";")` or `block(16)`.
        max_steps: the most steps of a text.
        max_tokens: the most tokens of a text; None for what `max_steps` steps need, or as many as the context holds.
        temperature: of the base law, >= 0.
        top_k: keeps the k most probable tokens; None for all.
        top_p: keeps the fewest tokens whose probability reaches it, in (0, 1].
        min_p: keeps tokens of at least this fraction of the most probable one's probability, in [0, 1].
        mask: which tokens may follow, a `TokenMask`; its probability goes into the weight.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme of your own.
        ess_threshold: resample when ESS < threshold * N; in [0, 1]: 0 never, 1 at every step (unless weights are
            equal).
        base: "proposal": the base law is the tempered and filtered one; "model": it is the model's own, and the weights
            correct for temperature and filters (texts that filters never draw are then left out of the target).
        stop: texts or token ids that end a text, besides the model's own. Texts are matched on the device, whatever
            tokens they are made of; what is left of them in a text is not cut off.
        mesh: devices to spread rows over: the first axis must have a size that divides N. Tokens, ancestors and
            evidence are those of one device, as far as its matrix products do not depend on the number of rows.
        on_step: called with a `StepReport` after each step; the steps then run in a loop on the host, where Ctrl-C ends
            the run with what there is, flagged `INTERRUPTED`. Without it, and where nothing else needs the host, all is
            one program: Ctrl-C is heard once it has ended, and its result is lost.
        throw: whether a fatal status raises; others give one warning.

    Returns:
        `Generations`; for a list of prompts a `GenerationsBatch`, which is indexed by problem.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError: a number is out of range; the prompt is empty, longer than the context, or holds an unknown token; a
            scorer gives another shape than one number a row.
        TypeError: an argument is of a wrong type.
    """
    drawing, rule = _rule(resampling, ess_threshold)
    text = {
        "scorer": scorer,
        "potential": potential,
        "step": step,
        "max_steps": max_steps,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "mask": mask,
        "base": base,
        "stop": stop,
    }
    return run_task(
        key,
        task_of(lm, prompt, text),
        rule,
        num_particles=num_particles,
        method="particle_filter",
        scheme=drawing.name,
        settings=drawing.settings,
        mesh=mesh,
        on_step=on_step,
        throw=throw,
    )


@kept
def _rule(resampling: str | AbstractScheme, ess_threshold: Any) -> tuple[Resampling, resample]:
    drawing = resampling_of(resampling, ess_threshold)
    return drawing, resample(drawing.scheme, when=ess_below(drawing.threshold))
