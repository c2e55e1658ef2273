"""The claims of the experiment on stochastic gradient samplers: a pure function of its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probinf.experiments._claims import Claim, below

LARGEST_COLD_ERROR = 0.05  # of variance over T times the exact one, that of the step
LEAST_INFLATION = 2.0
LEAST_SAVED = 0.5  # share of the noise of batches that control variates take away
LEAST_EXCESS = 0.2


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the runs say, each with its rule."""
    return (
        *_steps(metrics["steps"]),
        *_batches(metrics["batches"]),
        *_cold(metrics["cold"]),
        _preconditioned(metrics["preconditioned"]),
    )


def _steps(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    langevin, friction = found["rows"]["sgld"], found["rows"]["sghmc"]
    return (
        Claim(
            "The bias of SGLD is of the order of the step, and exactly what the recursion says.",
            "excess of the stiffest variance "
            f"{_excesses(langevin, 'exact')} at steps {_list(langevin, 'step')}: h e / (2 - h e)",
            f"{_excesses(langevin)} (± {_error(langevin):.2f} %)",
            _rule(langevin, found),
            _hold(langevin),
        ),
        Claim(
            "The bias of SGHMC with all data is of the order of the square of the step on a Gaussian.",
            f"excess {_excesses(friction, 'exact')} at steps {_list(friction, 'step')}",
            f"{_excesses(friction)} (± {_error(friction):.2f} %)",
            _rule(friction, found),
            _hold(friction),
        ),
    )


def _batches(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    plain, helped = found["rows"]["plain"], found["rows"]["control variates"]
    worst, better, whole = (_last(row, "ratio") for row in (plain[0], helped[0], plain[-1]))
    saved = 1 - (better - whole) / (worst - whole)
    return (
        Claim(
            "Batches inflate the variance by what their noise adds, which is known exactly.",
            f"stiffest variance over the posterior's {_ratios(plain, 'exact')} for batches of "
            f"{_list(plain, 'batch_size')} of {found['num_rows']}",
            _ratios(plain),
            f"{_rule(plain, found)}; the smallest batch at least {LEAST_INFLATION:g} times the posterior's",
            _hold(plain) and below(LEAST_INFLATION, worst),
        ),
        Claim(
            "Control variates at the mode take most of that noise away.",
            f"{_ratios(helped, 'exact')}, exact (Baker et al. 2019)",
            f"{_ratios(helped)}; {100 * saved:.0f} % of what the smallest batch adds",
            f"{_rule(helped, found)}; at least {100 * LEAST_SAVED:.0f} %",
            _hold(helped) and below(LEAST_SAVED, saved),
        ),
    )


def _cold(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    whole, noisy = found["rows"]["all data"], found["rows"]["batches"]
    ratios, errors = (np.array([[_or_nan(v) for v in row[name]] for row in whole]) for name in ("ratio", "ratio_error"))
    largest = float(np.max(np.abs(ratios - 1)))
    # What is beyond the bound of the Monte Carlo error, too.
    sure = float(np.max(np.abs(ratios - 1) - whole[0]["bound"] * errors))
    return (
        Claim(
            "At temperature T the variance is T times that of the posterior.",
            f"ratio 1 at T = {_list(whole, 'temperature')}; with the bias of the step {_ratios(whole, 'exact')}",
            f"{_ratios(whole)} (stiffest direction)",
            f"{_rule(whole, found)}; all ratios within {100 * LARGEST_COLD_ERROR:g} % of 1 and that many "
            f"standard errors, largest difference {100 * largest:.1f} %",
            _hold(whole) and below(sure, LARGEST_COLD_ERROR),
        ),
        Claim(
            "Batches have a temperature of their own, below which a colder posterior cannot be had.",
            f"variance over T times the posterior's {_ratios(noisy, 'exact')}, batches of {found['batch_size']}",
            _ratios(noisy),
            f"{_rule(noisy, found)}; at the lowest T at least {LEAST_INFLATION:g}",
            _hold(noisy) and below(LEAST_INFLATION, _last(noisy[-1], "ratio")),
        ),
    )


def _preconditioned(found: Mapping[str, Any]) -> Claim:
    rows = found["rows"]
    # The bias of the step is linear in it: what is left at zero.
    left = 2 * _last(rows[-1], "ratio") - _last(rows[-2], "ratio")
    return Claim(
        "A preconditioner without its correction term has a bias that no step takes away.",
        f"variance {_ratios(rows, 'exact')} at steps {_list(rows, 'step')} by quadrature; {found['limit']:.3f} as the "
        "step goes to 0; that of the target is 1",
        f"{_ratios(rows)}; {left:.3f} extrapolated",
        f"{_rule(rows, found)}; extrapolated at least {1 + LEAST_EXCESS:g}",
        _hold(rows) and below(1 + LEAST_EXCESS, left),
    )


def _hold(rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(row["holds"] for row in rows)


def _rule(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    largest = max(_or_nan(row["worst"]) for row in rows)
    return (
        f"all means and covariances against exact ones, {found['num_chains']:,} chains a run; largest |z| "
        f"{largest:.2f} (bound {rows[0]['bound']:.2f} a run)"
    )


def _last(row: Mapping[str, Any], name: str) -> float:
    """Of the stiffest direction."""
    return _or_nan(row[name][-1])


def _ratios(rows: Sequence[Mapping[str, Any]], name: str = "ratio") -> str:
    return ", ".join(f"{_last(row, name):.3f}" for row in rows)


def _excesses(rows: Sequence[Mapping[str, Any]], name: str = "ratio") -> str:
    return ", ".join(f"{100 * (_last(row, name) - 1):.1f}" for row in rows) + " %"


def _error(rows: Sequence[Mapping[str, Any]]) -> float:
    return max(100 * _last(row, "ratio_error") for row in rows)


def _list(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return ", ".join(f"{row[name]:.3g}" for row in rows)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
