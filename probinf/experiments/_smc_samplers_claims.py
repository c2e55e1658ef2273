"""The claims of the experiment on SMC samplers: a pure function of its metrics."""

from collections.abc import Mapping
from typing import Any

from probinf.experiments._claims import Claim
from probinf.experiments._smc_targets import MODE_WEIGHT

LEAST_R_HAT = 1.1  # above it chains disagree by any standard
LARGEST_SWITCHING = 0.01  # share of the chains


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the runs say, each with its rule."""
    found, single, path = metrics["modes"], metrics["chains"], metrics["data"]
    return (
        *_modes(found),
        _chains(single, found),
        _counts(metrics["counts"]),
        _data(path),
        _slope(metrics["variance"]),
    )


def _modes(found: Mapping[str, Any]) -> tuple[Claim, ...]:
    size = f"{found['num_replicates']} runs of {found['num_particles']:,} particles"
    return (
        Claim(
            "Tempered SMC's evidence of a target with two modes in ten dimensions is the exact one.",
            f"log Z = {found['exact']:.4f}, exact",
            f"ratio to it {_number(found['evidence'])}",
            f"mean of {size}; {_rule(found['evidence'])}",
            found["evidence"]["holds"],
        ),
        Claim(
            "Its particles have the modes in their proportions.",
            f"{MODE_WEIGHT}, exact",
            f"{_number(found['weight'])}",
            f"mean of {size}; {_rule(found['weight'])}",
            found["weight"]["holds"],
        ),
        Claim(
            "With the frozen schedule of another run the evidence, and evidence times mode weight, are unbiased.",
            f"ratios to Z: 1 and {MODE_WEIGHT}, exact (Del Moral, Doucet and Jasra 2006)",
            f"{_number(found['frozen'])} and {_number(found['frozen'], 1)}",
            f"means of {size}; {_rule(found['frozen'])}",
            found["frozen"]["holds"],
        ),
    )


def _chains(single: Mapping[str, Any], found: Mapping[str, Any]) -> Claim:
    share, r_hat = single["share"], _or_nan(single["r_hat"])
    return Claim(
        "Single HMC chains cannot tell the weights: each stays in the mode it fell into.",
        f"the mode at 2 has weight {MODE_WEIGHT}; tempered SMC: {_number(found['weight'])}",
        f"{single['switching']} of {single['num_chains']} chains changed mode; share of draws at 2: {_number(share)}; "
        f"largest R-hat {r_hat:.2f}",
        f"at most {100 * LARGEST_SWITCHING:g} % of chains change mode, R-hat at least {LEAST_R_HAT}, and the share "
        f"misses {MODE_WEIGHT} by more than {share['bound']:.1f} standard errors ({_or_nan(share['worst']):.1f})",
        single["switching"] <= LARGEST_SWITCHING * single["num_chains"]
        and r_hat >= LEAST_R_HAT
        and _or_nan(share["worst"]) > share["bound"],
    )


def _counts(found: Mapping[str, Any]) -> Claim:
    rows = found["rows"]
    return Claim(
        "On skewed targets evidence and posterior means are those of quadrature, plainly and waste-free.",
        "quadrature, float64",
        "ratios of evidences " + ", ".join(_number(row) for row in rows),
        f"{found['num_replicates']} runs of {found['num_particles']:,} particles each; largest |z| "
        + ", ".join(f"{_or_nan(row['worst']):.2f}" for row in rows)
        + f" (bound {rows[0]['bound']:.2f} each)",
        all(row["holds"] for row in rows),
    )


def _data(found: Mapping[str, Any]) -> Claim:
    path = found["path"]
    return Claim(
        "Data tempering gives the evidence of every prefix of the data.",
        f"negative binomial predictives, exact; log p(all) = {found['exact'][-1]:.3f}",
        f"ratio for all data {_number(path, -1)}",
        f"{len(path['mean'])} prefixes, {found['num_replicates']} runs of {found['num_particles']:,} particles; "
        f"{_rule(path)}",
        path["holds"],
    )


def _slope(found: Mapping[str, Any]) -> Claim:
    return Claim(
        "The variance of the log evidence is proportional to 1/N.",
        "slope -1 (central limit theorem; Del Moral, Doucet and Jasra 2006)",
        f"{_or_nan(found['slope']):.3f} ± {_or_nan(found['error']):.3f}",
        f"least squares of log variance on log N, N = {', '.join(f'{size:,}' for size in found['sizes'])}, "
        f"{found['num_replicates']} runs each, jackknife errors; within {found['bound']:.1f} standard errors",
        found["agrees"],
    )


def _number(found: Mapping[str, Any], index: int = 0) -> str:
    return f"{_or_nan(found['mean'][index]):.4f} ± {_or_nan(found['standard_error'][index]):.4f}"


def _rule(found: Mapping[str, Any]) -> str:
    return f"largest |z| {_or_nan(found['worst']):.2f} (bound {found['bound']:.2f})"


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
