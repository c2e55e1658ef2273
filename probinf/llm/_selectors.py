r"""Choosing among weighted texts: pure functions on the host, in float64.

Rules of `select`, for texts $i$ with normalised weight $W_i$, step scores $r_{i,1:T_i}$ and answer $a_i$:
`"argmax"` $\arg\max_i s_i$; `"sample"` $i \sim W$; `"majority"` $\arg\max_a \#\{i : a_i = a\}$ (Wang et al. 2023,
"Self-consistency"); `"weighted"` $\arg\max_a \sum_{i: a_i = a} v_i$ with $v_i = W_i$ or $v_i = s_i$ (the latter is
weighted best-of-N: Li et al. 2023, "Making language models better reasoners with step-aware verifier"; Snell et al.
2024, "Scaling LLM test-time compute optimally"). The score $s_i$ of a text is an aggregate of its steps' scores:

- `"last"` $r_{i,T_i}$ (Snell et al. 2024);
- `"min"` $\min_t r_{i,t}$ and `"prod"` $\prod_t r_{i,t}$ (Lightman et al. 2023, "Let's verify step by step");
- `"mean"` $\frac1{T_i} \sum_t r_{i,t}$, which alone does not fall or stay with the number of steps (our addition).
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from probinf.core import PRNGKey

Answer = Hashable | None
AGGREGATES = ("last", "min", "prod", "mean")
RULES = ("argmax", "sample", "majority", "weighted")


@dataclasses.dataclass(frozen=True)
class Selection:
    """A text that was chosen.

    Attributes:
        index: its particle.
        text: the text, without the prompt.
        answer: its answer; None if it has none.
        value: what won: the score (`"argmax"`; for `"prod"` the product), the particle's weight (`"sample"`), the
            share of votes (`"majority"`), or the answer's share of all values (`"weighted"`).
    """

    index: int
    text: str
    answer: Answer
    value: float


def select(
    rule: str,
    *,
    texts: Sequence[str],
    answers: Sequence[Answer],
    log_weights: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, "n t"],
    finished: Bool[np.ndarray, " n"],
    key: PRNGKey | None = None,
    aggregate: str | None = None,
) -> Selection:
    """Chooses one text by a rule of the module's docstring.

    Texts of weight zero are never chosen and have no vote. Texts that did not finish are chosen by `"argmax"` only if
    none finished; `"sample"` draws them by their weight, as the posterior has them. For `"majority"` and `"weighted"`
    texts without an answer do not vote; if none has an answer, they are one group whose answer is None. The text that
    stands for the winning answer is its member of the largest value (weight or score). Ties: among texts the lowest
    index; among answers the larger total weight, then the lowest index of a member.

    Args:
        rule: `"argmax"`, `"sample"`, `"majority"` or `"weighted"`.
        texts: `[N]`.
        answers: answer of each text, None where there is none.
        log_weights: unnormalised.
        scores: score of the prefix after each step, NaN where there was no step.
        finished: whether each text ended by itself.
        key: PRNG key, for `"sample"` only.
        aggregate: `"last"`, `"min"`, `"prod"` or `"mean"`; for `"argmax"` None is `"last"`, for `"weighted"` None takes
            the weights as values.

    Returns:
        A `Selection`.

    Raises:
        ValueError: an unknown rule or aggregate, one that the rule has no use for, a missing or needless key, no score
            to go by, or every weight zero.
    """
    _check_arguments(rule, key, aggregate)
    weights = normalise(log_weights)
    alive = weights > 0
    if not np.any(alive):
        raise ValueError(
            "every weight is zero, so there is nothing to select: look at `.summary()` for the cause, and raise "
            "`num_particles` or mend the potential"
        )
    if key is not None:
        index = _draw(key, weights)
        return Selection(index, texts[index], answers[index], float(weights[index]))
    if rule == "argmax":
        return _best(texts, answers, scores, alive & finished if np.any(alive & finished) else alive, aggregate)
    values = weights if aggregate is None else np.maximum(_votes(scores, aggregate, alive), 0)
    votes = np.ones_like(weights) if rule == "majority" else values
    return _elect(texts, answers, weights, votes, values, alive)


def aggregate_scores(scores: Float[np.ndarray, "n t"], aggregate: str = "last") -> Float[np.ndarray, " n"]:
    """One score a text from the scores of its steps; NaN for a text without any.

    Args:
        scores: score after each step, NaN where there was no step.
        aggregate: `"last"`, `"min"`, `"prod"` (for scores that are not negative, such as probabilities) or `"mean"`.

    Returns:
        float64.

    Raises:
        ValueError: an unknown aggregate, or a product of negative scores.
    """
    _known("aggregate", aggregate, AGGREGATES)
    values = np.asarray(scores, np.float64)
    real = ~np.isnan(values)
    some = real.any(axis=1)
    if values.shape[1] == 0:
        return np.full(values.shape[0], np.nan)
    if aggregate == "last":
        found = np.max(np.where(real, np.arange(values.shape[1]), 0), axis=1)
        picked = values[np.arange(values.shape[0]), found]
    elif aggregate == "min":
        picked = np.min(np.where(real, values, np.inf), axis=1)
    elif aggregate == "prod":
        _refuse_negative(values)
        picked = np.prod(np.where(real, values, 1), axis=1)
    else:
        picked = np.sum(np.where(real, values, 0), axis=1) / np.maximum(real.sum(axis=1), 1)
    return np.where(some, picked, np.nan)


def answers_of(
    texts: Sequence[str], extract: Callable[[str], Answer] | None, usable: Bool[np.ndarray, " n"]
) -> list[Answer]:
    """The answer of every text, None where it is not usable.

    Raises:
        TypeError: an answer cannot be hashed.
    """
    found: list[Answer] = []
    for text, use in zip(texts, usable, strict=True):
        answer = (text if extract is None else extract(text)) if use else None
        try:
            hash(answer)
        except TypeError as error:
            raise TypeError(
                f"`extract` gave {answer!r}, which cannot be hashed, so that equal answers cannot be counted: return a "
                "string, a number, a tuple or None"
            ) from error
        found.append(answer)
    return found


def probabilities(answers: Sequence[Answer], weights: Float[np.ndarray, " n"]) -> dict[Answer, float]:
    """Sums of the weights of equal answers, the largest first; answers of weight zero are left out."""
    groups: dict[Answer, list[float]] = {}
    for answer, weight in zip(answers, weights.tolist(), strict=True):
        if weight > 0:
            groups.setdefault(answer, []).append(weight)
    totals = {answer: math.fsum(members) for answer, members in groups.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def normalise(log_weights: Any) -> Float[np.ndarray, " n"]:
    """Weights that sum to 1 in float64, or all 0 when every log weight is -inf (NaN counts as -inf)."""
    logs = np.nan_to_num(np.asarray(log_weights, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    top = np.max(logs, initial=-np.inf)
    relative = np.exp(logs - top) if np.isfinite(top) else np.asarray(logs == np.inf, np.float64)
    return relative / max(float(np.sum(relative)), np.finfo(np.float64).tiny)


def _best(
    texts: Sequence[str],
    answers: Sequence[Answer],
    scores: Float[np.ndarray, "n t"],
    eligible: Bool[np.ndarray, " n"],
    aggregate: str | None,
) -> Selection:
    ranks = np.where(eligible, _ranks(scores, aggregate or "last", needed=eligible), -np.inf)
    index = int(np.argmax(ranks))
    value = float(aggregate_scores(scores[index : index + 1], aggregate or "last")[0])
    return Selection(index, texts[index], answers[index], value)


def _elect(
    texts: Sequence[str],
    answers: Sequence[Answer],
    weights: Float[np.ndarray, " n"],
    votes: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    alive: Bool[np.ndarray, " n"],
) -> Selection:
    """The answer of the most votes, and its member of the largest value."""
    has_answer = np.asarray([answer is not None for answer in answers], bool)
    voters = alive & has_answer if np.any(alive & has_answer) else alive
    groups: dict[Answer, list[int]] = {}
    for i in np.flatnonzero(voters).tolist():
        groups.setdefault(answers[i], []).append(i)

    # Correctly rounded sums, so that the order of the particles decides nothing but ties.
    def rank(members: list[int]) -> tuple[float, float, int]:
        return math.fsum(votes[members]), math.fsum(weights[members]), -members[0]

    winners = max(groups.values(), key=rank)
    index = max(winners, key=lambda i: (values[i], -i))
    total = math.fsum(votes[voters])
    share = math.fsum(votes[winners]) / total if total > 0 else 0.0
    return Selection(index, texts[index], answers[index], share)


def _ranks(
    scores: Float[np.ndarray, "n t"], aggregate: str, *, needed: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Aggregated scores, a missing one as -inf; products up to a common factor, so that long ones do not underflow."""
    values = aggregate_scores(scores, aggregate)
    if not np.any(needed & ~np.isnan(values)):
        raise ValueError(
            "no text has a score, for this run had no scorer: select by `rule='sample'`, `'majority'` or `'weighted'` "
            "without `aggregate`, or pass `scorer=` to the method"
        )
    if aggregate == "prod":
        with np.errstate(divide="ignore"):
            logs = np.nansum(np.log(np.asarray(scores, np.float64)), axis=1)
        top = np.max(np.where(needed & ~np.isnan(values), logs, -np.inf))
        values = np.where(np.isnan(values), np.nan, np.exp(np.minimum(logs - top, 0)) if np.isfinite(top) else 0.0)
    return np.where(np.isnan(values), -np.inf, values)


