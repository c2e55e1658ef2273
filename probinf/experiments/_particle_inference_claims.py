"""The claims of the experiment on particle inference: a pure function of its metrics."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from probinf.experiments._claims import Claim, below
from probinf.experiments._particle_inference_curves import CONFIDENCE_Z
from probinf.experiments._particle_inference_raters import RATINGS

PURI = "Puri et al. 2025"
FEW, MANY = 8, 32  # the filter's N and best-of-N's, of the headline
PRECISION = 0.05  # the largest standard error, as a part of its number, with which a law is worth claiming
FOURFOLD = 0.9  # the accuracy from which on a factor of 4 is claimed: it grows with accuracy, from 1 at small ones


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the runs say, each with its rule."""
    toy = metrics["toy"]
    rated = [metrics[name] for name in RATINGS if name in metrics]
    # One N is no curve.
    curved = [found for found in rated if "odds" in found["factors"]]
    return (
        _closed(toy),
        _unbiased(toy["independent"]),
        _limits(toy["independent"]),
        _reference(toy),
        _toy_headline(toy["independent"]),
        _early_pruning(toy["persistent"]),
        _finished(toy["finishing"]),
        *(_headline(found) for found in rated),
        *(_factor(found) for found in curved),
        *(_fourfold(found) for found in curved if _reaches(found, FOURFOLD)),
        *(_targets(found) for found in rated if found["targets"]),
        *(_evidence(metrics["evidence"]) if "evidence" in metrics else ()),
    )


def _closed(toy: Mapping[str, Any]) -> Claim:
    both = [toy[name]["closed"] for name in ("independent", "persistent")]
    sizes = toy["independent"]["particles"]
    values = toy["independent"]["exact"]
    return Claim(
        "On the chain of coins, coverage and best-of-N are what their closed forms say.",
        f"at N = {sizes[-1]}: coverage {values['covered'][-1]:.4f}, best-of-N {values['chosen'][-1]:.4f}, exact "
        "(binomial and order statistics; Brown et al. 2024)",
        f"coverage {_mean(toy['independent'], 'best-of-n', 'covered')}, best-of-N "
        f"{_mean(toy['independent'], 'best-of-n', 'chosen')}",
        f"{toy['independent']['num_problems']:,} problems, N = {', '.join(map(str, sizes))}, two kinds of noise; "
        f"largest |z| {max(_or_nan(one['worst']) for one in both):.2f} (bound {both[0]['bound']:.2f} each)",
        all(bool(one["holds"]) for one in both),
    )


def _unbiased(found: Mapping[str, Any]) -> Claim:
    evidence = found["evidence"]
    return Claim(
        "The filters' evidence, and the part of it that right solutions have, are unbiased for all three targets.",
        "Z and Z P(right) by a recursion of two numbers, exact",
        "relative errors of Z: "
        + ", ".join(
            f"{name} {_or_nan(evidence['mean'][2 * i]):+.4f} ± {_or_nan(evidence['standard_error'][2 * i]):.4f}"
            for i, name in enumerate(("odds", "prob", "ratio"))
        ),
        f"N = {found['particles'][-1]}, {found['num_problems']:,} problems; {_precise_rule(evidence)}",
        _precise(evidence),
    )


def _limits(found: Mapping[str, Any]) -> Claim:
    size, sampled = found["particles"][-1], found["sampled"]
    within = [
        below(abs(_or_nan(one["mean"][0])), one["bound"] * _or_nan(one["standard_error"][0]) + 1 / size)
        and below(one["standard_error"][0], 1 / size)
        for one in sampled.values()
    ]
    return Claim(
        "Odds, probability and ratio weights have different targets, with three different accuracies.",
        "a draw is right with probability "
        + ", ".join(f"{value:.4f} ({name})" for name, value in found["limits"].items())
        + ", exact",
        ", ".join(f"{found['cells'][name][-1]['sampled']['mean']:.4f} ({name})" for name in found["limits"]),
        f"weight of right solutions at N = {size}, {found['num_problems']:,} problems; differences, paired by problem, "
        + ", ".join(f"{_or_nan(one['mean'][0]):+.4f}" for one in sampled.values())
        + f", within {next(iter(sampled.values()))['bound']:.1f} standard errors and 1/N for the bias of the ratio; "
        f"standard errors at most {_largest(sampled.values()):.4f} (bound 1/N)",
        all(within),
    )


def _reference(toy: Mapping[str, Any]) -> Claim:
    both = [toy[name]["reference"] for name in ("independent", "persistent")]
    return Claim(
        "All cells of the table agree with a simulation written apart from this library.",
        "4,000 problems, three digits, best-of-N, three filters and beam search",
        f"{sum(one['count'] for one in both)} cells, largest |z| {max(_or_nan(one['worst']) for one in both):.2f}",
        f"both simulations' errors counted; bounds {_or_nan(both[0]['bound']):.2f} and {_or_nan(both[1]['bound']):.2f}",
        all(below(one["worst"], _or_nan(one["bound"])) for one in both),
    )


