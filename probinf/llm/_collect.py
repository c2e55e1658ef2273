r"""What an engine hands over at the end of a run, and after each step of it, turned into `Generations`.

Single-run standard error of the evidence (Chan, Lai 2013; Lee, Whiteley 2018): with S_k the final weight that descends
from particle k of the first step and n resamplings, $V = 1 - (N/(N-1))^{n+1} (1 - \sum_k S_k^2)$ estimates the
relative variance of the estimate, hence the variance of its log; for multinomial resampling only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from probinf.core import is_fatal
from probinf.llm._generations import Generations
from probinf.llm._selectors import normalise

FEWEST_EVES = 10
NO_ERROR = {
    "none": "the method estimates no evidence",
    "scheme": "the single-run estimate holds for multinomial resampling only: run the same prompt several times in "
    "one batch, and take `batch.evidence()`",
    "eves": f"fewer than {FEWEST_EVES} distinct first steps are left, too few for the single-run estimate: run the "
    "same prompt several times in one batch, and take `batch.evidence()`",
    "negative": "the single-run estimate of the variance came out negative: run the same prompt several times in one "
    "batch, and take `batch.evidence()`",
    "flags": "the run was flagged: see `status`",
}


class StepReport(NamedTuple):
    """What `on_step` is told after each step of a run.

    Attributes:
        step: steps done.
        max_steps: the bound on them.
        ess: effective sample size after the step's weights.
        resampled: whether the population was resampled before the step.
        num_finished: texts that have ended.
        tokens_used: tokens generated so far.
        scorer_tokens_used: tokens scorers were fed so far.
        seconds: wall time so far.
        best_text: text of the largest weight so far; of equal weights, the one of the best score.
        generations: makes the `Generations` of what there is so far, as if the run ended here.
    """

    step: int
    max_steps: int
    ess: float
    resampled: bool
    num_finished: int
    tokens_used: int
    scorer_tokens_used: int
    seconds: float
    best_text: str
    generations: Callable[[], Generations]


def make_generations(
    *,
    prompt: str,
    prompt_ids: Sequence[int] | Int[Any, " prompt"],
    decode: Callable[[list[int]], str],
    tokens: Int[Any, "n capacity"],
    length: Int[Any, " n"],
    finished: Bool[Any, " n"],
    log_prob: Float[Any, " n"],
    log_weights: Float[Any, " n"],
    scores: Float[Any, "n t"],
    boundaries: Int[Any, "n t"],
    num_steps: Int[Any, " n"],
    ancestors: Int[Any, "t_less_1 slots"],
    ess: Float[Any, " t"],
    resampled: Bool[Any, " t"],
    log_weight_path: Float[Any, "t slots"],
    finished_path: Bool[Any, "t slots"],
    method: str,
    tokens_used: int,
    scorer_tokens_used: int = 0,
    seconds: float = float("nan"),
    log_evidence: float = float("nan"),
    log_evidence_se: float | None = None,
    standard_error_note: str = "",
    scheme: str = "",
    status: int = 0,
    num_failed: int = 0,
    first_bad_step: int = -1,
    causes: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    records: Mapping[str, Any] | None = None,
) -> Generations:
    """Builds a `Generations` from the arrays of a run, of NumPy or JAX, padded as they are on the device.

    Texts are decoded here. Steps in which nothing happened any more (all texts had ended, or the run was interrupted)
    are left out. Fields are those of `Generations`; what differs is told here.

    Args:
        prompt: the prompt as text.
        prompt_ids: its token ids.
        decode: token ids -> text, of a tokenizer.
        tokens: generated token ids, padded.
        length: how many of them are real.
        finished: whether each text ended by itself.
        log_prob: as in `Generations`.
        log_weights: final, unnormalised.
        scores: `[N, max_steps]`.
        boundaries: `[N, max_steps]`.
        num_steps: steps of each text.
        ancestors: `[max_steps - 1, N]`; identity where nothing was resampled.
        ess: `[max_steps]`.
        resampled: `[max_steps]`, the first False.
        log_weight_path: `[max_steps, N]`.
        finished_path: `[max_steps, N]`.
        method: name of the method.
        tokens_used: generated, by dropped particles too.
        scorer_tokens_used: fed to scorers.
        seconds: wall time.
        log_evidence: NaN if the method estimates none.
        log_evidence_se: the standard error, if the method has one; None for the single-run estimate where that holds.
        standard_error_note: why there is none; empty to have it found out here.
        scheme: name of the resampling scheme, such as `"multinomial"`.
        status: OR of `core.Status` bits.
        num_failed: scores that failed.
        first_bad_step: first step with a status bit, -1 if none.
        causes: what failed, and how often.
        settings: plain values.
        records: further arrays by name.

    Raises:
        ValueError: the arrays do not agree on the number of particles or steps.
    """
    final = np.asarray(log_weights)
    done = np.asarray(finished_path, bool)
    moved = np.asarray(resampled, bool)
    steps = _steps_to_keep(done, moved, np.asarray(num_steps))
    parents = np.asarray(ancestors, np.int32).reshape(-1, done.shape[1])
    _check_shapes(np.asarray(tokens), final, done, moved, parents, np.asarray(scores))
    note = standard_error_note
    error = log_evidence_se
    if error is None and not note:
        error, note = _single_run_error(final, parents, moved, scheme, float(log_evidence), int(status))
    lengths = np.asarray(length).tolist()
    ids = tuple(np.asarray(row[:count], np.int32) for row, count in zip(np.asarray(tokens), lengths, strict=True))
    return Generations(
        prompt=prompt,
        prompt_ids=np.asarray(prompt_ids, np.int32).reshape(-1),
        texts=tuple(decode(row.tolist()) for row in ids),
        token_ids=ids,
        finished=np.asarray(finished, bool),
        log_prob=np.asarray(log_prob),
        log_weights=final,
        scores=np.asarray(scores)[:, :steps],
        boundaries=np.asarray(boundaries)[:, :steps],
        num_steps=np.asarray(num_steps, np.int32),
        ancestors=parents[: steps - 1],
        ess=np.asarray(ess)[:steps],
        resampled=moved[:steps],
        log_weight_path=np.asarray(log_weight_path)[:steps],
        finished_path=done[:steps],
        log_evidence=float(log_evidence),
        log_evidence_se=float("nan") if error is None else float(error),
        standard_error_note=note,
        tokens_used=int(tokens_used),
        scorer_tokens_used=int(scorer_tokens_used),
        seconds=float(seconds),
        status=int(status),
        method=method,
        scheme=scheme,
        num_failed=int(num_failed),
        first_bad_step=int(first_bad_step),
        causes=dict(causes or {}),
        settings=dict(settings or {}),
        records={name: np.asarray(values) for name, values in (records or {}).items()},
    )


def single_run_variance(
    log_weights: Float[np.ndarray, " n"], ancestors: Int[np.ndarray, "t_less_1 n"], resampled: Bool[np.ndarray, " t"]
) -> tuple[float, int]:
    """The estimated variance of the log evidence under multinomial resampling, and how many first particles are left.

    The estimate can be negative, being unbiased (after multiplication by the squared evidence).
    """
    weights = normalise(log_weights)
    count = weights.size
    eve = np.arange(count)
    for parents in ancestors:
        eve = eve[parents]
    shares = np.bincount(eve, weights, minlength=count)
    factor = (int(np.sum(resampled)) + 1) * np.log1p(1 / (count - 1)) if count > 1 else np.nan
    # 1 - exp(factor) (1 - s), written without the cancellation at small variances.
    squares = float(np.sum(shares**2))
    return float(squares * np.exp(factor) - np.expm1(factor)), int(np.sum(shares > 0))


def _single_run_error(
    log_weights: np.ndarray, ancestors: np.ndarray, resampled: np.ndarray, scheme: str, evidence: float, status: int
) -> tuple[float, str]:
    """The standard error, or NaN with the reason."""
    if is_fatal(np.uint32(status)) or np.isneginf(evidence):
        return np.nan, NO_ERROR["flags"]
    if np.isnan(evidence):
        return np.nan, NO_ERROR["none"]
    if scheme != "multinomial" and np.any(resampled):
        return np.nan, NO_ERROR["scheme"]
    variance, eves = single_run_variance(log_weights, ancestors, resampled)
    if eves < FEWEST_EVES:
        return np.nan, NO_ERROR["eves"]
    return (np.nan, NO_ERROR["negative"]) if not variance >= 0 else (float(np.sqrt(variance)), "")


def _steps_to_keep(finished: np.ndarray, resampled: np.ndarray, num_steps: np.ndarray) -> int:
    """Up to the step after which all texts had ended or the run stopped, or the last resampling if that came later."""
    over = np.flatnonzero(np.all(finished, axis=1))
    # A text that has not ended took part in every step there was.
    last = int(over[0]) if over.size else int(np.max(num_steps, initial=1)) - 1
    moves = np.flatnonzero(resampled)
    return min(max(last, int(moves[-1]) if moves.size else 0, 0) + 1, finished.shape[0])


def _check_shapes(
    tokens: np.ndarray,
    log_weights: np.ndarray,
    finished: np.ndarray,
    resampled: np.ndarray,
    ancestors: np.ndarray,
    scores: np.ndarray,
) -> None:
    count, steps = log_weights.shape[0], finished.shape[0]
    if tokens.shape[0] != count or scores.shape[0] != count:
        raise ValueError(f"`tokens` {tokens.shape} and `scores` {scores.shape} need the {count} rows of `log_weights`")
    if resampled.shape[0] != steps or ancestors.shape[0] != steps - 1:
        raise ValueError(
            f"`resampled` {resampled.shape} and `ancestors` {ancestors.shape} need {steps} and {steps - 1} rows, for "
            f"`finished_path` has {steps} steps"
        )
