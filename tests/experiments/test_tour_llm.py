"""The tour's language models: claims follow what was measured, and planted bugs break them.

Planted bugs: an evidence that is 10 % too small (a filter that forgets to bank a resampling), a filter no better than
the vote, a run that did not end, NaN. The claim on evidence has a false-alarm rate of 1e-6 for normal means.
"""

import numpy as np
import pytest

from probinf.experiments import _tour_llm as tour
from probinf.experiments._page import plain
from probinf.llm import GenerationsBatch
from tests.llm._runs import texts


def batch(given, *, log_evidence=0.0):
    """One problem each; the texts `1;` and so on come to the answer before the last `;`."""
    logs = np.broadcast_to(log_evidence, len(given))
    members = (
        texts(weights=[3, 1], answers=[answer, "9"], log_evidence=float(log))
        for answer, log in zip(given, logs, strict=True)
    )
    return GenerationsBatch(tuple(members))


ANSWERS = [str(i % 8) for i in range(64)]
WRONG = ["8"] * 64


def measured(*, scale=1.0, filtered=ANSWERS, voted=WRONG):
    rng = np.random.default_rng(0)
    # Mean exactly `scale`, with the skewness of evidence estimates.
    estimates = rng.gamma(6.0, scale / 6.0, (4, 64))
    estimates *= scale / estimates.mean()
    runs = [batch(filtered, log_evidence=np.log(row)) for row in estimates]
    votes = batch(voted)
    metrics = {
        "num_problems": 64,
        "num_particles": 2,
        "vote": tour.measure([votes], ANSWERS),
        "filter": tour.measure(runs[:1], ANSWERS),
        "accuracy": tour.compare_accuracy(votes, runs[0], ANSWERS),
        "evidence": tour.evidence(runs),
    }
    return plain(metrics)


def holds(metrics):
    return [claim.holds for claim in tour.claims(metrics)]


def test_the_claims_of_a_good_run_hold():
    metrics = measured()
    assert holds(metrics) == [True, True]
    assert metrics["filter"]["accuracy"] == 1.0
    assert metrics["vote"]["accuracy"] == 0.0
    assert metrics["accuracy"]["z"] == pytest.approx(8.0)
    assert metrics["evidence"]["count"] == 256


def test_planted_evidence_is_caught():
    assert holds(measured(scale=0.85)) == [False, True]
    assert holds(measured(scale=1.2)) == [False, True]


def test_planted_filter_that_is_no_better_is_caught():
    assert holds(measured(filtered=WRONG)) == [True, False]
    assert holds(measured(voted=ANSWERS)) == [True, False]
    some = [*ANSWERS[:20], *WRONG[20:]]
    assert holds(measured(filtered=some)) == [True, False]  # 20 gained: z = 4.5


def test_missing_numbers_uphold_nothing():
    metrics = measured()
    broken = metrics["evidence"] | {"mean": None, "standard_error": None, "worst": None, "holds": False}
    assert holds(metrics | {"evidence": broken}) == [False, True]
    assert holds(metrics | {"accuracy": metrics["accuracy"] | {"z": None}}) == [True, False]


def test_unfinished_texts_have_no_answer():
    cut = GenerationsBatch((texts(weights=[1, 1], answers=["3", "3"], finished=[False, False]),))
    assert not tour.answered_right(cut, ["3"]).any()