def _toy_headline(found: Mapping[str, Any]) -> Claim:
    versus = found["versus"]
    gain = versus["best_of_n"]
    ratio = versus["many"] / versus["few"]
    return Claim(
        f"On the chain of coins {versus['few']} particles do better than best-of-{versus['many']}.",
        f"4 to 16 times better scaling rate ({PURI}, on mathematics)",
        f"{versus['accuracy']:.3f} against {versus['exact']:.3f}, with {ratio:g} times fewer tokens",
        f"filter with odds, highest last reward, against the closed form; {_rule(gain)}, difference "
        f"{_or_nan(gain['mean'][0]):+.4f} ± {_or_nan(gain['standard_error'][0]):.4f}",
        _or_nan(gain["mean"][0]) > gain["bound"] * _or_nan(gain["standard_error"][0]),
    )


def _early_pruning(found: Mapping[str, Any]) -> Claim:
    versus = found["versus"]
    few, many = versus["beam_few"], versus["beam_many"]
    return Claim(
        "Where the reward's errors persist, beam search is ahead with few particles and the filter with many.",
        "beam search follows an imperfect reward too closely; the filter keeps hedging (" + PURI + ")",
        f"filter less beam: {_or_nan(few['mean'][0]):+.3f} at N = {versus['few']}, {_or_nan(many['mean'][0]):+.3f} at "
        f"N = {versus['many']}",
        f"the same problems for both; {-_z(few):.1f} and {_z(many):.1f} standard errors (bound {few['bound']:.1f})",
        -_z(few) > few["bound"] and _z(many) > many["bound"],
    )


def _finished(found: Mapping[str, Any]) -> Claim:
    right, wrong = found["absorbing"], found["weighted_again"]
    own, again = (_or_nan(one["cells"]["sampled"]["mean"]) for one in (right, wrong))
    return Claim(
        "Finished solutions must be absorbing: weighted again at each later step they give another answer.",
        f"{found['limit']:.4f}, exact; its_hub weights finished particles again (its issue 208)",
        f"a draw is right with probability {own:.4f} (absorbing), {again:.4f} (weighted again); median evidence off by "
        f"exp({_or_nan(wrong['median_log_ratio']):.1f}) when weighted again",
        f"N = {found['num_particles']}, {found['num_problems']:,} problems; absorbing: evidence unbiased, "
        f"{_precise_rule(right['evidence'])}, and accuracy within 1/N; weighted again: off by more than 1/N",
        _precise(right["evidence"])
        and below(abs(own - found["limit"]), 1 / found["num_particles"])
        and abs(again - found["limit"]) > 1 / found["num_particles"],
    )


def _headline(found: Mapping[str, Any]) -> Claim:
    versus = found["versus"]
    own = versus["differences"]["odds"]
    ranked = ", ".join(f"{name} {_or_nan(value):.3f}" for name, value in versus["baselines"].items())
    return Claim(
        f"Rated by {found['short']}, the filter that resamples at every step is, with {versus['few']} particles, at "
        f"least as accurate as best-of-{versus['many']}.",
        f"4 to 16 times better scaling rate ({PURI})",
        f"{_or_nan(versus['filters']['odds']):.3f} against {_or_nan(versus['baselines'][versus['ranked_by']]):.3f} of "
        f"problems right in every step; the filter that resamples rarely, at ESS < N/2: "
        f"{_or_nan(versus['filters']['rarely']):.3f}",
        f"{found['num_problems']} problems, the same for both, best-of-{versus['many']} averaged over all choices and "
        f"ranked in the best of four ways ({ranked}), the filter's solutions by the {versus['aggregate']} of rates; "
        f"difference {_interval(own)}, rarely {_interval(versus['differences']['rarely'])}; holds if none of the first "
        "interval is negative",
        _low(own) >= 0,
    )


def _reaches(found: Mapping[str, Any], level: float) -> bool:
    """Whether filter and best-of-N both surely reach an accuracy."""
    highest = found["factors"]["odds"]["generated"]["highest"]
    return highest is not None and highest["level"] >= level


