"""The claims of the experiment on log-Bessel functions: a pure function of its metrics."""

import math
from collections.abc import Mapping
from typing import Any

from probinf.experiments._claims import Claim, below
from probinf.experiments._log_bessel_page import or_nan

SOURCE = "Plesner, Sørensen and Hauberg 2024"
DOUBLE, SINGLE = 4e-15, 1.2e-6  # scaled errors of values
SMALL = 1e-14  # relative error of log I_0
SLOPES = 1e-13
CONCENTRATION, DENSITY = 1e-12, 1e-9
FEWEST_MISSES = 0.35  # of SciPy
LEAST_SPEED = {"I": 1.5, "K": 0.55}  # SciPy's time over ours


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the measurements say, each with its rule; nothing but the timing is random."""
    return (
        *_values(metrics["accuracy"]),
        _slopes(metrics["derivatives"]),
        *_fits(metrics["fits"]),
        _features(metrics["features"]),
        _speed(metrics["speed"]),
    )


def _values(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    double = [found["plane"]["probinf, float64"][name] for name in ("I", "K")] + list(found["box"].values())
    single = [found["plane"]["probinf, float32"][name] for name in ("I", "K")]
    points = f"{found['num_plane']:,} + {found['num_box']:,} random pairs, mpmath at 40 digits"
    fails = found["scipy_fails"]
    small, scipy_small = (or_nan(found["small"][name]["largest"]) for name in ("probinf, float64", "SciPy"))
    return (
        Claim(
            "Log I and log K are right to machine precision in float64, without over- or underflow.",
            f"errors of the order of machine precision, no under- or overflow ({SOURCE}, abstract)",
            f"largest scaled error {_largest(double):.1e}, "
            + ("all values finite" if _all_finite(double) else "some values not finite"),
            f"{points}, v up to 1e6, x from 1e-300 to 1e300; at most {DOUBLE:g}",
            below(_largest(double), DOUBLE) and _all_finite(double),
        ),
        Claim(
            "In float32 they are right to single precision.",
            f"errors of the order of machine precision ({SOURCE}, abstract)",
            f"largest scaled error {_largest(single):.1e}",
            f"{found['num_plane']:,} pairs that float32 holds; at most {SINGLE:g}",
            below(_largest(single), SINGLE) and _all_finite(single),
        ),
        Claim(
            "SciPy has no value for a third of ordinary pairs.",
            "SciPy under- and overflows; 37 % of such pairs in our notes",
            f"{fails['I']:.1%} of ive and {fails['K']:.1%} of kve are not finite after the logarithm",
            f"{found['num_pairs']:,} pairs with v = 10^U(-1, 5), x = 10^U(-3, 6); more than {FEWEST_MISSES:.0%}",
            min(fails.values()) > FEWEST_MISSES,
        ),
        Claim(
            "Log I of order 0 keeps its relative accuracy where it goes to zero; the logarithm of SciPy's does not.",
            "not treated; x²/4 to leading order",
            f"largest relative error {small:.1e}; SciPy {scipy_small:.1e}",
            f"x from 1e-8 to 10; at most {SMALL:g}, and SciPy's above 1e-3",
            below(small, SMALL) and found["small"]["probinf, float64"]["not_finite"] == 0 and scipy_small > 1e-3,
        ),
    )


def _slopes(found: Mapping[str, Any]) -> Claim:
    rows = [row["probinf"][part] for row in found["rows"].values() for part in ("order", "argument")]
    worst = [
        max(or_nan(row["probinf"][part]["largest"]) for row in found["rows"].values()) for part in ("order", "argument")
    ]
    return Claim(
        "`jax.grad` gives the derivatives in the argument and in the order.",
        f"a formula in the argument; none in the order ({SOURCE})",
        f"largest errors {worst[0]:.1e} in the order, {worst[1]:.1e} in the argument",
        f"{found['num_points']:,} pairs, central differences of 40 digits; at most {SLOPES:g} of max(1, |derivative|)",
        below(_largest(rows), SLOPES) and _all_finite(rows),
    )


def _fits(found: Mapping[str, Any]) -> tuple[Claim, Claim]:
    rows, densities = found["rows"], found["densities"]
    ours = _worst(row["error_ours"] for row in rows)
    theirs = min(or_nan(row["error_SciPy"]) for row in rows)
    error = _worst(row["ours"] for row in densities)
    missing = sum(row["SciPy"] is None for row in densities)
    return (
        Claim(
            "Von Mises-Fisher distributions are fitted in 2048, 8192 and 32768 dimensions; SciPy's fit fails in each.",
            f"fitted at these dimensions, where SciPy and mpmath fail ({SOURCE})",
            f"largest relative error of the concentration {ours:.1e}; SciPy's smallest {theirs:.2g}",
            f"{len(rows)} data sets whose concentration mpmath knows; ours at most {CONCENTRATION:g}, SciPy's more "
            "than 1 % off everywhere",
            below(ours, CONCENTRATION) and not any(below(row["error_SciPy"], 0.01) for row in rows),
        ),
        Claim(
            "Their log densities are right.",
            f"no under- or overflow ({SOURCE})",
            f"largest absolute error {error:.1e}; SciPy has no finite value in {missing} of {len(densities)} cases",
            f"three points for each, mpmath at 40 digits; at most {DENSITY:g}",
            below(error, DENSITY),
        ),
    )


def _features(found: Mapping[str, Any]) -> Claim:
    fits = [fit for row in found["rows"] for fit in row["fits"]]
    worst = _worst(fit["residual"] for fit in fits)
    failed = sum(not below(abs(or_nan(fit["scipy"]) / fit["concentration"] - 1), 0.01) for fit in fits)
    return Claim(
        "The same holds for features of images.",
        f"ResNet50 features of CIFAR10, where SciPy and mpmath fail ({SOURCE}); its table is not available to us",
        f"A(κ) = R within {worst:.1e}; SciPy's fit is wrong in {failed} of {len(fits)} cases",
        "two pictures, three layers of a fixed convolutional net; A by mpmath at 40 digits; ours at most "
        f"{CONCENTRATION:g}, SciPy's more than 1 % off in each",
        below(worst, CONCENTRATION) and failed == len(fits),
    )


def _speed(found: Mapping[str, Any]) -> Claim:
    ratios = {name: or_nan(row["float64"]["scipy_over_this"]) for name, row in found["rows"].items()}
    return Claim(
        "On a processor they take about the time of SciPy's functions, which fail.",
        f"35 times as fast as SciPy, median, up to 98 ({SOURCE}, C++ on a CPU of theirs)",
        f"{ratios['I']:.2f} times (I) and {ratios['K']:.2f} times (K) SciPy's speed in float64",
        f"median of {found['num_rounds']} calls of {found['num_pairs']:,} pairs in turn; at least "
        + " and ".join(f"{least:g} ({name})" for name, least in LEAST_SPEED.items()),
        all(ratios[name] >= least for name, least in LEAST_SPEED.items()),
    )


def _largest(rows: list[Mapping[str, Any]]) -> float:
    return _worst(row["largest"] for row in rows)


def _all_finite(rows: list[Mapping[str, Any]]) -> bool:
    return all(row["not_finite"] == 0 for row in rows)


def _worst(values: Any) -> float:
    """The largest; inf where one is missing."""
    return max(math.inf if math.isnan(or_nan(value)) else or_nan(value) for value in values)
