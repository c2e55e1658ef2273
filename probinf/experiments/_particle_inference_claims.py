"""The claims of the experiment on particle inference: a pure function of its metrics."""

from collections.abc import Mapping
from typing import Any

from probinf.experiments._claims import Claim, below

PURI = "Puri et al. 2025"
FEW, MANY = 8, 32  # the filter's N and best-of-N's, of the headline


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the runs say, each with its rule."""
    toy = metrics["toy"]
    rated = {name: metrics[name] for name in ("judge", "reward") if name in metrics}
    return (
        _closed(toy),
        _unbiased(toy["independent"]),
        _limits(toy["independent"]),
        _reference(toy),
        _toy_headline(toy["independent"]),
        _early_pruning(toy["persistent"]),
        _finished(toy["finishing"]),
        *(_headline(found) for found in rated.values()),
        # One N is no curve.
        *(_factor(found) for found in rated.values() if len(found["curves"]["odds"]["particles"]) > 1),
        *(_targets(found) for found in rated.values() if found["targets"]),
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
        f"N = {found['particles'][-1]}, {found['num_problems']:,} problems; {_rule(evidence)}",
        bool(evidence["holds"]),
    )


def _limits(found: Mapping[str, Any]) -> Claim:
    size, sampled = found["particles"][-1], found["sampled"]
    within = [
        below(abs(_or_nan(one["mean"][0])), one["bound"] * _or_nan(one["standard_error"][0]) + 1 / size)
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
        + f", within {next(iter(sampled.values()))['bound']:.1f} standard errors and 1/N for the bias of the ratio",
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
        f"{_rule(right['evidence'])}, and accuracy within 1/N; weighted again: off by more than 1/N",
        bool(right["evidence"]["holds"])
        and below(abs(own - found["limit"]), 1 / found["num_particles"])
        and abs(again - found["limit"]) > 1 / found["num_particles"],
    )


def _headline(found: Mapping[str, Any]) -> Claim:
    versus = found["versus"]
    gain = versus["difference"]
    mean, error = _or_nan(gain["mean"][0]), _or_nan(gain["standard_error"][0])
    return Claim(
        f"Rated by {found['short']}, the filter with {versus['few']} particles is at least as accurate as "
        f"best-of-{versus['many']}.",
        f"4 to 16 times better scaling rate ({PURI})",
        f"{versus['filter']:.3f} against {versus['baseline']:.3f} of problems right in every step",
        f"{found['num_problems']} problems, the same for both, best-of-{versus['many']} averaged over all choices; "
        f"difference {mean:+.3f}, 95 % interval {mean - 1.96 * error:+.3f} to {mean + 1.96 * error:+.3f}; holds if "
        "none of it is negative",
        mean - 1.96 * error >= 0,
    )


def _factor(found: Mapping[str, Any]) -> Claim:
    factor = found["factors"]["odds"]["whole"]
    value, low, high = (_or_nan(factor[name]) for name in ("estimate", "low", "high"))
    more = "at least " if factor["at_least"] else ""
    return Claim(
        f"Rated by {found['short']}, the filter reaches the accuracy of best-of-{found['most']} with at least 4 times "
        "fewer tokens.",
        f"4 to 16 times ({PURI})",
        f"{more}{value:.1f} times, 95 % interval {low:.1f} to {high:.1f}",
        f"tokens at accuracy {factor['level']:.3f}, curves read linearly in log tokens, bootstrap over "
        f"{found['num_problems']} problems; holds if all of the interval is at least 4",
        low >= 4,
    )


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
        f"problems, paired; {_rule(evidence)}",
        bool(evidence["holds"]),
    )


def _evidence(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    row = found["rows"][-1]
    evidence = row["evidence"]
    return (
        Claim(
            "Weights p_strong / p_weak give an evidence of exactly one.",
            "1, exact: the sum of p_strong over all texts",
            f"{_or_nan(evidence['mean'][0]):.4f} ± {_or_nan(evidence['standard_error'][0]):.4f}",
            f"mean of the evidence of {row['num_runs']:,} runs of {row['num_particles']} particles; {_rule(evidence)}",
            bool(evidence["holds"]),
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


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
