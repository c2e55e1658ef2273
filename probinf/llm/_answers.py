r"""Estimators on answers: pass@k, the best of k, and the answer posterior from distinct paths; exact, on the host."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from probinf.llm._selectors import Answer, normalise, probabilities


class AnswerPosterior(NamedTuple):
    """What distinct paths say about the answers.

    Attributes:
        probability: answer -> probability, the most probable first; they sum to 1.
        mass: answer -> total probability of its distinct paths, a lower bound of its exact probability.
        seen: total probability of all distinct paths; 1 - `seen` is what no path was drawn of.
    """

    probability: dict[Answer, float]
    mass: dict[Answer, float]
    seen: float


def pass_at_k(
    num_samples: int | np.integer | Int[np.ndarray, "*problems"],
    num_correct: int | np.integer | Int[np.ndarray, "*problems"],
    k: int,
) -> Float[np.ndarray, "*problems"]:
    r"""The unbiased estimate of the probability that one of k samples is correct, for each problem.

    $1 - \binom{n-c}{k} / \binom{n}{k} = 1 - \prod_{j=n-c+1}^{n} (1 - k/j)$ (Chen et al. 2021, "Evaluating large
    language models trained on code"); the mean over problems is the coverage of Brown et al. 2024, "Large language
    monkeys".

    Args:
        num_samples: n, how many were drawn.
        num_correct: c, how many of them are correct.
        k: at most n.

    Returns:
        float64, one a problem.

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if np.any(c < 0) or np.any(c > n):
        raise ValueError(f"`num_correct` must lie in 0 .. `num_samples`, got {num_correct} of {num_samples}")
    if not 1 <= k <= np.min(n, initial=np.iinfo(np.int64).max):
        raise ValueError(f"`k` must lie in 1 .. `num_samples` = {num_samples}, got {k}: draw more samples")
    # The product's factor is 0 for j <= k, so that n - c < k gives 1.
    order = np.arange(1, int(np.max(c, initial=0)) + 1)
    j = n[..., None] - c[..., None] + order
    factors = np.where(order <= c[..., None], np.maximum(1 - k / j, 0), 1.0)
    return np.asarray(1 - np.prod(factors, axis=-1))


def best_of_k(
    correct: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"] | Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    k: int,
) -> float:
    r"""The expected correctness of the best-scored of k texts, over all ways to pick k of the n at hand.

    With texts in the order of falling score, i = 0 .. n-1: $\sum_i c_i \binom{n-i-1}{k-1} / \binom{n}{k}$ (Singhi et
    al. 2025, "When to solve, when to verify"). Texts of equal score share their chance, as under a random choice.

    Args:
        correct: whether (or how much) each text is correct.
        scores: by which the best is chosen; higher is better; no NaN.
        k: in 1 .. n.

    Raises:
        ValueError: `k` out of range, lengths that differ, or a NaN score.
    """
    truth, values = np.asarray(correct, np.float64), np.asarray(scores, np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise ValueError(f"`correct` {truth.shape} and `scores` {values.shape} must be vectors of one length")
    if not 1 <= k <= truth.size:
        raise ValueError(f"`k` must lie in 1 .. {truth.size}, the number of texts, got {k}")
    if np.any(np.isnan(values)):
        raise ValueError(f"`scores` holds {int(np.sum(np.isnan(values)))} NaN: give such texts -inf, or leave them out")
    order = np.argsort(-values, kind="stable")
    _, group = np.unique(-values[order], return_inverse=True)
    shared = np.bincount(group, truth[order]) / np.bincount(group)
    # The ratio of chances of neighbours, C(n-i-1, k-1) / C(n-i, k-1) = (n-i-k+1) / (n-i), never overflows.
    places = np.arange(1, truth.size)
    ratios = np.maximum(truth.size - places - k + 1, 0) / (truth.size - places)
    chances = k / truth.size * np.concatenate([[1.0], np.cumprod(ratios)])
    return float(np.sum(chances * shared[group]))


def answer_posterior(
    paths: Sequence[str | Sequence[int] | Int[np.ndarray, "..."]],
    log_probs: Float[np.ndarray, " n"],
    answers: Sequence[Answer],
) -> AnswerPosterior:
    r"""The answer posterior from distinct paths: $P(a) \propto \sum_{x \text{ distinct}: a(x) = a} p(x)$.

    Each path counts once, with its exact probability, instead of by how often it was drawn. The error falls
    exponentially in the number of samples, where the squared error of frequencies falls as 1/n (Zhou et al. 2025, "A
    theoretical study on bridging internal probability and self-consistency", RPC); while `seen` is far below 1,
    frequencies can be the better estimate. The theory is about path probabilities; their public code uses
    length-normalised ones, which `log_probs` may hold too, but then `mass` and `seen` mean nothing.

    Args:
        paths: what tells paths apart: token ids or texts.
        log_probs: log probability of each path, in nats; -inf is allowed, NaN is not.
        answers: answer of each path, None where there is none.

    Returns:
        An `AnswerPosterior`; empty if no path has a positive probability.

    Raises:
        ValueError: lengths differ, a log probability is NaN or +inf, or equal paths have different probabilities or
            answers.
        TypeError: an answer cannot be hashed.
    """
    logs = np.asarray(log_probs, np.float64)
    if not len(paths) == logs.size == len(answers):
        raise ValueError(f"got {len(paths)} paths, {logs.size} log probabilities and {len(answers)} answers")
    if np.any(np.isnan(logs)) or np.any(logs == np.inf):
        raise ValueError("`log_probs` holds NaN or +inf: leave such paths out")
    first: dict[Hashable, int] = {}
    for i, path in enumerate(paths):
        name: Hashable = path if isinstance(path, str) else tuple(np.asarray(path).tolist())
        j = first.setdefault(name, i)
        if answers[i] != answers[j] or not np.isclose(logs[i], logs[j], rtol=1e-4, atol=1e-3):
            raise ValueError(
                f"paths {j} and {i} are equal, but their answers are {answers[j]!r} and {answers[i]!r} and their log "
                f"probabilities {logs[j]:.6g} and {logs[i]:.6g}: pass both as one model gave them"
            )
    chosen = np.asarray(sorted(first.values()), int)
    kept = [answers[i] for i in chosen]
    probability = probabilities(kept, normalise(logs[chosen]))
    mass = probabilities(kept, np.exp(logs[chosen]))
    return AnswerPosterior(probability, mass, float(np.sum(np.exp(logs[chosen]))))
