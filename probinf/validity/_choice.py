r"""Choices: that what `sample` draws has the law that `law` tells, on which all enumeration rests.

Outcomes are counted; with expected numbers $n p_i$ each count must lie between exact binomial quantiles, and an outcome
of probability zero must never be drawn. Probabilities that do not sum to one fail.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from probinf.core import Choice, PRNGKey, whole_number
from probinf.validity._arguments import rate_between
from probinf.validity._enumerate import outcome_rows
from probinf.validity._report import SURE, Check


def choice_agreement(
    key: PRNGKey,
    choice: Choice,
    *inputs: Any,
    num_draws: int = 100_000,
    false_alarm_rate: float = 1e-6,
    subject: str = "",
) -> Check:
    """Whether the draws of a `Choice` have the law that it states.

    Args:
        key: PRNG key.
        choice: a `Choice`.
        *inputs: passed to `sample` and `law`.
        num_draws: how many are drawn.
        false_alarm_rate: the probability that a sound choice fails.
        subject: a name for the table.

    Returns:
        A `Check`: the smallest binomial tail probability of an outcome's count, as minus its log to base 10.
    """
    num_draws = whole_number("num_draws", num_draws, 1)
    false_alarm_rate = rate_between("false_alarm_rate", false_alarm_rate)
    outcomes, probabilities = choice.law(*inputs)
    rounding = 1e3 * float(jnp.finfo(probabilities.dtype).eps)
    stated = np.asarray(probabilities, float)
    # What is enumerated are the stated probabilities, as they are.
    improper = not (np.all(stated >= 0) and abs(stated.sum() - 1) <= rounding)
    rows = outcome_rows(outcomes, len(probabilities))
    listed, where = np.unique(rows, axis=0, return_inverse=True)
    chances = np.zeros(len(listed))
    np.add.at(chances, where.reshape(-1), np.asarray(probabilities, float))
    keys = jax.random.split(key, num_draws)
    drawn = outcome_rows(jax.jit(jax.vmap(lambda k: choice.sample(k, *inputs)))(keys), num_draws)
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    matches = np.all(found[:, None] == listed[None], axis=2)
    totals = np.zeros(len(listed))
    np.add.at(totals, np.argmax(matches, axis=1), np.where(matches.any(axis=1), counts, 0))
    chances = np.clip(chances / chances.sum(), 0, 1) if not improper else np.full(len(listed), 0.5)
    # Two-sided, shared among the outcomes.
    tails = np.minimum(
        scipy.stats.binom.cdf(totals, num_draws, chances), scipy.stats.binom.sf(totals - 1, num_draws, chances)
    )
    tails = np.where(chances > 1e-14, tails, np.where(totals > 0, 0.0, 1.0))
    impossible = improper or not np.all(matches.any(axis=1))
    smallest = 0.0 if impossible else float(np.min(tails))
    bound = -np.log10(false_alarm_rate / (2 * len(listed)))
    quantile = scipy.stats.norm.isf(false_alarm_rate / (2 * len(listed))) + SURE
    size = quantile * np.sqrt(np.max(chances * (1 - chances)) / num_draws)
    name = subject or type(choice).__name__
    with np.errstate(divide="ignore"):
        return Check(
            "draws have their law",
            f"{name}: -log10 p",
            float(-np.log10(smallest)),
            float(bound),
            false_alarm_rate,
            f"a probability off by {size:.2g}",
        )
