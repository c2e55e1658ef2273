r"""`log_evidence_upper_bound`: a bound from above on log Z, where exact draws of the target are to be had.

A conditional pass (`conditional_run`, without ancestor sampling) that is led by a draw of $\gamma_T / Z$ has the law of
an ordinary run weighted by $\hat Z / Z$. So its estimate obeys

$$ E[1 / \hat Z] = 1 / Z, \qquad E[\log \hat Z] \ge \log Z, $$

and with $E[\log \hat Z] \le \log Z$ of an ordinary run it brackets log Z (Grosse, Ancha, Roy 2016, bidirectional Monte
Carlo; for language models Zhao, Brekelmans, Makhzani, Grosse 2024). The gap of the two means bounds the sum of the two
Kullback-Leibler divergences between the texts of a run and the target. Exact draws exist for simulated data, for models
that can be enumerated, and for `potential="judge"`, where they are texts of the judge itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf.core import PRNGKey, check_status, compiled, ess_below, whole_number
from probinf.llm._conditional import conditional_run
from probinf.llm._gibbs import Scheme, When, light, require_traceable
from probinf.llm._labels import prompt_tokens
from probinf.llm._lm import LM
from probinf.llm._model import Setup
from probinf.llm._options import TextOptions, resampling_of, task_of
from probinf.llm._potential_types import Prompt
from probinf.llm._reference import Reference
from probinf.llm._run import Run
from probinf.llm._step_reader import PROBLEMS
from probinf.llm._task import Task
from probinf.samplers import AbstractScheme


class EvidenceBound(NamedTuple):
    """A bound on log Z, in nats, from R draws.

    Attributes:
        log_evidence: mean of the log estimates; its expectation is at least log Z.
        standard_error: of that mean; NaN for one draw.
        log_estimates: [R], one a draw.
        tokens_used: tokens generated, the draws fed again among them.
        scorer_tokens_used: tokens scorers were fed, their prompt among them.
    """

    log_evidence: float
    standard_error: float
    log_estimates: Float[np.ndarray, " r"]
    tokens_used: int
    scorer_tokens_used: int


def log_evidence_upper_bound(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    draws: Sequence[Any],
    *,
    num_particles: int,
    resampling: str | AbstractScheme = "multinomial",
    ess_threshold: Any = 0.5,
    **options: Unpack[TextOptions],
) -> EvidenceBound:
    r"""Bounds log Z of $p \prod_t G_t$ from above, by conditional passes led by exact draws.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids.
        draws: R >= 1 independent exact draws of the target, each a text or token ids, without the prompt and up to
            where a run would end it. A draw that is impossible is refused; that draws have another law cannot be seen,
            and then the number bounds nothing. The target is a law of token ids: where a text can be written in several
            ways, pass the ids.
        num_particles: N >= 2 texts of a pass, the draw among them; the bound falls to log Z as N grows.
        resampling: "multinomial" (the default here as in `particle_gibbs`), "systematic", "stratified", "residual",
            "ssp" or a scheme. That of the run whose evidence is the lower bound makes both bounds one of a pair.
        ess_threshold: resamples where the ESS is below this fraction of N.
        **options: `step`, `max_steps`, `scorer` and the others that `particle_filter` has for texts. The potential must
            be traceable: no function on the host.

    Returns:
        An `EvidenceBound`.

    Raises:
        InferenceError: a fatal fault.
        ValueError: a draw is longer or shorter than what a run would write, or has probability zero; or a bad argument.
        TypeError: an argument is of a wrong type.
    """
    if isinstance(draws, str):
        raise TypeError(f"`draws` is the text {draws!r}; needed a list of draws, such as `[{draws!r}]`")
    task = task_of(lm, prompt, dict(options))
    require_traceable(task, "log_evidence_upper_bound")
    if task.several:
        raise ValueError("`prompt` is a list of prompts; needed one, of which all `draws` are")
    num_particles = whole_number("num_particles", num_particles, 2)
    ids = [_tokens(lm, draw, f"draws[{i}]") for i, draw in enumerate(draws)]
    drawing = resampling_of(resampling, ess_threshold)
    run = jax.device_get(
        _bound(
            key,
            task.setup,
            task.prompt(0),
            _padded(ids, task),
            drawing.scheme,
            ess_below(drawing.threshold),
            num_particles=num_particles,
        )
    )
    _check_followed(run, ids)
    check_status(run.population.status, what="log_evidence_upper_bound")
    logs = np.asarray(run.records.log_evidence[:, -1], np.float64)
    return EvidenceBound(
        log_evidence=float(np.mean(logs)),
        standard_error=float(np.std(logs, ddof=1) / np.sqrt(logs.size)) if logs.size > 1 else float("nan"),
        log_estimates=logs,
        tokens_used=int(np.sum(run.records.step_tokens)),
        scorer_tokens_used=int(np.sum(run.records.scorer_tokens))
        + prompt_tokens(task.setup.potential, task.ids[0].size),
    )


@compiled
def _bound(
    key: PRNGKey,
    setup: Setup,
    prompt: Prompt,
    tokens: Int[Array, "r capacity"],
    scheme: Scheme,
    when: When,
    *,
    num_particles: int,
) -> Run:
    model = setup.model(prompt, axis_name=PROBLEMS)

    def one(key: PRNGKey, tokens: Int[Array, " capacity"]) -> Run:
        # Steps fall where they fall: without ancestor sampling nobody asks for them.
        no_steps = jnp.zeros(setup.max_steps, jnp.int32)
        reference = Reference(tokens, no_steps, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        run = conditional_run(
            key,
            model,
            reference,
            num_particles=num_particles,
            scheme=scheme,
            when=when,
            ancestor_sampling=False,
        )
        return light(run)

    return jax.vmap(one, axis_name=PROBLEMS)(jax.random.split(key, tokens.shape[0]), tokens)


def _tokens(lm: LM, draw: Any, name: str) -> np.ndarray:
    """A draw as token ids; of a text without what the tokenizer puts around a whole one, such as a BOS."""
    ids = lm.encode(draw, name)
    if not isinstance(draw, str):
        return ids
    around = [int(token) for token in lm.tokenizer.encode("")]
    for size in range(len(around), -1, -1):
        before, after = around[:size], around[size:]
        end = ids.size - len(after)
        if ids[:size].tolist() == before and ids[end:].tolist() == after:
            return ids[size:end]
    return ids


def _padded(ids: Sequence[np.ndarray], task: Task) -> Int[Array, "r capacity"]:
    if not ids:
        raise ValueError("`draws` is empty: needed at least one exact draw of the target")
    rows = np.zeros((len(ids), task.setup.capacity), np.int32)
    for index, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
        if tokens.size > row.size:
            raise ValueError(f"`draws[{index}]` has {tokens.size} tokens, and texts of this run at most {row.size}")
        row[: tokens.size] = tokens
    return jnp.asarray(rows)


def _check_followed(run: Run, ids: Sequence[np.ndarray]) -> None:
    """Sees that slot 0 ended where each draw does, and could be drawn at all."""
    rows = run.population.particles
    lengths, log_probs = (np.asarray(values)[:, 0] for values in (rows.length, rows.log_prob))
    weightless = np.any(np.asarray(run.records.log_weights)[:, :, 0] == -np.inf, axis=1)
    for index, tokens in enumerate(ids):
        if weightless[index] or log_probs[index] == -np.inf:
            raise ValueError(
                f"`draws[{index}]` has probability zero, by the model with its filters or by the potential: it is no "
                "draw of the target"
            )
        if int(lengths[index]) != tokens.size:
            raise ValueError(
                f"`draws[{index}]` has {tokens.size} tokens, but a run led by it ends after {int(lengths[index])}: "
                "pass what a run writes, with the stop that ends it, and nothing behind"
            )
