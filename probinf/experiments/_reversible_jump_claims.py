"""The claims of the experiment on reversible jump: a pure function of its metrics."""

from collections.abc import Mapping
from typing import Any

from probinf.experiments._claims import Claim

LEAST_RATIO = 50.0


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the runs say, each with its rule."""
    return (
        _selection(metrics["selection"]),
        _changes(metrics["changes"]),
        _mixture(metrics["mixture"]),
        _speed(metrics["speed"]),
    )


def _selection(found: Mapping[str, Any]) -> Claim:
    first = len(found["names"])
    return Claim(
        "Variable selection by births and deaths has the exact probabilities of predictors and of models.",
        f"all {found['num_models']:,} models enumerated; the best has {found['exact'][first]:.4f}",
        f"the best model {_number(found, first)}",
        f"{_chains(found)}; inclusion probabilities and the {len(found['best'])} best models, {_rule(found)}",
        bool(found["holds"]),
    )


def _changes(found: Mapping[str, Any]) -> Claim:
    best = max(range(len(found["exact"]) - len(found["years"])), key=lambda k: found["exact"][k])
    return Claim(
        "Splits and merges of segments give the exact number of change points, and the exact rates.",
        f"recursion over segments; p({best} changes) = {found['exact'][best]:.4f}",
        f"{_number(found, best)}",
        f"{_chains(found)}; numbers of changes and rates in {len(found['years'])} years, {_rule(found)}",
        bool(found["holds"]),
    )


def _mixture(found: Mapping[str, Any]) -> Claim:
    best = max(range(len(found["exact"])), key=lambda k: found["exact"][k])
    return Claim(
        "Reversible jump and the evidences of tempered SMC agree on the number of components of a mixture.",
        f"tempered SMC: p({best + 1} components) = {_or_nan(found['exact'][best]):.3f} ± "
        f"{_or_nan(found['exact_error'][best]):.3f}",
        f"{_number(found, best)}",
        f"{_chains(found)}; {found['num_replicates']} runs of {found['num_particles']:,} particles for each number; "
        f"{_rule(found)} by the errors of both",
        bool(found["holds"]),
    )


def _speed(found: Mapping[str, Any]) -> Claim:
    ratios = [_or_nan(row["ratio"]) for row in found["rows"]]
    return Claim(
        f"{found['num_chains']} chains in one program make at least {LEAST_RATIO:g} times the steps of one chain whose "
        "compiled step is called from Python.",
        f"at least {LEAST_RATIO:g} times",
        ", ".join(f"{row['name']} {ratio:.0f}" for row, ratio in zip(found["rows"], ratios, strict=True)),
        f"medians of {found['num_rounds']} rounds of {found['num_steps']:,} steps, each way in turn, positions kept, "
        "compilation left out; every showcase must reach it",
        all(ratio >= LEAST_RATIO for ratio in ratios),
    )


def _chains(found: Mapping[str, Any]) -> str:
    return f"{found['num_chains']} chains of {found['num_steps']:,} steps"


def _number(found: Mapping[str, Any], index: int) -> str:
    return f"{_or_nan(found['mean'][index]):.4f} ± {_or_nan(found['standard_error'][index]):.4f}"


def _rule(found: Mapping[str, Any]) -> str:
    return f"{sum(found['judged'])} judged, largest |z| {_or_nan(found['worst']):.2f} (bound {found['bound']:.2f})"


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
