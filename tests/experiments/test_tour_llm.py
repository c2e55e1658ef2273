"""The tour's language models: claims follow what was measured, and planted bugs break them.

Planted bugs: an evidence that is 10 % too small (a filter that forgets to bank a resampling), one whose error is so
large that it agrees with anything, a filter no better than the best text, than the weighted vote or than the vote, a
run that did not end, NaN. The claim on evidence has a false-alarm rate of 1e-6 for normal means.
"""

import jax
import numpy as np

from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _tour_llm as tour
from probinf.experiments._page import plain
from probinf.llm import GenerationsBatch
from tests.llm._runs import texts

PROMPTS = chains.draw_task(jax.random.key(0), 64).prompts
ANSWERS = [str(i % 8) for i in range(64)]
WRONG = ["8"] * 64
TASK = chains.Task(PROMPTS, tuple(ANSWERS))


def batch(given, *, log_evidence=0.0):
    """A filter's runs, one problem each; the texts `1;` and so on come to the answer before the last `;`."""
    logs = np.broadcast_to(log_evidence, len(given))
    members = (
        texts(weights=[3, 1], answers=[answer, "9"], log_evidence=float(log), scorer_tokens_used=5)
        for answer, log in zip(given, logs, strict=True)
    )
    return GenerationsBatch(tuple(members))


def whole(best=WRONG, votes=WRONG):
    """Four texts of each problem: the first is rated best, two others agree, and outweigh it together.

    The best is then `best`; a weighted vote and a plain one go to `votes`.
    """
    members = (
        texts(weights=[1] * 4, answers=[first, other, other, "9"], scores=[0.5, 0.4, 0.4, 0.1], scorer_tokens_used=35)
        for first, other in zip(best, votes, strict=True)
    )
    return GenerationsBatch(tuple(members))


def measured(*, scale=1.0, shape=6.0, filtered=ANSWERS, size=4, **others):
    rng = np.random.default_rng(0)
    # Mean exactly `scale`, with the skewness of evidence estimates.
    estimates = rng.gamma(shape, scale / shape, (4, 64))
    estimates *= scale / estimates.mean()
    runs = [batch(filtered, log_evidence=np.log(row)) for row in estimates]
    return plain(tour.measure(TASK, runs, whole(**others), size))


def holds(metrics):
    return [claim.holds for claim in tour.claims(metrics)]


def test_the_claims_of_a_good_run_hold():
    metrics = measured()
    assert holds(metrics) == [True, True]
    assert {name: row["accuracy"] for name, row in metrics["methods"].items()} == {
        "filter": 1.0,
        "best-of-n": 0.0,
        "weighted": 0.0,
        "majority": 0.0,
    }
    assert metrics["gains"]["majority"]["mean"] == 1.0
    assert metrics["evidence"]["count"] == 256


def test_costs_are_those_of_one_problem():
    methods = measured(size=2)["methods"]
    assert {name: row["tokens"] for name, row in methods.items()} == dict.fromkeys(methods, 4.0)
    # The vote asks no judge; others have read the problem, of 27 tokens, once, and half of the texts.
    read = {name: row["scorer_tokens"] for name, row in methods.items()}
    assert read == {"filter": 5.0, "best-of-n": 31.0, "weighted": 31.0, "majority": 0.0}


def test_planted_evidence_is_caught():
    assert holds(measured(scale=0.85)) == [False, True]
    assert holds(measured(scale=1.2)) == [False, True]


def test_planted_evidence_that_agrees_with_anything_is_caught():
    metrics = measured(shape=0.05)
    assert metrics["evidence"]["holds"]
    assert holds(metrics) == [False, True]


def test_planted_filter_that_is_no_better_is_caught():
    assert holds(measured(filtered=WRONG)) == [True, False]
    assert holds(measured(best=ANSWERS)) == [True, False]
    assert holds(measured(votes=ANSWERS)) == [True, False]
    some = [*ANSWERS[:3], *WRONG[3:]]
    assert holds(measured(filtered=some)) == [True, False]  # 3 of 64 gained: z = 1.7


def test_missing_numbers_uphold_nothing():
    metrics = measured()
    broken = metrics["evidence"] | {"mean": None, "standard_error": None, "worst": None, "holds": False}
    assert holds(metrics | {"evidence": broken}) == [False, True]
    gains = metrics["gains"] | {"weighted": {"mean": None, "low": None, "high": None}}
    assert holds(metrics | {"gains": gains}) == [True, False]


def test_unfinished_texts_have_no_answer():
    cut = GenerationsBatch((texts(weights=[1, 1], answers=["3", "3"], finished=[False, False]),))
    assert not tour.answered_right(cut, ["3"]).any()
