"""`pooled`: the populations of the iterations of a Markov chain as one `Generations`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probinf.llm._collect import make_generations
from probinf.llm._generations import Generations
from probinf.llm._labels import prompt_tokens
from probinf.llm._rows import Rows
from probinf.llm._run import Run
from probinf.llm._task import Task

NO_EVIDENCE = "a Markov chain estimates no evidence: run `particle_filter` on the same prompt"


def pooled(
    task: Task,
    index: int,
    runs: Run,
    *,
    method: str,
    scheme: str,
    tokens_used: int,
    scorer_tokens_used: int,
    seconds: float,
    status: int,
    settings: Mapping[str, Any],
    records: Mapping[str, Any],
    log_evidence: float = float("nan"),
    note: str = NO_EVIDENCE,
) -> Generations:
    """All texts of I iterations, each iteration with a total weight of 1.

    Slots i N .. (i+1) N - 1 are those of iteration i, so that the genealogy is that of I runs side by side; `ess` is
    the mean of theirs.

    Args:
        task: what was run.
        index: which of its prompts.
        runs: stacked over iterations, on the host.
        method: name of the method.
        scheme: name of the resampling scheme.
        tokens_used: generated or re-scored in all iterations, those that are not pooled among them.
        scorer_tokens_used: fed to scorers; prompts are added here.
        seconds: wall time.
        status: status bits of all iterations.
        settings: further plain values.
        records: further arrays.
        log_evidence: NaN if the method estimates none.
        note: why there is no standard error.
    """
    population, steps = runs
    rows: Rows = population.particles
    count, size = np.asarray(population.log_weights).shape
    first = (np.arange(count, dtype=np.int32) * size)[:, None]

    def flat(values: Any) -> np.ndarray:
        """[I, N, ...] to [I N, ...]."""
        values = np.asarray(values)
        return values.reshape(count * size, *values.shape[2:])

    def path(values: Any) -> np.ndarray:
        """[I, T, N] to [T, I N]."""
        return np.swapaxes(np.asarray(values), 0, 1).reshape(-1, count * size)

    bad = np.flatnonzero(np.bitwise_or.reduce(np.asarray(steps.status), axis=0))
    return make_generations(
        prompt=task.texts[index],
        prompt_ids=task.ids[index],
        decode=task.lm.decode,
        tokens=flat(rows.tokens),
        length=flat(rows.length),
        finished=flat(rows.stopped),
        log_prob=flat(rows.log_prob),
        log_weights=flat(_shares(np.asarray(population.log_weights))),
        scores=flat(rows.scores),
        boundaries=flat(rows.boundaries),
        num_steps=flat(rows.num_steps),
        ancestors=path(np.asarray(steps.ancestors)[:, 1:] + first[:, None]),
        ess=np.mean(np.asarray(steps.ess), axis=0),
        resampled=np.any(np.asarray(steps.resampled), axis=0),
        log_weight_path=path(steps.log_weights),
        finished_path=path(steps.finished),
        method=method,
        tokens_used=tokens_used,
        scorer_tokens_used=scorer_tokens_used + prompt_tokens(task.setup.potential, task.ids[index].size),
        seconds=seconds,
        log_evidence=log_evidence,
        standard_error_note=note,
        scheme=scheme,
        status=status,
        num_failed=int(np.sum(steps.num_nan)),
        first_bad_step=int(bad[0]) if bad.size else -1,
        settings=task.settings | dict(settings),
        records=records,
    )


def _shares(log_weights: np.ndarray) -> np.ndarray:
    """Log weights that sum to 1 in each row; -inf in a row without any."""
    top = np.max(log_weights, axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        total = np.log(np.sum(np.exp(log_weights - top), axis=1, keepdims=True))
    return np.where(np.isfinite(total), log_weights - top - total, -np.inf).astype(log_weights.dtype)
