r"""How good the chains models are, on problems that nobody saw before.

The solution of a problem is unique, so the probability $p_i$ that a model writes it at temperature 1 is a product of
token probabilities: pass@1 is the mean of $p_i$ and coverage at N that of $1 - (1 - p_i)^N$, without a draw. A reward
is judged within each step: that late steps are wrong more often is known without reading.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from probinf.core import PRNGKey
from probinf.experiments._train_chains_fit import solution_log_probs
from probinf.experiments._train_chains_reward import solution_values
from probinf.experiments._train_chains_samples import Samples
from probinf.llm import _chains as chains
from probinf.models.lm import LanguageModel

COVERAGE_AT = (1, 2, 4, 8, 16, 32)
GROUPS = 16  # of solutions, whose spread gives the error of what is no mean
BINS = 10
GROUP_SIZE = 512  # problems at once

_log_probs = eqx.filter_jit(solution_log_probs)
_values = eqx.filter_jit(solution_values)


def measure_language(key: PRNGKey, model: LanguageModel, count: int) -> dict[str, Any]:
    """Accuracies of a language model, each with the standard error over problems.

    Args:
        key: of the problems.
        model: gives the probabilities of the tokens.
        count: number of problems.

    Returns:
        `greedy_steps` and `greedy_chains`, shares right if the likeliest token is taken (each step after right ones);
        `coverage` at `COVERAGE_AT`, of which the first is pass@1; and the errors, as `..._error`.
    """
    problems = chains.problem_tokens(key, count)
    hits, logs = [], []
    for start in range(0, count, GROUP_SIZE):
        problem = problems[start : start + GROUP_SIZE]
        solution = chains.solution_tokens(chains.results(problem))
        log_probs = _log_probs(model, problem)
        hits.append(np.asarray(jnp.argmax(log_probs, axis=-1) == solution))
        chosen = jnp.take_along_axis(log_probs, solution[..., None], axis=-1)[..., 0]
        logs.append(np.asarray(jnp.sum(chosen, axis=-1), np.float64))
    hit, right = np.concatenate(hits), np.exp(np.concatenate(logs))
    steps, whole = hit[:, ::2].mean(axis=1), hit.all(axis=1)
    with np.errstate(divide="ignore"):  # a probability of one
        covered = -np.expm1(np.asarray(COVERAGE_AT) * np.log1p(-np.minimum(right, 1.0))[:, None])

    def error(values: np.ndarray) -> np.ndarray:
        return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(count))

    return {
        "num_problems": count,
        "greedy_steps": steps.mean(),
        "greedy_steps_error": error(steps),
        "greedy_chains": whole.mean(),
        "greedy_chains_error": error(whole.astype(float)),
        "coverage": covered.mean(axis=0),
        "coverage_error": error(covered),
    }


def measure_reward(model: LanguageModel, samples: Samples) -> dict[str, Any]:
    """How well the second head tells right prefixes from wrong ones.

    Args:
        model: with a value head.
        samples: at least `GROUPS` solutions with their truth.

    Returns:
        `auc` of each step and `auc_mean` over steps, the probability that a right prefix gets more than a wrong one of
        the same length; `accuracy` at one half; `calibration_error`, the mean distance of stated and true frequency in
        `BINS` equal bins; `bins` of those (stated, true, share); `brier`; `prior_auc` and `prior_brier`, those of a
        reward that knows the step's number and nothing else; and the errors, as `..._error`, by groups of solutions.
    """
    count = samples.problem.shape[0]
    values = np.concatenate(
        [
            np.asarray(_values(model, samples.problem[i : i + GROUP_SIZE], samples.solution[i : i + GROUP_SIZE]))
            for i in range(0, count, GROUP_SIZE)
        ]
    )[:, 1::2].astype(np.float64)
    labels = np.asarray(samples.labels)
    prior = np.broadcast_to(labels.mean(axis=0), labels.shape)
    found = _judge(values, labels)
    parts = [_judge(values[i::GROUPS], labels[i::GROUPS]) for i in range(GROUPS)]
    spread = {f"{name}_error": _error([part[name] for part in parts]) for name in ("auc_mean", "accuracy", "brier")}
    pooled = area_under_curve(prior.ravel(), labels.ravel())
    stated = 1 / (1 + np.exp(-values))
    bins = calibration(stated.ravel(), labels.ravel())
    return {
        "num_solutions": count,
        **found,
        **spread,
        "auc_pooled": area_under_curve(values.ravel(), labels.ravel()),
        "prior_auc_pooled": pooled,
        "prior_brier": float(np.mean((prior - labels) ** 2)),
        "share_right": labels.mean(axis=0),
        "calibration_error": float(np.sum(bins[:, 2] * np.abs(bins[:, 0] - bins[:, 1]))),
        "bins": bins,
    }


def _judge(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    within = np.array([area_under_curve(values[:, t], labels[:, t]) for t in range(labels.shape[1])])
    stated = 1 / (1 + np.exp(-values))
    known = within[np.isfinite(within)]
    return {
        "auc": within,
        "auc_mean": float(known.mean()) if known.size else float("nan"),
        "accuracy": float(np.mean((stated > 0.5) == labels)),
        "brier": float(np.mean((stated - labels) ** 2)),
    }


def _error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def area_under_curve(values: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """P(value of a right one > value of a wrong one), ties counted half; NaN where one of the kinds is missing."""
    right = int(labels.sum())
    wrong = labels.size - right
    if not right or not wrong:
        return float("nan")
    ranks = scipy.stats.rankdata(values)
    return float((ranks[labels].sum() - right * (right + 1) / 2) / (right * wrong))


def calibration(stated: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "bins 3"]:
    """Mean stated probability, true frequency and share of all, in equal bins of [0, 1]; empty bins are all zero."""
    place = np.minimum((stated * BINS).astype(int), BINS - 1)
    share = np.bincount(place, minlength=BINS) / stated.size
    size = np.maximum(np.bincount(place, minlength=BINS), 1)
    means = (np.bincount(place, weights=w, minlength=BINS) / size for w in (stated, labels.astype(float)))
    return np.stack([*means, share], axis=1)