def _factor(found: Mapping[str, Any]) -> Claim:
    both = found["factors"]["odds"]
    factors = [both[cost]["highest"] for cost in ("generated", "all")]
    known = all(factor is not None for factor in factors)
    others = ", ".join(
        f"{times(factor)} at {factor['level']:g}"
        for factor in both["generated"]["levels"]
        if factor["sure"] and not factor["at_least"]
    )
    return Claim(
        f"Rated by {found['short']}, the filter that resamples at every step needs fewer tokens than best-of-N for the "
        "same accuracy.",
        f"4 to 16 times ({PURI})",
        f"at accuracy {factors[0]['level']:g} {times(factors[0])} times fewer; {times(factors[1])} with the rater's own"
        if known
        else f"no accuracy of those fixed beforehand is reached by both, with best-of-{found['most']}",
        f"curves read linearly in log tokens at the highest accuracy, of those fixed beforehand, that both reach in 39 "
        f"of 40 bootstrap samples of {found['num_problems']} problems, with 95 % intervals; of those, above the "
        f"filter's smallest run: {others or 'none'}; holds if both intervals are above 1",
        known and all(_or_nan(factor["low"]) > 1 for factor in factors if factor is not None),
    )


def _fourfold(found: Mapping[str, Any]) -> Claim:
    factor = found["factors"]["odds"]["generated"]["highest"]
    return Claim(
        f"Rated by {found['short']}, it needs at least 4 times fewer tokens for an accuracy of {factor['level']:g}.",
        f"4 to 16 times ({PURI})",
        f"{times(factor)} times",
        "95 % interval of the claim above; holds if all of it is at least 4",
        _or_nan(factor["low"]) >= 4,
    )


def times(factor: Mapping[str, Any]) -> str:
    """A factor with its interval, in words."""
    high = "∞" if factor["high"] is None else f"{factor['high']:.1f}"
    more = "at least " if factor["at_least"] else ""
    return f"{more}{_or_nan(factor['estimate']):.1f} ({_or_nan(factor['low']):.1f} to {high})"


def _targets(found: Mapping[str, Any]) -> Claim:
    targets = found["targets"]
    evidence = targets["evidence"]
    return Claim(
        f"Rated by {found['short']}, filters with probability and ratio weights have the evidence that independent "
        "solutions give: the mean product of all rates, and the mean last rate.",
        "the same for each problem, exact (unbiased both)",
        ", ".join(
            f"{name}: filter {_or_nan(targets['filtered'][name]):.4f}, plain mean {_or_nan(targets['plain'][name]):.4f}"
            for name in targets["plain"]
        )
        + "; a draw is right with probability "
        + ", ".join(f"{value:.3f} ({name})" for name, value in targets["sampled"].items()),
        f"N = {targets['num_particles']} against best-of-{found['most']}'s solutions, {found['num_problems']} "
        f"problems, paired; {_precise_rule(evidence)}",
        _precise(evidence),
    )


def _evidence(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    row = found["rows"][-1]
    evidence = row["evidence"]
    return (
        Claim(
            "Weights p_strong / p_weak give an evidence of exactly one.",
            "1, exact: the sum of p_strong over all texts",
            f"{_or_nan(evidence['mean'][0]):.4f} ± {_or_nan(evidence['standard_error'][0]):.4f}",
            f"mean of the evidence of {row['num_runs']:,} runs of {row['num_particles']} particles; "
            f"{_precise_rule(evidence)}",
            _precise(evidence),
        ),
    )


def _mean(found: Mapping[str, Any], method: str, reading: str) -> str:
    cell = found["cells"][method][-1][reading]
    return f"{cell['mean']:.4f} ± {cell['error']:.4f}"


def _z(found: Mapping[str, Any]) -> float:
    """Signed standardised difference."""
    error = _or_nan(found["standard_error"][0])
    return _or_nan(found["mean"][0]) / error if error else float("nan")


def _rule(found: Mapping[str, Any]) -> str:
    return f"largest |z| {_or_nan(found['worst']):.2f} (bound {found['bound']:.2f})"


def _precise(found: Mapping[str, Any]) -> bool:
    """Whether numbers agree, and would not if they were off by much: a large error agrees with anything."""
    return bool(found["holds"]) and below(_largest([found]), PRECISION)


def _precise_rule(found: Mapping[str, Any]) -> str:
    return f"{_rule(found)}, largest standard error {_largest([found]):.4f} (bound {PRECISION:g})"


def _largest(found: Iterable[Mapping[str, Any]]) -> float:
    """The largest standard error; NaN if one is missing."""
    errors = [_or_nan(error) for one in found for error in one["standard_error"]]
    return max(errors) if all(map(math.isfinite, errors)) else math.nan


def _low(found: Mapping[str, Any]) -> float:
    """The lower end of a 95 % interval."""
    return _or_nan(found["mean"][0]) - CONFIDENCE_Z * _or_nan(found["standard_error"][0])


def _interval(found: Mapping[str, Any]) -> str:
    mean, low = _or_nan(found["mean"][0]), _low(found)
    return f"{mean:+.3f} (95 % interval {low:+.3f} to {2 * mean - low:+.3f})"


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
