"""What `train-chains` claims: the shipped models are as good as stated; training goes the way it should."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from probinf.experiments._claims import Claim, below

PASS_AT_1 = (0.08, 0.3)
LEAST_COVERAGE = 0.7
LEAST_GREEDY = 0.95
LEAST_AUC = 0.95
MOST_CALIBRATION_ERROR = 0.05
MOST_SUMS = 0.2  # nats
CHANCE = 0.1  # a digit drawn blindly
LAST = 20  # steps whose mean is the end of a training run
ERRORS = 5.0  # standard errors by which a number must keep clear of its bound: false alarms under 1e-6


def judge_all(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claims of either scale: on training, on the shipped models and, where there are some, on the new ones."""
    found = [_learning(metrics["language"]), _carrying(metrics["reward"])]
    if len(metrics["reward"]["loss"]) >= metrics["reward"]["labels_end"] + LAST:
        found.append(_judging(metrics["reward"]))
    for part, whose in (("shipped", "The shipped"), ("trained", "This run's")):
        if part in metrics:
            found += _models(metrics[part], whose)
    return tuple(found)


def _learning(found: Mapping[str, Any]) -> Claim:
    loss, accuracy = _numbers(found["loss"]), _numbers(found["step_accuracy"])
    first, last, steps = loss[0], _end(loss), _end(accuracy)
    # Digits that are known to be digits, but not which: half the tokens at log 10, half at 0.
    blind = math.log(10) / 2
    return Claim(
        "The language model learns arithmetic, not only the form of a solution.",
        f"a solution whose digits are guessed costs {blind:.3f} nats a token, and {CHANCE:.0%} of its steps are right",
        f"loss from {first:.3f} to {last:.4f} in {loss.size} steps; {steps:.1%} of the steps right",
        f"fresh problems at every step, before the update; mean of the last {LAST}: loss below {blind:.3f} and more "
        f"than {1.5 * CHANCE:.0%} right",
        bool(below(last, blind) and steps > 1.5 * CHANCE),
    )


def _carrying(found: Mapping[str, Any]) -> Claim:
    sums = _numbers(found["sums"])
    last = _end(sums)
    return Claim(
        "The reward model learns to carry the right result on to where something has been written.",
        f"guessing costs {math.log(10):.3f} nats a result",
        f"from {sums[0]:.3f} to {last:.4f} nats in {sums.size} steps",
        f"mean of the last {LAST} steps, half of the written results drawn blindly at first: at most {MOST_SUMS}",
        below(last, MOST_SUMS),
    )


def _judging(found: Mapping[str, Any]) -> Claim:
    loss, prior = _numbers(found["loss"]), _number(found["prior_loss"])
    last = _end(loss)
    return Claim(
        "The reward model reads the steps: it beats a reward that knows only how often the t-th step is right.",
        f"{prior:.3f} nats, where small reward models that did not grow out of one that can do the sums ended",
        f"{last:.4f} nats after {loss.size} steps",
        f"mean of the last {LAST} steps, at most half of {prior:.3f}",
        below(last, prior / 2),
    )


def _models(found: Mapping[str, Any], whose: str) -> list[Claim]:
    weak, strong, reward = found["chains"], found["chains-strong"], found["chains-reward"]
    coverage, errors = _numbers(weak["coverage"]), _numbers(weak["coverage_error"])
    greedy, greedy_error = _number(strong["greedy_chains"]), _number(strong["greedy_chains_error"])
    auc, auc_error = _number(reward["auc_mean"]), _number(reward["auc_mean_error"])
    calibrated = _number(reward["calibration_error"])
    drawn, drawn_error = _number(weak["drawn"]), _number(weak["drawn_error"])
    gap = float(abs(drawn - coverage[0]) / math.hypot(drawn_error, errors[0]))
    return [
        Claim(
            f"{whose} proposer is weak, but not hopeless: few solutions are right, yet most problems have one among "
            "32.",
            f"pass@1 between {PASS_AT_1[0]:.0%} and {PASS_AT_1[1]:.0%}, coverage at 32 of {LEAST_COVERAGE:.0%} or more",
            f"pass@1 {coverage[0]:.3f} ± {errors[0]:.3f}, coverage at 32 {coverage[-1]:.3f} ± {errors[-1]:.3f}",
            f"{weak['num_problems']:,} fresh problems, exact probabilities of their solutions; {ERRORS:g} standard "
            "errors from each bound",
            bool(
                PASS_AT_1[0] + ERRORS * errors[0] < coverage[0] < PASS_AT_1[1] - ERRORS * errors[0]
                and coverage[-1] - ERRORS * errors[-1] > LEAST_COVERAGE
            ),
        ),
        Claim(
            f"{whose} proposer writes right solutions as often as its probabilities say.",
            "one number by two ways: drawn token by token with caches, and by whole texts at once",
            f"{drawn:.3f} ± {drawn_error:.3f} drawn, {coverage[0]:.3f} ± {errors[0]:.3f} computed",
            f"{gap:.2f} standard errors apart, at most {ERRORS:g}",
            bool(below(gap, ERRORS)),
        ),
        Claim(
            f"{whose} judge can do the sums.",
            f"{LEAST_GREEDY:.0%} or more of whole solutions right, taking the likeliest token",
            f"{greedy:.4f} ± {greedy_error:.4f}; sampled at temperature 1: {_numbers(strong['coverage'])[0]:.4f}",
            f"{strong['num_problems']:,} fresh problems; {ERRORS:g} standard errors above the bound",
            bool(greedy - ERRORS * greedy_error > LEAST_GREEDY),
        ),
        Claim(
            f"{whose} reward model tells right prefixes from wrong ones of the same length.",
            f"area under the curve {LEAST_AUC} or more within each step's number, where position says nothing",
            f"{auc:.4f} ± {auc_error:.4f} on average over steps, {_least(reward['auc']):.4f} at the "
            f"worst; Brier score {_number(reward['brier']):.4f} (knowing the number only: "
            f"{_number(reward['prior_brier']):.3f})",
            f"{reward['num_solutions']:,} fresh solutions of the weak proposer; {ERRORS:g} standard errors above",
            bool(auc - ERRORS * auc_error > LEAST_AUC),
        ),
        Claim(
            f"{whose} reward model is calibrated on what the proposer writes.",
            f"stated and true frequencies differ by at most {MOST_CALIBRATION_ERROR} on average",
            f"{calibrated:.4f}",
            f"ten equal bins of the stated probability; at most {MOST_CALIBRATION_ERROR}",
            bool(below(calibrated, MOST_CALIBRATION_ERROR)),
        ),
    ]


def _least(values: Any) -> float:
    return float(np.min(_numbers(values)))


def _end(values: np.ndarray) -> float:
    return float(values[-LAST:].mean())


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Any) -> np.ndarray:
    return np.asarray([_number(value) for value in values])