def _votes(scores: Float[np.ndarray, "n t"], aggregate: str, alive: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _refuse_negative(scores[alive])
    return _ranks(scores, aggregate, needed=alive)


def _draw(key: PRNGKey, weights: Float[np.ndarray, " n"]) -> int:
    total = np.cumsum(weights)
    uniform = float(jax.random.uniform(key))  # below 1, so that a weight of zero is never met
    return int(np.searchsorted(total, uniform * total[-1], side="right"))


def _check_arguments(rule: str, key: PRNGKey | None, aggregate: str | None) -> None:
    _known("rule", rule, RULES)
    if aggregate is not None:
        _known("aggregate", aggregate, AGGREGATES)
        if rule in ("sample", "majority"):
            raise ValueError(f"`aggregate` = {aggregate!r} has no meaning for rule {rule!r}, which uses no scores")
    if (rule == "sample") != (key is not None):
        mend = "pass `key=jax.random.key(0)`" if key is None else "only 'sample' draws: leave `key` out"
        raise ValueError(f"`key` is {'missing' if key is None else 'given'} for rule {rule!r}: {mend}")


def _known(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}")


def _refuse_negative(scores: Float[np.ndarray, "n t"]) -> None:
    if np.any(scores < 0):
        raise ValueError(
            f"`scores` go down to {np.nanmin(scores):.4g}, and products and votes need scores that are not negative, "
            "such as probabilities: use another `aggregate`, or `rule='argmax'`"
        )
